"""Workloads of the adapters: PyTorch training loops with and without fastgrad, and calls of a small chain from PyTorch and JAX."""

from dataclasses import dataclass

import numpy as np

from bench.workloads.clip import LAYERS, MANY, Update
from bench.workloads.dense import Net
from bench.workloads.lstm import SMALL, Gru, Lstm


@dataclass(frozen=True)
class TorchNet(Net):
    """A training loop of PyTorch, with its own fused Adam, over a model that `accelerate` has changed."""

    kind: str = "torch"

    runner = "TorchStep"
    checked_calls = 3
    # of losses: see Net
    tolerance = 5e-3


@dataclass(frozen=True)
class TorchWholeStep(TorchNet):
    """Such a loop over a model as it is, with fgt.training_step in the place of all five lines."""

    runner = "TorchWholeStep"


@dataclass(frozen=True, kw_only=True)
class Shared(TorchNet):
    """Such a loop on several processes of one thread each, under DistributedDataParallel, which share the rows of a batch."""

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


@dataclass(frozen=True)
class TorchLstm(Lstm):
    """fgt.LSTM in the place of PyTorch's, and with lengths fgt's packing and padding in theirs."""

    runner: str = "TorchLstm"

    kind = "torch"

    @property
    def title(self):
        return f"fgt.LSTM, {super().title}"


@dataclass(frozen=True)
class TorchGru(Gru):
    """fgt.GRU in the place of PyTorch's."""

    runner: str = "TorchGru"

    kind = "torch"

    @property
    def title(self):
        return f"fgt.GRU, {super().title}"


@dataclass(frozen=True, kw_only=True)
class Call(Net):
    """A chain so small that its time is the cost of the call: fastgrad's function, the PyTorch module, the JAX function."""

    kind: str = "call"
    backward: bool = False

    tolerance = 1e-5

    @property
    def runner(self):
        return "CallBack" if self.backward else "Call"

    @property
    def flops(self):
        forward = sum(2 * self.batch * n_in * n_out for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False))
        return forward * (3 if self.backward else 1)

    @property
    def activations(self):
        return [self.activation] * (len(self.sizes) - 2) + ["identity"]

    def dy(self):
        return np.random.default_rng(3).standard_normal((self.batch, self.sizes[-1]), "f4").astype(self.dtype)

    def outcome(self, y, dweights=()):
        return np.concatenate([np.ravel(a) for a in (y, *dweights)])


# microseconds that may come on top of the bare call
MORE = ("PyTorch", 15e-6), ("JAX", 60e-6)
ADAPTERS = [
    TorchNet("torch-784", "accelerated 784-64-64-10 relu, N=128", "mnist28", 128, sizes=(784, 64, 64, 10), target_ratio=2),
    TorchNet("torch-50x256", "accelerated 50 x 256 tanh, N=128", "mnist16", 128, sizes=(256,) * 51 + (10,), activation="tanh",
             target_ratio=2.5),
    TorchWholeStep("torch-step-784", "training_step of 784-64-64-10 relu, N=128", "mnist28", 128, sizes=(784, 64, 64, 10),
                   target_ratio=2.2),
    TorchWholeStep("torch-step-50x256", "training_step of 50 x 256 tanh, N=128, clipped", "mnist16", 128, sizes=(256,) * 51 + (10,),
                   activation="tanh", clip_norm=1.0, target_ratio=1.8),
    Shared("torch-shared", "accelerated 50 x 256 tanh, N=2048, 2 processes of a thread", "mnist16", 2048,
           sizes=(256,) * 51 + (10,), activation="tanh", target_alone=1.7),
    Call("call", "20-10-1 relu, N=32, forward", "breast_cancer", 32, sizes=(20, 10, 1), target_more=MORE),
    Call("call-back", "20-10-1 relu, N=32, forward and backward", "breast_cancer", 32, sizes=(20, 10, 1), backward=True,
         target_more=MORE),
    TorchUpdate("torch-update", LAYERS, target_ratio=1.15),
    TorchUpdate("torch-update-many", MANY, target_ratio=4),
    TorchLstm("torch-lstm", *SMALL, target_ratio=1.4),
    TorchLstm("torch-lstm-packed", *SMALL, shortest=10, target_ratio=6),
    TorchGru("torch-gru", *SMALL, target_ratio=1.3),
]  # fmt: skip
