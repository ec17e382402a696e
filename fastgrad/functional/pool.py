"""Max pooling and average pooling of images: fg.max_pool2d, fg.avg_pool2d and fg.global_avg_pool2d."""

from collections.abc import Callable

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional import geometry
from fastgrad.functional.geometry import Padding, Pair

Pads = tuple[int, int, int, int]
Result = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def max_pool2d(
    x: np.ndarray,
    size: int | Pair,
    *,
    stride: int | Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
) -> Result:
    """The largest value of every window of images.

    Args:
        x: The images (N, H, W, C), float32 or float64.
        size: The window in pixels (kh, kw), vertical and horizontal; an integer is both.
        stride: Steps of the window in pixels (sh, sw), or an integer; None is size.
        padding: Pixels on either side, which are never the largest, at most half of size: an integer, a pair or ((top,
            bottom), (left, right)); "valid" for none; or "same", as of fg.conv2d.
        ceil_mode: Take in a last window that ends past the padding, if it begins in the image or the padding before it,
            as PyTorch does.

    Returns:
        (y, backward). y is (N, H', W', C) with H' = (H + top + bottom - kh) // sh + 1, or with ceil_mode one more where
        that leaves pixels, W' likewise; it is NaN where the window holds a NaN. backward(dy) returns dx: the gradient
        goes to the first of equal values, in row order. It reads x and y: write to neither before it.

    Raises:
        ValueError: A shape or an option is out of its range, or the window is larger than the padded image.
        TypeError: x is no array of float32 or float64, or an option no integer.

    Example:
        >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
        >>> y, backward = fg.max_pool2d(x, 2)
        >>> y[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    op = "max_pool2d"
    x, size, stride, pads, y = checked_windows(op, x, size, stride, padding, ceil_mode)
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
    padding: Padding = 0,
    ceil_mode: bool = False,
    include_pad: bool = True,
) -> Result:
    """The mean of every window of images.

    Args:
        x: The images (N, H, W, C), float32 or float64.
        size: The window in pixels (kh, kw), vertical and horizontal; an integer is both.
        stride: Steps of the window in pixels (sh, sw), or an integer; None is size.
        padding: Zeros on either side in pixels, at most half of size: an integer, a pair or ((top, bottom), (left,
            right)); "valid" for none; or "same", as of fg.conv2d.
        ceil_mode: Take in a last window that ends past the padding, if it begins in the image or the padding before it,
            as PyTorch does. What lies past the padding is no part of the mean.
        include_pad: Count the padding as zeros, as PyTorch does; False leaves it out of the mean, as Keras and ONNX do.

    Returns:
        (y, backward). y is (N, H', W', C) as of max_pool2d; backward(dy) returns dx.

    Raises:
        ValueError: A shape or an option is out of its range, or the window is larger than the padded image.
        TypeError: x is no array of float32 or float64, or an option no integer.

    Example:
        >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
        >>> y, backward = fg.avg_pool2d(x, 2)
        >>> y[0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    op = "avg_pool2d"
    x, size, stride, pads, y = checked_windows(op, x, size, stride, padding, ceil_mode)
    return y, mean(op, x, size, stride, pads, include_pad, y, y)


def global_avg_pool2d(x: np.ndarray) -> Result:
    """The mean of every channel over each image.

    Args:
        x: The images (N, H, W, C), float32 or float64.

    Returns:
        (y, backward). y is (N, C); backward(dy) returns dx (N, H, W, C).

    Raises:
        ValueError: x has no row, column or channel, or not 4 axes.
        TypeError: x is no array of float32 or float64.

    Example:
        >>> y, backward = fg.global_avg_pool2d(np.ones((2, 4, 4, 3)))
        >>> y.shape, backward(np.ones((2, 3)))[0, 0, 0].tolist()
        ((2, 3), [0.0625, 0.0625, 0.0625])
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


def checked_windows(
    op: str, x: np.ndarray, size: int | Pair, stride: int | Pair | None, padding: Padding, ceil_mode: bool
) -> tuple[np.ndarray, Pair, Pair, Pads, np.ndarray]:
    """The checked arguments (x, size, stride, pads) and an uninitialised array y for the result."""
    x = geometry.images(op, x)
    n, *image, channels = x.shape
    size = geometry.pair(op, "size", size)
    stride = size if stride is None else geometry.pair(op, "stride", stride)
    windows = size, (image[0], image[1]), stride, padding
    pads, image_out = geometry.windows(op, "size", *windows, half=True, ceil=bool(ceil_mode))
    return x, size, stride, pads, empty((n, *image_out, channels), x)
