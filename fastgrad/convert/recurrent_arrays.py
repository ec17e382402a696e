"""What readers and writers of recurrent layers' weights share: checks of the layer and of arrays, biases, and the write, which comes last.

    LSTM
    fastgrad    w_ih (C, 4H), w_hh (P, 4H)                     gates i, f, g, o    one bias
    PyTorch     weight_ih (4H, C), weight_hh (4H, P)           gates i, f, g, o    two biases, added
    Keras       kernel (C, 4H), recurrent_kernel (H, 4H)       gates i, f, c, o    one bias
    ONNX        W (D, 4H, C), R (D, 4H, H)                     gates i, o, f, c    two biases, added; peepholes i, o, f

    GRU
    fastgrad    w_ih (C, 3H), w_hh (H, 3H)                     gates r, z, n       one bias, and b_hn with reset_after
    PyTorch     weight_ih (3H, C), weight_hh (3H, H)           gates r, z, n       two biases; reset_after alone
    Keras       kernel (C, 3H), recurrent_kernel (H, 3H)       gates z, r, h       two biases with reset_after, else one
    ONNX        W (D, 3H, C), R (D, 3H, H)                     gates z, r, h       two biases

Two biases are that of x and that of h. They are added, but for the gate n of a GRU with reset_after, where b_hn is that of h.

Values are NumPy arrays, or PyTorch's tensors, of the layer's dtype; what is returned are new arrays. Without biases b and b_hn are 0.
Errors are TypeError and ValueError, naming the value, and then nothing is changed.
"""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.kernels.types import GRUWeights, LSTMWeights
from fastgrad.nn.gru import GRU
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model

# the weights of one direction of one layer
Weights = LSTMWeights | GRUWeights
# options that a library's layers have not
VARIANTS = ("layer_norm", "zoneout", "recurrent_dropout")
LACKS = {
    "PyTorch": ("peephole", "reverse", *VARIANTS),
    "Keras": ("peephole", "proj_size", *VARIANTS),
    "ONNX": ("proj_size", *VARIANTS),
}


def check_layer(op: str, layer: Any, library: str) -> None:
    """layer must be an LSTM or a GRU without what the library's has not."""
    if not isinstance(layer, (LSTM, GRU)):
        raise TypeError(f"{op}: layer must be an fg.nn.LSTM or fg.nn.GRU, got {kind(layer)}")
    lacks = missing_options(layer, library)
    if library == "PyTorch" and isinstance(layer, GRU) and not layer.reset_after:
        lacks.append("reset_after=False")
    if lacks:
        raise ValueError(f"{op}: the layer has {lacks[0]}, which {library}'s {cell_of(type(layer))} has not")
    if library == "ONNX" and layer.num_layers > 1:
        raise ValueError(f"{op}: the layer must have num_layers 1, got {layer.num_layers}; ONNX has a node for each")


def missing_options(layer: LSTM | GRU, library: str) -> list[str]:
    """The options of the layer that the library's layer has not; Keras's recurrent_dropout drops h."""
    names = [name for name in LACKS[library] if getattr(layer, name, False) not in (0, (0.0, 0.0))]
    return ["recurrent_dropout of g" if name == "recurrent_dropout" else name for name in names]


def cell_of(layer: type[Model]) -> str:
    """The name of a recurrent layer's class, which is the same in all libraries, or of its base."""
    return "GRU" if issubclass(layer, GRU) else "LSTM"


def with_article(cell: str) -> str:
    return f"a {cell}" if cell == "GRU" else f"an {cell}"


def kind(value: Any) -> str:
    """The type, with its library where that is another one: many have an LSTM."""
    library, name = type(value).__module__.split(".")[0], type(value).__name__
    return name if library in ("builtins", "fastgrad") else f"{library}'s {name}"


def weight_array(op: str, name: str, value: Any, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
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


def gates_of(layer: LSTM | GRU) -> int:
    """The number of gates."""
    return layer._weights[0].w_ih.shape[1] // layer.hidden_size


def in_order(columns: np.ndarray, order: list[int]) -> np.ndarray:
    """A new array: the gates, which are parts of the last axis, in another order."""
    return columns.reshape(*columns.shape[:-1], len(order), -1)[..., order, :].reshape(columns.shape)


def one_bias(layer: LSTM | GRU, of_x: np.ndarray, of_h: np.ndarray) -> dict[str, np.ndarray]:
    """b, and with reset_after b_hn, from two biases, gates in our order."""
    b = of_x + of_h
    if not (isinstance(layer, GRU) and layer.reset_after):
        return {"b": b}
    n = slice(2 * layer.hidden_size, None)
    b[n] = of_x[n]
    return {"b": b, "b_hn": of_h[n]}


def two_biases(w: Weights) -> tuple[np.ndarray, np.ndarray]:
    """The bias of x, which is b, and that of h, which is 0 but for b_hn; new arrays, gates in our order."""
    of_h = np.zeros_like(w.b)
    if isinstance(w, GRUWeights) and w.b_hn is not None:
        of_h[2 * len(w.b_hn) :] = w.b_hn
    return np.array(w.b), of_h


def write(layer: LSTM | GRU, weights: list[Any]) -> None:
    for own, values in zip(layer._weights, weights, strict=True):
        for target, value in zip(own, values, strict=True):
            if target is not None:
                target[...] = 0 if value is None else value
