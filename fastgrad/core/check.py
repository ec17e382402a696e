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
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import ACTIVATIONS, Activation

Pair = tuple[int, int]

INT64 = np.dtype(np.int64)
# the largest size, step or count: kernels multiply two of them in int64
MOST = 2**31 - 1
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
# activations whose parameter a caller may choose
PARAMETERS = {"leaky_relu": "slope", "clipped_relu": "cap", "elu": "alpha"}


def array(
    op: str, name: str, value: Any, form: str, shape: Sequence[int | None], like: Any = None, *, of_model: bool = False
) -> np.ndarray:
    """value as an aligned array of this shape (None: any size), with the dtype and device of `like`; strides stay, nothing is cast.

    of_model: `like` is a model's parameters, and the error of another dtype says so.
    """
    value = floating(op, name, value, like, of_model)
    found = value.shape
    if found != shape:
        if len(found) != len(shape):
            raise ValueError(f"{op}: {name} must be {_sizes(form, shape)}, got {found}")
        for wanted, n in zip(shape, found, strict=True):
            if wanted is not None and wanted != n:
                raise ValueError(f"{op}: {name} must be {_sizes(form, shape)}, got {found}")
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
            wanted = f"{dtype} like the model"
            cure = f"; astype(np.{dtype}), or dtype='{value.dtype}' for the model"
        else:
            wanted, cure = str(dtype), " (one call has one dtype)"
        raise TypeError(f"{op}: {name} must be {wanted}, got {value.dtype}{cure}")
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


