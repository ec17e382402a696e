"""Initial weights of one distribution whatever their shape: zeros, constant, normal, truncated normal and uniform."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.core.random import draw_key, generator
from fastgrad.init.gains import Shape

Rng = np.random.Generator | int
# where truncated_normal is cut, in standard deviations
CUT = 2.0


def zeros(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64) -> np.ndarray:
    """An array of zeros; draws nothing.

    Args:
        shape: Any shape.
        rng: Not used; it is there since every function of this module takes it.
        dtype: float32 or float64.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The dtype is another one.

    Example:
        >>> fg.init.zeros((2, 3), 0).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return np.zeros(shape, check.dtype("zeros", dtype))


@silent
def constant(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, value: float = 0.0) -> np.ndarray:
    """An array of one value; draws nothing.

    Args:
        shape: Any shape.
        rng: Not used; it is there since every function of this module takes it.
        dtype: float32 or float64.
        value: The value, a finite number. As a model's init: ("constant", value).

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: The value is not finite, or the dtype is another one.
        TypeError: The value is no number.

    Example:
        >>> fg.init.constant((2, 2), 0, value=0.5).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    return np.full(shape, check.finite("constant", "value", value), check.dtype("constant", dtype))


def normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, std: float = 0.05, mean: float = 0.0
) -> np.ndarray:
    """Normal with this mean and standard deviation.

    Args:
        shape: Any shape of at least one axis.
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        std: The standard deviation, at least 0. As a model's init: ("normal", std).
        mean: The mean, a finite number.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: std or mean is out of its range, the dtype is another one, or the shape has no axis.
        TypeError: shape is no tuple or list of integers, std or mean no number, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.normal((100, 100), 0, std=0.01)
        >>> abs(float(w.std()) - 0.01) < 1e-3
        True
    """
    return draw_normal(
        "normal", shape, rng, dtype, check.number("normal", "std", std), check.finite("normal", "mean", mean)
    )


@silent
def truncated_normal(
    shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, std: float = 0.05, mean: float = 0.0
) -> np.ndarray:
    """Normal, without the values further than two standard deviations from the mean, in whose place others are drawn.

    The values that are left have the standard deviation 0.8796 std. As TruncatedNormal of Keras.

    Args:
        shape: Any shape of at least one axis.
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        std: The standard deviation before the cut, at least 0. As a model's init: ("truncated_normal", std).
        mean: The mean, a finite number.

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: std or mean is out of its range, the dtype is another one, or the shape has no axis.
        TypeError: shape is no tuple or list of integers, std or mean no number, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.truncated_normal((100, 100), 0, std=0.01)
        >>> bool((abs(w) <= 0.02).all()), 0.008 < float(w.std()) < 0.009
        (True, True)
    """
    op = "truncated_normal"
    std, mean = check.number(op, "std", std), check.finite(op, "mean", mean)
    out, source = empty_weights(op, shape, dtype), checked_generator(op, rng)
    # in float64, so that the same values are drawn again for float32
    values = draw_normal(op, (out.size,), source, np.float64, 1.0)
    while (far := np.flatnonzero(np.abs(values) > CUT)).size:
        values[far] = draw_normal(op, (far.size,), source, np.float64, 1.0)
    out[...] = (mean + std * values).reshape(out.shape)
    return out


def uniform(shape: Shape, rng: Rng, dtype: DTypeLike = np.float64, *, limit: float = 0.05) -> np.ndarray:
    """Uniform on +-limit.

    Args:
        shape: Any shape of at least one axis.
        rng: A numpy Generator, or a seed: an integer from 0.
        dtype: float32 or float64.
        limit: The largest magnitude, at least 0. As a model's init: ("uniform", limit).

    Returns:
        The array, of this shape and dtype.

    Raises:
        ValueError: limit is negative or not finite, the dtype is another one, or the shape has no axis.
        TypeError: shape is no tuple or list of integers, limit no number, or rng no Generator and no integer.

    Example:
        >>> w = fg.init.uniform((4, 3), 0, np.float32, limit=0.1)
        >>> w.shape, w.dtype, bool((abs(w) <= np.float32(0.1)).all())
        ((4, 3), dtype('float32'), True)
    """
    return draw_uniform("uniform", shape, rng, dtype, check.number("uniform", "limit", limit))


def checked_generator(op: str, rng: Any) -> np.random.Generator:
    """rng, or the generator of this seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    return generator(check.count(op, "rng, if no numpy Generator,", rng, 0, None))


def empty_weights(op: str, shape: Shape, dtype: DTypeLike) -> np.ndarray:
    """An uninitialised array of this shape, checked."""
    check.sequence(op, "shape", shape, len(shape) if isinstance(shape, tuple | list) else None)
    return empty(tuple(check.count(op, f"shape[{i}]", n, 0) for i, n in enumerate(shape)), check.dtype(op, dtype))


def draw_normal(op: str, shape: Shape, rng: Rng, dtype: DTypeLike, std: float, mean: float = 0.0) -> np.ndarray:
    """Normal values with this standard deviation and mean."""
    out = empty_weights(op, shape, dtype)
    kernels().normal(out.reshape(-1), draw_key(checked_generator(op, rng)), mean, std)
    return out


def draw_uniform(op: str, shape: Shape, rng: Rng, dtype: DTypeLike, limit: float) -> np.ndarray:
    """Uniform values on +-limit."""
    out = empty_weights(op, shape, dtype)
    kernels().uniform(out.reshape(-1), draw_key(checked_generator(op, rng)), -limit, limit)
    return out
