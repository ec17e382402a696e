"""Weights of LSTM layers from and to Keras."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad.convert.lstm_arrays import checked_lstm, lstm_array, write
from fastgrad.core import check
from fastgrad.kernels.types import LSTMWeights
from fastgrad.nn.lstm import LSTM


def from_keras(layer: LSTM, weights: Sequence[Any]) -> None:
    """Read get_weights() of a keras.layers.LSTM, or of Bidirectional over one.

    A layer with reverse is Keras's with go_backwards, whose sequences come out in the reverse order of steps.

    Args:
        layer: The LSTM that is written to. It has no peephole and no projection, which Keras's has not.
        weights: kernel (C, 4H), recurrent_kernel (H, 4H) and, unless there are none, bias (4H,) of each direction; of
            layers on top of each other one after the other.

    Raises:
        ValueError: The number of weights or a shape is another one, or the layer has a peephole or a projection.
        TypeError: layer is no fg.nn.LSTM, weights no list or tuple, or a value of another dtype than the layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_keras(other, fg.convert.to_keras(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_keras"
    checked_lstm(op, layer, "Keras", "peephole", "proj_size")
    check.sequence(op, "weights", weights)
    # the number of layers and directions, and of arrays for each
    lstms = len(layer._weights)
    arrays_each = len(weights) // lstms
    if len(weights) not in (2 * lstms, 3 * lstms):
        raise ValueError(
            f"{op}: weights must have length {3 * lstms}, or {2 * lstms} without biases, got {len(weights)}"
        )
    forms = "(C, 4H)", "(H, 4H)", "(4H,)"
    lstm_weights = []
    for lstm, w in enumerate(layer._weights):
        indices = range(lstm * arrays_each, (lstm + 1) * arrays_each)
        arrays = [
            lstm_array(op, f"weights[{i}]", weights[i], form, like.shape, layer.dtype)
            for i, form, like in zip(indices, forms, w, strict=False)
            if like is not None
        ]
        lstm_weights.append(LSTMWeights(*arrays))
    write(layer, lstm_weights)


def to_keras(layer: LSTM) -> list[np.ndarray]:
    """What set_weights of the same Keras layer takes.

    Args:
        layer: The LSTM. It has no peephole and no projection, which Keras's has not.

    Returns:
        New arrays: kernel (C, 4H), recurrent_kernel (H, 4H) and bias (4H,) of each direction and layer.

    Raises:
        ValueError: The layer has a peephole or a projection.
        TypeError: layer is no fg.nn.LSTM.

    Example:
        >>> [array.shape for array in fg.convert.to_keras(fg.nn.LSTM(3, 4))]
        [(3, 16), (4, 16), (16,)]
    """
    checked_lstm("to_keras", layer, "Keras", "peephole", "proj_size")
    return [np.array(a) for w in layer._weights for a in (w.w_ih, w.w_hh, w.b)]
