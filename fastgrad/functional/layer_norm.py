"""fg.layer_norm: layer normalisation with a residual and an activation; and `run`, the same over checked arrays, for the layer."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, empty_float64, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.norm import NormBackward, as_rows, full_backward, rows_backward
from fastgrad.kernels.types import Activation, Affine, NormGradients, Statistics


def layer_norm(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    *,
    eps: float = 1e-5,
    activation: str | tuple[str, float] = "identity",
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """Layer normalisation in one call, with its activation and a residual.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    mean and var are those of each row, over the last axis, the var biased: they are the same in training and in
    evaluation, and a row alone has the results that it has in a batch. The order is that of fg.batch_norm: the norm, the
    residual, the activation. PyTorch's eps is 1e-5 too, Keras's is 1e-3.

    Args:
        x: The inputs (..., C), float32 or float64, of any number of axes.
        gamma: The scale (C,), of the dtype of x.
        beta: The shift (C,).
        eps: What is added to the variance, at least 0.
        activation: The name of an activation, or a pair of a name and its parameter.
        residual: An array like x that is added before the activation, or None.

    Returns:
        (y, backward). y is like x; backward(dy) returns the gradients of the given ones of x, gamma, beta, residual, in
        this order. It reads x, gamma and y: write to none of them before it.

    Raises:
        ValueError: A shape does not fit, or an option is out of its range.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x = np.array([[1.0, 3.0], [20.0, 10.0]])
        >>> y, backward = fg.layer_norm(x, np.ones(2), np.zeros(2))
        >>> y.round(3).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]
        >>> dx, dgamma, dbeta = backward(np.ones((2, 2)))

    References:
        Ba, Kiros & Hinton 2016, "Layer Normalization".
    """
    op = "layer_norm"
    f = check.activation(op, activation)
    x = check.channels_last(op, "x", x)
    width = x.shape[-1:]
    gamma, beta = (check.array(op, name, value, "(C,)", width, x) for name, value in (("gamma", gamma), ("beta", beta)))
    eps = check.number(op, "eps", eps)
    if residual is not None:
        residual = check.array(op, "residual", residual, "like x", x.shape, x)
    affine = Affine(gamma, beta)
    y, backward = run(op, x, affine, eps, f, residual)
    return y, full_backward(backward, affine)


def run(
    op: str, x: np.ndarray, affine: Affine, eps: float, activation: Activation, residual: np.ndarray | None = None
) -> tuple[np.ndarray, NormBackward]:
    """Layer norm over checked arrays: (y, backward).

    backward: see NormBackward.
    """
    ops, shape = kernels(x), x.shape
    count = prod(shape[:-1])
    y = empty(shape, x)
    saved = layer_saved(as_rows(y), activation)
    added = None if residual is None else as_rows(residual)
    statistics = Statistics(empty_float64(count, x), empty_float64(count, x))
    xs, affine = as_rows(x), Affine(check.contiguous(affine.gamma), check.contiguous(affine.beta))
    ops.layer_norm_forward(xs, affine, eps, added, activation, statistics, saved)

    def differentiate(dys: Any, gradients: NormGradients) -> None:
        ops.layer_norm_backward(dys, xs, statistics, affine, activation, saved, gradients)

    return y, rows_backward(op, y, xs, residual is not None, differentiate)
