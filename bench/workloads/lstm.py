"""Workloads of LSTMs and GRUs over random sequences: forward and all gradients, the forward alone, or one step at a time."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.harness.targets import Targets
from bench.workloads.samples import sample


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
    gates: ClassVar[int] = 4
    checked_calls = 1
    memory_bytes = 0

    @property
    def title(self):
        remarks = {
            f"{self.layers} layers": self.layers > 1,
            "bidirectional": self.bidirectional,
            f"proj_size={self.proj_size}": self.proj_size,
            f"lengths {self.shortest}..{self.steps}": self.shortest,
            self.dtype: self.dtype != "float32",
            "forward alone": self.runner == "LstmForward",
            "cell by cell": self.runner == "LstmCell",
        }
        sizes = f"{self.kind} N={self.batch} T={self.steps} C={self.n_in} H={self.hidden}"
        return ", ".join([sizes, *(words for words, holds in remarks.items() if holds)])

    @property
    def tolerance(self):
        """A share of the largest value."""
        return 1e-5 if self.dtype == "float32" else 1e-11

    @property
    def n_out(self):
        """Columns of one direction's y."""
        return self.proj_size or self.hidden

    @property
    def further(self):
        """Shapes of a direction's weights beside w_ih, w_hh and b: of w_proj."""
        return [(self.hidden, self.proj_size)] if self.proj_size else []

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
        columns = sum(
            self.gates * self.hidden * (n_in + self.n_out) + self.hidden * self.proj_size for n_in in self.inputs
        )
        forward = 2 * self.n_rows * columns * (1 + self.bidirectional)
        return forward if self.runner == "LstmForward" else 3 * forward

    def parameters(self):
        """[[(w_ih, w_hh, b), and what else there is, for each direction] for each layer], drawn as PyTorch does."""
        rng = np.random.default_rng(0)

        def draw(*shape):
            return rng.uniform(-1, 1, shape).astype("f4").astype(self.dtype) / np.sqrt(self.hidden).astype(self.dtype)

        def direction(n_in):
            columns = self.gates * self.hidden
            return (
                draw(n_in, columns),
                draw(self.n_out, columns),
                draw(columns),
                *(draw(*shape) for shape in self.further),
            )

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
        """Some values of each array, to be compared."""
        return sample([y, *([] if dx is None else [dx]), *gradients], self.n_rows**-0.5)


@dataclass(frozen=True)
class Gru(Lstm):
    """The same of a GRU with PyTorch's reset gate."""

    runner: str = "Gru"
    kind = "gru"
    gates: ClassVar[int] = 3

    @property
    def further(self):
        """Shapes of a direction's weights beside w_ih, w_hh and b: of b_hn."""
        return [(self.hidden,)]


@dataclass(frozen=True)
class LayerNormLstm(Lstm):
    """The same of an LSTM with layer norm, which other libraries run as a loop over cells."""

    runner: str = "LayerNormLstm"
    kind = "lstm"

    @property
    def title(self):
        return f"{super().title}, layer norm"

    @property
    def further(self):
        """Shapes of a direction's weights beside w_ih, w_hh and b: of gamma_x, gamma_h, gamma_c and beta_c."""
        return [(4 * self.hidden,)] * 2 + [(self.hidden,)] * 2


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
    LayerNormLstm("lstm-layer-norm", *SMALL, target_ratio=3),
    Gru("gru-32", *SMALL, target_ratio=1.3),
    Gru("gru-lengths", *SMALL, shortest=10, target_ratio=5, target_peer="PyTorch"),
]