def labels(
    op: str, name: str, value: Any, shape: tuple[int, ...], like: Any, values: bool = True, *, of_model: bool = False
) -> np.ndarray:
    """Labels, C-contiguous, on the device of `like`: class numbers as int64 (N,), or one-hot rows or probabilities (N, C).

    shape: (N, C); or of sequences (N, T, C), with class numbers (N, T). like: an array, or a dtype. values=False leaves out the check that
    class numbers are in range.
    """
    dtype = getattr(like, "dtype", like)
    value = place(op, name, value, None if like is dtype else like)
    integers, floats = ("(N,)", "(N, C)") if len(shape) == 2 else ("(N, T)", "(N, T, C)")
    if value.ndim > 1 and value.dtype.kind == "f":
        form = f"{integers} integers or {floats}"
        return contiguous(array(op, name, value, form, shape, like, of_model=of_model))
    if value.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: {name} must be integers {integers} or {dtype} {floats}, got {value.dtype} {value.shape}"
        )
    rows, classes = shape[:-1], shape[-1]
    if value.shape != rows:
        raise ValueError(f"{op}: {name} must be integers {rows} or {dtype} {shape}, got integers {value.shape}")
    found = _class_numbers(value)
    if not values:
        return found
    # a negative number is a huge one without its sign
    unsigned = found.view(np.uint64)
    host = type(found) is np.ndarray
    if found.size and (np.maximum.reduce(unsigned, axis=None) if host else unsigned.max()) >= classes:
        value = value if isinstance(value, np.ndarray) else value.get()
        index = tuple(int(i) for i in np.argwhere((value < 0) | (value >= classes))[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(f"{op}: {name} must be in 0..{classes - 1}, got {value[index]} at index {where}")
    return found


def _class_numbers(value: Any) -> Any:
    """Class numbers as int64, C-contiguous."""
    if isinstance(value, np.ndarray):
        as_it_is = type(value) is np.ndarray and value.dtype is INT64 and value.flags.carray
        return value if as_it_is else np.array(value, np.int64)
    return contiguous(value.astype(np.int64, copy=False))


def images(op: str, x: Any) -> np.ndarray:
    """x as an array (N, H, W, C) with pixels, C-contiguous."""
    x = array(op, "x", x, "(N, H, W, C)", (None, None, None, None))
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: x must have at least one row, column and channel, got {x.shape}")
    return contiguous(x)


def pair(op: str, name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Two integers, vertical and horizontal, from the two or from one for both."""
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{op}: {name} must be an integer or a pair (vertical, horizontal), got {value!r}")
    return count(op, name, both[0], least), count(op, name, both[1], least)


def windows(
    op: str, name: str, size: Pair, image: Pair, stride: Pair, padding: Any, *, half: bool
) -> tuple[tuple[int, int, int, int], Pair]:
    """(top, left, bottom, right) of the padding, and how many windows of this size there are, down and across.

    padding is an integer, a pair, or "same" for ceil(image / stride) windows. With half it is at most half of size, else less than size.
    """
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"{op}: padding must be an integer, a pair or 'same', got {padding!r}")
        totals = (max(-(-n // s) * s - s + k - n, 0) for n, k, s in zip(image, size, stride, strict=True))
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    else:
        top, left = bottom, right = pair(op, "padding", padding, least=0)
        limits = [k // 2 if half else k - 1 for k in size]
        if top > limits[0] or left > limits[1]:
            raise ValueError(
                f"{op}: padding must be {'at most half of' if half else 'smaller than'} {name} {size}, got {(top, left)}"
            )
    padded = image[0] + top + bottom, image[1] + left + right
    if size[0] > padded[0] or size[1] > padded[1]:
        raise ValueError(f"{op}: {name} must be at most the padded image {padded}, got {size}")
    down, across = ((n - k) // s + 1 for n, k, s in zip(padded, size, stride, strict=True))
    return (top, left, bottom, right), (down, across)


def lengths(op: str, name: str, value: Any, n: int, steps: int) -> np.ndarray:
    """Sequences' lengths as int64 (N,), each from 0 to steps."""
    if device.on_gpu(value):
        # where steps begin and end is worked out here
        value = device.borrow(op, name, value).get()
    try:
        # a copy before it is looked at: another thread may write to what the caller has
        found = np.array(value)
    except ValueError:
        raise TypeError(f"{op}: {name} must be integers (N,), got a nested {type(value).__name__}") from None
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"{op}: {name} must be integers (N,), got {found.dtype}")
    if found.shape != (n,):
        raise ValueError(f"{op}: {name} must be integers (N,) = ({n},), got {found.shape}")
    wrong = np.flatnonzero((found < 0) | (found > steps))
    if len(wrong):
        raise ValueError(f"{op}: {name} must be in 0..{steps}, got {found[wrong[0]]} at index {wrong[0]}")
    return found.astype(np.int64, copy=False)


def activation(op: str, value: Any, name: str = "activation") -> Activation:
    """The activation of this name, or of this pair of a name and a parameter."""
    kind, parameter = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    choice(op, name, kind, ACTIVATIONS)
    if parameter is None:
        return ACTIVATIONS[kind]
    if kind not in PARAMETERS:
        raise ValueError(f"{op}: {name} {kind!r} takes no parameter; {', '.join(PARAMETERS)} do")
    # a negative slope or alpha would hide the sign of z, which backward reads off the output
    zero = kind != "clipped_relu"
    what = f"the {PARAMETERS[kind]} of {name} {kind!r}"
    return Activation(ACTIVATIONS[kind].code, number(op, what, parameter, zero=zero))


def activations(op: str, value: Any, layers: int) -> list[Activation]:
    """One activation for every layer, from one for all or a list of one for each."""
    if not isinstance(value, list):
        return [activation(op, value, "activations")] * layers
    each(op, "activations", value, layers)
    return [activation(op, item, f"activations[{layer}]") for layer, item in enumerate(value)]


def each(op: str, name: str, value: Any, count: int | None = None) -> None:
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


def number(
    op: str, name: str, value: Any, *, zero: bool = True, below: float = np.inf, most: float | None = None
) -> float:
    """value as a finite float from 0 (or above it), below `below`, and no larger than `most`."""
    found = _real(op, name, value)
    if not 0 <= found < below or not (found or zero) or (most is not None and found > most):
        above = f"at most {most:g}" if most is not None else "finite" if below == np.inf else f"below {below:g}"
        bounds = f"{'at least' if zero else 'above'} 0 and {above}"
        raise ValueError(f"{op}: {name} must be {bounds}, got {_shown(value)}")
    return found


def finite(op: str, name: str, value: Any) -> float:
    """value as a finite float of either sign."""
    found = _real(op, name, value)
    if not np.isfinite(found):
        raise ValueError(f"{op}: {name} must be finite, got {_shown(value)}")
    return found


def _real(op: str, name: str, value: Any) -> float:
    """A number of Python or NumPy as a float, infinite where it is too large for one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return np.inf if number > 0 else -np.inf


def _shown(value: Any) -> str:
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
        found = np.dtype(object if value is None else value)
    except TypeError:
        found = np.dtype(object)
    if found not in FLOATS:
        raise ValueError(f"{op}: dtype must be float32 or float64, got {value!r}")
    return found


@silent
def drawn(op: str, value: Any, like: np.ndarray) -> np.ndarray:
    """The weights that a user's init function returned, checked: numbers of the shape of `like`, finite in its dtype."""
    value = np.asarray(value)
    found = value.astype(like.dtype) if value.dtype.kind in "fiu" else None
    if found is None or found.shape != like.shape or not np.isfinite(found).all():
        of = "" if value.dtype == like.dtype else f" of {like.dtype}"
        raise ValueError(f"{op} must return finite numbers {like.shape}{of}, got {value.dtype} {value.shape}")
    return found


def _sizes(form: str, shape: Sequence[int | None]) -> str:
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
