"""Initial weights: f(shape, rng) draws from a numpy Generator.

Drawn in float64, so that a float32 model gets the values of a float64 one, rounded.
fan_in is shape[0] and fan_out shape[1]: a dense w is (C_in, C_out).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

Shape = tuple[int, ...]


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
    limit = math.sqrt(6 / (shape[0] + shape[1]))
    return rng.uniform(-limit, limit, shape).astype(dtype)


def xavier_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)."""
    return normal(shape, rng, dtype, std=math.sqrt(2 / (shape[0] + shape[1])))


def he_uniform(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Uniform on +-sqrt(6 / fan_in) (He et al. 2015, eq. 10)."""
    limit = math.sqrt(6 / shape[0])
    return rng.uniform(-limit, limit, shape).astype(dtype)


def he_normal(shape: Shape, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10)."""
    return normal(shape, rng, dtype, std=math.sqrt(2 / shape[0]))


INITS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (zeros, normal, xavier_uniform, xavier_normal, he_uniform, he_normal)
}
