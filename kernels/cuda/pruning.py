"""Magnitude pruning of lists of arrays: the `count` smallest |x|, by radix selection, or all below a threshold. See reference/pruning.py.

The bits of |x|, as an integer, have the order of the values. The count-th smallest |x| is found digit by digit, from the highest, without a
value on the host. For each digit one launch counts, block by block, the unpruned values that begin with the digits found so far, by their
next digit; a second launch of one block chooses the digit. A digit has as many values as a block has threads: four digits are the bits of
a float32, eight those of a float64.

The last launch prunes all smaller values, and of those equal to it the first ones, until `count` is reached. The last counts tell how many
equal values each block has. So at most one block prunes a part of its equal values, in their order; the others prune all or none.
"""

import numpy as np
from numba import cuda, int32, int64

from .engine import device
from .engine.array_table import BEFORE, COLUMNS, chunk_of, table
from .engine.device import BLOCK, Arrays, BitArrays, Flags, Integer, Integers, Number, Real, function, kernel, launch
from .engine.reductions import add_before, add_down

# bits of a digit
DIGIT = BLOCK.bit_length() - 1
# every block adds up a counter of those before it
MOST_BLOCKS = 512


@function
def begin_and_end(count):
    """A block's chunks, in the order of the values."""
    each = (count + cuda.gridDim.x - 1) // cuda.gridDim.x
    return cuda.blockIdx.x * each, min((cuda.blockIdx.x + 1) * each, count)


@kernel
def count_digits(
    dtype: Real, magnitude: Integer, shift: Integer, count: Integer, chunks: Integers,
    x: BitArrays, masks: Flags, chosen: Integers, counters: Integers,
):  # fmt: skip
    """counters (blocks, BLOCK): how many unpruned values that begin with the chosen digits have each next digit."""
    counted, t, beginning = cuda.shared.array(BLOCK, int32), cuda.threadIdx.x, chosen[0]
    counted[t] = 0
    cuda.syncthreads()
    chunk, last = begin_and_end(count)
    while chunk < last:
        a, _, _, _, row, end = chunk_of(chunks, chunk)
        before = chunks[chunk * COLUMNS + BEFORE]
        while row < end:
            if masks[before + row]:
                bits = (x[a][row] & magnitude) >> shift
                if bits >> DIGIT == beginning:
                    cuda.atomic.add(counted, bits & (BLOCK - 1), 1)
            row += BLOCK
        chunk += 1
    cuda.syncthreads()
    counters[cuda.blockIdx.x * BLOCK + t] = counted[t]


@kernel
def choose_digit(dtype: Real, blocks: Integer, counters: Integers, chosen: Integers):
    """chosen (2,): the digits so far, and how many of the values that begin with them are to be pruned; by one block."""
    shared, t, found = cuda.shared.array(BLOCK, int64), cuda.threadIdx.x, int64(0)
    beginning, left = chosen[0], chosen[1]
    for block in range(blocks):
        found += counters[block * BLOCK + t]
    before, _ = add_before(shared, found)
    if before < left and left <= before + found:
        chosen[0], chosen[1] = (beginning << DIGIT) + t, left - before


@kernel
def prune_chunks(
    dtype: Real, magnitude: Integer, count: Integer, chunks: Integers,
    x: BitArrays, masks: Flags, chosen: Integers, counters: Integers,
):  # fmt: skip
    """Prune values smaller than the chosen one, and of the equal ones the first; the grid is that of the last counts."""
    shared, t, taken = cuda.shared.array(BLOCK, int64), cuda.threadIdx.x, int64(0)
    least, digit = chosen[0], chosen[0] & (BLOCK - 1)
    for block in range(t, cuda.blockIdx.x, BLOCK):
        taken += counters[block * BLOCK + digit]
    room = chosen[1] - add_down(shared, taken, 1)
    partly = room > 0 and room < counters[cuda.blockIdx.x * BLOCK + digit]
    if room > 0 and not partly:
        least += 1
    chunk, last = begin_and_end(count)
    while chunk < last:
        a, _, _, _, row, end = chunk_of(chunks, chunk)
        before = chunks[chunk * COLUMNS + BEFORE]
        while row - t < end:
            lives = row < end and masks[before + row] != 0
            bits = int64(x[a][row] & magnitude) if lives else int64(0)
            goes = bits < least
            if partly:
                earlier, all_here = add_before(shared, int64(1 if lives and bits == least else 0))
                goes = goes or (bits == least and earlier < room)
                room -= all_here
            if row < end and (goes or not lives):
                x[a][row], masks[before + row] = 0, 0
            row += BLOCK
        chunk += 1


@kernel
def prune_below_chunks(dtype: Real, threshold: Number, chunks: Integers, x: Arrays, masks: Flags):
    a, _, _, _, row, end = chunk_of(chunks, cuda.blockIdx.x)
    before = chunks[cuda.blockIdx.x * COLUMNS + BEFORE]
    while row < end:
        if not masks[before + row] or abs(x[a][row]) < threshold:
            x[a][row], masks[before + row] = dtype(0), 0
        row += BLOCK


def prune_smallest(arrays, masks, count):
    """Prune the `count` smallest |x| that are not pruned yet; among equal values the first ones."""
    if not count:
        prune_below(arrays, masks, 0.0)
        return
    xp, chunks, dtype = device.xp, table(arrays), arrays[0].dtype
    bits = 8 * dtype.itemsize - 1
    blocks = -(-chunks.count // -(-chunks.count // MOST_BLOCKS))
    values = [a.reshape(-1).view(f"i{dtype.itemsize}") for a in arrays]
    chosen, counters = xp.asarray(np.array([0, count])), xp.empty(blocks * BLOCK, np.int64)
    given = chunks.count, chunks.chunks, values, masks.view("u1"), chosen, counters
    for shift in reversed(range(0, bits, DIGIT)):
        launch(count_digits, dtype, blocks, (1 << bits) - 1, shift, *given)
        launch(choose_digit, dtype, 1, blocks, counters, chosen)
    launch(prune_chunks, dtype, blocks, (1 << bits) - 1, *given)


def prune_below(arrays, masks, threshold):
    """Prune |x| < threshold."""
    chunks, dtype = table(arrays), arrays[0].dtype
    with np.errstate(over="ignore"):
        limit = dtype.type(threshold)
    values = [a.reshape(-1) for a in arrays]
    launch(prune_below_chunks, dtype, chunks.count, limit, chunks.chunks, values, masks.view("u1"))
