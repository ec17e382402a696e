"""Sequences as rows, a step after another without padding, and back: the layout of kernels/reference/packing.py."""

import numpy as np
from numba import carray

from .engine.compile import device_function, kernel
from .engine.intrinsics import address_of, advance, copy, pointer, void_pointer
from .engine.thread_pool import launch, thread_range
from .gemm import clear, copy_strided

ROWS_COPY = np.dtype([(name, "i8") for name in "n steps columns order offsets x x_n x_t x_c rows row".split()])
# a copied value costs about as much as this many multiplications and additions
COPY = 16


@device_function
def offsets_of(job):
    return carray(void_pointer(job.offsets), job.steps + 1, np.int64)


@kernel(ROWS_COPY)
def gather_part(part, parts, job, like):
    """The part's steps of x, which has any strides, to rows."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = thread_range(part, parts, g.steps, 1)
    for t in range(lo, hi):
        for p in range(offsets[t + 1] - offsets[t]):
            of = advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t)
            copy_strided(g.columns, of, g.x_c, advance(pointer(g.rows, like), (offsets[t] + p) * g.row))


@kernel(ROWS_COPY)
def scatter_part(part, parts, job, like):
    """The part's steps from rows to x, which is contiguous, and 0 past the sequences' ends."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = thread_range(part, parts, g.steps, 1)
    for t in range(lo, hi):
        n = offsets[t + 1] - offsets[t]
        for p in range(g.n):
            to = advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t)
            if p < n:
                copy(g.columns, advance(pointer(g.rows, like), (offsets[t] + p) * g.row), to)
            else:
                clear(g.columns, to)


def gather_rows(x, order, offsets, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    _copy_rows(gather_part, x, order, offsets, rows)


def scatter_rows(rows, order, offsets, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    _copy_rows(scatter_part, x, order, offsets, rows)


def _copy_rows(part, x, order, offsets, rows):
    n, steps, columns = x.shape
    strides = [stride // x.itemsize for stride in (*x.strides, rows.strides[0])]
    addresses = [address_of(a) for a in (order, offsets, x, rows)]
    job = np.array([n, steps, columns, *addresses[:3], *strides[:3], addresses[3], strides[3]])
    launch(part, x.dtype, job, COPY * rows.size)
