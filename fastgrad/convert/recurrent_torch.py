"""Weights of recurrent layers from and to PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgrad.convert.recurrent_arrays import check_layer, gates_of, kind, one_bias, two_biases, weight_array, write
from fastgrad.core.errstate import silent
from fastgrad.nn.gru import GRU
from fastgrad.nn.lstm import LSTM


@silent
def from_torch(layer: LSTM | GRU, state_dict: Mapping[str, Any]) -> None:
    """Read the state_dict of a torch.nn.LSTM or torch.nn.GRU.

    G is the number of gates, 4 of an LSTM and 3 of a GRU, and P the size of h, H without a projection.

    Args:
        layer: The LSTM or GRU that is written to. It has no peephole, reverse, variant or reset_after=False, which
            PyTorch's has not.
        state_dict: By name, for each layer and direction: weight_ih_l0 (G H, C), weight_hh_l0 (G H, P), and where they
            are part of it bias_ih_l0 and bias_hh_l0 (G H,), which are added, but for n of a GRU, whose bias_hh_l0 is
            b_hn; and weight_hr_l0 (P, H).

    Raises:
        ValueError: A name is missing or unknown, a shape is another one, or the layer has a peephole, reverse, a
            variant or reset_after=False.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU, state_dict no mapping, or a value of another dtype than the
            layer.

    Example:
        >>> layer, other = fg.nn.LSTM(3, 4, seed=0), fg.nn.LSTM(3, 4, seed=1)
        >>> fg.convert.from_torch(other, fg.convert.to_torch(layer))
        >>> bool((other.params == layer.params).all())
        True
    """
    op = "from_torch"
    check_layer(op, layer, "PyTorch")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    suffixes, gates = torch_suffixes(layer), gates_of(layer)
    form_hh = f"({gates}H, {'P' if isinstance(layer, LSTM) else 'H'})"
    if not isinstance(state_dict, Mapping):
        hint = "; its state_dict() is one" if hasattr(state_dict, "state_dict") else ""
        raise TypeError(f"{op}: state_dict must be a mapping of names to arrays, got {kind(state_dict)}{hint}")
    has_bias = any(str(name).startswith("bias") for name in state_dict)
    for suffix, w in zip(suffixes, layer._weights, strict=True):
        shapes["weight_ih" + suffix] = f"({gates}H, C)", w.w_ih.shape[::-1]
        shapes["weight_hh" + suffix] = form_hh, w.w_hh.shape[::-1]
        if isinstance(layer, LSTM) and layer.proj_size:
            shapes["weight_hr" + suffix] = "(P, H)", w.w_proj.shape[::-1]
        if has_bias:
            shapes |= {name + suffix: (f"({gates}H,)", w.b.shape) for name in ("bias_ih", "bias_hh")}
    if missing := [name for name in shapes if name not in state_dict]:
        raise ValueError(f"{op}: state_dict has no {', '.join(missing)}")
    if unknown := [name for name in state_dict if name not in shapes]:
        raise ValueError(f"{op}: state_dict has {', '.join(map(str, unknown))}, which the layer has not")
    values = {name: weight_array(op, name, state_dict[name], *form, layer.dtype) for name, form in shapes.items()}
    weights = []
    for suffix in suffixes:
        arrays = {"w_ih": values["weight_ih" + suffix].T, "w_hh": values["weight_hh" + suffix].T}
        if has_bias:
            arrays |= one_bias(layer, values["bias_ih" + suffix], values["bias_hh" + suffix])
        if "weight_hr" + suffix in values:
            arrays["w_proj"] = values["weight_hr" + suffix].T
        weights.append(layer.group(**arrays))
    write(layer, weights)


def to_torch(layer: LSTM | GRU) -> dict[str, np.ndarray]:
    """The state_dict of the same torch.nn.LSTM or torch.nn.GRU, in NumPy arrays.

    G is the number of gates, 4 of an LSTM and 3 of a GRU, and P the size of h, H without a projection.

    Args:
        layer: The LSTM or GRU. It has no peephole, reverse, variant or reset_after=False, which PyTorch's has not.

    Returns:
        New arrays by name, for each layer and direction: weight_ih_l0 (G H, C), weight_hh_l0 (G H, P), bias_ih_l0
        (G H,), which is b, bias_hh_l0 (G H,), which is 0 but for b_hn of a GRU, and with a projection weight_hr_l0
        (P, H).

    Raises:
        ValueError: The layer has a peephole, reverse, a variant or reset_after=False.
        TypeError: layer is no fg.nn.LSTM or fg.nn.GRU.

    Example:
        >>> state_dict = fg.convert.to_torch(fg.nn.LSTM(3, 4))
        >>> {name: array.shape for name, array in state_dict.items()}
        {'weight_ih_l0': (16, 3), 'weight_hh_l0': (16, 4), 'bias_ih_l0': (16,), 'bias_hh_l0': (16,)}
    """
    check_layer("to_torch", layer, "PyTorch")
    state = {}
    for suffix, w in zip(torch_suffixes(layer), layer._weights, strict=True):
        state["weight_ih" + suffix], state["weight_hh" + suffix] = w.w_ih.T.copy(), w.w_hh.T.copy()
        state["bias_ih" + suffix], state["bias_hh" + suffix] = two_biases(w)
        if isinstance(layer, LSTM) and layer.proj_size:
            state["weight_hr" + suffix] = w.w_proj.T.copy()
    return state


def torch_suffixes(layer: LSTM | GRU) -> list[str]:
    directions = ("", "_reverse")[: layer.directions]
    return [f"_l{i}{direction}" for i in range(layer.num_layers) for direction in directions]
