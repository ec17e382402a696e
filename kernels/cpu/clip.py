"""Norms of lists of arrays, and scaling and clamping of lists of arrays; formulas: kernels/reference/clip.py.

Each op is one pass over memory, in the blocks of engine/array_table.py. The pass for norms sums |x|^p without scaling: it reads each value
once and divides nothing. Where a sum overflowed, or is so small that powers may have underflowed, a second pass sums (|x| / largest)^p.
That is rare.
"""

import numpy as np
from numba import carray

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
from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_of,
    advance,
    data,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import launch, run, thread_range
from .engine.vector_loops import map_arrays, map_values, squares

# factors: of each unit what values are multiplied with, or 0; sums and counts: by block, the units' and of values that are not finite;
# chosen: of each array whether it takes part, or 0 for all
NORMS = np.dtype([(name, "i8") for name in "table n sums counts factors chosen power".split()] + [("p", "f8")])
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
    scaled = np.float64(x) * factor
    return (total + scaled * scaled,)


@inline_function
def larger(total, x, factor):
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
            map_arrays(larger, n, (total, row, factor), (total,), ())
        else:
            map_arrays(add_power, n, (total, row, factor), (total,), (p,))


@device_function
def joined(power, total, more):
    if power == LARGEST:
        return total if total >= more or total != total else more
    return total + more


@device_function
def add_unit(power, p, n, x, factor, room):
    """The sum of a block of an array that is one unit, in LANES partial sums; room: those sums, and as many factors."""
    lanes, factors = data(room), data(room[LANES:])
    room[:LANES] = 0
    room[LANES:] = factor
    whole = n - n % LANES
    add_rows(power, p, LANES, whole, LANES, lanes, x, factors)
    add_rows(power, p, n - whole, n - whole, LANES, lanes, advance(x, whole), factors)
    total = 0.0
    for lane in range(LANES):
        total = joined(power, total, room[lane])
    return total


@device_function
def not_finite(x, n):
    values, count = carray(x, n), 0
    for i in range(n):
        count += not np.isfinite(values[i])
    return count


@device_function
def sum_block(power, p, x, size, totals, factors, room):
    """Write totals (width,), the units' sums in a block of rows; returns how many values are not finite, counted only if a sum is not.

    factors (width,), or none; room holds 2 LANES, ones in the second half.
    """
    width = len(totals)
    if width > 1:
        totals[:] = 0
        for j in range(0, width, LANES):
            total, factor = data(totals[j:]), data(factors[j:] if factors.size else room[LANES:])
            add_rows(power, p, min(LANES, width - j), size - j, width, total, advance(x, j), factor)
    elif power == SQUARE and not factors.size:
        totals[0] = squares(x, size)
    else:
        totals[0] = add_unit(power, p, size, x, factors[0] if factors.size else 1.0, room)
        room[LANES:] = 1
    finite = True
    for total in totals:
        finite &= np.isfinite(total)
    return 0 if finite else not_finite(x, size)


