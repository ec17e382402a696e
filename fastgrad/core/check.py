"""Checks of arguments: types, dtypes, devices, shapes and numbers. All errors read `op: argument must be this, got that`.

A check returns the value in the form that kernels need (aligned, contiguous, int64, ...), or raises TypeError or ValueError. Its arguments
op and name, the caller and its argument, are for the message.
"""

import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fastgrad.core import device
from fastgrad.kernels.types import ACTIVATIONS, Activation

# the largest size, step or count: kernels multiply two of them in int64
MOST = 2**31 - 1
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
# activations with a parameter, and its name
PARAMETERS = {"leaky_relu": "slope", "clipped_relu": "cap", "elu": "alpha"}


def array(
    op: str, name: str, value: Any, form: str, shape: Sequence[int | None], like: Any = None, *, of_model: bool = False
) -> np.ndarray:
    """value as an aligned array of this shape (None: any size), with the dtype and device of `like`; strides stay, nothing is cast.

    of_model: `like` is a model's parameters, and the error of another dtype says so.
    """
    value = floating(op, name, value, like, of_model)
    sizes = value.shape
    if sizes != shape:
        if len(sizes) != len(shape):
            raise ValueError(f"{op}: {name} must be {shape_text(form, shape)}, got {sizes}")
        # a loop by zip(strict=True) takes twice as long
        for axis, expected in enumerate(shape):
            if expected is not None and expected != sizes[axis]:
                raise ValueError(f"{op}: {name} must be {shape_text(form, shape)}, got {sizes}")
    return value


def floating(op: str, name: str, value: Any, like: Any = None, of_model: bool = False) -> np.ndarray:
    """value as an aligned array of float32 or float64, of NumPy or on a GPU.

    like: an array, whose dtype and device value must have, or a dtype.
    """
    if type(value) is np.ndarray and value.flags.aligned:
        if like is None:
            if value.dtype in FLOATS:
                return value
        elif type(like) is np.ndarray:
            if value.dtype == like.dtype:
                return value
        elif isinstance(like, np.dtype) and value.dtype == like:
            return value
    return _floating(op, name, value, like, of_model)


def _floating(op: str, name: str, value: Any, like: Any, of_model: bool) -> np.ndarray:
    value = place(op, name, value, None if isinstance(like, np.dtype) else like)
    dtype = getattr(like, "dtype", like)
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64 in native byte order, got {value.dtype}")
    if dtype is not None and value.dtype != dtype:
        if of_model:
            expected = f"{dtype} like the model"
            cure = f"; astype(np.{dtype}), or dtype='{value.dtype}' for the model"
        else:
            expected, cure = str(dtype), " (one call has one dtype)"
        raise TypeError(f"{op}: {name} must be {expected}, got {value.dtype}{cure}")
    if not isinstance(value, np.ndarray):
        return value
    value = value.view(np.ndarray)
    return value if value.flags.aligned else value.copy()


def place(op: str, name: str, value: Any, like: Any = None) -> Any:
    """value if it is a NumPy array; for an array on a GPU, the CuPy array over its memory. It must be on the device of `like`, if any."""
    if device.on_gpu(value):
        value = device.borrow(op, name, value)
    else:
        plain(op, name, value)
    if like is not None and type(like) is not type(value):
        device.check_same_device(op, name, value, like)
    return value


def channels_last(op: str, name: str, value: Any) -> np.ndarray:
    """value as an aligned array (..., C) of at least one channel."""
    value = floating(op, name, value)
    if not value.ndim or not value.shape[-1]:
        raise ValueError(f"{op}: {name} must be (..., C) with at least one channel, got {value.shape}")
    return value


def plain(op: str, name: str, value: Any) -> None:
    """value must be a NumPy array, and not a masked one, whose mask would be lost."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        kind = type(value).__name__
        raise TypeError(f"{op}: {name} must be a NumPy array, got {kind}; np.asarray(value, dtype) makes one")


def is_contiguous(value: np.ndarray) -> bool:
    """Whether kernels can use the array without a copy: it is C-contiguous, and of NumPy also aligned and writable."""
    return value.flags.carray if isinstance(value, np.ndarray) else value.flags.c_contiguous


def contiguous(value: np.ndarray) -> np.ndarray:
    """value itself if C-contiguous and writable, so that kernels meet one array type; else a copy."""
    return value if is_contiguous(value) else value.copy(order="C")


def upstream(op: str, dy: Any, y: np.ndarray) -> np.ndarray:
    """dy, the argument of backward: the gradient with respect to the output y, C-contiguous."""
    if dy is None:
        raise TypeError(f"{op}: backward needs dy, an array {y.shape} like the output, got None")
    return contiguous(array(op, "dy", dy, "like the output", y.shape, y))


def activation(op: str, value: Any, name: str = "activation") -> Activation:
    """The activation of this name, or of this pair of a name and a parameter."""
    kind, parameter = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    choice(op, name, kind, ACTIVATIONS)
    if parameter is None:
        return ACTIVATIONS[kind]
    if kind not in PARAMETERS:
        raise ValueError(f"{op}: {name} {kind!r} takes no parameter; {', '.join(PARAMETERS)} do")
    # backward reads the sign of z from the output, which a negative slope or alpha would change
    zero = kind != "clipped_relu"
    what = f"the {PARAMETERS[kind]} of {name} {kind!r}"
    return Activation(ACTIVATIONS[kind].code, number(op, what, parameter, zero=zero))


def activations(op: str, value: Any, layers: int) -> list[Activation]:
    """One activation for every layer, from one for all or a list of one for each."""
    if not isinstance(value, list):
        return [activation(op, value, "activations")] * layers
    sequence(op, "activations", value, layers)
    # the text of an argument's name would take longer than the look-up
    return [
        ACTIVATIONS[item] if type(item) is str and item in ACTIVATIONS else activation(op, item, f"activations[{i}]")
        for i, item in enumerate(value)
    ]


def sequence(op: str, name: str, value: Any, count: int | None = None) -> None:
    """value must be a list or tuple of this length (None: any from 1)."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{op}: {name} must be a list or tuple, got {type(value).__name__}")
    if len(value) != (count or max(len(value), 1)):
        raise ValueError(f"{op}: {name} must have length {count or 'at least 1'}, got {len(value)}")


