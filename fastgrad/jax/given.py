"""What users give: arrays of JAX or NumPy, traced or not."""

from typing import Any

import jax
import numpy as np


def checkable(op: str, name: str, value: Any) -> Any:
    """What check.py can look at in place of a traced array: its shape and type, without values."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64 != jax.dtypes.canonicalize_dtype(np.float64):
        raise TypeError(
            f'{op}: {name} is float64, which JAX would make float32: jax.config.update("jax_enable_x64", True) lets it be, '
            "or convert it yourself"
        )
    if not isinstance(value, jax.Array):
        return value
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)
