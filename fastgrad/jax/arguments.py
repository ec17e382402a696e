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


def axes_of(arrays: Any) -> frozenset[str]:
    """The axes of shard_map's mesh over which any of the arrays varies; none outside of it, or where JAX does not keep account."""
    found: frozenset[str] = frozenset()
    for a in jax.tree.leaves(arrays):
        kind = jax.typeof(a) if hasattr(jax, "typeof") else None
        # before 0.10 the attribute was vma
        manual = getattr(kind, "manual_axis_type", None)
        found |= getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return found


def varying(arrays: Any, axes: frozenset[str]) -> Any:
    """The same arrays, varying over these axes; the gradient of one that did not is the sum over them."""

    def cast(a: Any) -> Any:
        missing = tuple(sorted(axes - axes_of(a)))
        if not missing:
            return a
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(a, missing, to="varying")
        return jax.lax.pvary(a, missing)  # type: ignore[attr-defined]

    return jax.tree.map(cast, arrays) if axes else arrays