def choice(op: str, name: str, value: Any, known: Collection[str]) -> None:
    """value must be one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{op}: {name} must be one of {', '.join(known)}; got {value!r}")


def count(op: str, name: str, value: Any, least: int = 1, most: int | None = MOST) -> int:
    """value as an integer no smaller than least, and no larger than most."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}") from None
    if number < least or isinstance(value, bool):
        raise ValueError(f"{op}: {name} must be an integer of at least {least}, got {value}")
    if most is not None and number > most:
        raise ValueError(f"{op}: {name} must be an integer of at most {most}, got {value}")
    return number


def integer(op: str, name: str, value: Any) -> int:
    """value as an integer of either sign that int64 holds."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}") from None
    if isinstance(value, bool) or not -(2**63) < number < 2**63:
        raise ValueError(f"{op}: {name} must be an integer of 64 bits, got {_text(value)}")
    return number


def number(
    op: str, name: str, value: Any, *, zero: bool = True, below: float = np.inf, most: float | None = None
) -> float:
    """value as a finite float from 0 (or above it), below `below`, and no larger than `most`."""
    number = _real(op, name, value)
    if not 0 <= number < below or not (number or zero) or (most is not None and number > most):
        above = f"at most {most:g}" if most is not None else "finite" if below == np.inf else f"below {below:g}"
        bounds = f"{'at least' if zero else 'above'} 0 and {above}"
        raise ValueError(f"{op}: {name} must be {bounds}, got {_text(value)}")
    return number


def finite(op: str, name: str, value: Any) -> float:
    """value as a finite float of either sign."""
    number = _real(op, name, value)
    if not np.isfinite(number):
        raise ValueError(f"{op}: {name} must be finite, got {_text(value)}")
    return number


def keep(settings: Any, **values: Any) -> None:
    """Set attributes of a frozen dataclass to what checks return: Python's numbers, which NumPy neither rounds nor wraps around."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def _real(op: str, name: str, value: Any) -> float:
    """A number of Python or NumPy as a float, infinite where it is too large for one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return np.inf if number > 0 else -np.inf


def _text(value: Any) -> str:
    """A number as text for an error message, also an integer of thousands of digits, which Python refuses to write."""
    try:
        float(value)
        return str(value)
    except (OverflowError, ValueError):
        return f"{type(value).__name__} that no float holds"


def dtype(op: str, value: Any) -> np.dtype:
    """float32 or float64."""
    try:
        # numpy takes None for float64
        dtype = np.dtype(object if value is None else value)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in FLOATS:
        raise ValueError(f"{op}: dtype must be float32 or float64, got {value!r}")
    return dtype


def shape_text(form: str, shape: Sequence[int | None]) -> str:
    known = ", ".join("_" if n is None else str(n) for n in shape)
    return form if all(n is None for n in shape) else f"{form} = ({known}{',' if len(shape) == 1 else ''})"


def no_update(op: str, gradients: dict[str, np.ndarray], hint: str = "") -> FloatingPointError:
    """The error of a step that made no update, since its gradients, or parameters or state after it, are not finite."""
    bad = [name for name, gradient in gradients.items() if not np.isfinite(gradient).all()]
    with np.errstate(over="ignore"):
        squares = [float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients.values()]
    if bad:
        what = f"the gradient is not finite in {', '.join(bad)}"
    elif not np.isfinite(sum(squares)):
        what = "the gradient's norm overflows"
    else:
        dtype = next((gradient.dtype for gradient in gradients.values()), "the dtype")
        what = (
            f"the optimiser's state or the parameters would not be finite in {dtype}: "
            "a gradient, parameter or rate is too large for it, or eps too small"
        )
    return FloatingPointError(f"{op}: {what}; no update was made{hint}")
