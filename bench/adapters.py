"""PyTorch loops with fastgrad in them, beside the same loops as they were."""

from dataclasses import dataclass

from bench.clipping import LAYERS, MANY, Update
from bench.nets import Net


@dataclass(frozen=True)
class TorchNet(Net):
    """A loop of PyTorch's, its own fused Adam included, over a model that `accelerate` was given."""

    kind: str = "torch"

    runner = "TorchStep"
    checked_calls = 3
    # of losses: see Net
    tolerance = 5e-3


@dataclass(frozen=True, kw_only=True)
class Shared(TorchNet):
    """Such a loop on several processes of a thread each, under DistributedDataParallel: each has every so many rows of a batch."""

    threads: int = 1
    processes: int = 2

    runner = "TorchShared"

    @property
    def flops(self):
        """Of one process, since the limit is measured on its threads."""
        return super().flops // self.processes


@dataclass(frozen=True)
class TorchUpdate(Update):
    """fgt.clip_grad_norm_ and fgt.Adam."""

    kind = "torch"
    runner = "TorchUpdate"


ADAPTED = [
    TorchNet("torch-784", "accelerated 784-64-64-10 relu, N=128", "mnist28", 128, sizes=(784, 64, 64, 10), target_ratio=2),
    TorchNet("torch-50x256", "accelerated 50 x 256 tanh, N=128", "mnist16", 128, sizes=(256,) * 51 + (10,), activation="tanh",
             target_ratio=2.5),
    Shared("torch-shared", "accelerated 50 x 256 tanh, N=2048, 2 processes of a thread", "mnist16", 2048,
           sizes=(256,) * 51 + (10,), activation="tanh", target_alone=1.7),
    TorchUpdate("torch-update", LAYERS, target_ratio=1.15),
    TorchUpdate("torch-update-many", MANY, target_ratio=4),
]  # fmt: skip
