"""Packing of sequences x (N, T, C) into rows (R, C) without padding, and unpacking; layout: kernels/reference/packing.py.

Grid: the second dimension is the time steps, the first covers the values of all N sequences. Kernels read the number of rows of a step
from `offsets` on the device, and threads past the end of a step do nothing. So nothing waits for lengths that are on the device, and the
grid does not depend on them.
"""

from numba import cuda

from .engine.device import (
    Integer,
    Integers,
    Real,
    Values,
    blocks,
    constant,
    device_function,
    flat,
    grid_start,
    grid_stride,
    kernel,
    launch,
    written,
)

# a grid's second dimension has no more; blocks then take several steps
MOST_STEPS = 65535


@device_function
def sequences_at(offsets, steps, t):
    """How many sequences have step t; 0 before the first step and after the last."""
    return offsets[t + 1] - offsets[t] if 0 <= t < steps else 0


@kernel
def gather_steps(
    dtype: Real, steps: Integer, columns: Integer, order: Integers, offsets: Integers, x: Values, rows: Values
):
    for t in range(cuda.blockIdx.y, steps, cuda.gridDim.y):
        for i in range(grid_start(), sequences_at(offsets, steps, t) * columns, grid_stride()):
            p = i // columns
            rows[offsets[t] * columns + i] = x[(order[p] * steps + t) * columns + i - p * columns]


@kernel
def scatter_steps(
    dtype: Real, n: Integer, steps: Integer, columns: Integer, order: Integers, offsets: Integers, rows: Values, x: Values
):  # fmt: skip
    for t in range(cuda.blockIdx.y, steps, cuda.gridDim.y):
        values = sequences_at(offsets, steps, t) * columns
        for i in range(grid_start(), n * columns, grid_stride()):
            p = i // columns
            value = rows[offsets[t] * columns + i] if i < values else dtype(0)
            x[(order[p] * steps + t) * columns + i - p * columns] = value


def step_blocks(values, steps):
    """The grid for so many values at each step."""
    return blocks(values), min(steps, MOST_STEPS)


def device_packing(batch):
    """A batch's order and offsets on the device, once for all ops of a pass."""
    return constant(batch.order), constant(batch.offsets)


def gather_rows(x, batch, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    n, steps, columns = x.shape
    with written(rows) as out:
        arrays = *device_packing(batch), flat(x), out
        launch(gather_steps, x.dtype, step_blocks(n * columns, steps), steps, columns, *arrays)


def scatter_rows(rows, batch, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    n, steps, columns = x.shape
    with written(x) as out:
        arrays = *device_packing(batch), flat(rows), out
        launch(scatter_steps, x.dtype, step_blocks(n * columns, steps), n, steps, columns, *arrays)
