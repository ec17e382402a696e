"""Arguments of the JAX functions: NumPy stand-ins of JAX arrays for core/check.py, and the axes of shard_map over which arrays vary."""

from typing import Any

import jax
import numpy as np


def checkable(op: str, name: str, value: Any) -> Any:
    """A stand-in of a JAX array that core/check.py can check: NumPy zeros of its shape and dtype. Any other value is returned itself.

    Raises TypeError for a float64 array of NumPy that JAX would make float32.
    """
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
    axes: frozenset[str] = frozenset()
    for a in jax.tree.leaves(arrays):
        kind = jax.typeof(a) if hasattr(jax, "typeof") else None
        # before 0.10 the attribute was vma
        manual = getattr(kind, "manual_axis_type", None)
        axes |= getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return axes


def varying(arrays: Any, axes: frozenset[str]) -> Any:
    """The same arrays, marked as varying over these axes; the gradient of an array that did not vary is summed over them."""

    def cast(a: Any) -> Any:
        missing = tuple(sorted(axes - axes_of(a)))
        if not missing:
            return a
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(a, missing, to="varying")
        return jax.lax.pvary(a, missing)  # type: ignore[attr-defined]

    return jax.tree.map(cast, arrays) if axes else arrays
