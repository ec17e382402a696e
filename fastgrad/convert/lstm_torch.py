"""Weights of LSTM layers from and to PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgrad.convert.lstm_arrays import checked_lstm, kind, lstm_array, write
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import LSTMWeights
from fastgrad.nn.lstm import LSTM


@silent
def from_torch(layer: LSTM, state_dict: Mapping[str, Any]) -> None:
    """Read the state_dict of a torch.nn.LSTM.

    Args:
        layer: The LSTM that is written to. It has neither peephole nor reverse, which PyTorch's has not.
        state_dict: By name, for each layer and direction: weight_ih_l0 (4H, C), weight_hh_l0 (4H, P), and where they
            are part of it bias_ih_l0 and bias_hh_l0 (4H,), which are added, and weight_hr_l0 (P, H).

    Raises:
        ValueError: A name is missing or unknown, a shape is another one, or the layer has a peephole or reverse.
        TypeError: layer is no fg.nn.LSTM, state_dict no mapping, or a value of another dtype than the layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_torch(other, fg.convert.to_torch(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_torch"
    checked_lstm(op, layer, "PyTorch", "peephole", "reverse")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    suffixes = torch_suffixes(layer)
    if not isinstance(state_dict, Mapping):
        hint = "; its state_dict() is one" if hasattr(state_dict, "state_dict") else ""
        raise TypeError(f"{op}: state_dict must be a mapping of names to arrays, got {kind(state_dict)}{hint}")
    has_bias = any(str(name).startswith("bias") for name in state_dict)
    for suffix, w in zip(suffixes, layer._weights, strict=True):
        columns = w.w_ih.shape[1]
        shapes["weight_ih" + suffix] = "(4H, C)", w.w_ih.shape[::-1]
        shapes["weight_hh" + suffix] = "(4H, P)", w.w_hh.shape[::-1]
        if w.w_proj is not None:
            shapes["weight_hr" + suffix] = "(P, H)", w.w_proj.shape[::-1]
        if has_bias:
            shapes |= {name + suffix: ("(4H,)", (columns,)) for name in ("bias_ih", "bias_hh")}
    if missing := [name for name in shapes if name not in state_dict]:
        raise ValueError(f"{op}: state_dict has no {', '.join(missing)}")
    if unknown := [name for name in state_dict if name not in shapes]:
        raise ValueError(f"{op}: state_dict has {', '.join(map(str, unknown))}, which the layer has not")
    values = {name: lstm_array(op, name, state_dict[name], *form, layer.dtype) for name, form in shapes.items()}
    weights = []
    for suffix in suffixes:
        projection = values.get("weight_hr" + suffix)
        weights.append(
            LSTMWeights(
                values["weight_ih" + suffix].T,
                values["weight_hh" + suffix].T,
                values["bias_ih" + suffix] + values["bias_hh" + suffix] if has_bias else None,
                w_proj=None if projection is None else projection.T,
            )
        )
    write(layer, weights)


def to_torch(layer: LSTM) -> dict[str, np.ndarray]:
    """The state_dict of the same torch.nn.LSTM, in NumPy arrays.

    Args:
        layer: The LSTM. It has neither peephole nor reverse, which PyTorch's has not.

    Returns:
        New arrays by name, for each layer and direction: weight_ih_l0 (4H, C), weight_hh_l0 (4H, P), bias_ih_l0 (4H,),
        which is b, bias_hh_l0 (4H,), which is 0, and with a projection weight_hr_l0 (P, H).

    Raises:
        ValueError: The layer has a peephole or reverse.
        TypeError: layer is no fg.nn.LSTM.

    Example:
        >>> state_dict = fg.convert.to_torch(fg.nn.LSTM(3, 4))
        >>> {name: array.shape for name, array in state_dict.items()}
        {'weight_ih_l0': (16, 3), 'weight_hh_l0': (16, 4), 'bias_ih_l0': (16,), 'bias_hh_l0': (16,)}
    """
    checked_lstm("to_torch", layer, "PyTorch", "peephole", "reverse")
    state = {}
    for suffix, w in zip(torch_suffixes(layer), layer._weights, strict=True):
        state["weight_ih" + suffix], state["weight_hh" + suffix] = w.w_ih.T.copy(), w.w_hh.T.copy()
        state["bias_ih" + suffix], state["bias_hh" + suffix] = np.array(w.b), np.zeros_like(w.b)
        if w.w_proj is not None:
            state["weight_hr" + suffix] = w.w_proj.T.copy()
    return state


def torch_suffixes(layer: LSTM) -> list[str]:
    directions = ("", "_reverse")[: layer.directions]
    return [f"_l{i}{direction}" for i in range(layer.num_layers) for direction in directions]
