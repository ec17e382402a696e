"""The geometry of convolution and pooling: checks of images, of sizes in two directions, and the windows that fit into an image."""

from typing import Any

import numpy as np

from fastgrad.core.check import array, contiguous, count

Pair = tuple[int, int]
# on each side, of both directions or of the four sides
Padding = int | tuple[int | Pair, int | Pair] | str
PADDINGS = "an integer, a pair (vertical, horizontal), ((top, bottom), (left, right)), 'same' or 'valid'"


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


def sides(op: str, padding: Any) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a padding that is an integer, a pair, ((top, bottom), (left, right)) or "valid"."""
    is_text = isinstance(padding, str)
    if is_text and padding == "valid":
        return 0, 0, 0, 0
    both = padding if isinstance(padding, tuple | list) else (padding, padding)
    if is_text or len(both) != 2 or any(len(side) != 2 for side in both if isinstance(side, tuple | list)):
        raise ValueError(f"{op}: padding must be {PADDINGS}, got {padding!r}")
    (top, bottom), (left, right) = (pair(op, "padding", side, least=0) for side in both)
    return top, left, bottom, right


def windows(
    op: str, name: str, size: Pair, image: Pair, stride: Pair, padding: Any, *, half: bool, ceil: bool = False
) -> tuple[tuple[int, int, int, int], Pair]:
    """(top, left, bottom, right) of the padding, and how many windows of this size there are, down and across.

    padding is as of `sides`, or "same" for ceil(image / stride) windows. With half it is at most half of size, else less
    than size. With ceil a last window may end past the padding, if it begins before that.
    """
    if isinstance(padding, str) and padding == "same":
        totals = (max(-(-n // s) * s - s + k - n, 0) for n, k, s in zip(image, size, stride, strict=True))
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    else:
        top, left, bottom, right = sides(op, padding)
        limits = [k // 2 if half else k - 1 for k in size]
        if max(top, bottom) > limits[0] or max(left, right) > limits[1]:
            given = (top, left) if (top, left) == (bottom, right) else ((top, bottom), (left, right))
            raise ValueError(
                f"{op}: padding must be {'at most half of' if half else 'smaller than'} {name} {size}, got {given}"
            )
    down, across = (
        _count(n, k, s, before, after, ceil)
        for n, k, s, before, after in zip(image, size, stride, (top, left), (bottom, right), strict=True)
    )
    if min(down, across) < 1:
        padded = image[0] + top + bottom, image[1] + left + right
        raise ValueError(f"{op}: {name} must be at most the padded image {padded}, got {size}")
    return (top, left, bottom, right), (down, across)


def _count(n: int, size: int, stride: int, before: int, after: int, ceil: bool) -> int:
    """How many windows there are along an axis of n pixels, with padding before and after it."""
    room = before + n + after - size
    count = room // stride + 1
    # one more, if it begins inside the image or the padding before it
    return count + (ceil and room % stride > 0 and count * stride < before + n)
