"""Norms of lists of arrays, and scaling and clamping of lists of arrays; formulas: kernels/reference/clip.py.

Each is one launch over all arrays of a list, with a block for each chunk of engine/array_table.py; norms take a second launch, which joins
those of chunks. A block sums |x|^p in float64 without scaling, so it reads each value once. Where the sum overflowed, or is so small that
powers may have underflowed, the block sums (|x| / largest)^p in a second loop. That is rare. A power is exp(p log x), except for p = 1, 2.
"""

import math

import numpy as np
from numba import cuda, float64, int64

from .engine import device
from .engine.array_table import COLUMNS, PARTIALS, UNITS, chunk_of, flat, table
from .engine.device import (
    BLOCK,
    Arrays,
    Integers,
    Number,
    Real,
    Wide,
    WideNumber,
    device_function,
    fetch,
    kernel,
    launch,
    wide_kernel,
)
from .engine.reductions import add_down, largest_down

# a sum of powers below this may have lost some
LEAST = 1e-280


@device_function
def power(x, p):
    """x^p of x from 0."""
    if p == 2.0:
        return x * x
    if p == 1.0 or x == 0.0:
        return x
    return math.exp(p * math.log(x))


@device_function
def root(x, p):
    """x^(1 / p) of x from 0."""
    if p == 2.0:
        return math.sqrt(x)
    if p == 1.0 or x == 0.0:
        return x
    return math.exp(math.log(x) / p)


@device_function
def norm_from(total, largest, p):
    """The norm from a sum of powers, or -1 if that sum overflowed or may have lost values."""
    if largest == 0.0 or largest == math.inf or largest != largest or p == math.inf:
        return largest
    if total < LEAST or total == math.inf:
        return -1.0
    return root(total, p)


@device_function
def rescaled_norm(shared, x, a, width, tile, column, row, end, p, norm, largest):
    """A chunk's norms; where norm is -1, from values divided by the largest. All threads of the block must call it."""
    if add_down(shared, 1.0 if norm < 0.0 else 0.0, 1) > 0.0:
        total = 0.0
        if column < width and norm < 0.0:
            while row < end:
                total += power(abs(float64(x[a][row * width + column])) / largest, p)
                row += BLOCK // tile
        total = add_down(shared, total, tile)
        if norm < 0.0:
            norm = largest * root(total, p)
    return norm


