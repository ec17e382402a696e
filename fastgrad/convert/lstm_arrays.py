"""What the readers and writers of LSTM weights have in common: checks of the layer and of arrays; and the write, which comes last.

    fastgrad    w_ih (C, 4H), w_hh (P, 4H)                     gates i, f, g, o    one bias
    PyTorch     weight_ih (4H, C), weight_hh (4H, P)           gates i, f, g, o    two biases, added
    Keras       kernel (C, 4H), recurrent_kernel (H, 4H)       gates i, f, c, o    one bias
    ONNX        W (D, 4H, C), R (D, 4H, H)                     gates i, o, f, c    two biases, added; peepholes i, o, f

Values are NumPy arrays, or PyTorch's tensors, of the layer's dtype; what is returned are new arrays. Without biases b is 0.
Errors are TypeError and ValueError, naming the value, and then nothing is changed.
"""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.kernels.types import LSTMWeights
from fastgrad.nn.lstm import LSTM


def checked_lstm(op: str, layer: Any, library: str, *lacks: str) -> None:
    """layer must be an LSTM without what the library's has not."""
    if not isinstance(layer, LSTM):
        raise TypeError(f"{op}: layer must be an fg.nn.LSTM, got {kind(layer)}")
    for name in lacks:
        if getattr(layer, name):
            raise ValueError(f"{op}: the layer has {name}, which {library}'s LSTM has not")
    if library == "ONNX" and layer.num_layers > 1:
        raise ValueError(f"{op}: the layer must have num_layers 1, got {layer.num_layers}; ONNX has a node for each")


def kind(value: Any) -> str:
    """The type, with its library where that is another one: many have an LSTM."""
    library, name = type(value).__module__.split(".")[0], type(value).__name__
    return name if library in ("builtins", "fastgrad") else f"{library}'s {name}"


def lstm_array(op: str, name: str, value: Any, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return check.array(op, name, on_host(op, name, value, str(dtype)), form, shape, dtype, of_model=True)


def on_host(op: str, name: str, value: Any, dtypes: str) -> Any:
    """A tensor of PyTorch as an array of NumPy, without an import of its library; any other value as it is."""
    if not hasattr(value, "detach"):
        return value
    try:
        return value.detach().cpu().numpy()
    except TypeError:
        # a dtype that NumPy does not have
        raise TypeError(f"{op}: {name} must be {dtypes}, got {value.dtype}") from None


def write(layer: LSTM, weights: list[LSTMWeights]) -> None:
    for own, values in zip(layer._weights, weights, strict=True):
        for target, value in zip(own, values, strict=True):
            if target is not None:
                target[...] = 0 if value is None else value
