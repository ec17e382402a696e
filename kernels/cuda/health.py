"""Health statistics of gradients and outputs; definitions: kernels/reference/health.py.

Launches: one over the chunks of all arrays of a list, then one or two that join the results of chunks. A chunk of outputs is summed about
its first value, which lies within sqrt(n) standard deviations of the mean (Samuelson 1968), so little precision is lost. Chunks are joined
about their common mean (Chan, Golub & LeVeque 1983): first those with the same columns, then these groups.

optim.py measures the change by updates; write_update_ratios turns it into ratios. Nothing leaves the device if `health` is a device array.
"""

import math

import numpy as np
from numba import cuda, float64, int64

from .. import types
from .clip import join_chunk_norms, norm_from, rescaled_norm
from .engine import device
from .engine.array_table import COLUMNS, END, PARTIALS, chunk_of, flat, table
from .engine.device import (
    BLOCK,
    Arrays,
    Flags,
    Integer,
    Integers,
    Real,
    Values,
    Wide,
    blocks,
    device_function,
    fetch,
    launch,
    wide_kernel,
)
from .engine.reductions import add_down, largest_down

# values of a layer's row, of which the updates' ratio is the last
WIDTH = len(types.HEALTH)


@wide_kernel
def chunk_health(dtype: Real, chunks: Integers, x: Arrays, norms: Wide, largest: Wide, counts: Integers):
    """For each chunk: norm, largest magnitude, and counts (chunks, 2) of zeros and of values that are not finite."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    a, _, _, _, first, end = chunk_of(chunks, cuda.blockIdx.x)
    total, magnitude, zeros, nonfinite, row = 0.0, 0.0, 0, 0, first
    while row < end:
        value = abs(float64(x[a][row]))
        magnitude = value if value > magnitude or value != value else magnitude
        total += value * value
        zeros += 1 if value == 0.0 else 0
        nonfinite += 0 if value < math.inf else 1
        row += BLOCK
    total, magnitude = add_down(shared, total, 1), largest_down(shared, magnitude, 1)
    norm = rescaled_norm(shared, x, a, 1, 1, 0, first, end, 2.0, norm_from(total, magnitude, 2.0), magnitude)
    zeros, nonfinite = add_down(shared_counts, zeros, 1), add_down(shared_counts, nonfinite, 1)
    if cuda.threadIdx.x == 0:
        chunk = cuda.blockIdx.x
        norms[chunk], largest[chunk], counts[2 * chunk], counts[2 * chunk + 1] = norm, magnitude, zeros, nonfinite


@wide_kernel
def join_arrays(
    dtype: Real, chunks: Integers, chunk_offsets: Integers, norms: Wide, largest: Wide, counts: Integers, health: Wide
):
    """health (n, 4): a block for each array."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    a, t = cuda.blockIdx.x, cuda.threadIdx.x
    first, last = chunk_offsets[a], chunk_offsets[a + 1]
    norm = join_chunk_norms(shared, chunks, first, last - first, 1, 2.0, norms)
    magnitude, zeros, nonfinite = 0.0, 0, 0
    for chunk in range(first + t, last, BLOCK):
        value = largest[chunk]
        magnitude = value if value > magnitude or value != value else magnitude
        zeros += counts[2 * chunk]
        nonfinite += counts[2 * chunk + 1]
    magnitude, zeros = largest_down(shared, magnitude, 1), add_down(shared_counts, zeros, 1)
    nonfinite = add_down(shared_counts, nonfinite, 1)
    if t == 0:
        size = chunks[(last - 1) * COLUMNS + END] if last > first else 1
        health[4 * a], health[4 * a + 1] = norm, magnitude
        health[4 * a + 2], health[4 * a + 3] = float64(zeros) / float64(size), nonfinite


