"""Pooling layers of images (N, H, W, C): MaxPool2d, AvgPool2d, GlobalAvgPool2d; and Flatten, which makes rows of images."""

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import copied
from fastgrad.core.random import generator
from fastgrad.functional import geometry
from fastgrad.functional.geometry import Pair
from fastgrad.functional.pool import avg_pool2d, global_avg_pool2d, max_pool2d
from fastgrad.nn.context import Backward
from fastgrad.nn.model import Model


class ParameterFreeLayer(Model):
    """A layer of images without parameters, of any dtype."""

    images = True
    n_in = None
    n_out: int | None = None

    def __init__(self) -> None:
        super().__init__({}, "float32", None)
        self._start(generator(None))

    def _draw(self, rng: np.random.Generator) -> None:
        """There is nothing to draw."""


class MaxPool2d(ParameterFreeLayer):
    """The largest value of every window; see fg.max_pool2d."""

    keeps = True

    def __init__(self, size: int | Pair, *, stride: int | Pair | None = None, padding: int | Pair | str = 0) -> None:
        super().__init__()
        op = type(self).__name__
        self.size = geometry.pair(op, "size", size)
        self.stride = self.size if stride is None else geometry.pair(op, "stride", stride)
        self.padding = padding
        geometry.windows(op, "size", self.size, self.size, self.stride, padding, half=True)

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        return max_pool2d(x, self.size, stride=self.stride, padding=self.padding)


class AvgPool2d(MaxPool2d):
    """The mean of every window; see fg.avg_pool2d."""

    def __init__(
        self,
        size: int | Pair,
        *,
        stride: int | Pair | None = None,
        padding: int | Pair | str = 0,
        include_pad: bool = True,
    ) -> None:
        super().__init__(size, stride=stride, padding=padding)
        self.include_pad = bool(include_pad)

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        return avg_pool2d(x, self.size, stride=self.stride, padding=self.padding, include_pad=self.include_pad)


class GlobalAvgPool2d(ParameterFreeLayer):
    """Rows (N, C), the mean of every channel over each image; see fg.global_avg_pool2d."""

    keeps, pools = True, True

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        return global_avg_pool2d(x)


class Flatten(ParameterFreeLayer):
    """Rows (N, H W C) of images, a copy; n_out is their length where it is to be checked, or to be known as the end of a model."""

    pools = True

    def __init__(self, n_out: int | None = None) -> None:
        super().__init__()
        self.n_out = None if n_out is None else check.count(type(self).__name__, "n_out", n_out)

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        op = type(self).__name__
        x = geometry.images(op, x)
        n, height, width, channels = x.shape
        if self.n_out not in (None, length := height * width * channels):
            raise ValueError(f"{op}: n_out must be H W C = {length} of images {x.shape}, got {self.n_out}")
        y, shape = copied(x).reshape(n, length), x.shape
        return y, lambda dy: copied(check.upstream(op, dy, y)).reshape(shape)
