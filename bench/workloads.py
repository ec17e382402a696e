"""All that is timed: matrix products and LSTMs of random arrays here, nets and images in files of their own.

Every contender draws the same weights and batches from a workload, which knows its operations, bytes and targets too.
"""

from dataclasses import dataclass

import numpy as np

from bench.adapters import ADAPTED
from bench.blocks import BLOCKS
from bench.clipping import CLIPS
from bench.gpu import ON_GPU
from bench.images import CONVS, NORMS
from bench.nets import FITS, FORWARD, STEPS
from bench.targets import Targets
from bench.weights import WEIGHTS


@dataclass(frozen=True)
class Gemm(Targets):
    """out = a @ b; T in the layout marks an operand that is the transposed view of a C-ordered array."""

    m: int
    k: int
    n: int
    layout: str = "NN"
    threads: int | None = None  # all
    dtype: str = "float32"

    kind = "gemm"
    runner = "Gemm"
    checked_calls = 1
    memory_bytes = 0

    @property
    def name(self):
        return f"gemm-{self.m}x{self.k}x{self.n}-{self.layout}-{self.threads or 'all'}"

    @property
    def title(self):
        return f"gemm {self.m}x{self.k}x{self.n} {self.layout}" + (", one thread" if self.threads == 1 else "")

    @property
    def tolerance(self):
        """Of an element near 0, as a share of the largest: rounding grows with the root of k."""
        return 1e-6 * self.k**0.5

    @property
    def flops(self):
        return 2 * self.m * self.k * self.n

    def operands(self):
        rng = np.random.default_rng(0)

        def draw(rows, columns, transposed):
            if transposed == "T":
                return rng.standard_normal((columns, rows), "f4").astype(self.dtype).T
            return rng.standard_normal((rows, columns), "f4").astype(self.dtype)

        return draw(self.m, self.k, self.layout[0]), draw(self.k, self.n, self.layout[1])


