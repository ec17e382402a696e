"""Packing of sequences (N, T, C) to rows (R, C) without padding, in the order of steps, as recurrent kernels take them; and unpacking.

kernels/reference/packing.py defines the order of the rows.
"""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import PackedBatch as PackedBatch


def packed_batch(op: str, shape: tuple[int, ...], lengths: Any, reverse: bool = False) -> PackedBatch:
    """The packing of a batch (N, T) with these lengths, longest first; sequences of one length stay in the caller's order."""
    n, steps = shape
    if lengths is None:
        return PackedBatch(np.arange(n), n * np.arange(steps + 1), reverse)
    lengths = checked_lengths(op, "lengths", lengths, n, steps)
    # of each step, how many sequences reach it
    offsets = np.append(0, np.cumsum(above(lengths, steps)))
    return PackedBatch(np.argsort(-lengths, kind="stable"), offsets, reverse)


def checked_lengths(op: str, name: str, value: Any, n: int, steps: int) -> np.ndarray:
    """Sequences' lengths as int64 (N,), each from 0 to steps."""
    if device.on_gpu(value):
        # the host computes where steps begin and end
        value = device.borrow(op, name, value).get()
    try:
        # a copy is checked, since another thread may write to the caller's array
        lengths = np.array(value)
    except ValueError:
        raise TypeError(f"{op}: {name} must be integers (N,), got a nested {type(value).__name__}") from None
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"{op}: {name} must be integers (N,), got {lengths.dtype}")
    if lengths.shape != (n,):
        raise ValueError(f"{op}: {name} must be integers (N,) = ({n},), got {lengths.shape}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > steps))
    if len(wrong):
        raise ValueError(f"{op}: {name} must be in 0..{steps}, got {lengths[wrong[0]]} at index {wrong[0]}")
    return lengths.astype(np.int64, copy=False)


def above(values: np.ndarray, count: int) -> np.ndarray:
    """For each of 0, 1, ... count - 1, the number of values above it.

    Of lengths this is the number of sequences that have each step; and of those numbers it is the lengths again, longest first.
    """
    return len(values) - np.searchsorted(np.sort(values), np.arange(count), side="right")


def pack(x: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """Rows (R, C) of x (N, T, C): a view where x is in the order of steps in memory, as the output of another recurrent layer is."""
    (n, steps, columns), rows = x.shape, int(batch.offsets[-1])
    if rows == n * steps:
        by_step = x.transpose(1, 0, 2)
        if check.is_contiguous(by_step):
            return by_step.reshape(rows, columns)
    xs = empty((rows, columns), x)
    kernels(x).gather_rows(x, batch, xs)
    return xs


def unpack(rows: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """x (N, T, C) of rows (R, C): a view if all sequences have T steps, else a copy with 0 past their ends."""
    n, steps, columns = len(batch.order), len(batch.offsets) - 1, rows.shape[1]
    if len(rows) == n * steps:
        return rows.reshape(steps, n, columns).transpose(1, 0, 2)
    x = empty((n, steps, columns), rows)
    kernels(rows).scatter_rows(rows, batch, x)
    return x
