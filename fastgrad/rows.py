"""Sequences as rows without their padding, a step after another, which is how kernels take them: see kernels/reference/rows.py."""

from typing import Any, NamedTuple

import numpy as np

from fastgrad import check
from fastgrad.backend import kernels
from fastgrad.memory import empty


class Batch(NamedTuple):
    """Which step of which sequence a row is: see kernels/reference/rows.py."""

    order: np.ndarray
    offsets: np.ndarray
    shape: tuple[int, int]  # N, T
    full: bool  # every sequence has T steps


def sequences(op: str, shape: tuple[int, ...], lengths: Any) -> Batch:
    """The rows of a batch (N, T) with these lengths, longest first."""
    n, steps = shape
    if lengths is None:
        return Batch(np.arange(n), n * np.arange(steps + 1), (n, steps), True)
    found = check.lengths(op, "lengths", lengths, n, steps)
    order = np.argsort(-found, kind="stable")
    # of each step, how many sequences reach it
    offsets = np.append(0, np.cumsum(above(found, steps)))
    return Batch(order, offsets, (n, steps), bool(offsets[-1] == n * steps))


def above(values: np.ndarray, count: int) -> np.ndarray:
    """Of 0, 1, ... count - 1 how many of the values are above it: of lengths the sequences under way at each step, and of those the
    lengths again, longest first.
    """
    return len(values) - np.searchsorted(np.sort(values), np.arange(count), side="right")


def rows_of(x: np.ndarray, batch: Batch) -> np.ndarray:
    """Rows (R, C) of x (N, T, C): x itself where it lies step by step, as the output of another LSTM does."""
    by_step = x.transpose(1, 0, 2)
    if batch.full and check.is_contiguous(by_step):
        return by_step.reshape(int(batch.offsets[-1]), x.shape[2])
    rows = empty((int(batch.offsets[-1]), x.shape[2]), x)
    kernels(x).gather_rows(x, batch.order, batch.offsets, rows)
    return rows


def sequences_of(rows: np.ndarray, batch: Batch) -> np.ndarray:
    """x (N, T, C) of rows (R, C): a view where all sequences are full."""
    n, steps = batch.shape
    if batch.full:
        return rows.reshape(steps, n, rows.shape[1]).transpose(1, 0, 2)
    x = empty((n, steps, rows.shape[1]), rows)
    kernels(rows).scatter_rows(rows, batch.order, batch.offsets, x)
    return x
