"""Max pooling and average pooling of images: fg.max_pool2d, fg.avg_pool2d and fg.global_avg_pool2d."""

from collections.abc import Callable

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional import geometry
from fastgrad.functional.geometry import Pair

Pads = tuple[int, int, int, int]
Result = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def max_pool2d(
    x: np.ndarray, size: int | Pair, *, stride: int | Pair | None = None, padding: int | Pair | str = 0
) -> Result:
    """The largest value of every window of images x (N, H, W, C); NaN where the window holds one.

    size and stride, which is size if not given, are an integer or a pair, vertical and horizontal. So is padding, which is never
    the largest; "same" pads as conv2d does.

    Returns (y, backward), y (N, H', W', C) with H' = (H + top + bottom - kh) // sh + 1, W' likewise; backward(dy) returns dx.
    A gradient goes to the first of equal values, in row order. Backward reads x and y, so neither may be written before it.
    Raises TypeError and ValueError, naming the argument.
    """
    op = "max_pool2d"
    x, size, stride, pads, y = checked(op, x, size, stride, padding)
    ops = kernels(x)
    ops.max_pool2d_forward(x, size, stride, pads, y)

    def backward(dy: np.ndarray) -> np.ndarray:
        dy, dx = check.upstream(op, dy, y), empty(x.shape, x)
        ops.max_pool2d_backward(dy, x, y, size, stride, pads, dx)
        return dx

    return y, backward


def avg_pool2d(
    x: np.ndarray,
    size: int | Pair,
    *,
    stride: int | Pair | None = None,
    padding: int | Pair | str = 0,
    include_pad: bool = True,
) -> Result:
    """The mean of every window of images x (N, H, W, C); arguments as of max_pool2d.

    The padding counts as zeros, as in PyTorch; without include_pad it does not count, as in Keras and ONNX.

    Returns (y, backward), y (N, H', W', C); backward(dy) returns dx.
    Raises TypeError and ValueError, naming the argument.
    """
    op = "avg_pool2d"
    x, size, stride, pads, y = checked(op, x, size, stride, padding)
    return y, mean(op, x, size, stride, pads, include_pad, y, y)


def global_avg_pool2d(x: np.ndarray) -> Result:
    """y (N, C), the mean of every channel over each of the images x (N, H, W, C).

    Returns (y, backward); backward(dy) returns dx. Raises TypeError and ValueError, naming the argument.
    """
    op = "global_avg_pool2d"
    x = geometry.images(op, x)
    n, *image, channels = x.shape
    size = image[0], image[1]
    y = empty((n, channels), x)
    return y, mean(op, x, size, size, (0, 0, 0, 0), True, y[:, None, None], y)


def mean(
    op: str,
    x: np.ndarray,
    size: Pair,
    stride: Pair,
    pads: Pads,
    include_pad: bool,
    y: np.ndarray,
    result: np.ndarray,
) -> Callable[[np.ndarray], np.ndarray]:
    """Writes the means to y (N, H', W', C) and returns backward, whose dy is like the result."""
    ops = kernels(x)
    ops.avg_pool2d_forward(x, size, stride, pads, bool(include_pad), y)
    shape = x.shape

    def backward(dy: np.ndarray) -> np.ndarray:
        dy, dx = check.upstream(op, dy, result).reshape(y.shape), empty(shape, y)
        ops.avg_pool2d_backward(dy, size, stride, pads, bool(include_pad), dx)
        return dx

    return backward


def checked(
    op: str, x: np.ndarray, size: int | Pair, stride: int | Pair | None, padding: int | Pair | str
) -> tuple[np.ndarray, Pair, Pair, Pads, np.ndarray]:
    """The checked arguments (x, size, stride, pads) and an uninitialised array y for the result."""
    x = geometry.images(op, x)
    n, *image, channels = x.shape
    size = geometry.pair(op, "size", size)
    stride = size if stride is None else geometry.pair(op, "stride", stride)
    pads, image_out = geometry.windows(op, "size", size, (image[0], image[1]), stride, padding, half=True)
    return x, size, stride, pads, empty((n, *image_out, channels), x)
