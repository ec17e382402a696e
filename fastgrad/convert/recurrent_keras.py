"""Weights of recurrent layers from and to Keras."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad.convert.recurrent_arrays import (
    check_layer,
    gates_of,
    in_order,
    one_bias,
    two_biases,
    weight_array,
    write,
)
from fastgrad.core import check
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import GRUWeights, LSTMWeights
from fastgrad.nn.gru import GRU
from fastgrad.nn.lstm import LSTM

# the order of gates from Keras to ours and back: (i, f, c, o) are i, f, g, o, and (z, r, h) are r, z, n
ORDERS = {LSTMWeights: [0, 1, 2, 3], GRUWeights: [1, 0, 2]}


@silent
def from_keras(layer: LSTM | GRU, weights: Sequence[Any]) -> None:
    """Read get_weights() of a keras.layers.LSTM or GRU, or of Bidirectional over one.

    A layer with reverse is Keras's with go_backwards, whose sequences come out in the reverse order of steps. A GRU has
    the reset_after of Keras's. G is the number of gates, 4 of an LSTM and 3 of a GRU.

    Args:
        layer: The LSTM or GRU that is written to. It has no peephole, projection or variant, which Keras's has not.
        weights: kernel (C, G H), recurrent_kernel (H, G H) and, unless there are none, bias (G H,), or (2, 3H) of a GRU
            with reset_after, of each direction; of layers on top of each other one after the other.

    Raises:
        ValueError: The number of weights or a shape is another one, or the layer has a peephole, a projection or a variant.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU, weights no list or tuple, or a value of another dtype than the
            layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_keras(other, fg.convert.to_keras(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_keras"
    check_layer(op, layer, "Keras")
    check.sequence(op, "weights", weights)
    # the number of directions of all layers, and of arrays for each
    ways = len(layer._weights)
    arrays_each = len(weights) // ways
    if len(weights) not in (2 * ways, 3 * ways):
        raise ValueError(f"{op}: weights must have length {3 * ways}, or {2 * ways} without biases, got {len(weights)}")
    gates, order, two = gates_of(layer), ORDERS[layer.group], has_two_biases(layer)
    forms = f"(C, {gates}H)", f"(H, {gates}H)", f"(2, {gates}H)" if two else f"({gates}H,)"
    values = []
    for way, w in enumerate(layer._weights):
        indices = range(way * arrays_each, (way + 1) * arrays_each)
        shapes = w.w_ih.shape, w.w_hh.shape, (2, *w.b.shape) if two else w.b.shape
        w_ih, w_hh, *biases = (
            in_order(weight_array(op, f"weights[{i}]", weights[i], form, shape, layer.dtype), order)
            for i, form, shape in zip(indices, forms, shapes, strict=False)
        )
        b = {"b": biases[0]} if biases else {}
        values.append(layer.group(w_ih, w_hh, **one_bias(layer, *biases[0]) if two and biases else b))
    write(layer, values)


def to_keras(layer: LSTM | GRU) -> list[np.ndarray]:
    """What set_weights of the same Keras layer takes.

    G is the number of gates, 4 of an LSTM and 3 of a GRU.

    Args:
        layer: The LSTM or GRU. It has no peephole, projection or variant, which Keras's has not.

    Returns:
        New arrays: kernel (C, G H), recurrent_kernel (H, G H) and bias (G H,) of each direction and layer. Of a GRU
        with reset_after bias is (2, 3H): b, and 0 but for b_hn.

    Raises:
        ValueError: The layer has a peephole, a projection or a variant.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU.

    Example:
        >>> [array.shape for array in fg.convert.to_keras(fg.nn.LSTM(3, 4))]
        [(3, 16), (4, 16), (16,)]
        >>> [array.shape for array in fg.convert.to_keras(fg.nn.GRU(3, 4))]
        [(3, 12), (4, 12), (2, 12)]
    """
    check_layer("to_keras", layer, "Keras")
    order, two = ORDERS[layer.group], has_two_biases(layer)
    arrays = [a for w in layer._weights for a in (w.w_ih, w.w_hh, np.stack(two_biases(w)) if two else w.b)]
    return [in_order(a, order) for a in arrays]


def has_two_biases(layer: LSTM | GRU) -> bool:
    return isinstance(layer, GRU) and layer.reset_after
