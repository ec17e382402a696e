"""The fused convolution of images y = act(conv(x, w) + b + residual)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional import geometry
from fastgrad.functional.geometry import Padding, Pair
from fastgrad.kernels import types
from fastgrad.kernels.types import Activation, ConvGradients, Geometry


def conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    activation: str | tuple[str, float] = "identity",
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """A convolution of images in one call, with its activation and a residual.

    y = act(conv(x, w) + b + residual)

    conv(x, w)[n, i, j, k] = sum over r, s, c of x[n, i sh + r dh - top, j sw + s dw - left, c] w[r, s, c, k]; the
    kernel is not flipped, as in every framework.

    Args:
        x: The images (N, H, W, C), float32 or float64.
        w: The kernels (kh, kw, C / groups, K), of the dtype of x.
        b: The bias (K,), or None.
        stride: Steps of the window in pixels (sh, sw), vertical and horizontal; an integer is both.
        padding: Zeros on either side in pixels, an integer or a pair; ((top, bottom), (left, right)); "valid" for none;
            or "same" for an output as large as x, or ceil(H / sh) by ceil(W / sw), with any odd zero at the bottom and
            right.
        dilation: Distance of the kernel's pixels (dh, dw); an integer is both.
        groups: In how many groups the channels are convolved apart; it divides C and K.
        activation: The name of an activation, or a pair of a name and its parameter.
        residual: An array (N, H', W', K) that is added before the activation, or None.

    Returns:
        (y, backward). y is (N, H', W', K) with H' = (H + top + bottom - dh (kh - 1) - 1) // sh + 1, W' likewise.
        backward(dy) returns the gradients of the given inputs, in the order x, w, b, residual. It reads x, w and y:
        write to none of them before it.

    Raises:
        ValueError: A shape does not fit, the kernel is larger than the padded image, or an option is out of its range.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, w = np.ones((1, 4, 4, 1)), np.ones((3, 3, 1, 2))
        >>> y, backward = fg.conv2d(x, w, padding="same", activation="relu")
        >>> y.shape, y[0, 0, 0].tolist(), y[0, 1, 1].tolist()
        ((1, 4, 4, 2), [4.0, 4.0], [9.0, 9.0])
        >>> dx, dw = backward(np.ones_like(y))
    """
    op = "conv2d"
    f = check.activation(op, activation)
    x = geometry.images(op, x)
    n, *image, channels = x.shape
    groups = check.count(op, "groups", groups)
    if channels % groups:
        raise ValueError(f"{op}: groups must divide the channels of x, {channels}, got {groups}")
    form = "(kh, kw, C, K)" if groups == 1 else "(kh, kw, C / groups, K)"
    w = check.array(op, "w", w, form, (None, None, channels // groups, None), x)
    if 0 in w.shape:
        raise ValueError(f"{op}: w must have at least one row, column and output, got {w.shape}")
    outputs = w.shape[3]
    if outputs % groups:
        raise ValueError(f"{op}: groups must divide the outputs of w, {outputs}, got {groups}")
    stride, dilation = geometry.pair(op, "stride", stride), geometry.pair(op, "dilation", dilation)
    reach = dilation[0] * (w.shape[0] - 1) + 1, dilation[1] * (w.shape[1] - 1) + 1
    pads, image_out = geometry.windows(
        op, "the kernel's reach", reach, (image[0], image[1]), stride, padding, half=False
    )
    if b is not None:
        b = check.contiguous(check.array(op, "b", b, "(K,)", (outputs,), x))
    if residual is not None:
        residual = check.array(op, "residual", residual, "(N, H', W', K)", (n, *image_out, outputs), x)
        residual = check.contiguous(residual)
    w = check.contiguous(w)
    y, run_backward = run(op, x, w, b, Geometry(stride, pads, dilation), residual, f, (n, *image_out, outputs))

    def backward(dy: np.ndarray) -> tuple[np.ndarray, ...]:
        dw = empty(w.shape, w)
        db = None if b is None else empty(b.shape, b)
        dx, dresidual = run_backward(dy, dw, db)
        return (dx, dw, *(() if db is None else (db,)), *(() if residual is None else (dresidual,)))

    return y, backward


def run(
    op: str,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    geometry: Geometry,
    residual: np.ndarray | None,
    activation: Activation,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, Callable[..., tuple[Any, np.ndarray]]]:
    """The convolution of checked arrays, y of this shape: (y, backward).

    backward(dy, dw, db) overwrites the gradients given to it and returns (dx, dresidual); without want_dx dx is None.
    """
    ops = kernels(x)
    saved = layer_saved(empty(shape, x), activation)  # (N, H', W', K)
    ops.conv2d_forward(x, w, b, geometry, residual, activation, saved)

    def backward(dy: Any, dw: np.ndarray, db: np.ndarray | None, want_dx: bool = True) -> tuple[Any, np.ndarray]:
        dy, dx = check.upstream(op, dy, saved.y), empty(x.shape, x) if want_dx else None
        gradients = ConvGradients(slopes(dy, activation, residual is not None), dx, dw, db)
        ops.conv2d_backward(dy, x, w, geometry, activation, saved, gradients)
        return dx, gradients.dz

    return saved.y, backward


def slopes(dy: np.ndarray, activation: Activation, of_residual: bool) -> np.ndarray:
    """The array for dz: a new one; or dy itself, only read, if there is no activation and dz is not also the gradient of a residual."""
    return dy if activation.code == types.IDENTITY and not of_residual else empty(dy.shape, dy)
