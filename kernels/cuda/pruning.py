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
from .engine.array_table import COLUMNS, OFFSET, chunk_of, table
from .engine.device import (
    BLOCK,
    Arrays,
    BitArrays,
    Flags,
    Integer,
    Integers,
    Number,
    Real,
    device_function,
    kernel,
    launch,
)
from .engine.reductions import add_down, sum_before_thread

# bits of a digit
DIGIT = BLOCK.bit_length() - 1
# every block adds up a counter of those before it
MOST_BLOCKS = 512


@device_function
def block_chunks(count):
    """A block's chunks, in the order of the values: the first, and the one after the last."""
    chunks = (count + cuda.gridDim.x - 1) // cuda.gridDim.x
    return cuda.blockIdx.x * chunks, min((cuda.blockIdx.x + 1) * chunks, count)


@device_function
def chunk_values(chunks, chunk):
    """(array, this thread's first index in it, the chunk's end, the array's offset in the masks); the next index is BLOCK further."""
    a, _, _, _, first, end = chunk_of(chunks, chunk)
    return a, first, end, chunks[chunk * COLUMNS + OFFSET]


@kernel
def count_digits(
    dtype: Real, magnitude: Integer, shift: Integer, count: Integer, chunks: Integers,
    x: BitArrays, masks: Flags, prefix: Integers, counters: Integers,
):  # fmt: skip
    """counters (blocks, BLOCK): how many unpruned values that begin with the digits found so far have each next digit."""
    block_counters, t, digits = cuda.shared.array(BLOCK, int32), cuda.threadIdx.x, prefix[0]
    block_counters[t] = 0
    cuda.syncthreads()
    chunk, last = block_chunks(count)
    while chunk < last:
        a, i, end, offset = chunk_values(chunks, chunk)
        while i < end:
            if masks[offset + i]:
                bits = (x[a][i] & magnitude) >> shift
                if bits >> DIGIT == digits:
                    cuda.atomic.add(block_counters, bits & (BLOCK - 1), 1)
            i += BLOCK
        chunk += 1
    cuda.syncthreads()
    counters[cuda.blockIdx.x * BLOCK + t] = block_counters[t]


@kernel
def choose_digit(dtype: Real, blocks: Integer, counters: Integers, prefix: Integers):
    """prefix (2,): the digits found so far, and how many of the values that begin with them are to be pruned; by one block."""
    shared, t, total = cuda.shared.array(BLOCK, int64), cuda.threadIdx.x, int64(0)
    digits, remaining = prefix[0], prefix[1]
    for block in range(blocks):
        total += counters[block * BLOCK + t]
    before, _ = sum_before_thread(shared, total)
    if before < remaining and remaining <= before + total:
        prefix[0], prefix[1] = (digits << DIGIT) + t, remaining - before


@kernel
def prune_chunks(
    dtype: Real, magnitude: Integer, count: Integer, chunks: Integers,
    x: BitArrays, masks: Flags, prefix: Integers, counters: Integers,
):  # fmt: skip
    """Prune values smaller than the one found, and of the equal ones the first; the grid is that of the last counts."""
    shared, t, pruned_before = cuda.shared.array(BLOCK, int64), cuda.threadIdx.x, int64(0)
    least, digit = prefix[0], prefix[0] & (BLOCK - 1)
    for block in range(t, cuda.blockIdx.x, BLOCK):
        pruned_before += counters[block * BLOCK + digit]
    # how many equal values are pruned from this block on: all of the block's, some, or none
    remaining = prefix[1] - add_down(shared, pruned_before, 1)
    partly = remaining > 0 and remaining < counters[cuda.blockIdx.x * BLOCK + digit]
    if remaining > 0 and not partly:
        least += 1
    chunk, last = block_chunks(count)
    while chunk < last:
        a, i, end, offset = chunk_values(chunks, chunk)
        # all threads go as far as the first of them
        while i - t < end:
            alive = i < end and masks[offset + i] != 0
            bits = int64(x[a][i] & magnitude) if alive else int64(0)
            prune = bits < least
            if partly:
                before, equals = sum_before_thread(shared, int64(1 if alive and bits == least else 0))
                prune = prune or (bits == least and before < remaining)
                remaining -= equals
            if i < end and (prune or not alive):
                x[a][i], masks[offset + i] = 0, 0
            i += BLOCK
        chunk += 1


@kernel
def prune_below_chunks(dtype: Real, threshold: Number, chunks: Integers, x: Arrays, masks: Flags):
    """Prune values below the threshold; a block for each chunk."""
    a, i, end, offset = chunk_values(chunks, cuda.blockIdx.x)
    while i < end:
        if not masks[offset + i] or abs(x[a][i]) < threshold:
            x[a][i], masks[offset + i] = dtype(0), 0
        i += BLOCK


def prune_smallest(arrays, masks, count):
    """Prune the `count` smallest |x| that are not pruned yet; among equal values the first ones."""
    if not count:
        prune_below(arrays, masks, 0.0)
        return
    xp, chunks, dtype = device.xp, table(arrays), arrays[0].dtype
    bits = 8 * dtype.itemsize - 1
    blocks = -(-chunks.count // -(-chunks.count // MOST_BLOCKS))
    values = [a.reshape(-1).view(f"i{dtype.itemsize}") for a in arrays]
    prefix, counters = xp.asarray(np.array([0, count])), xp.empty(blocks * BLOCK, np.int64)
    arguments = chunks.count, chunks.chunks, values, masks.view("u1"), prefix, counters
    for shift in reversed(range(0, bits, DIGIT)):
        launch(count_digits, dtype, blocks, (1 << bits) - 1, shift, *arguments)
        launch(choose_digit, dtype, 1, blocks, counters, prefix)
    launch(prune_chunks, dtype, blocks, (1 << bits) - 1, *arguments)


def prune_below(arrays, masks, threshold):
    """Prune |x| < threshold."""
    chunks, dtype = table(arrays), arrays[0].dtype
    with np.errstate(over="ignore"):
        limit = dtype.type(threshold)
    values = [a.reshape(-1) for a in arrays]
    launch(prune_below_chunks, dtype, chunks.count, limit, chunks.chunks, values, masks.view("u1"))
