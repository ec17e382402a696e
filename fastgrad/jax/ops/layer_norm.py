"""The JAX function layer_norm, with a residual and an activation: its derivative, and the host functions that XLA calls."""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import layer_saved
from fastgrad.core.backend import kernels
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.ops.norm import as_rows, bits, statistics
from fastgrad.jax.xla import call, host_function
from fastgrad.kernels.types import Activation, Affine, LayerSaved, NormGradients


class Settings(NamedTuple):
    eps: float
    activation: Activation


def layer_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    *,
    eps: float = 1e-5,
    activation: str | tuple[str, float] = "identity",
    residual: Any = None,
) -> jax.Array:
    """Layer normalisation with a residual and an activation, as fastgrad.layer_norm, of JAX arrays.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    mean and var are those of each row, over the last axis.

    Args:
        x: (..., C), float32 or float64.
        gamma: The factors, (C,).
        beta: What is added, (C,).
        eps: What is added to the variance; flax.linen.LayerNorm has 1e-6.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        residual: Like x, or None.

    Returns:
        y, like x, which jax.grad differentiates by x, gamma, beta and residual.

    Raises:
        ValueError: A shape does not fit, or activation is unknown.
        TypeError: An argument is no array of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: A gradient is to be differentiated again.

    Example:
        >>> y = fgj.layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), jnp.zeros(2), activation="relu")
        >>> [round(value, 3) for value in y[0].tolist()]
        [0.0, 1.0]

    References:
        Ba, Kiros & Hinton 2016, "Layer Normalization".
    """
    op = "layer_norm"
    f = check.activation(op, activation)
    named = {"x": x, "gamma": gamma, "beta": beta, "residual": residual}
    checked = {name: None if a is None else checkable(op, name, a) for name, a in named.items()}
    like = check.channels_last(op, "x", checked["x"])
    for name in ("gamma", "beta"):
        check.array(op, name, checked[name], "(C,)", like.shape[-1:], like.dtype)
    if residual is not None:
        check.array(op, "residual", checked["residual"], "like x", like.shape, like.dtype)
    settings = Settings(check.number(op, "eps", eps), f)
    arrays = tuple(None if a is None else jnp.asarray(a) for a in named.values())
    return _norm(settings, varying(arrays, axes_of(arrays)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(settings: Settings, arrays: tuple) -> jax.Array:
    return _forward(settings, arrays, keep=False)[0]


def _forward(settings: Settings, arrays: tuple, keep: bool) -> list:
    """y and, with keep, what backward needs: the bits of mean and rstd, and z or None."""
    x, *_ = arrays
    row_bits = bits(prod(x.shape[:-1]))
    saved = [row_bits, row_bits, x if settings.activation.needs_input else None] if keep else []
    return call("layer_norm", host_layer_norm_forward, [x, *saved], arrays, **settings._asdict())


def _vjp_forward(settings: Settings, arrays: tuple) -> tuple[jax.Array, tuple]:
    y, *saved = _forward(settings, arrays, keep=True)
    return y, (arrays, y, saved)


def _vjp_backward(settings: Settings, saved: tuple, dy: Any) -> tuple:
    arrays, y, bits_and_z = saved
    x, gamma, *_ = arrays
    arguments = [dy, x, gamma, y, *bits_and_z]
    return (tuple(call("layer_norm", host_layer_norm_backward, arrays, arguments, activation=settings.activation)),)


_norm.defvjp(_vjp_forward, _vjp_backward)


@host_function
def host_layer_norm_forward(results: list, arguments: list, eps: float, activation: list) -> None:
    x, gamma, beta, residual = arguments
    y, *bits_and_z = results
    f, xs, ys = Activation(*activation), as_rows(x), as_rows(y)
    mean_bits, rstd_bits, z = bits_and_z or [np.empty(len(xs)), np.empty(len(xs)), None]
    saved = layer_saved(ys, f) if z is None else LayerSaved(as_rows(z), ys)
    row_statistics = statistics(mean_bits, rstd_bits)
    kernels().layer_norm_forward(xs, Affine(gamma, beta), eps, as_rows(residual), f, row_statistics, saved)


@host_function
def host_layer_norm_backward(results: list, arguments: list, activation: list) -> None:
    dy, x, gamma, y, mean, rstd, z = arguments
    dx, dgamma, dbeta, dresidual = results
    saved, f = LayerSaved(as_rows(y if z is None else z), as_rows(y)), Activation(*activation)
    gradients = NormGradients(as_rows(dresidual), as_rows(dx), dgamma, dbeta)
    row_statistics = statistics(mean, rstd)
    kernels().layer_norm_backward(as_rows(dy), as_rows(x), row_statistics, Affine(gamma, None), f, saved, gradients)
