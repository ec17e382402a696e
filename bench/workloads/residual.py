"""Workloads of residual nets: training steps. A net is a tuple of layer descriptions, which each contender builds in its library."""

import math
from dataclasses import dataclass

import numpy as np

from bench.workloads.dense import Training


@dataclass(frozen=True)
class Layer:
    stride = 1
    relu = False

    @property
    def first(self):
        """What the input comes to."""
        return self

    def parameters(self, rng):
        return []

    def statistics(self):
        return []

    def products(self, side):
        """Multiplications of one image, side x side, or row in the forward."""
        return 0


@dataclass(frozen=True)
class Dense(Layer):
    n_in: int
    n_out: int

    def parameters(self, rng):
        """w (C, K), he_uniform, and b."""
        limit = np.sqrt(6 / self.n_in)
        return [rng.uniform(-limit, limit, (self.n_in, self.n_out)), np.zeros(self.n_out)]

    def products(self, side):
        return self.n_in * self.n_out


@dataclass(frozen=True)
class Conv(Layer):
    """Without a bias; padded so that stride 1 keeps the image's size."""

    n_in: int
    n_out: int
    size: int = 3
    stride: int = 1

    @property
    def padding(self):
        return self.size // 2

    def parameters(self, rng):
        """w (kh, kw, C, K), he_normal."""
        shape = self.size, self.size, self.n_in, self.n_out
        return [rng.standard_normal(shape) * np.sqrt(2 / (self.size**2 * self.n_in))]

    def products(self, side):
        return (side // self.stride) ** 2 * self.size**2 * self.n_in * self.n_out


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Momentum 0.1 towards the unbiased variance, eps 1e-5."""

    n: int
    relu: bool = True
    images: bool = True  # or rows

    def parameters(self, rng):
        """gamma and beta."""
        return [np.ones(self.n), np.zeros(self.n)]

    def statistics(self):
        """The running mean and variance."""
        return [np.zeros(self.n), np.ones(self.n)]


@dataclass(frozen=True)
class Mean(Layer):
    """Of each image: rows (N, C)."""


@dataclass(frozen=True)
class Residual(Layer):
    """body(x) + shortcut(x), and relu where said; a shortcut of no layers is x itself."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    relu: bool = False

    @property
    def first(self):
        return self.body[0].first

    @property
    def stride(self):
        return math.prod(layer.stride for layer in self.body)

    def parameters(self, rng):
        return [array for layer in (*self.body, *self.shortcut) for array in layer.parameters(rng)]

    def statistics(self):
        return [array for layer in (*self.body, *self.shortcut) for array in layer.statistics()]

    def products(self, side):
        return products(self.body, side) + products(self.shortcut, side)


def products(layers, side):
    total = 0
    for layer in layers:
        total += layer.products(side)
        side //= layer.stride
    return total


@dataclass(frozen=True)
class Blocks(Training):
    """A training step of a residual net: forward, loss, backward, clipping, optimiser, running statistics."""

    layers: tuple[Layer, ...]
    target_memory: float | None = None  # PyTorch's peak over fastgrad's

    kind = "block"
    runner = "Blocks"
    checked_calls = 3
    tolerance = 5e-3  # as of dense chains; and Keras moves the running variance towards the biased one
    memory_bytes = 0

    @property
    def flops(self):
        """The gradients of a product cost two of its size; the data have no gradient."""
        return 2 * self.batch * (3 * products(self.layers, SIDE) - self.layers[0].first.products(SIDE))

    def parameters(self):
        """[array, ...] in the order of the layers, a shortcut's after its body's."""
        rng = np.random.default_rng(0)
        arrays = [array for layer in self.layers for array in layer.parameters(rng)]
        return [array.astype("f4").astype(self.dtype) for array in arrays]

    def statistics(self):
        """[running mean, running variance, ...] that batch norms start from."""
        return [array.astype(self.dtype) for layer in self.layers for array in layer.statistics()]

    def outcome(self, loss, statistics):
        """The loss and some of the running statistics, so few that the answer keeps all."""
        statistics = np.concatenate(list(statistics))
        return np.append(statistics[:: -(-statistics.size // 332)], loss)


def version_1(n_in, n_out, stride=1):
    """He et al. 2015, figure 2."""
    body = Conv(n_in, n_out, 3, stride), BatchNorm(n_out), Conv(n_out, n_out), BatchNorm(n_out, relu=False)
    shortcut = () if (n_in, stride) == (n_out, 1) else (Conv(n_in, n_out, 1, stride), BatchNorm(n_out, relu=False))
    return Residual(body, shortcut, relu=True)


def resnet_20():
    """He et al. 2015, 4.2, with projections: fg.nn.ResNet(3, 10, [3, 3, 3], 16, stem="3x3")."""
    stages = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    blocks = [block for n_in, n, stride in stages for block in (version_1(n_in, n, stride), *[version_1(n, n)] * 2)]
    return Conv(3, 16), BatchNorm(16), *blocks, Mean(), Dense(64, 10)


SIDE = 32  # of the images
PRE_ACTIVATION = Residual((BatchNorm(256, images=False), Dense(256, 256)) * 2)
MOMENTUM = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
BLOCKS = [
    Blocks("block-dense", "4 dense blocks of 256, N=128, clipped", "mnist16", 128,
           (*[PRE_ACTIVATION] * 4, Dense(256, 10)), clip_norm=1.0, target_ratio=1.8),
    Blocks("block-conv", "block of two 3x3 convs 64 to 64, 32x32, N=32", "noise64", 32,
           (version_1(64, 64), Mean(), Dense(64, 10)), **MOMENTUM, target_ratio=1.25, target_peer="PyTorch"),
    Blocks("resnet-20", "ResNet-20, 32x32, N=32", "noise3", 32, resnet_20(), **MOMENTUM, target_ratio=1.4,
           target_peer="PyTorch", target_memory=1),
]  # fmt: skip
