"""Weights of LSTM layers from and to the inputs of an ONNX node."""

from typing import Any

import numpy as np

from fastgrad.convert.lstm_arrays import checked_lstm, lstm_array, write
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import LSTMWeights
from fastgrad.nn.lstm import LSTM

# the order of gates from ONNX (i, o, f, c) to ours (i, f, g, o) and back; that of peepholes (i, o, f) is its own inverse
FROM_ONNX, TO_ONNX, PEEPHOLES = [0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1]


@silent
def from_onnx(layer: LSTM, W: Any, R: Any, B: Any = None, P: Any = None) -> None:
    """Read the inputs W, R, B and P of an ONNX LSTM node.

    D is the number of directions: 2 where the layer is bidirectional. A layer with reverse is a node of direction "reverse".

    Args:
        layer: The LSTM that is written to. It has num_layers 1 and no projection: ONNX has a node for each layer.
        W: The weights of x (D, 4H, C), gates in the order i, o, f, c.
        R: The weights of h (D, 4H, H).
        B: The two biases side by side (D, 8H), which are added; None: 0.
        P: The peepholes (D, 3H), in the order i, o, f; None: 0.

    Raises:
        ValueError: A shape is another one, P comes for a layer without a peephole, or the layer has several layers or a
            projection.
        TypeError: layer is no fg.nn.LSTM, or a value of another dtype than the layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_onnx(other, *fg.convert.to_onnx(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_onnx"
    checked_lstm(op, layer, "ONNX", "proj_size")
    w, directions, dtype = layer._weights[0], layer.directions, layer.dtype
    columns, hidden = w.w_ih.shape[1], layer.hidden_size
    W = lstm_array(op, "W", W, "(D, 4H, C)", (directions, columns, layer.input_size), dtype)
    R = lstm_array(op, "R", R, "(D, 4H, H)", (directions, columns, hidden), dtype)
    if B is not None:
        B = lstm_array(op, "B", B, "(D, 8H)", (directions, 2 * columns), dtype)
    if P is not None:
        P = lstm_array(op, "P", P, "(D, 3H)", (directions, 3 * hidden), dtype)
        if not layer.peephole:
            raise ValueError(f"{op}: P must be None, for the layer has no peephole")
    weights = [
        LSTMWeights(
            permute(W[d], FROM_ONNX).T,
            permute(R[d], FROM_ONNX).T,
            None if B is None else permute(B[d, :columns] + B[d, columns:], FROM_ONNX),
            None if P is None else P[d].reshape(3, hidden)[PEEPHOLES],
        )
        for d in range(directions)
    ]
    write(layer, weights)


def to_onnx(layer: LSTM) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The inputs W, R, B and P of the same ONNX LSTM node.

    Args:
        layer: The LSTM. It has num_layers 1 and no projection: ONNX has a node for each layer.

    Returns:
        (W, R, B, P), new arrays (D, 4H, C), (D, 4H, H), (D, 8H) and (D, 3H) of D directions. The first half of B is b,
        the second 0. P is None for a layer without a peephole.

    Raises:
        ValueError: The layer has several layers or a projection.
        TypeError: layer is no fg.nn.LSTM.

    Example:
        >>> W, R, B, P = fg.convert.to_onnx(fg.nn.LSTM(3, 4, bidirectional=True))
        >>> W.shape, R.shape, B.shape, P
        ((2, 16, 3), (2, 16, 4), (2, 32), None)
    """
    checked_lstm("to_onnx", layer, "ONNX", "proj_size")
    return node_weights(layer._weights)


def node_weights(weights: list[LSTMWeights]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """W, R, B and P of the node of one layer, from its weights in each direction."""
    b = [permute(np.array(w.b), TO_ONNX) for w in weights]
    peepholes = [w.peephole[PEEPHOLES].reshape(-1) for w in weights if w.peephole is not None]
    return (
        np.stack([permute(w.w_ih.T, TO_ONNX) for w in weights]),
        np.stack([permute(w.w_hh.T, TO_ONNX) for w in weights]),
        np.stack([np.concatenate([half, np.zeros_like(half)]) for half in b]),
        np.stack(peepholes) if peepholes else None,
    )


def permute(gates: np.ndarray, order: list[int]) -> np.ndarray:
    """Gates (4H, ...) in another order."""
    return gates.reshape(4, -1, *gates.shape[1:])[order].reshape(gates.shape)
