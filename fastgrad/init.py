"""Initial weights: f(shape, rng) draws from a numpy Generator.

Drawn in float64, so that a float32 model gets the values of a float64 one, rounded.
fan_in and fan_out are the sizes of a dense w (C_in, C_out); of a convolution's (kh, kw, C_in, C_out) they are kh kw times as large.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from fastgrad import check

Shape = tuple[int, ...]


def fans(shape: Shape) -> tuple[int, int]:
    """fan_in and fan_out: how many values go into one output, and how many outputs one value goes into."""
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def zeros(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """All zero; draws nothing."""
    return np.zeros(shape, dtype)


def normal(
    shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64, *, mean: float = 0.0, std: float = 0.05
) -> np.ndarray:
    """Normal with this mean and standard deviation."""
    return rng.normal(mean, std, shape).astype(dtype)


def xavier_uniform(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16)."""
    limit = math.sqrt(6 / sum(fans(shape)))
    return rng.uniform(-limit, limit, shape).astype(dtype)


def xavier_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)."""
    return normal(shape, rng, dtype, std=math.sqrt(2 / sum(fans(shape))))


def he_uniform(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Uniform on +-sqrt(6 / fan_in) (He et al. 2015, eq. 10)."""
    limit = math.sqrt(6 / fans(shape)[0])
    return rng.uniform(-limit, limit, shape).astype(dtype)


def he_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10)."""
    return normal(shape, rng, dtype, std=math.sqrt(2 / fans(shape)[0]))


INITS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (zeros, normal, xavier_uniform, xavier_normal, he_uniform, he_normal)
}


def chosen(op: str, init: str | Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The function of this name, or the caller's own."""
    if callable(init):
        return init
    check.choice(op, "init", init, INITS)
    return INITS[init]
