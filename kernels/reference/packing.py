"""Packing of sequences x (N, T, C) into rows (R, C) without padding, step by step, and unpacking.

Layout: order (N,) lists the sequences from the longest to the shortest. Step t of sequence order[p] is row offsets[t] + p of every packed
array (R, .); offsets (T + 1,), R the number of all steps. So the rows of a step are contiguous, its sequences are the first of `order`,
and a product over all steps multiplies no padding.
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
