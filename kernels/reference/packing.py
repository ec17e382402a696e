"""Packing of sequences x (N, T, C) into rows (R, C) without padding, step by step, and unpacking.

Layout: order (N,) lists the sequences from the longest to the shortest. Step t of sequence order[p] is row offsets[t] + p of every packed
array (R, .); offsets (T + 1,), R the number of all steps. So the rows of a step are contiguous, its sequences are the first of `order`,
and a product over all steps multiplies no padding.
"""

import numpy as np


def gather_rows(x, batch, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    order, offsets, _ = batch
    for t in range(len(offsets) - 1):
        n = offsets[t + 1] - offsets[t]
        rows[offsets[t] : offsets[t + 1]] = x[order[:n], t]


def scatter_rows(rows, batch, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    order, offsets, _ = batch
    for t in range(len(offsets) - 1):
        n = offsets[t + 1] - offsets[t]
        x[order[:n], t] = rows[offsets[t] : offsets[t + 1]]
        x[order[n:], t] = 0


def steps(batch):
    """The steps in the order in which they run."""
    last = len(batch.offsets) - 1
    return range(last - 1, -1, -1) if batch.reverse else range(last)


def rows_before(values, start, batch):
    """For each row the row of the same sequence at the step before, or its start state."""
    order, offsets, reverse = batch
    before = np.empty_like(values)
    for t in range(len(offsets) - 1):
        n, step_before = offsets[t + 1] - offsets[t], t + 1 if reverse else t - 1
        n_before = offsets[step_before + 1] - offsets[step_before] if 0 <= step_before < len(offsets) - 1 else 0
        n_before = min(n_before, n)
        before[offsets[t] : offsets[t] + n_before] = values[offsets[step_before] : offsets[step_before] + n_before]
        before[offsets[t] + n_before : offsets[t + 1]] = start[order[n_before:n]]
    return before
