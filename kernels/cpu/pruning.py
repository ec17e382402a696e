"""Magnitude pruning of lists of arrays: the `count` smallest |x|, by radix selection, or all below a threshold. See reference/pruning.py.

The bits of |x|, as an integer, have the order of the values. The count-th smallest |x| is found digit by digit (DIGIT bits), from the
highest: a pass counts, among the unpruned values that begin with the digits found so far, how many have each next digit. The last pass
prunes all smaller values, and of those equal to it the first ones, until `count` is reached. How many equal values a block prunes is
computed before that pass, so blocks are independent.
"""

import numpy as np

from .engine.array_table import (
    ADDRESS,
    PLACE,
    START,
    SUMS,
    block_size,
    first_block,
    next_block,
    rows_at,
    sums_of,
    table,
)
from .engine.compile import Addresses, device_function, driver, inline_function, kernel
from .engine.intrinsics import (
    address,
    advance,
    carray,
    data,
    hide_alias,
    local,
    magnitude,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.object_memory import address_of
from .engine.thread_pool import launch, run, thread_range
from .engine.vector_loops import map_arrays

# bits of a digit; and so many counters of each digit, one for each of as many neighbours: equal digits would wait for each other
DIGIT, LANES = 11, 4
COUNTERS = LANES << DIGIT
# begin: the digits found so far; shift: how many bits follow the next digit; counters: COUNTERS for each thread; equals, going: for each
# block how many values equal `begin`, and how many of these are pruned
SELECT = np.dtype([(name, "i8") for name in "table n masks begin shift counters equals going".split()])
BELOW = np.dtype([(name, "i8") for name in "table n masks".split()] + [("threshold", "f8")])
# a pass over a value costs as much as this many multiplications and additions
COST = 8


@device_function
def table_and_masks(pruning):
    """The rows of the table of a record's arrays, and the masks of all their values, one array after another."""
    rows = rows_at(pruning.table, pruning.n)
    return rows, carray(void_pointer(pruning.masks), rows[pruning.n, START], np.uint8)


@kernel(SELECT)
def digits_part(thread_index, thread_count, record, like):
    """Count, by their next digit, the unpruned values that begin with the digits found so far."""
    pruning = carray(record, 1)[0]
    rows, masks = table_and_masks(pruning)
    counters = carray(void_pointer(pruning.counters + 8 * COUNTERS * thread_index), COUNTERS, np.int64)
    counters[:] = 0
    lo, hi = thread_range(thread_index, thread_count, rows[pruning.n, START], 64)
    a, at = first_block(rows, pruning.n, lo)
    while a < pruning.n and rows[a, START] + at < hi:
        size, first = block_size(rows, a, at), rows[a, PLACE] + at
        x = carray(advance(pointer(rows[a, ADDRESS], like), at), size)
        for i in range(size):
            bits = magnitude(x[i]) >> pruning.shift
            # adding 0 is cheaper than guessing where a branch goes
            counters[(bits & ((1 << DIGIT) - 1)) * LANES + i % LANES] += masks[first + i] & (
                bits >> DIGIT == pruning.begin
            )
        a, at = next_block(rows, pruning.n, a, at)


@kernel(SELECT)
def equals_part(thread_index, thread_count, record, like):
    """Count the unpruned values of each block that equal the value found."""
    pruning = carray(record, 1)[0]
    rows, masks = table_and_masks(pruning)
    equals = carray(void_pointer(pruning.equals), rows[pruning.n, SUMS], np.int64)
    lo, hi = thread_range(thread_index, thread_count, rows[pruning.n, START], 64)
    a, at = first_block(rows, pruning.n, lo)
    while a < pruning.n and rows[a, START] + at < hi:
        size, first, count = block_size(rows, a, at), rows[a, PLACE] + at, 0
        x = carray(advance(pointer(rows[a, ADDRESS], like), at), size)
        for i in range(size):
            count += masks[first + i] & (magnitude(x[i]) == pruning.begin)
        equals[sums_of(rows, a, at)] = count
        a, at = next_block(rows, pruning.n, a, at)


@inline_function
def from_on(x, mask, least):
    lives = np.uint8(mask & (magnitude(x) >= least))
    return (x if lives else real(0, x)), lives


@kernel(SELECT)
def prune_part(thread_index, thread_count, record, like):
    """Prune smaller values, and of the equal ones the first of each block."""
    pruning = carray(record, 1)[0]
    rows, masks = table_and_masks(pruning)
    going = carray(void_pointer(pruning.going), rows[pruning.n, SUMS], np.int64)
    lo, hi = thread_range(thread_index, thread_count, rows[pruning.n, START], 64)
    a, at = first_block(rows, pruning.n, lo)
    while a < pruning.n and rows[a, START] + at < hi:
        size, first, left = block_size(rows, a, at), rows[a, PLACE] + at, going[sums_of(rows, a, at)]
        values = advance(pointer(rows[a, ADDRESS], like), at)
        x, i = carray(values, size), 0
        while left:
            if masks[first + i] and magnitude(x[i]) == pruning.begin:
                masks[first + i] = 0
                left -= 1
            i += 1
        mask = data(masks[first:])
        map_arrays(from_on, size, (hide_alias(values), hide_alias(mask)), (values, mask), (pruning.begin,))
        a, at = next_block(rows, pruning.n, a, at)


@device_function
def counted(counters, digit):
    """How many values have this digit."""
    total = 0
    for thread_index in range(len(counters)):
        for lane in range(LANES):
            total += counters[thread_index, digit * LANES + lane]
    return total


@driver
def _prune(launcher, thread_count, kernels, rows, n, masks, count, bits):
    record, counters = local(1, SELECT), np.empty((thread_count, COUNTERS), np.int64)
    equals, going = np.empty(rows[n, SUMS], np.int64), np.zeros(rows[n, SUMS], np.int64)
    pruning, left = record[0], count
    pruning.table, pruning.n, pruning.masks, pruning.counters = address(rows), n, address(masks), address(counters)
    pruning.equals, pruning.going, pruning.begin = address(equals), address(going), 0
    # the first digit is short by what is no multiple
    shift = (bits - 1) // DIGIT * DIGIT
    while count and shift >= 0:
        pruning.shift = shift
        run_kernel(launcher, kernels[0], thread_count, record, (counters,))
        digit, equal = 0, counted(counters, 0)
        while equal < left:
            left -= equal
            digit += 1
            equal = counted(counters, digit)
        pruning.begin = (pruning.begin << DIGIT) + digit
        shift -= DIGIT
    if count:
        run_kernel(launcher, kernels[1], thread_count, record, (equals,))
        for block in range(len(equals)):
            going[block] = min(left, equals[block])
            left -= going[block]
    run_kernel(launcher, kernels[2], thread_count, record, (going,))


_KERNELS = Addresses(digits_part, equals_part, prune_part)


def _with_masks(arrays, masks):
    """The table of arrays, by whose offsets kernels find an array's masks."""
    rows = table(arrays)
    if masks.size != rows[-1, START]:
        raise ValueError(f"prune: masks must have {rows[-1, START]} values like the arrays, got {masks.size}")
    return rows


def prune_smallest(arrays, masks, count):
    """Prune the `count` smallest |x| that are not pruned yet; among equal values the first ones."""
    rows, dtype = _with_masks(arrays, masks), arrays[0].dtype
    bits = 8 * dtype.itemsize - 1
    run(COST * masks.size, _prune, _KERNELS[dtype.char], rows, len(arrays), masks.view(np.uint8), count, bits)


@inline_function
def not_below(x, mask, threshold):
    lives = np.uint8(mask & (abs(x) >= threshold))
    return (x if lives else real(0, x)), lives


@kernel(BELOW)
def below_part(thread_index, thread_count, record, like):
    """Prune values below the threshold in the thread's blocks."""
    pruning = carray(record, 1)[0]
    rows, masks = table_and_masks(pruning)
    lo, hi = thread_range(thread_index, thread_count, rows[pruning.n, START], 64)
    a, at = first_block(rows, pruning.n, lo)
    while a < pruning.n and rows[a, START] + at < hi:
        size, mask = block_size(rows, a, at), data(masks[rows[a, PLACE] + at :])
        x = advance(pointer(rows[a, ADDRESS], like), at)
        map_arrays(
            not_below, size, (hide_alias(x), hide_alias(mask)), (x, mask), (real(pruning.threshold, carray(x, 1)[0]),)
        )
        a, at = next_block(rows, pruning.n, a, at)


def prune_below(arrays, masks, threshold):
    """Prune |x| < threshold."""
    rows = _with_masks(arrays, masks)
    record = np.array([(address_of(rows), len(arrays), address_of(masks), threshold)], BELOW)
    launch(below_part, arrays[0].dtype, record, COST * masks.size)
