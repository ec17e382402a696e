"""Pooling layers of images (N, H, W, C): MaxPool2d, AvgPool2d, GlobalAvgPool2d; and Flatten, which makes rows of images."""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import copy_of
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional import geometry
from fastgrad.functional.geometry import Padding, Pair
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


@foreign_keywords
class MaxPool2d(ParameterFreeLayer):
    """The largest value of every window of images, as fg.max_pool2d.

    x is (N, H, W, C) and y (N, H', W', C), of either dtype.

    Args:
        size: The window in pixels (kh, kw), vertical and horizontal; an integer is both.
        stride: Steps of the window in pixels (sh, sw), or an integer; None is size.
        padding: Pixels on either side, which are never the largest, at most half of size: an integer, a pair or ((top,
            bottom), (left, right)); "valid" for none; or "same", as of fg.conv2d.
        ceil_mode: Take in a last window that ends past the padding, if it begins in the image or the padding before it,
            as PyTorch does.

    Raises:
        ValueError: A number is out of its range.
        TypeError: A number is no integer.

    Example:
        >>> fg.nn.MaxPool2d(2).predict(np.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """

    keeps_width = True

    def __init__(
        self,
        size: int | Pair,
        *,
        stride: int | Pair | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.size = geometry.pair(op, "size", size)
        self.stride = self.size if stride is None else geometry.pair(op, "stride", stride)
        self.padding, self.ceil_mode = padding, bool(ceil_mode)
        geometry.windows(op, "size", self.size, self.size, self.stride, padding, half=True)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "stride": None if self.stride == self.size else self.stride}

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        return max_pool2d(x, self.size, stride=self.stride, padding=self.padding, ceil_mode=self.ceil_mode)


@foreign_keywords
class AvgPool2d(MaxPool2d):
    """The mean of every window of images, as fg.avg_pool2d.

    x is (N, H, W, C) and y (N, H', W', C), of either dtype.

    Args:
        size: The window in pixels (kh, kw), vertical and horizontal; an integer is both.
        stride: Steps of the window in pixels (sh, sw), or an integer; None is size.
        padding: Zeros on either side in pixels, at most half of size: an integer, a pair or ((top, bottom), (left,
            right)); "valid" for none; or "same", as of fg.conv2d.
        ceil_mode: Take in a last window that ends past the padding, if it begins in the image or the padding before it,
            as PyTorch does. What lies past the padding is no part of the mean.
        include_pad: Count the padding as zeros, as PyTorch does; False leaves it out of the mean, as Keras and ONNX do.

    Raises:
        ValueError: A number is out of its range.
        TypeError: A number is no integer.

    Example:
        >>> fg.nn.AvgPool2d(2).predict(np.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """

    def __init__(
        self,
        size: int | Pair,
        *,
        stride: int | Pair | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        include_pad: bool = True,
    ) -> None:
        super().__init__(size, stride=stride, padding=padding, ceil_mode=ceil_mode)
        self.include_pad = bool(include_pad)

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        windows: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "ceil_mode": self.ceil_mode}
        return avg_pool2d(x, self.size, **windows, include_pad=self.include_pad)


@foreign_keywords
class GlobalAvgPool2d(ParameterFreeLayer):
    """The mean of every channel over each image, as fg.global_avg_pool2d.

    x is (N, H, W, C) and y (N, C), of either dtype.

    Example:
        >>> fg.nn.GlobalAvgPool2d().predict(np.ones((2, 4, 4, 3))).shape
        (2, 3)
    """

    keeps_width, pools = True, True

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        return global_avg_pool2d(x)


@foreign_keywords
class Flatten(ParameterFreeLayer):
    """Images as rows.

    x is (N, H, W, C) and y (N, H W C), a copy, of either dtype.

    Args:
        n_out: H W C, where that is to be checked, or to be known as the number of outputs of a model; None for any.

    Raises:
        ValueError: n_out is out of its range; and in a forward, images are of another size.
        TypeError: n_out is no integer.

    Example:
        >>> fg.nn.Flatten().predict(np.ones((2, 4, 4, 3))).shape
        (2, 48)
    """

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
        y, shape = copy_of(x).reshape(n, length), x.shape
        return y, lambda dy: copy_of(check.upstream(op, dy, y)).reshape(shape)
