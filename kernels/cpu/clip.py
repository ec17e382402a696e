"""Norms of lists of arrays, and scaling and clamping of lists of arrays; formulas: kernels/reference/clip.py.

Each op is one pass over memory, in the blocks of engine/array_table.py. The pass for norms sums |x|^p without scaling: it reads each value
once and divides nothing. Where a sum overflowed, or is so small that powers may have underflowed, a second pass sums (|x| / largest)^p.
That is rare.
"""

import numpy as np

from .engine.array_table import (
    ADDRESS,
    START,
    SUMS,
    UNITS,
    WIDTH,
    block_size,
    first_block,
    next_block,
    previous_block,
    rows_at,
    sums_of,
    table,
)
from .engine.compile import device_function, driver, driver_function, inline_function, kernel
from .engine.intrinsics import (
    address,
    advance,
    carray,
    data,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.object_memory import address_of
from .engine.thread_pool import launch, run, thread_range
from .engine.vector_loops import map_arrays, map_values, squares

# sums (all blocks' units,), float64, of powers, and counts (as many,), int64, of values that are not finite; factors (U,), float64: what
# values are multiplied with, or null; array_mask (n,), bool: which arrays are summed, or null for all; p: the power, where it is POWER
NORM = np.dtype([(name, "i8") for name in "table n sums counts factors array_mask power".split()] + [("p", "f8")])
SCALE = np.dtype([(name, "i8") for name in "table n scales".split()])
CLAMP = np.dtype([("table", "i8"), ("n", "i8"), ("limit", "f8")])
ABSOLUTE, SQUARE, LARGEST, POWER = range(4)
# sums side by side, of an array that is one unit and of a row's columns: 4 KiB, in the first cache with the row
LANES = 512
SUMS_AND_FACTORS = 2 * LANES
# a power and its sum cost as much as this many multiplications and additions
COSTS = 2, 2, 2, 64
# a larger sum of powers has lost nothing that counts, though a part of it vanished
TINY = 1e-280
# one over it is finite, and brings the smallest values to where their squares are
LEAST = 2.0**-1000


@inline_function
def add_absolute(total, x, factor):
    return (total + abs(np.float64(x)) * factor,)


@inline_function
def add_square(total, x, factor):
    product = np.float64(x) * factor
    return (total + product * product,)


@inline_function
def keep_larger(total, x, factor):
    """The larger of total and |x| factor; NaN stays."""
    value = abs(np.float64(x)) * factor
    most = total if total >= value else value
    return (total if total != total else most,)


@inline_function
def add_power(total, x, factor, p):
    return (total + (abs(np.float64(x)) * factor) ** p,)


@device_function
def add_rows(power, p, n, size, width, total, x, factor):
    """total[j] += |x[r + j] factor[j]|^p, or the larger of the two, for n columns of rows that begin at r = 0, width, ... below size."""
    for r in range(0, size, width):
        row = advance(x, r)
        if power == SQUARE:
            map_arrays(add_square, n, (total, row, factor), (total,), ())
        elif power == ABSOLUTE:
            map_arrays(add_absolute, n, (total, row, factor), (total,), ())
        elif power == LARGEST:
            map_arrays(keep_larger, n, (total, row, factor), (total,), ())
        else:
            map_arrays(add_power, n, (total, row, factor), (total,), (p,))


@device_function
def combine(power, total, other):
    if power == LARGEST:
        return total if total >= other or total != total else other
    return total + other


@device_function
def add_unit(power, p, n, x, factor, scratch):
    """The sum of a block of an array that is one unit, in LANES partial sums; scratch: those sums, and as many factors."""
    lanes, factors = data(scratch), data(scratch[LANES:])
    scratch[:LANES] = 0
    scratch[LANES:] = factor
    whole = n - n % LANES
    add_rows(power, p, LANES, whole, LANES, lanes, x, factors)
    add_rows(power, p, n - whole, n - whole, LANES, lanes, advance(x, whole), factors)
    total = 0.0
    for lane in range(LANES):
        total = combine(power, total, scratch[lane])
    return total


@device_function
def count_nonfinite(x, n):
    values, count = carray(x, n), 0
    for i in range(n):
        count += not np.isfinite(values[i])
    return count


@device_function
def sum_block(power, p, x, size, totals, factors, scratch):
    """Write totals (width,), the units' sums in a block of rows; returns how many values are not finite, counted only if a sum is not.

    factors (width,), or none; scratch (2, LANES), the second half ones.
    """
    width = len(totals)
    if width > 1:
        totals[:] = 0
        for j in range(0, width, LANES):
            total, factor = data(totals[j:]), data(factors[j:] if factors.size else scratch[LANES:])
            add_rows(power, p, min(LANES, width - j), size - j, width, total, advance(x, j), factor)
    elif power == SQUARE and not factors.size:
        totals[0] = squares(x, size)
    else:
        totals[0] = add_unit(power, p, size, x, factors[0] if factors.size else 1.0, scratch)
        scratch[LANES:] = 1
    finite = True
    for total in totals:
        finite &= np.isfinite(total)
    return 0 if finite else count_nonfinite(x, size)


@kernel(NORM)
def norms_part(thread_index, thread_count, record, like):
    """The sums of powers of each of the thread's blocks, by unit, and how many values are not finite."""
    norm = carray(record, 1)[0]
    table, scratch = rows_at(norm.table, norm.n), local(SUMS_AND_FACTORS, np.float64)
    scratch[:] = 1
    sums = carray(void_pointer(norm.sums), table[norm.n, SUMS], np.float64)
    counts = carray(void_pointer(norm.counts), table[norm.n, SUMS], np.int64)
    factors = carray(void_pointer(norm.factors), table[norm.n, UNITS], np.float64) if norm.factors else scratch[:0]
    array_mask = carray(void_pointer(norm.array_mask), norm.n if norm.array_mask else 0, np.bool_)
    lo, hi = thread_range(thread_index, thread_count, table[norm.n, START], 64)
    a, at = first_block(table, norm.n, lo)
    while a < norm.n and table[a, START] + at < hi:
        if not array_mask.size or array_mask[a]:
            width, place, unit, size = table[a, WIDTH], sums_of(table, a, at), table[a, UNITS], block_size(table, a, at)
            x = advance(pointer(table[a, ADDRESS], like), at)  # (size / width, width)
            totals, unit_factors = sums[place : place + width], factors[unit : unit + width]
            counts[place] = sum_block(norm.power, norm.p, x, size, totals, unit_factors, scratch)
        a, at = next_block(table, norm.n, a, at)


@device_function
def finish_norms(table, n, power, p, least, sums, counts, norms, nonfinite, doubtful):
    """norms (U,) from the blocks' sums, in their order; doubtful (U,): sums that overflowed or are below least. Returns whether any is."""
    any_doubtful = False
    for a in range(n):
        first, last, width, unit = table[a, SUMS], table[a + 1, SUMS], table[a, WIDTH], table[a, UNITS]
        nonfinite[a] = 0
        for place in range(first, last, width):
            nonfinite[a] += counts[place]
        totals = norms[unit : unit + width]
        totals[:] = 0
        for place in range(first, last, width):
            for j in range(width):
                totals[j] = combine(power, totals[j], sums[place + j])
        for j in range(width):
            total = totals[j]
            overflowed = not np.isfinite(total) and (width > 1 or nonfinite[a] == 0)
            doubtful[unit + j] = first < last and power != LARGEST and (overflowed or total < least)
            any_doubtful |= doubtful[unit + j]
            if power == SQUARE:
                total = np.sqrt(total)
            elif power == POWER:
                total = total ** (1 / p)
            totals[j] = total
    return any_doubtful


@driver_function
def norms_again(launcher, thread_count, kernel, table, n, power, p, sums, counts, norms, doubtful):
    """Compute doubtful norms again, from values divided by the largest of their unit."""
    array_mask, units = np.empty(n, np.bool_), norms.size
    for a in range(n):
        array_mask[a] = doubtful[table[a, UNITS] : table[a + 1, UNITS]].any()
    new_norms, factors = np.empty(units), np.empty(units)
    nonfinite, still_doubtful = np.empty(n, np.int64), np.empty(units, np.bool_)
    record = local_zeros(1, NORM)
    norm = record[0]
    norm.table, norm.n, norm.sums, norm.counts = address(table), n, address(sums), address(counts)
    norm.array_mask, norm.power, norm.p = address(array_mask), LARGEST, np.inf
    run_kernel(launcher, kernel, thread_count, record, (array_mask,))
    finish_norms(table, n, LARGEST, np.inf, 0.0, sums, counts, new_norms, nonfinite, still_doubtful)
    for unit in range(units):
        factors[unit] = 1 / max(new_norms[unit], LEAST) if np.isfinite(new_norms[unit]) else 1.0
    norm.power, norm.p, norm.factors = power, p, address(factors)
    run_kernel(launcher, kernel, thread_count, record, (array_mask, factors))
    finish_norms(table, n, power, p, 0.0, sums, counts, new_norms, nonfinite, still_doubtful)
    for unit in range(units):
        if doubtful[unit]:
            norms[unit] = new_norms[unit] / factors[unit]


@driver
def _norms(launcher, thread_count, kernel, table, n, power, p, least, norms, nonfinite):
    size, doubtful = table[n, SUMS], np.empty(norms.size, np.bool_)
    sums, counts = np.empty(size), np.empty(size, np.int64)
    record = local_zeros(1, NORM)
    norm = record[0]
    norm.table, norm.n, norm.sums, norm.counts = address(table), n, address(sums), address(counts)
    norm.power, norm.p = power, p
    run_kernel(launcher, kernel, thread_count, record, (sums, counts))
    if finish_norms(table, n, power, p, least, sums, counts, norms, nonfinite, doubtful):
        norms_again(launcher, thread_count, kernel, table, n, power, p, sums, counts, norms, doubtful)


def array_norms(arrays, widths, p, norms, nonfinite):
    """norms (U,) of all units, and nonfinite (n,), how many values of each array are NaN or infinite. widths (n,), or None: all 1."""
    rows, dtype = table(arrays) if widths is None else table(arrays, widths), arrays[0].dtype
    power = {1: ABSOLUTE, 2: SQUARE, np.inf: LARGEST}.get(p, POWER)
    # no square of a float32 vanishes in float64
    least = 0.0 if dtype == np.float32 and p <= 2 else TINY
    run(
        COSTS[power] * int(rows[-1, START]), _norms, norms_part.address(dtype), rows, len(arrays), power, float(p), least,
        norms, nonfinite,
    )  # fmt: skip


@device_function
def norm_of_norms(norms, p):
    largest = 0.0
    for norm in norms:
        largest = combine(LARGEST, largest, norm)
    if p == np.inf or largest == 0 or not np.isfinite(largest):
        return largest
    total = 0.0
    for norm in norms:
        ratio = norm / largest
        total += ratio * ratio if p == 2 else ratio**p
    return largest * total ** (1 / p)


@driver
def joint_norm(norms, p):
    """The norm of all values, from the norms (U,) of parts of them."""
    return norm_of_norms(norms, p)


@inline_function
def scale_value(x, scale):
    return (real(np.float64(x) * scale, x),)


@kernel(SCALE)
def scale_part(thread_index, thread_count, record, like):
    """Scale the thread's blocks, from the last to the first: those read last for the norms are still in cache."""
    scaling = carray(record, 1)[0]
    table = rows_at(scaling.table, scaling.n)
    scales = carray(void_pointer(scaling.scales), table[scaling.n, UNITS], np.float64)
    lo, hi = thread_range(thread_index, thread_count, table[scaling.n, START], 64)
    a, at = previous_block(table, *first_block(table, scaling.n, hi))
    while a >= 0 and table[a, START] + at >= lo:
        size, width, unit = block_size(table, a, at), table[a, WIDTH], table[a, UNITS]
        x = advance(pointer(table[a, ADDRESS], like), at)  # (size / width, width)
        differs = False
        for j in range(width):
            differs |= scales[unit + j] != 1
        if width > 1 and differs:
            for r in range(0, size, width):
                row = advance(x, r)
                map_arrays(scale_value, width, (row, data(scales[unit:])), (row,), ())
        elif differs:
            values, scale = carray(x, size), scales[unit]
            for i in range(size):
                values[i] = np.float64(values[i]) * scale
        a, at = previous_block(table, a, at)


def scale_arrays(arrays, widths, scales):
    """arrays *= scales (U,), one for each unit."""
    rows = table(arrays) if widths is None else table(arrays, widths)
    record = np.array([(address_of(rows), len(arrays), address_of(scales))], SCALE)
    launch(scale_part, arrays[0].dtype, record, 2 * int(rows[-1, START]))


@inline_function
def clamped(x, limit):
    return -limit if x < -limit else limit if x > limit else x


@kernel(CLAMP)
def clamp_part(thread_index, thread_count, record, like):
    """Clamp the thread's blocks."""
    clamp = carray(record, 1)[0]
    table = rows_at(clamp.table, clamp.n)
    lo, hi = thread_range(thread_index, thread_count, table[clamp.n, START], 64)
    a, at = first_block(table, clamp.n, lo)
    while a < clamp.n and table[a, START] + at < hi:
        size, x = block_size(table, a, at), advance(pointer(table[a, ADDRESS], like), at)  # (size,)
        map_values(clamped, size, x, x, (real(clamp.limit, carray(x, 1)[0]),))
        a, at = next_block(table, clamp.n, a, at)


def clamp_arrays(arrays, limit):
    """Clamp each value of the arrays to -limit .. limit; NaN stays."""
    rows = table(arrays)
    record = np.array([(address_of(rows), len(arrays), limit)], CLAMP)
    launch(clamp_part, arrays[0].dtype, record, 2 * int(rows[-1, START]))
