"""Workloads for a GPU: those of the other files in larger sizes, of kind "cuda"."""

from dataclasses import dataclass

from bench.workloads.batch_norm import BatchNorm
from bench.workloads.clip import LAYERS, MANY, Update
from bench.workloads.dense import Net
from bench.workloads.lstm import Lstm
from bench.workloads.residual import MOMENTUM, Blocks, Dense, Mean, version_1


@dataclass(frozen=True, kw_only=True)
class GpuNet(Net):
    """A training step."""

    kind: str = "cuda"

    runner = "Step"
    checked_calls = 3
    tolerance = 5e-3


@dataclass(frozen=True)
class GpuBlocks(Blocks):
    kind = "cuda"


@dataclass(frozen=True)
class GpuBatchNorm(BatchNorm):
    kind = "cuda"


@dataclass(frozen=True)
class GpuUpdate(Update):
    kind = "cuda"


@dataclass(frozen=True)
class GpuLstm(Lstm):
    kind = "cuda"


IMAGES = 128, 56, 56, 64
CUDA = [
    GpuNet("cuda-step", "step 784-512-512-10 relu, N=256, clipped", "mnist28", 256, sizes=(784, 512, 512, 10),
           clip_norm=1.0),
    GpuBlocks("cuda-block", "block of two 3x3 convs 64 to 64, 32x32, N=64", "noise64", 64,
              (version_1(64, 64), Mean(), Dense(64, 10)), **MOMENTUM),
    GpuBatchNorm("cuda-norm", IMAGES),
    GpuBatchNorm("cuda-norm-add", IMAGES, adds=True),
    GpuUpdate("cuda-update", LAYERS),
    GpuUpdate("cuda-update-many", MANY),
    GpuLstm("cuda-lstm", 64, 100, 64, 256),
]  # fmt: skip
