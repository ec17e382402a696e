"""The JAX function dense_chain, dense layers in a row: its derivative, and the host functions that XLA calls."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.xla import call, host_function
from fastgrad.kernels.types import Activation, Chain, ChainGradients, ChainSaved, chain_buffers


def dense_chain(
    x: Any, weights: Sequence[Any], biases: Sequence[Any] | None, activations: str | tuple[str, float] | list
) -> jax.Array:
    """Dense layers in a row, as fastgrad.dense_chain, of JAX arrays.

    a_0 = x, a_l+1 = act_l(a_l @ weights[l] + biases[l]), y = a_L

    Args:
        x: (N, K_0), float32 or float64.
        weights: Of each layer (K_l, K_l+1).
        biases: Of each layer (K_l+1,) or None; None is no biases at all.
        activations: A name or a pair such as ("leaky_relu", 0.1), of all layers; or a list with one for each.

    Returns:
        y (N, K_L), which jax.grad differentiates by x, weights and biases.

    Raises:
        ValueError: A shape does not fit, or an activation is unknown.
        TypeError: An argument is no array of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: A gradient is to be differentiated again.

    Example:
        >>> x, w = jnp.ones((3, 2)), jnp.ones((2, 4))
        >>> jax.grad(lambda w: fgj.dense_chain(x, [w], None, "relu").sum())(w)[:, 0].tolist()
        [3.0, 3.0]
    """
    op = "dense_chain"
    check.sequence(op, "weights", weights)
    biases = [None] * len(weights) if biases is None else biases
    check.sequence(op, "biases", biases, len(weights))
    fs = check.activations(op, activations, len(weights))
    x_like = check.array(op, "x", checkable(op, "x", x), "(N, C)", (None, None))
    width = x_like.shape[1]
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        name = f"weights[{layer}]"
        w_like = check.array(op, name, checkable(op, name, w), "(C_in, C_out)", (width, None), x_like.dtype)
        width, name = w_like.shape[1], f"biases[{layer}]"
        if b is not None:
            check.array(op, name, checkable(op, name, b), "(C_out,)", (width,), x_like.dtype)
    arrays = x, tuple(weights), tuple(biases)
    return _chain(tuple(fs), *varying(arrays, axes_of(arrays)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(fs: tuple[Activation, ...], x: Any, weights: tuple, biases: tuple) -> jax.Array:
    return _forward(fs, x, weights, biases, keep=False)[0]


def _forward(fs: tuple[Activation, ...], x: Any, weights: tuple, biases: tuple, keep: bool) -> list[jax.Array]:
    """y, and with keep all outputs but y, and the z that backward needs."""
    zs, outputs = chain_buffers(len(x), [w.shape[1] for w in weights], fs, jax.ShapeDtypeStruct, x.dtype)
    saved_zs = [None if z is y else z for z, y in zip(zs, outputs, strict=True)]
    results = [outputs[-1], *outputs[:-1], *saved_zs] if keep else outputs[-1:]
    return call("dense_chain", host_dense_forward, results, [x, *weights, *biases], activations=fs)


def _vjp_forward(fs: tuple[Activation, ...], x: Any, weights: tuple, biases: tuple) -> tuple[jax.Array, tuple]:
    y, *saved = _forward(fs, x, weights, biases, keep=True)
    return y, (x, weights, biases, y, saved)


def _vjp_backward(fs: tuple[Activation, ...], saved: tuple, dy: Any) -> tuple:
    x, weights, biases, y, inner = saved
    depth = len(weights)
    gradients = call(
        "dense_chain", host_dense_backward, [x, *weights, *biases], [dy, x, *weights, y, *inner], activations=fs
    )
    return gradients[0], tuple(gradients[1 : depth + 1]), tuple(gradients[depth + 1 :])


_chain.defvjp(_vjp_forward, _vjp_backward)


@host_function
def host_dense_forward(results: list, arguments: list, activations: list) -> None:
    fs, depth = [Activation(*f) for f in activations], len(activations)
    x, weights, biases = arguments[0], arguments[1 : depth + 1], arguments[depth + 1 :]
    y, *kept = results
    outputs = [*(kept[: depth - 1] or [empty((len(x), w.shape[1]), x.dtype) for w in weights[:-1]]), y]
    zs = kept[depth - 1 :] or [
        empty(a.shape, a.dtype) if f.needs_input else None for f, a in zip(fs, outputs, strict=True)
    ]
    kernels().dense_chain_forward(Chain(x, weights, biases, fs, None), _saved(zs, outputs))


@host_function
def host_dense_backward(results: list, arguments: list, activations: list) -> None:
    fs, depth = [Activation(*f) for f in activations], len(activations)
    dy, x, *rest = arguments
    weights, y, inner, zs = rest[:depth], rest[depth], rest[depth + 1 : 2 * depth], rest[2 * depth :]
    outputs = [*inner, y]
    dzs = [empty(a.shape, a.dtype) for a in outputs]
    gradients = ChainGradients(dzs, results[0], results[1 : depth + 1], results[depth + 1 :])
    # the biases' values are not read
    kernels().dense_chain_backward(dy, Chain(x, weights, gradients.dbiases, fs, None), _saved(zs, outputs), gradients)


def _saved(zs: list, outputs: list) -> ChainSaved:
    return ChainSaved([y if z is None else z for z, y in zip(zs, outputs, strict=True)], outputs)
