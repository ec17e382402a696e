"""Norms of lists of arrays and what clips by them, as in kernels/reference/clip.py: each a pass over memory, in blocks of lists.py.

Powers are summed as they are. Where a sum overflowed, or is so small that powers may have vanished, they are summed again of values over
the largest one: rare, and so the usual pass reads each value once and divides nothing.
"""

import numpy as np
from numba import carray

from .jit import compiled, entry, inlined, kernel
from .lists import (
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
from .loops import each, zipped
from .optim import squares
from .parallel import address_of, launch, share
from .simd import advance, data, keep, pointer, real, void_pointer

# factors: of each unit what values are multiplied with, or 0; sums and counts: by block, the units' and of values that are not finite
NORMS = np.dtype([(name, "i8") for name in "table n sums counts factors power".split()] + [("p", "f8")])
SCALE = np.dtype([(name, "i8") for name in "table n scales".split()])
CLAMP = np.dtype([("table", "i8"), ("n", "i8"), ("limit", "f8")])
ABSOLUTE, SQUARE, LARGEST, POWER = range(4)
# sums side by side, of an array that is one unit and of a row's columns: 4 KiB, in the first cache with the row
LANES = 512
# a power and its sum cost as much as this many multiplications and additions
COSTS = 2, 2, 2, 64
# a larger sum of powers has lost nothing that counts, though a part of it vanished
TINY = 1e-280
# one over it is finite, and brings the smallest values to where their squares are
LEAST = 2.0**-1000


@inlined
def add_absolute(total, x, factor):
    return (total + abs(np.float64(x)) * factor,)


@inlined
def add_square(total, x, factor):
    scaled = np.float64(x) * factor
    return (total + scaled * scaled,)


@inlined
def larger(total, x, factor):
    """NaN once there is one."""
    value = abs(np.float64(x)) * factor
    most = total if total >= value else value
    return (total if total != total else most,)


@inlined
def add_power(total, x, factor, p):
    return (total + (abs(np.float64(x)) * factor) ** p,)


@compiled
def add_rows(power, p, n, size, width, total, x, factor):
    """total[j] += |x[r + j] factor[j]|^p, or the larger of the two, for n columns of rows that begin at r = 0, width, ... below size."""
    for r in range(0, size, width):
        row = advance(x, r)
        if power == SQUARE:
            zipped(add_square, n, (total, row, factor), (total,), ())
        elif power == ABSOLUTE:
            zipped(add_absolute, n, (total, row, factor), (total,), ())
        elif power == LARGEST:
            zipped(larger, n, (total, row, factor), (total,), ())
        else:
            zipped(add_power, n, (total, row, factor), (total,), (p,))


@compiled
def joined(power, total, more):
    if power == LARGEST:
        return total if total >= more or total != total else more
    return total + more


@compiled
def add_unit(power, p, n, x, factor, room):
    """The sum of an array's block, in lanes; room holds them and as many factors."""
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


@compiled
def not_finite(x, n):
    values, found = carray(x, n), 0
    for i in range(n):
        found += not np.isfinite(values[i])
    return found


@kernel(NORMS)
def norms_part(part, parts, job, like):
    g = carray(job, 1)[0]
    t, none = rows_at(g.table, g.n), np.zeros(0)
    room = np.ones(2 * LANES)
    sums = carray(void_pointer(g.sums), t[g.n, SUMS], np.float64)
    counts = carray(void_pointer(g.counts), t[g.n, SUMS], np.int64)
    factors = carray(void_pointer(g.factors), t[g.n, UNITS], np.float64) if g.factors else none
    lo, hi = share(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        size, width, place, unit = block_size(t, a, at), t[a, WIDTH], sums_of(t, a, at), t[a, UNITS]
        x = advance(pointer(t[a, ADDRESS], like), at)
        if width > 1:
            sums[place : place + width] = 0
            for j in range(0, width, LANES):
                total, factor = data(sums[place + j :]), data(factors[unit + j :] if factors.size else room[LANES:])
                add_rows(g.power, g.p, min(LANES, width - j), size - j, width, total, advance(x, j), factor)
        elif g.power == SQUARE and not factors.size:
            sums[place] = squares(x, size)
        else:
            sums[place] = add_unit(g.power, g.p, size, x, factors[unit] if factors.size else 1.0, room)
            room[LANES:] = 1
        finite = True
        for j in range(width):
            finite &= np.isfinite(sums[place + j])
        counts[place] = 0 if finite else not_finite(x, size)
        a, at = next_block(t, g.n, a, at)
    keep(room)
    keep(none)


@entry
def _finish(t, n, power, p, least, sums, counts, norms, nonfinite, doubtful):
    """norms from the blocks' sums in their order, and which are sums that overflowed or less than `least`; whether there are any."""
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


def _norms(arrays, rows, p, factors, norms, nonfinite):
    """array_norms of values times factors; which of them are in doubt, None if there are none."""
    power = {1: ABSOLUTE, 2: SQUARE, np.inf: LARGEST}.get(p, POWER)
    n, dtype, values = len(arrays), arrays[0].dtype, int(rows[-1, START])
    sums, counts = np.empty(rows[-1, SUMS]), np.empty(rows[-1, SUMS], np.int64)
    addresses = address_of(rows), n, address_of(sums), address_of(counts), 0 if factors is None else address_of(factors)
    launch(norms_part, dtype, np.array([(*addresses, power, p)], NORMS), COSTS[power] * values)
    # no square of a float32 vanishes in float64
    least = 0.0 if factors is not None or (dtype == np.float32 and p <= 2) else TINY
    doubtful = np.empty(norms.size, np.bool_)
    return doubtful if _finish(rows, n, power, p, least, sums, counts, norms, nonfinite, doubtful) else None


def array_norms(arrays, widths, p, norms, nonfinite):
    """norms (U,) of all units, and nonfinite (n,), how many values of each array are NaN or infinite. widths (n,), or None: all 1."""
    rows = table(arrays) if widths is None else table(arrays, widths)
    doubtful = _norms(arrays, rows, p, None, norms, nonfinite)
    if doubtful is None:
        return
    chosen = np.flatnonzero(np.logical_or.reduceat(doubtful, rows[:-1, UNITS]))
    arrays = [arrays[a] for a in chosen]
    units = np.concatenate([np.arange(rows[a, UNITS], rows[a + 1, UNITS]) for a in chosen])
    rows = table(arrays) if widths is None else table(arrays, widths[chosen])
    largest, again, unused = np.empty(units.size), np.empty(units.size), np.empty(len(arrays), np.int64)
    _norms(arrays, rows, np.inf, None, largest, unused)
    factors = 1 / np.clip(np.where(np.isfinite(largest), largest, 1), LEAST, None)
    _norms(arrays, rows, p, factors, again, unused)
    with np.errstate(over="ignore"):
        again /= factors
    norms[units] = np.where(doubtful[units], again, norms[units])


@entry
def joint_norm(norms, p):
    """The norm of all values of which these are norms (U,) of parts."""
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


@inlined
def scaled(x, scale):
    return (real(np.float64(x) * scale, x),)


@kernel(SCALE)
def scale_part(part, parts, job, like):
    """Backwards: what was read last for the norms is still in the caches."""
    g = carray(job, 1)[0]
    t = rows_at(g.table, g.n)
    scales = carray(void_pointer(g.scales), t[g.n, UNITS], np.float64)
    lo, hi = share(part, parts, t[g.n, START], 64)
    a, at = previous_block(t, *first_block(t, g.n, hi))
    while a >= 0 and t[a, START] + at >= lo:
        size, width, unit = block_size(t, a, at), t[a, WIDTH], t[a, UNITS]
        x = advance(pointer(t[a, ADDRESS], like), at)
        if width > 1:
            for r in range(0, size, width):
                row = advance(x, r)
                zipped(scaled, width, (row, data(scales[unit:])), (row,), ())
        elif scales[unit] != 1:
            values, scale = carray(x, size), scales[unit]
            for i in range(size):
                values[i] = np.float64(values[i]) * scale
        a, at = previous_block(t, a, at)


def scale_arrays(arrays, widths, scales):
    """arrays *= scales (U,), one for each unit."""
    rows = table(arrays) if widths is None else table(arrays, widths)
    job = np.array([(address_of(rows), len(arrays), address_of(scales))], SCALE)
    launch(scale_part, arrays[0].dtype, job, 2 * int(rows[-1, START]))


@inlined
def clamped(x, limit):
    return -limit if x < -limit else limit if x > limit else x


@kernel(CLAMP)
def clamp_part(part, parts, job, like):
    g = carray(job, 1)[0]
    t = rows_at(g.table, g.n)
    lo, hi = share(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        size, x = block_size(t, a, at), advance(pointer(t[a, ADDRESS], like), at)
        each(clamped, size, x, x, (real(g.limit, carray(x, 1)[0]),))
        a, at = next_block(t, g.n, a, at)


def clamp_arrays(arrays, limit):
    """Each value of the arrays to -limit .. limit; NaN stays."""
    rows = table(arrays)
    job = np.array([(address_of(rows), len(arrays), limit)], CLAMP)
    launch(clamp_part, arrays[0].dtype, job, 2 * int(rows[-1, START]))