@wide_kernel
def update_ratios(
    dtype: Real, layers: Integer, arrays: Integer, owners: Integers, moved: Wide, status: Integers, row: Wide
):  # fmt: skip
    """Write the ratio to each layer's row: a thread a layer adds up the squares of the layer's arrays."""
    layer = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if layer < layers:
        changed, weight = 0.0, 0.0
        for a in range(arrays):
            if owners[a] == layer:
                changed += moved[2 * a]
                weight += moved[2 * a + 1]
        ratio = math.inf
        if status[0] != types.OK:
            ratio = math.nan
        elif changed == 0.0:
            ratio = 0.0
        elif weight != 0.0:
            ratio = math.sqrt(changed / weight)
        row[layer * WIDTH + WIDTH - 1] = ratio


def write_update_ratios(owners, moved, status, row):
    """Write the updates' ratios to row (L, 9), from moved (n, 2); owners (n,): the layer of each array. NaN if status (1,) is not OK."""
    launch(update_ratios, row.dtype, blocks(len(row)), len(row), len(moved), owners, moved, status, row)


def array_health(arrays, health):
    """health (n, 4) of C-contiguous arrays: norm, largest magnitude, share of zeros, and how many are not finite."""
    xp, chunks, dtype = device.xp, table(arrays), arrays[0].dtype
    chunk_results = xp.empty(chunks.count), xp.empty(chunks.count), xp.empty(2 * chunks.count, np.int64)
    launch(chunk_health, dtype, chunks.count, chunks.chunks, flat(arrays), *chunk_results)
    on_gpu = xp.empty((len(arrays), 4))
    launch(join_arrays, dtype, len(arrays), chunks.chunks, chunks.chunk_offsets, *chunk_results, on_gpu)
    fetch(on_gpu, health)


# moments of some values: how many, their mean, the sum of squares about it, how many are saturated
SIZE, MEAN, SQUARE, SATURATED = range(4)


@device_function
def write_moments(moments, at, size, mean, square, saturated):
    moments[4 * at + SIZE], moments[4 * at + MEAN] = size, mean
    moments[4 * at + SQUARE], moments[4 * at + SATURATED] = square, saturated


