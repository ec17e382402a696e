"""What batch_norm and layer_norm of JAX share: arrays as rows, and statistics in float64, which JAX may not have, as their bits."""

from typing import Any

import jax
import numpy as np

from fastgrad.kernels.types import Statistics


def bits(count: int) -> jax.ShapeDtypeStruct:
    """The shape of so many float64 as an array of their bits."""
    return jax.ShapeDtypeStruct((count, 2), np.dtype(np.uint32))


def statistics(mean: np.ndarray, rstd: np.ndarray) -> Statistics:
    """Mean and rstd as float64, from arrays of their bits."""
    return Statistics(mean.reshape(-1).view(np.float64), rstd.reshape(-1).view(np.float64))


def as_rows(a: Any) -> Any:
    """An array (..., C) as (M, C); None stays None."""
    return None if a is None else a.reshape(-1, a.shape[-1])
