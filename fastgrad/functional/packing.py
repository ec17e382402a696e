"""Sequences as rows without their padding, a step after another, which is how kernels take them: see kernels/reference/packing.py."""

from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels


class PackedBatch(NamedTuple):
    """Which step of which sequence a row is: see kernels/reference/packing.py."""

    order: np.ndarray
    offsets: np.ndarray
    shape: tuple[int, int]  # N, T
    full: bool  # every sequence has T steps


def packed_batch(op: str, shape: tuple[int, ...], lengths: Any) -> PackedBatch:
    """The rows of a batch (N, T) with these lengths, longest first."""
    n, steps = shape
    if lengths is None:
        return PackedBatch(np.arange(n), n * np.arange(steps + 1), (n, steps), True)
    found = check.lengths(op, "lengths", lengths, n, steps)
    order = np.argsort(-found, kind="stable")
    # of each step, how many sequences reach it
    offsets = np.append(0, np.cumsum(above(found, steps)))
    return PackedBatch(order, offsets, (n, steps), bool(offsets[-1] == n * steps))


def above(values: np.ndarray, count: int) -> np.ndarray:
    """Of 0, 1, ... count - 1 how many of the values are above it: of lengths the sequences under way at each step, and of those the
    lengths again, longest first.
    """
    return len(values) - np.searchsorted(np.sort(values), np.arange(count), side="right")


def pack(x: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """Rows (R, C) of x (N, T, C): x itself where it lies step by step, as the output of another LSTM does."""
    by_step = x.transpose(1, 0, 2)
    if batch.full and check.is_contiguous(by_step):
        return by_step.reshape(int(batch.offsets[-1]), x.shape[2])
    rows = empty((int(batch.offsets[-1]), x.shape[2]), x)
    kernels(x).gather_rows(x, batch.order, batch.offsets, rows)
    return rows


def unpack(rows: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """x (N, T, C) of rows (R, C): a view where all sequences are full."""
    n, steps = batch.shape
    if batch.full:
        return rows.reshape(steps, n, rows.shape[1]).transpose(1, 0, 2)
    x = empty((n, steps, rows.shape[1]), rows)
    kernels(rows).scatter_rows(rows, batch.order, batch.offsets, x)
    return x