@wide_kernel
def output_moments(dtype: Real, chunks: Integers, y: Arrays, limits: Values, moments: Wide, alive: Flags):
    """moments (chunks, 4), and for each column of a chunk whether one of its values is neither 0 nor flat."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    t = cuda.threadIdx.x
    a, width, tile, column, row, end = chunk_of(chunks, cuda.blockIdx.x)
    first_row, first_column = row - t // tile, column - (t & (tile - 1))
    low, high, flat_low, flat_high = limits[4 * a], limits[4 * a + 1], limits[4 * a + 2], limits[4 * a + 3]
    size = float64((end - first_row) * min(tile, width - first_column))
    origin = float64(y[a][first_row * width + first_column])
    total, square, saturated, alive_count = 0.0, 0.0, 0, 0
    if column < width:
        while row < end:
            value = y[a][row * width + column]
            distance = float64(value) - origin
            total += distance
            square += distance * distance
            saturated += 1 if value <= low or value >= high else 0
            alive_count |= 0 if value == dtype(0) or value <= flat_low or value >= flat_high else 1
            row += BLOCK // tile
    total, square = add_down(shared, total, 1), add_down(shared, square, 1)
    saturated, alive_count = add_down(shared_counts, saturated, 1), add_down(shared_counts, alive_count, tile)
    if t < tile:
        alive[chunks[cuda.blockIdx.x * COLUMNS + PARTIALS] + t] = 1 if alive_count > 0 else 0
    if t == 0:
        squares = square - total * total / size
        write_moments(
            moments, cuda.blockIdx.x, size, origin + total / size, 0.0 if squares < 0.0 else squares, saturated
        )


@device_function
def join_moments(shared, moments, first, last, joint, at):
    """Join the moments first..last, at least one, and write them at index `at` of joint."""
    t, origin = cuda.threadIdx.x, moments[4 * first + MEAN]
    size, shift, square, saturated = 0.0, 0.0, 0.0, 0.0
    for i in range(first + t, last, BLOCK):
        size += moments[4 * i + SIZE]
        shift += moments[4 * i + SIZE] * (moments[4 * i + MEAN] - origin)
        saturated += moments[4 * i + SATURATED]
    size, shift, saturated = add_down(shared, size, 1), add_down(shared, shift, 1), add_down(shared, saturated, 1)
    mean = origin + shift / size
    for i in range(first + t, last, BLOCK):
        distance = moments[4 * i + MEAN] - mean
        square += moments[4 * i + SQUARE] + moments[4 * i + SIZE] * distance * distance
    square = add_down(shared, square, 1)
    if t == 0:
        write_moments(joint, at, size, mean, square, saturated)


@wide_kernel
def join_groups(
    dtype: Real, chunks: Integers, groups: Integers, moments: Wide, alive: Flags, joint: Wide, dead: Integers
):
    """joint (groups, 4), and how many columns of each are dead: a block for each group."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    group, t, alive_count = cuda.blockIdx.x, cuda.threadIdx.x, 0
    first, count, width = groups[6 * group], groups[6 * group + 1], groups[6 * group + 2]
    tile, first_column = groups[6 * group + 3], groups[6 * group + 4]
    if count == 0:
        # of no values
        if t == 0:
            write_moments(joint, group, 0.0, math.nan, math.nan, 0.0)
            dead[group] = 0
        return
    join_moments(shared, moments, first, first + count, joint, group)
    partial_offset, column = chunks[first * COLUMNS + PARTIALS], t & (tile - 1)
    for chunk in range(t // tile, count, BLOCK // tile):
        alive_count |= alive[partial_offset + chunk * tile + column]
    alive_count = add_down(shared_counts, alive_count, tile)
    dead_count = add_down(shared_counts, 1 if t < tile and first_column + column < width and alive_count == 0 else 0, 1)
    if t == 0:
        dead[group] = dead_count


@wide_kernel
def join_outputs(
    dtype: Real, chunk_offsets: Integers, groups: Integers, joint: Wide, dead: Integers, whole: Wide, health: Wide,
):  # fmt: skip
    """health (n, 4) of outputs: a block for each, which also writes its moments to whole (n, 4)."""
    shared, shared_counts = cuda.shared.array(BLOCK, float64), cuda.shared.array(BLOCK, int64)
    a, dead_count = cuda.blockIdx.x, 0
    first, last = chunk_offsets[a], chunk_offsets[a + 1]
    join_moments(shared, joint, first, last, whole, a)
    for group in range(first + cuda.threadIdx.x, last, BLOCK):
        dead_count += dead[group]
    dead_count = add_down(shared_counts, dead_count, 1)
    if cuda.threadIdx.x == 0:
        size, mean, spread = whole[4 * a + SIZE], whole[4 * a + MEAN], math.inf
        if size > 0.0:
            spread = math.sqrt(whole[4 * a + SQUARE] / size)
        health[4 * a] = mean if abs(mean) < math.inf else math.nan
        health[4 * a + 1] = spread if spread < math.inf else math.nan
        health[4 * a + 2] = whole[4 * a + SATURATED] / size if size > 0.0 else 0.0
        health[4 * a + 3] = float64(dead_count) / float64(groups[6 * first + 2])


def output_health(outputs, bands, health):
    """health (n, 4) of C-contiguous outputs (rows, columns): mean, spread, saturated and dead share, by bands (n, 4)."""
    xp, dtype = device.xp, outputs[0].dtype
    chunks = table(outputs, [max(y.shape[1], 1) for y in outputs])
    # limits are rounded to what they are compared with
    limits = xp.asarray(bands).astype(dtype)
    moments, alive = xp.empty(4 * chunks.count), xp.empty(chunks.partials, np.uint8)
    joint, dead = xp.empty(4 * chunks.group_count), xp.empty(chunks.group_count, np.int64)
    whole, on_gpu = xp.empty(4 * len(outputs)), xp.empty((len(outputs), 4))
    launch(output_moments, dtype, chunks.count, chunks.chunks, flat(outputs), limits, moments, alive)
    launch(join_groups, dtype, chunks.group_count, chunks.chunks, chunks.groups, moments, alive, joint, dead)
    launch(join_outputs, dtype, len(outputs), chunks.group_offsets, chunks.groups, joint, dead, whole, on_gpu)
    fetch(on_gpu, health)
