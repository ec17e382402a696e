"""Workloads of dense chains: training steps, forward passes, and epochs of scikit-learn's MLPClassifier. Training is the base class of the
workloads of all nets.
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np

from bench.harness.targets import Targets
from bench.workloads.data import DATA


@dataclass(frozen=True)
class Training(Targets):
    """A net on data: what the workloads of all nets share."""

    name: str
    title: str
    data: str  # a key of DATA
    batch: int
    _: KW_ONLY
    loss: str = "cross_entropy"
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0  # of SGD
    clip_norm: float | None = None
    dtype: str = "float32"
    threads: int | None = None  # all

    def batches(self):
        """[(x, y), ...]: y are int64 labels (N,), or 0 and 1 as floats (N, 1) for binary cross-entropy."""
        x, y = DATA[self.data]()
        x = x.astype("f4").astype(self.dtype)
        y = y.astype(self.dtype)[:, None] if self.loss == "binary_cross_entropy" else y.astype("i8")
        order = np.random.default_rng(1).permutation(len(x))
        starts = range(0, len(x) - self.batch + 1, self.batch)
        return [(x[order[i : i + self.batch]], y[order[i : i + self.batch]]) for i in starts]


@dataclass(frozen=True)
class Net(Training):
    """A training step (forward, loss, backward, clipping, optimiser) of a dense chain, or its forward alone."""

    sizes: tuple[int, ...]
    activation: str = "relu"
    kind: str = "step"  # or "forward"

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


@dataclass(frozen=True)
class Fit(Net):
    """Epochs of scikit-learn's MLPClassifier from its own first weights; the losses of all are compared."""

    kind: str = "fit"
    epochs: int = 5

    @property
    def flops(self):
        return super().flops * self.epochs * len(self.rows()[1]) // self.batch

    def rows(self):
        """x (N, C) and class numbers."""
        x, y = DATA[self.data]()
        return x.astype("f4").astype(self.dtype), y

    def settings(self):
        """Parameters of the classifier."""
        sizes = self.sizes[1:-1]
        return {"hidden_layer_sizes": sizes, "batch_size": self.batch, "max_iter": self.epochs, "random_state": 0}


STEPS = [
    Net("step-20", "step 20-10-1 relu, N=32", "breast_cancer", 32, (20, 10, 1), loss="binary_cross_entropy",
        target_ratio=3),
    Net("step-784", "step 784-64-64-10 relu, N=128", "mnist28", 128, (784, 64, 64, 10), target_ratio=2.5,
        target_health=0.03),
    Net("step-100", "step 100-100-100-10 relu, N=32, clipped", "mnist10", 32, (100, 100, 100, 10), clip_norm=1.0,
        target_ratio=3.5),
    Net("step-50x256", "step 50 x 256 tanh, N=128, clipped", "mnist16", 128, (256,) * 51 + (10,), activation="tanh",
        clip_norm=1.0, target_ratio=1.7, target_health=0.03),
    Net("step-1024", "step 1024-4096-4096-1000 relu, N=256", "mnist32", 256, (1024, 4096, 4096, 1000), target_ratio=2,
        target_health=0.03),
    Net("step-xor", "step 2-1 on XOR, plain SGD, N=4", "xor", 4, (2, 1), loss="binary_cross_entropy", optimizer="sgd",
        lr=0.1),
]  # fmt: skip
FITS = [
    Fit("fit-digits", "MLPClassifier 64-100-10 relu, digits, N=200, 5 epochs", "digits", 200, sizes=(64, 100, 10),
        target_ratio=8),
    Fit("fit-mnist", "MLPClassifier 784-100-10 relu, MNIST-5000, N=200, 5 epochs", "mnist28", 200, sizes=(784, 100, 10),
        target_ratio=8),
]  # fmt: skip
FORWARD = Net("forward-784", "forward 784-64-64-10 relu, N=1", "mnist28", 1, (784, 64, 64, 10), kind="forward",
              target_over_limit=4e-6)  # fmt: skip
