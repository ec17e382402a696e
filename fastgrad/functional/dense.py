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
    """A dense layer in one call, with its activation and a residual.

    y = act(x @ w + b + residual)

    Args:
        x: The inputs (N, C), float32 or float64. C-contiguous arrays are fastest; others are read in place or copied.
        w: The weights (C, K), of the dtype of x.
        b: The bias (K,), or None.
        activation: The name of an activation, or a pair of a name and its parameter: ("leaky_relu", 0.2).
        residual: An array (N, K) that is added before the activation, or None.

    Returns:
        (y, backward). y is (N, K); backward(dy) returns the gradients of the given inputs, new arrays in the order x,
        w, b, residual. It reads x, w and y: write to none of them before it.

    Raises:
        ValueError: A shape does not fit, or the activation is unknown.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, w, b = np.ones((2, 3)), np.ones((3, 4)), np.zeros(4)
        >>> y, backward = fg.dense(x, w, b, activation="relu")
        >>> dx, dw, db = backward(np.ones((2, 4)))
        >>> y.shape, dw.shape, db.tolist()
        ((2, 4), (3, 4), [2.0, 2.0, 2.0, 2.0])
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
    """Dense layers in a row in one call.

    y_0 = x, y_l+1 = act_l(y_l @ weights[l] + biases[l])

    Args:
        x: The inputs (N, K_0), float32 or float64.
        weights: The weights of each layer, a list or tuple of arrays (K_l, K_l+1) of the dtype of x.
        biases: The bias of each layer (K_l+1,), or None for a layer without one; or None for no biases at all.
        activations: One activation for all layers, or a list of one for each: a name, or a pair of a name and its
            parameter.

    Returns:
        (y, backward). y is the last layer's output (N, K_L). backward(dy) returns (dx, dweights, dbiases), new arrays;
        a bias that is None has the gradient None. It reads x, the weights and y: write to none of them before it.

    Raises:
        ValueError: A shape does not fit, lists are of different lengths, or an activation is unknown.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, weights = np.ones((2, 3)), [np.ones((3, 4)), np.ones((4, 1))]
        >>> y, backward = fg.dense_chain(x, weights, None, ["relu", "identity"])
        >>> dx, dweights, dbiases = backward(np.ones((2, 1)))
        >>> y.tolist(), dbiases
        ([[12.0], [12.0]], [None, None])
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
