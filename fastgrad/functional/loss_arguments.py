"""Checks of the arguments of losses: labels, weights of classes and of rows, and options, from which class_loss and huber_loss make a Loss
as kernels read it.
"""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.kernels import types

INT64 = np.dtype(np.int64)


def class_loss(op: str, weights: Any, ignore_index: Any, label_smoothing: Any) -> types.Loss:
    """cross_entropy with its options; weights are checked, an array or None."""
    smoothing = check.number(op, "label_smoothing", label_smoothing, most=1.0)
    ignored = types.NO_LABEL if ignore_index is None else check.integer(op, "ignore_index", ignore_index)
    return types.Loss(types.CROSS_ENTROPY, smoothing, weights, ignored)


def huber_loss(op: str, delta: Any) -> types.Loss:
    """huber with its option."""
    return types.Loss(types.HUBER, check.number(op, "delta", delta, zero=False))


def checked_weights(
    op: str,
    name: str,
    value: Any,
    form: str,
    shape: tuple[int, ...],
    like: Any,
    *,
    scalar: bool = False,
    values: bool = True,
) -> np.ndarray:
    """Numbers, finite and at least 0, as a contiguous array of this shape with the dtype and device of `like`.

    value: an array of any real dtype, a list, or with `scalar` one number, which is then that of all. values=False leaves out the check of
    an array's numbers on a GPU, for which the host would wait.
    """
    on_gpu = device.on_gpu(value)
    try:
        array: Any = check.place(op, name, value, like) if on_gpu else np.asarray(value)
        is_real = array.dtype.kind in "iuf" and not isinstance(value, np.ma.MaskedArray)
    except (ValueError, OverflowError):
        is_real = False
    if not is_real:
        raise TypeError(f"{op}: {name} must be numbers {form}, got {getattr(value, 'dtype', type(value).__name__)}")
    if array.shape != shape and not (scalar and array.ndim == 0):
        raise ValueError(f"{op}: {name} must be {check.shape_text(form, shape)}, got {array.shape}")
    with np.errstate(over="ignore"):
        # a copy: the caller may write to the array before it is used
        array = array.astype(like.dtype)
    if values or not on_gpu:
        bad = ~((array >= 0) & (array < np.inf))
        bad = device.to_host(bad) if on_gpu else np.asarray(bad)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            at = f" at index {index[0] if len(index) == 1 else index}" if index else ""
            raise ValueError(f"{op}: {name} must be at least 0 and finite, got {array[index].item()}{at}")
    if array.shape != shape:
        array = np.full(shape, array)
    return check.contiguous(device.to_gpu(array) if device.on_gpu(like) else array)


def checked_labels(
    op: str,
    name: str,
    value: Any,
    shape: tuple[int, ...],
    like: Any,
    values: bool = True,
    *,
    of_model: bool = False,
    ignore_index: int = types.NO_LABEL,
) -> np.ndarray:
    """Labels, C-contiguous, on the device of `like`: class numbers as int64 (N,), or one-hot rows or probabilities (N, C).

    shape: (N, C); or of sequences (N, T, C), with class numbers (N, T). like: an array, or a dtype. values=False leaves out the check that
    class numbers are in range, or ignore_index.
    """
    dtype = getattr(like, "dtype", like)
    value = check.place(op, name, value, None if like is dtype else like)
    integers, floats = ("(N,)", "(N, C)") if len(shape) == 2 else ("(N, T)", "(N, T, C)")
    if value.ndim > 1 and value.dtype.kind == "f":
        form = f"{integers} integers or {floats}"
        if ignore_index != types.NO_LABEL:
            raise ValueError(f"{op}: ignore_index is for class numbers, and {name} are probabilities {value.shape}")
        return check.contiguous(check.array(op, name, value, form, shape, like, of_model=of_model))
    if value.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: {name} must be integers {integers} or {dtype} {floats}, got {value.dtype} {value.shape}"
        )
    rows, classes = shape[:-1], shape[-1]
    if value.shape != rows:
        raise ValueError(f"{op}: {name} must be integers {rows} or {dtype} {shape}, got integers {value.shape}")
    numbers = _class_numbers(value)
    if not values:
        return numbers
    # a negative number is a huge one without its sign
    unsigned = numbers.view(np.uint64)
    host = type(numbers) is np.ndarray
    if numbers.size and (np.maximum.reduce(unsigned, axis=None) if host else unsigned.max()) >= classes:
        value = value if isinstance(value, np.ndarray) else value.get()
        is_ignored = (value == ignore_index) & (ignore_index != types.NO_LABEL)
        bad = np.argwhere(((value < 0) | (value >= classes)) & ~is_ignored)
        if not len(bad):
            return numbers
        index = tuple(int(i) for i in bad[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(f"{op}: {name} must be in 0..{classes - 1}, got {value[index]} at index {where}")
    return numbers


def _class_numbers(value: Any) -> Any:
    """Class numbers as int64, C-contiguous."""
    if isinstance(value, np.ndarray):
        fits = type(value) is np.ndarray and value.dtype is INT64 and value.flags.carray
        return value if fits else np.array(value, np.int64)
    return check.contiguous(value.astype(np.int64, copy=False))
