"""What the recurrent ops share, LSTM and GRU: values of the step before, the gradient of a step's h, norms of rows, and weights' gradients
that are added to earlier ones."""

import contextlib

from numba import cuda, float64

from .engine import device
from .engine.device import (
    BLOCK,
    Integer,
    Integers,
    Real,
    Values,
    Wide,
    device_function,
    fetch,
    grid_start,
    grid_stride,
    kernel,
    launch,
    wide_kernel,
)
from .engine.reductions import add_across, tile_width
from .packing import sequences_at, step_blocks

# options of a launch: a bias; an upstream gradient of h and of the last h; the whole dL/dh to keep; and from here on an op's own
BIAS, UPSTREAM, END, WHOLE, FURTHER = (1 << bit for bit in range(5))


@device_function
def value_before(offsets, steps, t, p, j, columns, row, values, order, start):
    """A value of a sequence at step t, or of its start state if it has no step t."""
    if p < sequences_at(offsets, steps, t):
        return values[(offsets[t] + p) * row + j]
    return start[order[p] * columns + j]


@device_function
def whole_gradient(dtype, t, steps, step_after, p, j, columns, dh_row, options, order, offsets, dh, dh_after, dh_n):
    """A value of dL/dh_t: from the step after, or dh_n at the last step of a sequence, plus the upstream dh."""
    total = dtype(0)
    if p < sequences_at(offsets, steps, step_after):
        total = dh_after[p * columns + j]
    elif options & END:
        total = dh_n[order[p] * columns + j]
    if options & UPSTREAM:
        total += dh[(offsets[t] + p) * dh_row + j]
    return total


@kernel
def rows_before(
    dtype: Real, steps: Integer, direction: Integer, columns: Integer, row: Integer,
    order: Integers, offsets: Integers, values: Values, start: Values, rows: Values,
):  # fmt: skip
    """rows (R, columns): for each row the row of the same sequence at the step before, or its start state."""
    for t in range(cuda.blockIdx.y, steps, cuda.gridDim.y):
        for i in range(grid_start(), sequences_at(offsets, steps, t) * columns, grid_stride()):
            p = i // columns
            j = i - p * columns
            value = value_before(offsets, steps, t - direction, p, j, columns, row, values, order, start)
            rows[offsets[t] * columns + i] = value


@wide_kernel
def square_rows(dtype: Real, rows: Integer, columns: Integer, width: Integer, values: Values, squares: Wide):
    """The sum of squares of each row, by `width` threads side by side."""
    shared, total = cuda.shared.array(BLOCK, float64), 0.0
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    for column in range(lane, columns if row < rows else 0, width):
        value = float64(values[row * columns + column])
        total += value * value
    total = add_across(shared, total, width)
    if lane == 0 and row < rows:
        squares[row] = total


def start_or_before(values, start, batch):
    """For each row the row of the same sequence at the step before, or its start state."""
    order, offsets, reverse = batch
    n, columns, step_count, dtype = *start.shape, len(offsets) - 1, values.dtype
    before = device.xp.empty(values.shape, dtype)
    sizes = step_count, -1 if reverse else 1, columns, row_stride(values)
    launch(rows_before, dtype, step_blocks(n * columns, step_count), *sizes, order, offsets, values, start, before)
    return before


def row_squares(values, squares):
    """squares (R,), float64 on the host or the device: the squared norm of each row of values (R, columns)."""
    rows, columns = values.shape
    norms, width = device.xp.empty(rows), tile_width(columns)
    launch(square_rows, values.dtype, -(-rows // (BLOCK // width)), rows, columns, width, values, norms)
    fetch(norms, squares)


@contextlib.contextmanager
def accumulated(gradient, accumulate):
    """An array to write: the gradient itself, or with `accumulate` a scratch array that is added to it at the end."""
    out = device.xp.empty_like(gradient) if accumulate else gradient
    yield out
    if accumulate:
        gradient += out


def row_stride(array):
    """Values from a row to the next."""
    return array.strides[0] // array.itemsize
