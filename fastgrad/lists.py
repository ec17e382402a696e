"""Lists of arrays as training code has them: any shapes and layouts, one dtype, written in place."""

from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.backend import kernels


class Arrays:
    """A list of arrays for kernels, which take C-contiguous ones alone: `flat` has copies of the others, and `write` takes these back.

    value: an array or a list of at least one, of one dtype (the one asked for, if any). Raises TypeError or ValueError, also where an array
    is to be written and cannot be. The arrays may not overlap.
    """

    def __init__(self, op: str, name: str, value: Any, dtype: np.dtype | None = None, *, written: bool = True) -> None:
        self.single = isinstance(value, np.ndarray)
        if not self.single:
            check.each(op, name, value)
        # a list of our own: the caller's may change meanwhile
        arrays = [value] if self.single else list(value)
        self.given: list[np.ndarray] | None = None
        if not kernels().plain(arrays) or (dtype is not None and arrays[0].dtype != dtype):
            self.given = arrays
            arrays = self._contiguous(op, name, arrays, dtype, written)
        self.flat = arrays

    def _contiguous(
        self, op: str, name: str, arrays: list[Any], dtype: np.dtype | None, written: bool
    ) -> list[np.ndarray]:
        found = []
        for i, array in enumerate(arrays):
            what = name if self.single else f"{name}[{i}]"
            found.append(check.contiguous(check.floating(op, what, array, dtype)))
            dtype = dtype or found[0].dtype
            if written and not array.flags.writeable:
                raise ValueError(f"{op}: {what} must be writable, got a read-only array")
        return found

    def write(self) -> None:
        """Put what became of copies into the arrays that were given."""
        for array, copy in zip(self.given or (), self.flat, strict=False):
            if not np.may_share_memory(array, copy):
                array[...] = copy


def same_shapes(op: str, name: str, arrays: list[np.ndarray], other: str, others: list[np.ndarray]) -> None:
    """Two lists of arrays that belong together."""
    if len(arrays) != len(others):
        raise ValueError(f"{op}: {name} must have length {len(others)} like {other}, got {len(arrays)}")
    for i, (array, like) in enumerate(zip(arrays, others, strict=True)):
        if array.shape != like.shape:
            raise ValueError(f"{op}: {name}[{i}] must be {like.shape} like {other}[{i}], got {array.shape}")


def flat_masks(op: str, masks: Any, shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Masks of arrays of these shapes as one, bool (P,): those given for each, or one for one; all True for None."""
    masks = [masks] if isinstance(masks, np.ndarray) else masks
    check.each(op, "masks", masks, len(shapes))
    found = []
    for i, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        mask = np.ones(shape, np.bool_) if mask is None else mask
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            kind = f"an array of {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"{op}: masks[{i}] must be an array of bool, got {kind}")
        if mask.shape != shape:
            raise ValueError(f"{op}: masks[{i}] must be {shape}, got {mask.shape}")
        found.append(mask.reshape(-1))
    return np.concatenate(found)
