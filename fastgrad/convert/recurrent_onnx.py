"""Weights of recurrent layers from and to the inputs of an ONNX node."""

from typing import Any

import numpy as np

from fastgrad.convert.recurrent_arrays import (
    Weights,
    check_layer,
    gates_of,
    in_order,
    one_bias,
    two_biases,
    weight_array,
    write,
)
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import GRUWeights, LSTMWeights
from fastgrad.nn.gru import GRU
from fastgrad.nn.lstm import LSTM

# the order of gates from ONNX to ours and back: of an LSTM (i, o, f, c) and i, f, g, o, of a GRU (z, r, h) and r, z, n
FROM_ONNX = {LSTMWeights: [0, 2, 3, 1], GRUWeights: [1, 0, 2]}
TO_ONNX = {LSTMWeights: [0, 3, 1, 2], GRUWeights: [1, 0, 2]}
# that of peepholes (i, o, f), which is its own inverse
PEEPHOLES = [0, 2, 1]


@silent
def from_onnx(layer: LSTM | GRU, W: Any, R: Any, B: Any = None, P: Any = None) -> None:
    """Read the inputs W, R, B and P of an ONNX LSTM node, or W, R and B of a GRU node.

    D is the number of directions: 2 where the layer is bidirectional. A layer with reverse is a node of direction "reverse".
    reset_after of a GRU is the node's linear_before_reset. G is the number of gates, 4 of an LSTM and 3 of a GRU.

    Args:
        layer: The LSTM or GRU that is written to. It has num_layers 1, for ONNX has a node for each layer, and no
            projection or variant.
        W: The weights of x (D, G H, C), gates in the order i, o, f, c or z, r, h.
        R: The weights of h (D, G H, H).
        B: The two biases side by side (D, 2 G H), which are added, but for h of a GRU with reset_after, where the second
            is b_hn; None: 0.
        P: The peepholes (D, 3H), in the order i, o, f; None: 0.

    Raises:
        ValueError: A shape is another one, P comes for a layer without a peephole, or the layer has several layers, a
            projection or a variant.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU, or a value of another dtype than the layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_onnx(other, *fg.convert.to_onnx(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_onnx"
    check_layer(op, layer, "ONNX")
    directions, dtype, hidden = layer.directions, layer.dtype, layer.hidden_size
    gates, order = gates_of(layer), FROM_ONNX[layer.group]
    columns = gates * hidden
    W = weight_array(op, "W", W, f"(D, {gates}H, C)", (directions, columns, layer.input_size), dtype)
    R = weight_array(op, "R", R, f"(D, {gates}H, H)", (directions, columns, hidden), dtype)
    if B is not None:
        B = weight_array(op, "B", B, f"(D, {2 * gates}H)", (directions, 2 * columns), dtype)
    if P is not None:
        P = weight_array(op, "P", P, "(D, 3H)", (directions, 3 * hidden), dtype)
        if not (isinstance(layer, LSTM) and layer.peephole):
            raise ValueError(f"{op}: P must be None, for the layer has no peephole")
    weights = []
    for d in range(directions):
        arrays = {"w_ih": in_order(W[d].T, order), "w_hh": in_order(R[d].T, order)}
        if B is not None:
            arrays |= one_bias(layer, *in_order(B[d].reshape(2, columns), order))
        if P is not None:
            arrays["peephole"] = P[d].reshape(3, hidden)[PEEPHOLES]
        weights.append(layer.group(**arrays))
    write(layer, weights)


def to_onnx(layer: LSTM | GRU) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The inputs W, R, B and P of the same ONNX LSTM node, or W, R and B of the same GRU node.

    reset_after of a GRU is the node's linear_before_reset. G is the number of gates, 4 of an LSTM and 3 of a GRU.

    Args:
        layer: The LSTM or GRU. It has num_layers 1, for ONNX has a node for each layer, and no projection or variant.

    Returns:
        (W, R, B, P), new arrays (D, G H, C), (D, G H, H), (D, 2 G H) and (D, 3H) of D directions. The first half of B
        is b, the second 0 but for b_hn of a GRU. P is None for a layer without a peephole.

    Raises:
        ValueError: The layer has several layers, a projection or a variant.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU.

    Example:
        >>> W, R, B, P = fg.convert.to_onnx(fg.nn.LSTM(3, 4, bidirectional=True))
        >>> W.shape, R.shape, B.shape, P
        ((2, 16, 3), (2, 16, 4), (2, 32), None)
    """
    check_layer("to_onnx", layer, "ONNX")
    return node_weights(layer._weights)


def node_weights(weights: list[Weights]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """W, R, B and P of the node of one layer, from its weights in each direction."""
    order = TO_ONNX[type(weights[0])]
    peepholes = [
        w.peephole[PEEPHOLES].reshape(-1) for w in weights if isinstance(w, LSTMWeights) and w.peephole is not None
    ]
    return (
        np.stack([in_order(w.w_ih, order).T for w in weights]),
        np.stack([in_order(w.w_hh, order).T for w in weights]),
        np.stack([np.concatenate([in_order(b, order) for b in two_biases(w)]) for w in weights]),
        np.stack(peepholes) if peepholes else None,
    )
