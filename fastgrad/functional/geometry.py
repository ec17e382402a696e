"""The geometry of convolution and pooling: checks of images, of sizes in two directions, and the windows that fit into an image."""

from typing import Any

import numpy as np

from fastgrad.core.check import array, contiguous, count

Pair = tuple[int, int]


def images(op: str, x: Any) -> np.ndarray:
    """x as an array (N, H, W, C) with pixels, C-contiguous."""
    x = array(op, "x", x, "(N, H, W, C)", (None, None, None, None))
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have at least one row, column and channel, got {x.shape}")
    return contiguous(x)


def pair(op: str, name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Two integers, vertical and horizontal, from the two or from one for both."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{op}: {name} must be an integer or a pair (vertical, horizontal), got {value!r}")
    return count(op, name, both[0], least), count(op, name, both[1], least)


def windows(
    op: str, name: str, size: Pair, image: Pair, stride: Pair, padding: Any, *, half: bool
) -> tuple[tuple[int, int, int, int], Pair]:
    """(top, left, bottom, right) of the padding, and how many windows of this size there are, down and across.

    padding is an integer, a pair, or "same" for ceil(image / stride) windows. With half it is at most half of size, else less than size.
    """
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"{op}: padding must be an integer, a pair or 'same', got {padding!r}")
        totals = (max(-(-n // s) * s - s + k - n, 0) for n, k, s in zip(image, size, stride, strict=True))
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    else:
        top, left = bottom, right = pair(op, "padding", padding, least=0)
        limits = [k // 2 if half else k - 1 for k in size]
        if top > limits[0] or left > limits[1]:
            raise ValueError(
                f"{op}: padding must be {'at most half of' if half else 'smaller than'} {name} {size}, got {(top, left)}"
            )
    padded = image[0] + top + bottom, image[1] + left + right
    if size[0] > padded[0] or size[1] > padded[1]:
        raise ValueError(f"{op}: {name} must be at most the padded image {padded}, got {size}")
    down, across = ((n - k) // s + 1 for n, k, s in zip(padded, size, stride, strict=True))
    return (top, left, bottom, right), (down, across)
