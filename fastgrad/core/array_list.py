"""ArrayList: a checked list of arrays for kernels, as clipping, pruning and Updater use it; and checks of such lists.

The arrays have one dtype and any shapes and strides, and are written in place.
"""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import zeros
from fastgrad.core.backend import kernels


class ArrayList:
    """A list of arrays for kernels, which need C-contiguous arrays: `flat` has copies of all others, and `write` copies these back.

    value: an array, or a list of at least one, of one dtype and device (those of the array `like`, unless it is None). kernels: the backend
    for them. written: the arrays are written. known: the caller has checked that no array is in the list twice. Raises TypeError or
    ValueError, also for an array that is to be written and is read-only. The arrays may not overlap.
    """

    def __init__(
        self, op: str, name: str, value: Any, like: Any = None, *, written: bool = True, known: bool = False
    ) -> None:
        self.single = isinstance(value, np.ndarray) or device.on_gpu(value)
        if not self.single:
            check.sequence(op, name, value)
        # a new list, since the caller's may change
        arrays = [value] if self.single else list(value)
        # the arrays that `write` copies `flat` back to
        self._originals: list[Any] = []
        self.kernels = kernels(arrays[0])
        if written and not known and len(set(map(id, arrays))) < len(arrays):
            first, second = _duplicate(arrays)
            raise ValueError(f"{op}: {name} must be arrays of their own, got {name}[{first}] as {name}[{second}] again")
        if not self.kernels.are_uniform(arrays) or not (
            like is None or (arrays[0].dtype == like.dtype and type(arrays[0]) is type(like))
        ):
            arrays = self._contiguous(op, name, arrays, like, written)
        self.flat = arrays

    def _contiguous(self, op: str, name: str, arrays: list[Any], like: Any, written: bool) -> list[np.ndarray]:
        flat: list[np.ndarray] = []
        for i, array in enumerate(arrays):
            what = name if self.single else f"{name}[{i}]"
            aligned = check.floating(op, what, array, flat[0] if flat else like)
            flat.append(check.contiguous(aligned))
            if isinstance(array, np.ndarray):
                self._originals.append(array)
                if written and not array.flags.writeable:
                    raise ValueError(f"{op}: {what} must be writable, got a read-only array")
            else:
                self._originals.append(aligned)
        return flat

    def write(self) -> None:
        """Copy the copies back into the caller's arrays."""
        for array, copy in zip(self._originals, self.flat, strict=False):
            if array is not copy and not (isinstance(array, np.ndarray) and np.may_share_memory(array, copy)):
                array[...] = copy


def _duplicate(arrays: list[Any]) -> tuple[int, int]:
    """The two indices of an array that is in the list twice."""
    indices: dict[int, int] = {}
    for i, array in enumerate(arrays):
        if id(array) in indices:
            return indices[id(array)], i
        indices[id(array)] = i
    raise AssertionError


def check_disjoint(op: str, name: str, arrays: list[Any]) -> None:
    """Raise ValueError if arrays share memory: an update of one would change the other too."""
    # NumPy 2 has moved it
    bounds_of = getattr(np.lib, "array_utils", np).byte_bounds
    bounds = sorted((*bounds_of(a), i) for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.size)
    open_bounds: list[tuple[int, int]] = []
    for start, end, index in bounds:
        open_bounds = [(other_end, other) for other_end, other in open_bounds if other_end > start]
        for _, other in open_bounds:
            if np.shares_memory(arrays[index], arrays[other]):
                first, second = sorted((index, other))
                raise ValueError(
                    f"{op}: {name} must be arrays of their own, {name}[{first}] and {name}[{second}] share memory"
                )
        open_bounds.append((end, index))


def check_same_shapes(op: str, name: str, arrays: list[np.ndarray], other: str, others: list[np.ndarray]) -> None:
    """Raise ValueError unless both lists have the same length and their arrays the same shapes."""
    if len(arrays) != len(others):
        raise ValueError(f"{op}: {name} must have length {len(others)} like {other}, got {len(arrays)}")
    for i, (array, like) in enumerate(zip(arrays, others, strict=True)):
        if array.shape != like.shape:
            raise ValueError(f"{op}: {name}[{i}] must be {like.shape} like {other}[{i}], got {array.shape}")


def flat_masks(op: str, masks: Any, shapes: list[tuple[int, ...]], like: np.ndarray) -> np.ndarray:
    """One mask, bool (P,), on the device of `like`, from the masks of arrays of these shapes.

    masks: a list of one mask for each array, where None is all True; or a mask, if there is one array.
    """
    masks = [masks] if isinstance(masks, np.ndarray) or device.on_gpu(masks) else masks
    check.sequence(op, "masks", masks, len(shapes))
    flat = []
    for i, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        if mask is None:
            mask = zeros(shape, like) == 0
        if not hasattr(mask, "dtype") or mask.dtype != np.bool_:
            kind = f"an array of {mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
            raise TypeError(f"{op}: masks[{i}] must be an array of bool, got {kind}")
        mask = check.place(op, f"masks[{i}]", mask, like)
        if mask.shape != shape:
            raise ValueError(f"{op}: masks[{i}] must be {shape}, got {mask.shape}")
        flat.append(mask.reshape(-1))
    return np.concatenate(flat)
