"""fg.batch_norm: batch normalisation with a residual and an activation; and `run`, the same over checked arrays, for the layer."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, empty_float64, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.norm import NormBackward, as_rows, full_backward, rows_backward
from fastgrad.kernels.types import Activation, Affine, NormGradients, Running, Statistics


def batch_norm(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    activation: str | tuple[str, float] = "identity",
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """Batch normalisation in one call, with its activation and a residual.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    In training mean and var are those of the batch, over all axes but the last, the var biased, and the running ones,
    if given, are updated in place: r = (1 - momentum) r + momentum batch. Else they are the running ones. Other
    libraries:

                  update of r                         to get it here            running var    eps
        PyTorch   (1 - momentum) r + momentum batch   momentum=momentum         unbiased       1e-5
        Keras     momentum r + (1 - momentum) batch   momentum=1 - momentum     biased         1e-3
        ONNX      momentum r + (1 - momentum) batch   momentum=1 - momentum     biased         1e-5

    PyTorch's momentum is 0.1, Keras's 0.99 (here 0.01) and ONNX's 0.9 (here 0.1).

    Args:
        x: The inputs (..., C), float32 or float64, of any number of axes: rows, steps of sequences or images.
        gamma: The scale (C,), of the dtype of x.
        beta: The shift (C,).
        running_mean: The running mean (C,), written in training; None in training keeps none.
        running_var: The running variance (C,), likewise.
        training: Whether the statistics are the batch's; else they are the running ones, which must be given.
        momentum: The share of the batch in an update of the running statistics, from 0 to 1.
        eps: What is added to the variance, at least 0.
        unbiased: Divide by M - 1 for running_var, with M values a channel, and not by M.
        activation: The name of an activation, or a pair of a name and its parameter.
        residual: An array like x that is added before the activation, or None.

    Returns:
        (y, backward). y is like x; backward(dy) returns the gradients of the given ones of x, gamma, beta, residual, in
        this order. It reads x, gamma, beta and y: write to none of them before it.

    Raises:
        ValueError: A shape does not fit, an option is out of its range, running statistics are missing or read-only, or
            there is one value a channel in training. Then the running statistics are as before.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, running_mean, running_var = np.array([[1.0], [3.0]]), np.zeros(1), np.ones(1)
        >>> y, backward = fg.batch_norm(x, np.ones(1), np.zeros(1), running_mean, running_var)
        >>> y.round(3).tolist(), running_mean.tolist()
        ([[-1.0], [1.0]], [0.2])
        >>> dx, dgamma, dbeta = backward(np.ones((2, 1)))

    References:
        Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training", algorithm 1.
    """
    op = "batch_norm"
    f = check.activation(op, activation)
    x = check.channels_last(op, "x", x)
    width = x.shape[-1:]
    gamma, beta = (check.array(op, name, value, "(C,)", width, x) for name, value in (("gamma", gamma), ("beta", beta)))
    momentum = check.number(op, "momentum", momentum, most=1)
    eps = check.number(op, "eps", eps)
    mean, var = check_running(op, running_mean, running_var, width, x, bool(training)) or (None, None)
    running = Running(mean, var, momentum, bool(unbiased))
    if residual is not None:
        residual = check.array(op, "residual", residual, "like x", x.shape, x)
    affine = Affine(gamma, beta)
    y, backward = run(op, x, affine, running, bool(training), eps, f, residual)
    return y, full_backward(backward, affine)


def run(
    op: str,
    x: np.ndarray,
    affine: Affine,
    running: Running,
    training: bool,
    eps: float,
    activation: Activation,
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, NormBackward]:
    """Batch norm over checked arrays: (y, backward).

    backward: see NormBackward.
    """
    ops, shape = kernels(x), x.shape
    count, channels = prod(shape[:-1]), shape[-1]
    if training and count == 1:
        raise ValueError(f"{op}: x must have more than one value a channel in training, got {shape}")

    # all allocations come before the running statistics change: if one fails they are as before
    y = empty(shape, x)
    saved = layer_saved(as_rows(y), activation)
    added = None if residual is None else as_rows(residual)
    statistics = Statistics(empty_float64(channels, x), empty_float64(channels, x))
    xs, affine = as_rows(x), Affine(check.contiguous(affine.gamma), check.contiguous(affine.beta))
    update_statistics(xs, running, training, eps, statistics)
    ops.batch_norm_forward(xs, statistics, affine, added, activation, saved)

    def differentiate(dys: Any, gradients: NormGradients) -> None:
        ops.batch_norm_backward(dys, xs, statistics, affine, activation, training, saved, gradients)

    return y, rows_backward(op, y, xs, residual is not None, differentiate)


def update_statistics(x: np.ndarray, running: Running, training: bool, eps: float, statistics: Statistics) -> None:
    """The kernels' batch_norm_statistics, for running mean and var of any strides."""
    mean, var, momentum, unbiased = running
    if mean is None or (check.is_contiguous(mean) and check.is_contiguous(var)):
        kernels(x).batch_norm_statistics(x, running, training, eps, statistics)
        return
    moved = Running(check.contiguous(mean), check.contiguous(var), momentum, unbiased)
    kernels(x).batch_norm_statistics(x, moved, training, eps, statistics)
    if training:
        mean[...], var[...] = moved.mean, moved.var


def check_running(
    op: str, mean: Any, var: Any, shape: tuple[int, ...], like: Any, training: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """(running mean, running var), checked; None if neither is given, which only training allows."""
    named = {"running_mean": mean, "running_var": var}
    missing = [name for name, value in named.items() if value is None]
    if missing and (not training or len(missing) == 1):
        why = "together with the other" if training else "in evaluation (training=False)"
        raise ValueError(f"{op}: {' and '.join(missing)} must be given {why}, got None")
    if missing:
        return None
    running = [check.array(op, name, value, "(C,)", shape, like) for name, value in named.items()]
    for i, (name, value) in enumerate(named.items()):
        if isinstance(value, np.ndarray):
            # the caller's array is written, not an aligned copy
            running[i] = value
            if training and not value.flags.writeable:
                raise ValueError(f"{op}: {name} must be writable in training, which updates it in place")
    return running[0], running[1]
