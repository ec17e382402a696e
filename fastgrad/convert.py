"""Weights of LSTM layers from and to other libraries' layouts; none of them is imported.

    fastgrad    w_ih (C, 4H), w_hh (P, 4H)                     gates i, f, g, o    one bias
    PyTorch     weight_ih (4H, C), weight_hh (4H, P)           gates i, f, g, o    two biases, added
    Keras       kernel (C, 4H), recurrent_kernel (H, 4H)       gates i, f, c, o    one bias
    ONNX        W (D, 4H, C), R (D, 4H, H)                     gates i, o, f, c    two biases, added; peepholes i, o, f

Values are NumPy arrays, or PyTorch's tensors, of the layer's dtype; what is returned are new arrays. Without biases b is 0.
Errors are TypeError and ValueError, naming the value, and then nothing is changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import LSTMWeights
from fastgrad.nn.lstm import LSTM

__all__ = [
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
]

# the order of gates from ONNX (i, o, f, c) to ours (i, f, g, o) and back; that of peepholes (i, o, f) is its own inverse
FROM_ONNX, TO_ONNX, PEEPHOLES = [0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1]


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
    _refuse(op, layer, "PyTorch", "peephole", "reverse")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    suffixes = _torch_suffixes(layer)
    if not isinstance(state_dict, Mapping):
        hint = "; its state_dict() is one" if hasattr(state_dict, "state_dict") else ""
        raise TypeError(f"{op}: state_dict must be a mapping of names to arrays, got {_kind(state_dict)}{hint}")
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
    values = {name: _array(op, name, state_dict[name], *form, layer.dtype) for name, form in shapes.items()}
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
    _write(layer, weights)


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
    _refuse("to_torch", layer, "PyTorch", "peephole", "reverse")
    state = {}
    for suffix, w in zip(_torch_suffixes(layer), layer._weights, strict=True):
        state["weight_ih" + suffix], state["weight_hh" + suffix] = w.w_ih.T.copy(), w.w_hh.T.copy()
        state["bias_ih" + suffix], state["bias_hh" + suffix] = np.array(w.b), np.zeros_like(w.b)
        if w.w_proj is not None:
            state["weight_hr" + suffix] = w.w_proj.T.copy()
    return state


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
    _refuse(op, layer, "Keras", "peephole", "proj_size")
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
            _array(op, f"weights[{i}]", weights[i], form, like.shape, layer.dtype)
            for i, form, like in zip(indices, forms, w, strict=False)
            if like is not None
        ]
        lstm_weights.append(LSTMWeights(*arrays))
    _write(layer, lstm_weights)


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
    _refuse("to_keras", layer, "Keras", "peephole", "proj_size")
    return [np.array(a) for w in layer._weights for a in (w.w_ih, w.w_hh, w.b)]


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
    _refuse(op, layer, "ONNX", "proj_size")
    w, directions, dtype = layer._weights[0], layer.directions, layer.dtype
    columns, hidden = w.w_ih.shape[1], layer.hidden_size
    W = _array(op, "W", W, "(D, 4H, C)", (directions, columns, layer.input_size), dtype)
    R = _array(op, "R", R, "(D, 4H, H)", (directions, columns, hidden), dtype)
    if B is not None:
        B = _array(op, "B", B, "(D, 8H)", (directions, 2 * columns), dtype)
    if P is not None:
        P = _array(op, "P", P, "(D, 3H)", (directions, 3 * hidden), dtype)
        if not layer.peephole:
            raise ValueError(f"{op}: P must be None, for the layer has no peephole")
    weights = [
        LSTMWeights(
            _permute(W[d], FROM_ONNX).T,
            _permute(R[d], FROM_ONNX).T,
            None if B is None else _permute(B[d, :columns] + B[d, columns:], FROM_ONNX),
            None if P is None else P[d].reshape(3, hidden)[PEEPHOLES],
        )
        for d in range(directions)
    ]
    _write(layer, weights)


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
    _refuse("to_onnx", layer, "ONNX", "proj_size")
    weights = layer._weights
    b = [_permute(np.array(w.b), TO_ONNX) for w in weights]
    peepholes = [w.peephole[PEEPHOLES].reshape(-1) for w in weights if w.peephole is not None]
    return (
        np.stack([_permute(w.w_ih.T, TO_ONNX) for w in weights]),
        np.stack([_permute(w.w_hh.T, TO_ONNX) for w in weights]),
        np.stack([np.concatenate([half, np.zeros_like(half)]) for half in b]),
        np.stack(peepholes) if peepholes else None,
    )


def _refuse(op: str, layer: Any, library: str, *lacks: str) -> None:
    """layer must be an LSTM without what the library's has not."""
    if not isinstance(layer, LSTM):
        raise TypeError(f"{op}: layer must be an fg.nn.LSTM, got {_kind(layer)}")
    for name in lacks:
        if getattr(layer, name):
            raise ValueError(f"{op}: the layer has {name}, which {library}'s LSTM has not")
    if library == "ONNX" and layer.num_layers > 1:
        raise ValueError(f"{op}: the layer must have num_layers 1, got {layer.num_layers}; ONNX has a node for each")


def _kind(value: Any) -> str:
    """The type, with its library where that is another one: many have an LSTM."""
    library, name = type(value).__module__.split(".")[0], type(value).__name__
    return name if library in ("builtins", "fastgrad") else f"{library}'s {name}"


def _array(op: str, name: str, value: Any, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    # a tensor is converted without an import of its library
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().numpy()
        except TypeError:
            # a dtype that NumPy does not have
            raise TypeError(f"{op}: {name} must be {dtype}, got {value.dtype}") from None
    return check.array(op, name, value, form, shape, dtype, of_model=True)


def _torch_suffixes(layer: LSTM) -> list[str]:
    directions = ("", "_reverse")[: layer.directions]
    return [f"_l{i}{direction}" for i in range(layer.num_layers) for direction in directions]


def _permute(gates: np.ndarray, order: list[int]) -> np.ndarray:
    """Gates (4H, ...) in another order."""
    return gates.reshape(4, -1, *gates.shape[1:])[order].reshape(gates.shape)


def _write(layer: LSTM, weights: list[LSTMWeights]) -> None:
    for own, values in zip(layer._weights, weights, strict=True):
        for target, value in zip(own, values, strict=True):
            if target is not None:
                target[...] = 0 if value is None else value
