"""The JAX function batch_norm, with a residual and an activation: its derivative, and the host functions that XLA calls."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.batch_norm import check_running
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.ops.norm import as_rows, bits, statistics
from fastgrad.jax.xla import call, host_function
from fastgrad.kernels.types import Activation, Affine, LayerSaved, NormGradients, Running


class Settings(NamedTuple):
    training: bool
    momentum: float
    eps: float
    unbiased: bool
    activation: Activation


def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    activation: str | tuple[str, float] = "identity",
    residual: Any = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Batch normalisation with a residual and an activation, as fastgrad.batch_norm, of JAX arrays.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    Nothing is written in place: the moved running statistics are results.

    Args:
        x: (..., C), float32 or float64.
        gamma: The factors, (C,).
        beta: What is added, (C,).
        running_mean: (C,), or None in training.
        running_var: (C,), or None in training.
        training: Normalise by the batch's own mean and variance, else by the running ones.
        momentum: The share of the batch in the moved running statistics.
        eps: What is added to the variance.
        unbiased: Divide by M - 1 in the running variance, of M values a channel.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        residual: Like x, or None.

    Returns:
        y, like x, which jax.grad differentiates by x, gamma, beta and residual; and the new running_mean and running_var
        (C,), without gradients, or None where none were given.

    Raises:
        ValueError: A shape does not fit, activation is unknown, running statistics are missing in evaluation, or there is
            one value a channel in training.
        TypeError: An argument is no array of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: A gradient is to be differentiated again.

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> y, mean, var = fgj.batch_norm(x, jnp.ones(1), jnp.zeros(1), jnp.zeros(1), jnp.ones(1), activation="relu")
        >>> [round(value, 3) for value in y[:, 0].tolist()], round(float(mean[0]), 3)
        ([0.0, 1.0], 0.2)

    References:
        Ioffe & Szegedy 2015, "Batch Normalization".
    """
    op = "batch_norm"
    f = check.activation(op, activation)
    named = {
        "x": x,
        "gamma": gamma,
        "beta": beta,
        "running_mean": running_mean,
        "running_var": running_var,
        "residual": residual,
    }
    checked = {name: None if a is None else checkable(op, name, a) for name, a in named.items()}
    like = check.channels_last(op, "x", checked["x"])
    for name in ("gamma", "beta"):
        check.array(op, name, checked[name], "(C,)", like.shape[-1:], like.dtype)
    # nothing is written in place here: copies are writable
    mean, var = (
        np.array(a) if isinstance(a, np.ndarray) else a for a in (checked["running_mean"], checked["running_var"])
    )
    check_running(op, mean, var, like.shape[-1:], like.dtype, bool(training))
    if residual is not None:
        check.array(op, "residual", checked["residual"], "like x", like.shape, like.dtype)
    if training and prod(like.shape[:-1]) == 1:
        raise ValueError(f"{op}: x must have more than one value a channel in training, got {like.shape}")
    momentum, eps = check.number(op, "momentum", momentum, most=1), check.number(op, "eps", eps)
    settings = Settings(bool(training), momentum, eps, bool(unbiased), f)
    arrays = tuple(None if a is None else jnp.asarray(a) for a in named.values())
    return _norm(settings, varying(arrays, axes_of(arrays)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(settings: Settings, arrays: tuple) -> tuple:
    return tuple(_forward(settings, arrays, keep=False))


def _forward(settings: Settings, arrays: tuple, keep: bool) -> list:
    """y, the running statistics and, with keep, what backward needs: the bits of mean and rstd, and z or None."""
    x, gamma, _, mean, var, _ = arrays
    channel_bits = bits(len(gamma))
    saved = [channel_bits, channel_bits, x if settings.activation.needs_input else None] if keep else []
    return call("batch_norm", host_batch_norm_forward, [x, mean, var, *saved], arrays, **settings._asdict())


def _vjp_forward(settings: Settings, arrays: tuple) -> tuple[tuple, tuple]:
    y, mean, var, *saved = _forward(settings, arrays, keep=True)
    return (y, mean, var), (arrays, y, saved)


def _vjp_backward(settings: Settings, saved: tuple, gradients: tuple) -> tuple:
    (x, gamma, beta, _, _, residual), y, bits_and_z = saved
    results, arguments = [x, gamma, beta, residual], [gradients[0], x, gamma, beta, y, *bits_and_z]
    dx, dgamma, dbeta, dresidual = call(
        "batch_norm", host_batch_norm_backward, results, arguments, **settings._asdict()
    )
    return ((dx, dgamma, dbeta, None, None, dresidual),)


_norm.defvjp(_vjp_forward, _vjp_backward)


@host_function
def host_batch_norm_forward(
    results: list, arguments: list, training: bool, momentum: float, eps: float, unbiased: bool, activation: list
) -> None:
    x, gamma, beta, mean, var, residual = arguments
    y, new_mean, new_var, *bits_and_z = results
    f, xs, ys = Activation(*activation), as_rows(x), as_rows(y)
    mean_bits, rstd_bits, z = bits_and_z or [np.empty(len(gamma)), np.empty(len(gamma)), None]
    channel_statistics = statistics(mean_bits, rstd_bits)
    for new, old in ((new_mean, mean), (new_var, var)):
        if new is not None:
            new[...] = old
    ops = kernels()
    ops.batch_norm_statistics(xs, Running(new_mean, new_var, momentum, unbiased), training, eps, channel_statistics)
    saved = layer_saved(ys, f) if z is None else LayerSaved(as_rows(z), ys)
    ops.batch_norm_forward(xs, channel_statistics, Affine(gamma, beta), as_rows(residual), f, saved)


@host_function
def host_batch_norm_backward(results: list, arguments: list, activation: list, training: bool, **_: Any) -> None:
    dy, x, gamma, beta, y, mean, rstd, z = arguments
    dx, dgamma, dbeta, dresidual = results
    channel_statistics, saved = statistics(mean, rstd), LayerSaved(as_rows(y if z is None else z), as_rows(y))
    gradients = NormGradients(as_rows(dresidual), as_rows(dx), dgamma, dbeta)
    affine, f = Affine(gamma, beta), Activation(*activation)
    kernels().batch_norm_backward(as_rows(dy), as_rows(x), channel_statistics, affine, f, training, saved, gradients)