@dataclass(frozen=True)
class Lstm(Targets):
    """An LSTM from random sequences to y and, from a random dy, the gradients of the sequences and of all parameters."""

    name: str
    batch: int
    steps: int
    n_in: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    shortest: int | None = None  # lengths are drawn from here up to steps; all are steps if None
    dtype: str = "float32"
    runner: str = "Lstm"  # or "LstmForward", y alone; or "LstmCell", a step at a time from Python
    threads: int | None = None  # all

    kind = "lstm"
    checked_calls = 1
    memory_bytes = 0

    @property
    def title(self):
        said = {
            f"{self.layers} layers": self.layers > 1,
            "bidirectional": self.bidirectional,
            f"proj_size={self.proj_size}": self.proj_size,
            f"lengths {self.shortest}..{self.steps}": self.shortest,
            self.dtype: self.dtype != "float32",
            "forward alone": self.runner == "LstmForward",
            "cell by cell": self.runner == "LstmCell",
        }
        sizes = f"lstm N={self.batch} T={self.steps} C={self.n_in} H={self.hidden}"
        return ", ".join([sizes, *(words for words, holds in said.items() if holds)])

    @property
    def tolerance(self):
        """A share of the largest value."""
        return 1e-5 if self.dtype == "float32" else 1e-11

    @property
    def n_out(self):
        """Columns of one direction's y."""
        return self.proj_size or self.hidden

    @property
    def inputs(self):
        """Columns that each layer takes."""
        return [self.n_in, *[self.n_out * (1 + self.bidirectional)] * (self.layers - 1)]

    @property
    def n_rows(self):
        """Steps of all sequences, without padding."""
        return self.batch * self.steps if self.shortest is None else int(self.lengths().sum())

    @property
    def flops(self):
        """The gradients of a product cost two of its size."""
        columns = sum(4 * self.hidden * (n_in + self.n_out) + self.hidden * self.proj_size for n_in in self.inputs)
        forward = 2 * self.n_rows * columns * (1 + self.bidirectional)
        return forward if self.runner == "LstmForward" else 3 * forward

    def parameters(self):
        """[[(w_ih, w_hh, b) or (w_ih, w_hh, b, w_proj) for each direction] for each layer], drawn as PyTorch does."""
        rng = np.random.default_rng(0)

        def draw(*shape):
            return rng.uniform(-1, 1, shape).astype("f4").astype(self.dtype) / np.sqrt(self.hidden).astype(self.dtype)

        def direction(n_in):
            columns = 4 * self.hidden
            arrays = draw(n_in, columns), draw(self.n_out, columns), draw(columns)
            return (*arrays, draw(self.hidden, self.proj_size)) if self.proj_size else arrays

        return [[direction(n_in) for _ in range(1 + self.bidirectional)] for n_in in self.inputs]

    def sequences(self):
        """x (N, T, C), and dy of y's shape."""
        rng = np.random.default_rng(1)
        columns = self.n_in, self.n_out * (1 + self.bidirectional)
        return [rng.standard_normal((self.batch, self.steps, n), "f4").astype(self.dtype) for n in columns]

    def lengths(self):
        """(N,), or None where all sequences are full."""
        if self.shortest is not None:
            return np.random.default_rng(2).integers(self.shortest, self.steps, self.batch, endpoint=True)

    def mask(self):
        """(N, T, 1): 1 in a sequence, 0 past its end."""
        return (np.arange(self.steps) < self.lengths()[:, None]).astype(self.dtype)[:, :, None]

    def outcome(self, y, dx=None, gradients=()):
        """Some values of each array, to be compared: the parameters' sum over all steps, and are scaled to the others' size."""
        scale = self.n_rows**-0.5
        arrays = [(y, 1), *([] if dx is None else [(dx, 1)]), *((array, scale) for array in gradients)]
        # an odd stride does not stay in one column
        return np.concatenate([array.flat[:: array.size // 100 | 1] * factor for array, factor in arrays])


@dataclass(frozen=True)
class TorchLstm(Lstm):
    """fgt.LSTM in the place of PyTorch's, and with lengths fgt's packing and padding in theirs."""

    runner: str = "TorchLstm"

    kind = "torch"

    @property
    def title(self):
        return f"fgt.LSTM, {super().title}"


@dataclass(frozen=True)
class GpuLstm(Lstm):
    kind = "cuda"


GEMMS = [
    *(Gemm(*shape, layout, 1, target_share=0.9 if layout == "NN" else 0.81)
      for shape in ((128, 784, 64), (256, 1024, 1024), (1024, 1024, 1024)) for layout in ("NN", "NT", "TN", "TT")),
    Gemm(128, 784, 64, target_share=0.8),
    Gemm(1024, 1024, 1024, target_share=0.85),
    Gemm(2048, 2048, 2048, target_share=0.85),
    *(Gemm(*shape, target_ratio=1) for shape in ((127, 785, 65), (33, 100, 10), (1, 784, 64), (128, 64, 10))),
]  # fmt: skip
SMALL = 32, 100, 64, 128
LSTMS = [
    Lstm("lstm-32", *SMALL, target_ratio=1.5, target_share=0.75),
    Lstm("lstm-64", 64, 28, 28, 128, layers=2, target_ratio=1.5),
    Lstm("lstm-128", 128, 64, 256, 512, layers=2, target_ratio=1.4, target_share=0.8),
    Lstm("lstm-one", 1, 512, 32, 64, target_ratio=3),
    Lstm("lstm-lengths", *SMALL, shortest=10, target_ratio=8, target_peer="PyTorch", target_padded=0.7),
    Lstm("lstm-float64", *SMALL, dtype="float64", target_ratio=4, target_peer="PyTorch"),
    Lstm("lstm-cell", *SMALL, runner="LstmCell", target_ratio=5, target_peer="PyTorch"),
    Lstm("lstm-bidirectional", *SMALL, bidirectional=True, target_ratio=1.5),
    Lstm("lstm-projected", *SMALL, proj_size=64, target_ratio=4, target_peer="PyTorch"),
    Lstm("lstm-forward", *SMALL, runner="LstmForward", target_ratio=1.3),
]
TORCH = [
    *ADAPTED,
    TorchLstm("torch-lstm", *SMALL, target_ratio=1.4),
    TorchLstm("torch-lstm-packed", *SMALL, shortest=10, target_ratio=6),
]
CUDA = [*ON_GPU, GpuLstm("cuda-lstm", 64, 100, 64, 256)]
WORKLOADS = {
    workload.name: workload
    for workload in (*STEPS, *FITS, *BLOCKS, FORWARD, *GEMMS, *LSTMS, *CONVS, *NORMS, *CLIPS, *WEIGHTS, *TORCH, *CUDA)
}
