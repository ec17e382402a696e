"""Sequences without their padding, a step after another.

`order` (N,) has the sequences from the longest to the shortest, and step t of sequence order[p] is row offsets[t] + p of every array
(R, .), with offsets (T + 1,) and R all steps. So the sequences that have a step are its first rows, and a product over all steps has no
padding in it.
"""


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
