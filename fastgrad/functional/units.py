"""Units, which are an array's columns or filters: how many an array has, their norms, and the scaling of arrays by unit.

Without widths an array is one unit.
"""

from typing import Any

import numpy as np

from fastgrad.core.array_list import ArrayList
from fastgrad.core.errstate import silent


def unit_counts(op: str, name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """The number of units of each array, int64 (n,): the size of the last axis, or 1 for an array of one axis."""
    widths = np.ones(len(arrays), np.int64)
    for i, array in enumerate(arrays):
        if array.ndim > 1:
            if array.ndim not in (2, 4):
                raise ValueError(f"{op}: {name}[{i}] must have 1, 2 or 4 axes, got {array.shape}")
            widths[i] = max(array.shape[-1], 1)
    return widths


def array_norms(arrays: ArrayList, p: float, widths: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Norms of all units, and for each array the number of values that are not finite."""
    count = len(arrays.flat)
    norms, counts = np.empty(count if widths is None else int(widths.sum())), np.empty(count, np.int64)
    arrays.kernels.array_norms(arrays.flat, widths, p, norms, counts)
    return norms, counts


@silent
def scales_to(limits: Any, norms: np.ndarray) -> np.ndarray:
    """The scale of each norm: limit / norm where the norm is larger, else 1."""
    return np.divide(limits, norms, out=np.ones_like(norms), where=norms > limits)


def scale_arrays(arrays: ArrayList, widths: np.ndarray | None, scales: np.ndarray) -> None:
    if (scales != 1).any():
        arrays.kernels.scale_arrays(arrays.flat, widths, scales)
        arrays.write()