@device_function
def join_chunk_norms(shared, chunks, first, count, tile, p, partials):
    """The norms of some columns from those of `count` chunks (parts), for the threads of each column."""
    t, largest, start = cuda.threadIdx.x, 0.0, chunks[first * COLUMNS + PARTIALS] if count > 0 else 0
    for chunk in range(t // tile, count, BLOCK // tile):
        value = partials[start + chunk * tile + (t & (tile - 1))]
        largest = value if value > largest or value != value else largest
    largest = largest_down(shared, largest, tile)
    finite = largest > 0.0 and largest < math.inf and p < math.inf
    total = 0.0
    for chunk in range(t // tile, count, BLOCK // tile):
        total += power(partials[start + chunk * tile + (t & (tile - 1))] / largest, p) if finite else 0.0
    total = add_down(shared, total, tile)
    return largest * root(total, p) if finite else largest


@wide_kernel
def chunk_norms(dtype: Real, p: WideNumber, chunks: Integers, x: Arrays, partials: Wide, counts: Integers):
    """Norms of each chunk's columns, and how many of its values are not finite."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    a, width, tile, column, first, end = chunk_of(chunks, cuda.blockIdx.x)
    total, largest, nonfinite_count, row = 0.0, 0.0, 0, first
    if column < width:
        while row < end:
            value = abs(float64(x[a][row * width + column]))
            largest = value if value > largest or value != value else largest
            total += 0.0 if p == math.inf else power(value, p)
            nonfinite_count += 0 if value < math.inf else 1
            row += BLOCK // tile
    total, largest = add_down(shared, total, tile), largest_down(shared, largest, tile)
    norm = norm_from(total, largest, p)
    norm = rescaled_norm(shared, x, a, width, tile, column, first, end, p, norm, largest)
    if cuda.threadIdx.x < tile:
        partials[chunks[cuda.blockIdx.x * COLUMNS + PARTIALS] + cuda.threadIdx.x] = norm
    nonfinite_count = add_down(shared_counts, nonfinite_count, 1)
    if cuda.threadIdx.x == 0:
        counts[cuda.blockIdx.x] = nonfinite_count


@wide_kernel
def join_norms(
    dtype: Real, p: WideNumber, chunks: Integers, groups: Integers, partials: Wide, norms: Wide,
):  # fmt: skip
    """The norm of each unit, a block for some columns of an array, from its chunks' norms."""
    shared = cuda.shared.array(BLOCK, float64)
    at, t = cuda.blockIdx.x * 6, cuda.threadIdx.x
    first, count, width, tile, first_column, units = (
        groups[at],
        groups[at + 1],
        groups[at + 2],
        groups[at + 3],
        groups[at + 4],
        groups[at + 5],
    )
    norm = join_chunk_norms(shared, chunks, first, count, tile, p, partials)
    if t < tile and first_column + t < width:
        norms[units + first_column + t] = norm


@kernel
def add_counts(dtype: Real, chunk_offsets: Integers, counts: Integers, nonfinite: Integers):
    """nonfinite (n,): a block for each array."""
    shared_counts = cuda.shared.array(BLOCK, int64)
    a, nonfinite_count = cuda.blockIdx.x, 0
    for chunk in range(chunk_offsets[a] + cuda.threadIdx.x, chunk_offsets[a + 1], BLOCK):
        nonfinite_count += counts[chunk]
    nonfinite_count = add_down(shared_counts, nonfinite_count, 1)
    if cuda.threadIdx.x == 0:
        nonfinite[a] = nonfinite_count


@wide_kernel
def scale_chunks(dtype: Real, chunks: Integers, x: Arrays, scales: Wide):
    a, width, tile, column, row, end = chunk_of(chunks, cuda.blockIdx.x)
    if column < width:
        scale = scales[chunks[cuda.blockIdx.x * COLUMNS + UNITS] + column]
        while row < end:
            at = row * width + column
            x[a][at] = dtype(float64(x[a][at]) * scale)
            row += BLOCK // tile


@kernel
def clamp_chunks(dtype: Real, limit: Number, chunks: Integers, x: Arrays):
    a, _, tile, _, row, end = chunk_of(chunks, cuda.blockIdx.x)
    while row < end:
        value = x[a][row]
        x[a][row] = limit if value > limit else -limit if value < -limit else value
        row += BLOCK // tile


def norms_of(arrays, widths, p, counts=None):
    """Norms (U,) of all units, on the device; counts, int64 (chunks,), are written."""
    xp, chunks, dtype = device.xp, table(arrays, widths), arrays[0].dtype
    partials, norms = xp.empty(chunks.partials), xp.empty(chunks.units)
    if counts is None:
        counts = xp.empty(chunks.count, np.int64)
    launch(chunk_norms, dtype, chunks.count, float(p), chunks.chunks, flat(arrays), partials, counts)
    launch(join_norms, dtype, chunks.group_count, float(p), chunks.chunks, chunks.groups, partials, norms)
    return norms


def array_norms(arrays, widths, p, norms, nonfinite):
    """norms (U,) of all units, and nonfinite (n,), how many values of each array are NaN or infinite. widths (n,), or None: all 1."""
    chunks = table(arrays, widths)
    counts, by_array = device.xp.empty(chunks.count, np.int64), device.xp.empty(len(arrays), np.int64)
    fetch(norms_of(arrays, widths, p, counts), norms)
    launch(add_counts, arrays[0].dtype, len(arrays), chunks.chunk_offsets, counts, by_array)
    fetch(by_array, nonfinite)


def joint_norm(norms, p):
    """The norm of all values, from the norms (U,) of parts of them."""
    return float(norms_of([device.xp.asarray(norms)], None, p)[0])


def scale_arrays(arrays, widths, scales):
    """arrays *= scales (U,), one for each unit."""
    chunks = table(arrays, widths)
    launch(scale_chunks, arrays[0].dtype, chunks.count, chunks.chunks, _flat_views(arrays), device.xp.asarray(scales))


def clamp_arrays(arrays, limit):
    """Clamp each value of the arrays to -limit .. limit; NaN stays."""
    chunks, dtype = table(arrays), arrays[0].dtype
    with np.errstate(over="ignore"):
        bound = dtype.type(limit)
    launch(clamp_chunks, dtype, chunks.count, bound, chunks.chunks, _flat_views(arrays))


def _flat_views(arrays):
    """Flat views of C-contiguous arrays, to be written."""
    return [a.reshape(-1) for a in arrays]
