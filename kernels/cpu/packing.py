"""Packing of sequences x (N, T, C) into rows (R, C) without padding, and unpacking; layout: kernels/reference/packing.py.

A thread has a range of the time steps.
"""

import numpy as np

from .engine.compile import Addresses, device_function, driver, kernel
from .engine.intrinsics import address, advance, carray, copy, local, pointer, run_kernel, void_pointer
from .engine.thread_pool import run, thread_range
from .gemm import clear, copy_strided

# sizes N, T and C; the addresses of order, offsets, x (N, T, C) and rows (R, C); x's strides, and rows' from row to row
ROWS_COPY = np.dtype([(name, "i8") for name in "n steps columns order offsets x x_n x_t x_c rows row".split()])
GATHER, SCATTER = range(2)
# a copied value costs about as much as this many multiplications and additions
COPY = 16


@device_function
def order_of(record):
    """(N,)"""
    return carray(void_pointer(record.order), record.n, np.int64)


@device_function
def offsets_of(record):
    """(T + 1,)"""
    return carray(void_pointer(record.offsets), record.steps + 1, np.int64)


@kernel(ROWS_COPY)
def gather_part(thread_index, thread_count, record, like):
    """The thread's steps of x, which has any strides, to rows."""
    batch = carray(record, 1)[0]
    order, offsets = order_of(batch), offsets_of(batch)
    first, last = thread_range(thread_index, thread_count, batch.steps, 1)
    for t in range(first, last):
        for p in range(offsets[t + 1] - offsets[t]):
            x = advance(pointer(batch.x, like), order[p] * batch.x_n + t * batch.x_t)  # (C,), x_c apart
            row = advance(pointer(batch.rows, like), (offsets[t] + p) * batch.row)  # (C,)
            copy_strided(batch.columns, x, batch.x_c, row)


@kernel(ROWS_COPY)
def scatter_part(thread_index, thread_count, record, like):
    """The thread's steps from rows to x, whose channels are contiguous, and 0 past the sequences' ends."""
    batch = carray(record, 1)[0]
    order, offsets = order_of(batch), offsets_of(batch)
    first, last = thread_range(thread_index, thread_count, batch.steps, 1)
    for t in range(first, last):
        n = offsets[t + 1] - offsets[t]
        for p in range(batch.n):
            x = advance(pointer(batch.x, like), order[p] * batch.x_n + t * batch.x_t)  # (C,)
            if p < n:
                copy(batch.columns, advance(pointer(batch.rows, like), (offsets[t] + p) * batch.row), x)
            else:
                clear(batch.columns, x)


@driver
def _copy_rows(launcher, thread_count, kernels, direction, order, offsets, x, rows):
    record = local(1, ROWS_COPY)
    batch = record[0]
    batch.n, batch.steps, batch.columns = len(order), len(offsets) - 1, x.shape[2]
    batch.order, batch.offsets, batch.x, batch.rows = address(order), address(offsets), address(x), address(rows)
    batch.x_n, batch.x_t, batch.x_c = x.strides[0] // x.itemsize, x.strides[1] // x.itemsize, x.strides[2] // x.itemsize
    batch.row = rows.strides[0] // rows.itemsize
    run_kernel(launcher, kernels[direction], thread_count, record, ())


_KERNELS = Addresses(gather_part, scatter_part)


# an empty slice has its array's address and strides, and one type for the compiler whatever these are
def gather_rows(x, batch, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    run(COPY * rows.size, _copy_rows, _KERNELS[x.dtype.char], GATHER, batch.order, batch.offsets, x[:0], rows[:0])


def scatter_rows(rows, batch, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    run(COPY * rows.size, _copy_rows, _KERNELS[x.dtype.char], SCATTER, batch.order, batch.offsets, x[:0], rows[:0])
