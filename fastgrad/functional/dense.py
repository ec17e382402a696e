"""The fused dense layer y = act(x @ w + b + residual), and chains of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import Activation, Chain, ChainGradients, chain_buffers


def dense(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    activation: str | tuple[str, float] = "identity",
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """y = act(x @ w + b + residual), with x (N, C), w (C, K), b (K,) and residual (N, K).

    Returns (y, backward); backward(dy) returns the gradients of the given inputs, in the order x, w, b, residual.
    Backward reads x, w and y, so none of them may be written before it.
    Raises TypeError and ValueError, naming the argument.
    """
    f = check.activation("dense", activation)
    x = check.array("dense", "x", x, "(N, C)", (None, None))
    w = check.array("dense", "w", w, "(C_in, C_out)", (x.shape[1], None), x)
    shape = len(x), w.shape[1]
    if b is not None:
        b = check.array("dense", "b", b, "(C_out,)", shape[1:], x)
    if residual is not None:
        residual = check.array("dense", "residual", residual, "(N, C_out)", shape, x)
    (y,), chain_backward = run("dense", x, [w], [b], [f], residual)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, ...]:
        dw = empty(w.shape, w)  # (C, K)
        db = None if b is None else empty(b.shape, b)  # (K,)
        dx, dresidual = chain_backward(dy, [dw], [db])
        return (dx, dw, *(() if db is None else (db,)), *(() if residual is None else (dresidual,)))

    return y, backward


def dense_chain(
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray | None] | None,
    activations: str | tuple[str, float] | list,
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, list[np.ndarray], list[np.ndarray | None]]]]:
    """Dense layers in a row: x (N, K_0), weights[l] (K_l, K_l+1), biases[l] (K_l+1,) or None, or no biases at all.

    Activations are one for all layers or a list of one for each. Returns (y, backward), with
    `dx, dweights, dbiases = backward(dy)`; a bias that is None has the gradient None.
    Backward reads x, the weights and y, so none of them may be written before it.
    Raises TypeError and ValueError, naming the argument.
    """
    op = "dense_chain"
    check.sequence(op, "weights", weights)
    biases = [None] * len(weights) if biases is None else biases
    check.sequence(op, "biases", biases, len(weights))
    fs = check.activations(op, activations, len(weights))
    x = check.array(op, "x", x, "(N, C)", (None, None))
    ws: list[np.ndarray] = []
    bs: list[np.ndarray | None] = []
    width = x.shape[1]
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        w = check.array(op, f"weights[{layer}]", w, "(C_in, C_out)", (width, None), x)
        width = w.shape[1]
        ws.append(w)
        bs.append(None if b is None else check.array(op, f"biases[{layer}]", b, "(C_out,)", (width,), x))
    outputs, chain_backward = run(op, x, ws, bs, fs)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray | None]]:
        dweights = [empty(w.shape, w) for w in ws]
        dbiases = [None if b is None else empty(b.shape, b) for b in bs]
        dx, _ = chain_backward(dy, dweights, dbiases)
        return dx, dweights, dbiases

    return outputs[-1], backward


def run(
    op: str,
    x: np.ndarray,
    weights: Sequence[np.ndarray],
    biases: Sequence[np.ndarray | None],
    activations: Sequence[Activation],
    residual: np.ndarray | None = None,
) -> tuple[Sequence[np.ndarray], Callable[..., tuple[np.ndarray, np.ndarray]]]:
    """The chain over checked arrays: (every layer's output, backward).

    backward(dy, dweights, dbiases) overwrites the gradients given to it and returns (dx, dresidual).
    """
    ops, chain = kernels(x), Chain(x, weights, biases, activations, residual)
    saved = chain_buffers(len(x), [w.shape[1] for w in weights], activations, empty, x)
    ops.dense_chain_forward(chain, saved)
    outputs = saved.outputs

    def backward(
        dy: Any, dweights: Sequence[np.ndarray], dbiases: Sequence[np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        dy = check.upstream(op, dy, outputs[-1])
        dzs = [empty(y.shape, y) for y in outputs]  # (N, K) each
        dx = empty(x.shape, x)  # (N, C)
        ops.dense_chain_backward(dy, chain, saved, ChainGradients(dzs, dx, dweights, dbiases))
        return dx, dzs[-1]

    return outputs, backward