@kernel(NORMS)
def norms_part(part, parts, job, like):
    """The sums of powers of each of the part's blocks, by unit, and how many values are not finite."""
    g = carray(job, 1)[0]
    t, room = rows_at(g.table, g.n), local(SUMS_AND_FACTORS, np.float64)
    none = room[:0]
    room[:] = 1
    sums = carray(void_pointer(g.sums), t[g.n, SUMS], np.float64)
    counts = carray(void_pointer(g.counts), t[g.n, SUMS], np.int64)
    factors = carray(void_pointer(g.factors), t[g.n, UNITS], np.float64) if g.factors else none
    chosen = carray(void_pointer(g.chosen), g.n if g.chosen else 0, np.bool_)
    lo, hi = thread_range(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        if not chosen.size or chosen[a]:
            width, place, unit = t[a, WIDTH], sums_of(t, a, at), t[a, UNITS]
            x, totals = advance(pointer(t[a, ADDRESS], like), at), sums[place : place + width]
            counts[place] = sum_block(g.power, g.p, x, block_size(t, a, at), totals, factors[unit : unit + width], room)
        a, at = next_block(t, g.n, a, at)


@device_function
def finish_norms(t, n, power, p, least, sums, counts, norms, nonfinite, doubtful):
    """norms from the blocks' sums, in their order; doubtful: which sums overflowed or are below `least`. Returns whether any is."""
    any_doubtful = False
    for a in range(n):
        first, last, width, unit = t[a, SUMS], t[a + 1, SUMS], t[a, WIDTH], t[a, UNITS]
        nonfinite[a] = 0
        for place in range(first, last, width):
            nonfinite[a] += counts[place]
        totals = norms[unit : unit + width]
        totals[:] = 0
        for place in range(first, last, width):
            for j in range(width):
                totals[j] = joined(power, totals[j], sums[place + j])
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


@device_function
def norms_again(launcher, parts, kernel, t, n, power, p, sums, counts, norms, doubtful):
    """Compute doubtful norms again, from values divided by the largest of their unit."""
    chosen, units = np.empty(n, np.bool_), norms.size
    for a in range(n):
        chosen[a] = doubtful[t[a, UNITS] : t[a + 1, UNITS]].any()
    again, factors, unused, unasked = np.empty(units), np.empty(units), np.empty(n, np.int64), np.empty(units, np.bool_)
    job = local_zeros(1, NORMS)
    g = job[0]
    g.table, g.n, g.sums, g.counts, g.chosen = address(t), n, address(sums), address(counts), address(chosen)
    g.power, g.p = LARGEST, np.inf
    run_kernel(launcher, kernel, parts, job, (chosen,))
    finish_norms(t, n, LARGEST, np.inf, 0.0, sums, counts, again, unused, unasked)
    for unit in range(units):
        factors[unit] = 1 / max(again[unit], LEAST) if np.isfinite(again[unit]) else 1.0
    g.power, g.p, g.factors = power, p, address(factors)
    run_kernel(launcher, kernel, parts, job, (chosen, factors))
    finish_norms(t, n, power, p, 0.0, sums, counts, again, unused, unasked)
    for unit in range(units):
        if doubtful[unit]:
            norms[unit] = again[unit] / factors[unit]


@driver
def _norms(launcher, parts, kernel, t, n, power, p, least, norms, nonfinite):
    sums, counts, doubtful = np.empty(t[n, SUMS]), np.empty(t[n, SUMS], np.int64), np.empty(norms.size, np.bool_)
    job = local_zeros(1, NORMS)
    g = job[0]
    g.table, g.n, g.sums, g.counts, g.power, g.p = address(t), n, address(sums), address(counts), power, p
    run_kernel(launcher, kernel, parts, job, (sums, counts))
    if finish_norms(t, n, power, p, least, sums, counts, norms, nonfinite, doubtful):
        norms_again(launcher, parts, kernel, t, n, power, p, sums, counts, norms, doubtful)


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
        largest = joined(LARGEST, largest, norm)
    if p == np.inf or largest == 0 or not np.isfinite(largest):
        return largest
    total = 0.0
    for norm in norms:
        part = norm / largest
        total += part * part if p == 2 else part**p
    return largest * total ** (1 / p)


@driver
def joint_norm(norms, p):
    """The norm of all values, from the norms (U,) of parts of them."""
    return norm_of_norms(norms, p)


@inline_function
def scaled(x, scale):
    return (real(np.float64(x) * scale, x),)


@kernel(SCALE)
def scale_part(part, parts, job, like):
    """The part's blocks, from the last to the first: those read last for the norms are still in cache."""
    g = carray(job, 1)[0]
    t = rows_at(g.table, g.n)
    scales = carray(void_pointer(g.scales), t[g.n, UNITS], np.float64)
    lo, hi = thread_range(part, parts, t[g.n, START], 64)
    a, at = previous_block(t, *first_block(t, g.n, hi))
    while a >= 0 and t[a, START] + at >= lo:
        size, width, unit = block_size(t, a, at), t[a, WIDTH], t[a, UNITS]
        x = advance(pointer(t[a, ADDRESS], like), at)
        some = False
        for j in range(width):
            some |= scales[unit + j] != 1
        if width > 1 and some:
            for r in range(0, size, width):
                row = advance(x, r)
                map_arrays(scaled, width, (row, data(scales[unit:])), (row,), ())
        elif some:
            values, scale = carray(x, size), scales[unit]
            for i in range(size):
                values[i] = np.float64(values[i]) * scale
        a, at = previous_block(t, a, at)


def scale_arrays(arrays, widths, scales):
    """arrays *= scales (U,), one for each unit."""
    rows = table(arrays) if widths is None else table(arrays, widths)
    job = np.array([(address_of(rows), len(arrays), address_of(scales))], SCALE)
    launch(scale_part, arrays[0].dtype, job, 2 * int(rows[-1, START]))


@inline_function
def clamped(x, limit):
    return -limit if x < -limit else limit if x > limit else x


@kernel(CLAMP)
def clamp_part(part, parts, job, like):
    """The part's blocks."""
    g = carray(job, 1)[0]
    t = rows_at(g.table, g.n)
    lo, hi = thread_range(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        size, x = block_size(t, a, at), advance(pointer(t[a, ADDRESS], like), at)
        map_values(clamped, size, x, x, (real(g.limit, carray(x, 1)[0]),))
        a, at = next_block(t, g.n, a, at)


def clamp_arrays(arrays, limit):
    """Clamp each value of the arrays to -limit .. limit; NaN stays."""
    rows = table(arrays)
    job = np.array([(address_of(rows), len(arrays), limit)], CLAMP)
    launch(clamp_part, arrays[0].dtype, job, 2 * int(rows[-1, START]))
