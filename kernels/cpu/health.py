"""Health statistics of gradients, outputs and updates; definitions: kernels/reference/health.py.

The kernels of a training step call layer_output, layer_gradient and update_change, if health is asked for, on values that they have just
written and that are still in cache; a WATCH record collects the results, and layers_report and updates_report write them. array_health and
output_health measure lists of arrays in a pass of their own.

Counts and largest magnitudes are integers, so their order does not matter. Sums are taken by block, and blocks are joined in their order,
so the bits do not depend on the number of threads. A block of outputs is summed about its first value, which lies within sqrt(n) standard
deviations of the mean (Samuelson 1968), so little precision is lost. Blocks are joined about their common mean (Chan, Golub & LeVeque
1983). A block's sums are taken in the dtype of the values. They are taken again in float64 only where squares may have overflowed or
underflowed, or where most digits would cancel: converting every value would cost more than all else.
"""

import math

import numpy as np

from .. import types
from .engine.array_table import ADDRESS, START, SUMS, block_size, first_block, next_block, rows_at, sums_of, table
from .engine.compile import device_function, driver, kernel
from .engine.intrinsics import address, advance, carray, data, local, pointer, real, run_kernel, void_pointer
from .engine.microkernel import ROWS
from .engine.object_memory import address_of
from .engine.reductions import about_first, change, change_wide, max_and_zero_count, output_statistics, value_of
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import squares
from .loss import total

# values of a block, which stays in the first-level cache
BLOCK = 2048
# sums of squares in this range have lost nothing that counts
LEAST, MOST = 1e-24, 1e36
OFF = 64
# and of a whole array in float64
TINY = 1e-280


@device_function
def padded(units):
    """How many flags so many units have: rounded up to whole vectors."""
    return (units + 15) // 16 * 16


@device_function
def block_statistics(rows, columns, y, bands, alive, sums):
    """A block of outputs (rows, columns): sums (3,) = its mean, the sum of squares about it, and how many are saturated."""
    n, one = rows * columns, carray(y, 1)[0]
    low, high, flat_low, flat_high = real(bands[0], one), real(bands[1], one), real(bands[2], one), real(bands[3], one)
    total, square, sums[2] = output_statistics(y, rows, columns, alive, low, high, flat_low, flat_high)
    # also where the first value is so far off that the difference would lose bits
    if not (LEAST < square < MOST and square < OFF * (square - total * total / n)):
        total, square = about_first(y, n)
    sums[0], rest = one + total / n, square - total * total / n
    sums[1] = 0.0 if rest < 0 else rest


@device_function
def row_statistics(lo, hi, grain, columns, y, bands, alive, sums):
    """Rows lo..hi of outputs y, lo a multiple of grain: blocks of `grain` rows, of which sums (blocks, 3) are written, and flags."""
    flags = carray(alive, padded(columns))
    for j in range(len(flags)):
        flags[j] = 0
    if columns == 0:
        return
    for i in range(lo, hi, grain):
        block_statistics(min(grain, hi - i), columns, advance(y, i * columns), bands, alive, sums[i // grain])


# values before and after an update, and where their sums go
CHANGE = np.dtype([(name, "i8") for name in "n before after totals".split()])


@kernel(CHANGE)
def update_change(thread_index, thread_count, record, like):
    """totals (2,): the sums of the squares of after - before, and of before."""
    block = carray(record, 1)[0]
    before, after = pointer(block.before, like), pointer(block.after, like)  # (n,)
    totals = carray(void_pointer(block.totals), 2, np.float64)
    totals[0], totals[1] = change(before, after, block.n)
    if not (LEAST < totals[0] < MOST and LEAST < totals[1] < MOST):
        totals[0], totals[1] = change_wide(before, after, block.n)


@device_function
def sum_moved(totals, first, last):
    """Both sums of the blocks first..last."""
    change_square, square = 0.0, 0.0
    for place in range(first, last):
        change_square, square = change_square + totals[place, 0], square + totals[place, 1]
    return change_square, square


@device_function
def join(rows, columns, grain, sums, health):
    """health (4,): mean, spread and saturated share, from the sums of blocks; dead stays."""
    blocks, n = (rows + grain - 1) // grain, rows * columns
    first, shift, square, saturated = sums[0, 0] if n else np.nan, 0.0, 0.0, 0.0
    for block in range(blocks):
        size = min(grain, rows - block * grain) * columns
        shift += size * (sums[block, 0] - first)
        saturated += sums[block, 2]
    mean = first + shift / n
    for block in range(blocks):
        size, away = min(grain, rows - block * grain) * columns, sums[block, 0] - mean
        square += sums[block, 1] + size * away * away
    spread = math.sqrt(square / n) if square == square else np.nan
    health[0] = mean if math.isfinite(mean) else np.nan
    health[1] = spread if math.isfinite(spread) else np.nan
    health[2] = saturated / n if n else 0.0


@device_function
def dead(rows, columns, thread_count, stride, alive):
    """The share of columns without a flag of any thread; threads' flags begin `stride` apart."""
    if rows == 0 or columns == 0:
        return 0.0
    alive_columns = 0
    for j in range(columns):
        some = False
        for thread_index in range(thread_count):
            # of NaN's bits, which equal nothing
            flag = carray(advance(alive, thread_index * stride + j), 1)[0]
            some |= flag != flag
        alive_columns += some
    return 1 - alive_columns / columns


@device_function
def scaled_norm(values, n, largest):
    """The sum of squares of values / largest, for values whose own squares underflow or overflow."""
    total, x = 0.0, carray(values, n)
    for i in range(n):
        share = x[i] / largest
        total += share * share
    return total


@device_function
def not_finite(values, n):
    count, x = 0, carray(values, n)
    for i in range(n):
        count += not np.isfinite(x[i])
    return count


@device_function
def describe_gradient(squared, largest, zeros, pieces, health):
    """health (4,): norm, largest magnitude, share of zeros, and how many are not finite. pieces: (values, how many) of the gradient."""
    n, bad = 0, 0
    for values, size in pieces:
        n += size
        bad += 0 if math.isfinite(largest) else not_finite(values, size)
    norm = math.sqrt(squared)
    if 0 < largest < np.inf and not TINY < squared < np.inf:
        square = 0.0
        for values, size in pieces:
            square += scaled_norm(values, size, largest)
        norm = largest * math.sqrt(square)
    health[0], health[1], health[2], health[3] = norm, largest, zeros / max(n, 1), bad


@device_function
def ratio(moved, weight):
    """||dw|| / ||w|| from their squares."""
    if moved == 0:
        return 0.0
    return math.sqrt(moved / weight) if weight != 0 else np.inf


# results of a chain's passes, from which `rows` are written: sums (L, blocks, 3) of outputs; alive (thread_count, units): their flags;
# extremes (thread_count, L, 2): largest magnitude and zeros of weights' gradients; moved (changes, 2): squares of updates by block
WATCH = np.dtype([(name, "i8") for name in "depth blocks bands rows sums alive units extremes moved".split()])
# the request of Python: see types.Watch
HEALTH = np.dtype([(name, "i8") for name in "bands rows every".split()])
KINDS = len(types.HEALTH)
WORDS = len(WATCH.names)


@device_function
def sizes_of(table, batch_size):
    """Blocks of rows, and units of all layers, in whole vectors."""
    units = 0
    for l in range(len(table)):
        units += padded(table[l, 1])
    return (batch_size + ROWS - 1) // ROWS, units


@device_function
def watch_size(table, batch_size, thread_count, changes):
    """Words of a WATCH and of the arrays behind it."""
    blocks, units = sizes_of(table, batch_size)
    return WORDS + len(table) * (3 * blocks + 2 * thread_count) + thread_count * units + 2 * changes


@device_function
def describe_watch(watch, health, table, batch_size, thread_count, changes):
    """Fill in a WATCH at the beginning of an array of float64; its arrays lie behind it."""
    w, request, depth = watch_of(address(watch)), carray(void_pointer(health), 1, HEALTH)[0], len(table)
    w.depth, w.bands, w.rows = depth, request.bands, request.rows
    w.blocks, w.units = sizes_of(table, batch_size)
    w.sums = address(watch) + 8 * WORDS
    w.extremes = w.sums + 24 * depth * w.blocks
    w.moved = w.extremes + 16 * thread_count * depth
    w.alive = w.moved + 16 * changes
    totals = carray(void_pointer(w.moved), 2 * changes, np.float64)
    for i in range(2 * changes):
        totals[i] = 0


@device_function
def is_due(health, step):
    return step % carray(void_pointer(health), 1, HEALTH)[0].every == 0


@device_function
def report_of(w, batch):
    """The health of a batch (L, 9), as an array."""
    return carray(void_pointer(w.rows + 8 * batch * w.depth * KINDS), (w.depth, KINDS), np.float64)


@device_function
def watch_of(address):
    return carray(void_pointer(address), 1, WATCH)[0]


# rows lo..hi of a layer's output or weight gradient, of so many columns, `values`: address of the output, or of the gradient's row lo;
# units: flags of the layers before it
LAYER_HEALTH = np.dtype([(name, "i8") for name in "watch thread_index layer units lo hi columns values".split()])


@device_function
def gradient_extremes(watch, thread_index, layer):
    """The thread's largest magnitude and count of zeros of a layer's gradient (2,)."""
    return carray(void_pointer(watch.extremes + 16 * (thread_index * watch.depth + layer)), 2, np.int64)


@kernel(LAYER_HEALTH)
def layer_output(thread_index, thread_count, record, like):
    """The health of rows of a layer's output; and the thread has seen nothing of the layer's gradient yet."""
    rows = carray(record, 1)[0]
    watch = watch_of(rows.watch)
    bands = carray(void_pointer(watch.bands + 32 * rows.layer), 4, np.float64)
    sums = carray(void_pointer(watch.sums + 24 * rows.layer * watch.blocks), (watch.blocks, 3), np.float64)
    alive = advance(pointer(watch.alive, like), rows.thread_index * watch.units + rows.units)
    row_statistics(rows.lo, rows.hi, ROWS, rows.columns, pointer(rows.values, like), bands, alive, sums)
    gradient_extremes(watch, rows.thread_index, rows.layer)[:] = 0


@kernel(LAYER_HEALTH)
def layer_gradient(thread_index, thread_count, record, like):
    """Add rows of a layer's weight gradient to the thread's largest magnitude and count of zeros."""
    rows = carray(record, 1)[0]
    extremes = gradient_extremes(watch_of(rows.watch), rows.thread_index, rows.layer)
    largest, zeros = max_and_zero_count(pointer(rows.values, like), (rows.hi - rows.lo) * rows.columns)
    extremes[0] = max(extremes[0], largest)
    extremes[1] += zeros


# what a batch's health is written from: its rows, the table of layers and of arrays, the gradients and the norms (squares by row of every
# dw) of a training step
REPORT = np.dtype([(name, "i8") for name in "watch batch rows layers depth grads norms arrays".split()])


@kernel(REPORT)
def layers_report(_, thread_count, record, like):
    """Write the health of a batch's gradients and outputs, as so many threads saw it. The updates' ratio becomes NaN."""
    report = carray(record, 1)[0]
    watch, first, before, rows = watch_of(report.watch), 0, 0, report.rows
    table = carray(void_pointer(report.layers), (report.depth, 5), np.int64)
    health, grads = report_of(watch, report.batch), pointer(report.grads, like)
    norms = data(carray(void_pointer(report.norms), 1, np.float64))
    extremes = carray(void_pointer(watch.extremes), (thread_count, watch.depth, 2), np.int64)
    for l in range(watch.depth):
        n_in, n_out, b = table[l, 0], table[l, 1], table[l, 3]
        squared, largest, zeros = total(advance(norms, first), n_in), 0, 0
        for thread_index in range(thread_count):
            largest, zeros = max(largest, extremes[thread_index, l, 0]), zeros + extremes[thread_index, l, 1]
        values, bias = advance(grads, table[l, 2]), grads
        if b >= 0:
            bias = advance(grads, b)
            more, none = max_and_zero_count(bias, n_out)
            squared, largest, zeros = squared + squares(bias, n_out), max(largest, more), zeros + none
        pieces = (values, n_in * n_out), (bias, n_out if b >= 0 else 0)
        describe_gradient(squared, value_of(largest, values), zeros, pieces, health[l])
        sums = carray(void_pointer(watch.sums + 24 * l * watch.blocks), (watch.blocks, 3), np.float64)
        join(rows, n_out, ROWS, sums, health[l, 4:])
        health[l, 7] = dead(rows, n_out, thread_count, watch.units, advance(pointer(watch.alive, values), before))
        health[l, 8] = np.nan
        first, before = first + n_in, before + padded(n_out)


@kernel(REPORT)
def updates_report(_, thread_count, record, like):
    """Write the ratios of a batch's updates."""
    report = carray(record, 1)[0]
    watch, a = watch_of(report.watch), 0
    table = carray(void_pointer(report.layers), (report.depth, 5), np.int64)
    arrays = rows_at(report.arrays, 2 * report.depth)
    health, moved = (
        report_of(watch, report.batch),
        carray(void_pointer(watch.moved), ((watch.alive - watch.moved) // 16, 2), np.float64),
    )
    for l in range(report.depth):
        n = 2 if table[l, 3] >= 0 else 1
        change_square, square = sum_moved(moved, arrays[a, SUMS], arrays[a + n, SUMS])
        health[l, 8] = ratio(change_square, square)
        a += n


def health_record(watch):
    """The address of a HEALTH, which the watch keeps, or 0."""
    if watch is None:
        return 0
    if watch.record is None:
        record = np.array([(address_of(watch.bands), address_of(watch.rows), watch.every)], HEALTH).view(np.int64)
        watch.record = address_of(record), record
    return watch.record[0]


# a list of arrays: sums of squares, and extremes (largest magnitude, zeros), by block
GRADIENTS = np.dtype([(name, "i8") for name in "table n sums extremes".split()])


@kernel(GRADIENTS)
def array_health_part(thread_index, thread_count, record, like):
    gradients = carray(record, 1)[0]
    t = rows_at(gradients.table, gradients.n)
    sums = carray(void_pointer(gradients.sums), t[gradients.n, SUMS], np.float64)
    extremes = carray(void_pointer(gradients.extremes), (t[gradients.n, SUMS], 2), np.int64)
    lo, hi = thread_range(thread_index, thread_count, t[gradients.n, START], 64)
    a, at = first_block(t, gradients.n, lo)
    while a < gradients.n and t[a, START] + at < hi:
        x, size, place = advance(pointer(t[a, ADDRESS], like), at), block_size(t, a, at), sums_of(t, a, at)
        sums[place] = squares(x, size)
        extremes[place, 0], extremes[place, 1] = max_and_zero_count(x, size)
        a, at = next_block(t, gradients.n, a, at)


@driver
def _array_health(launcher, thread_count, function, like, t, n, health):
    sums, extremes = np.empty(t[n, SUMS]), np.empty((t[n, SUMS], 2), np.int64)
    record = local(1, GRADIENTS)
    gradients = record[0]
    gradients.table, gradients.n, gradients.sums, gradients.extremes = address(t), n, address(sums), address(extremes)
    run_kernel(launcher, function, thread_count, record, (sums, extremes))
    for a in range(n):
        squared, largest, zeros, values = 0.0, 0, 0, pointer(t[a, ADDRESS], data(like))
        for place in range(t[a, SUMS], t[a + 1, SUMS]):
            squared += sums[place]
            largest = max(largest, extremes[place, 0])
            zeros += extremes[place, 1]
        pieces = ((values, t[a + 1, START] - t[a, START]),)
        describe_gradient(squared, value_of(largest, values), zeros, pieces, health[a])


def array_health(arrays, health):
    """health (n, 4) of C-contiguous arrays: norm, largest magnitude, share of zeros, and how many are not finite."""
    rows, dtype = table(arrays), arrays[0].dtype
    function = array_health_part.address(dtype)
    run(COST * int(rows[-1, START]), _array_health, function, np.empty(0, dtype), rows, len(arrays), health)


# a list of outputs: address, rows and columns of each; sums and flags as in row_statistics, one output after the other
OUTPUTS = np.dtype([(name, "i8") for name in "outputs n bands sums alive units".split()])


@device_function
def rows_in_block(columns):
    return max(1, BLOCK // max(columns, 1))


@kernel(OUTPUTS)
def output_health_part(thread_index, thread_count, record, like):
    """The thread's rows of every output."""
    listed = carray(record, 1)[0]
    outputs = carray(void_pointer(listed.outputs), (listed.n, 3), np.int64)
    bands = carray(void_pointer(listed.bands), (listed.n, 4), np.float64)
    alive, blocks = advance(pointer(listed.alive, like), thread_index * listed.units), 0
    for a in range(listed.n):
        rows, columns = outputs[a, 1], outputs[a, 2]
        grain = rows_in_block(columns)
        lo, hi = thread_range(thread_index, thread_count, rows, grain)
        n = (rows + grain - 1) // grain
        sums = carray(void_pointer(listed.sums + blocks * 24), (n, 3), np.float64)
        row_statistics(lo, hi, grain, columns, pointer(outputs[a, 0], like), bands[a], alive, sums)
        alive, blocks = advance(alive, padded(columns)), blocks + n


@device_function
def dead_of(rows, columns, thread_count, stride, alive, first):
    """`dead`, of the flags alive[first:]."""
    return dead(rows, columns, thread_count, stride, advance(data(alive), first))


@driver
def _output_health(launcher, thread_count, function, like, outputs, bands, health):
    n, blocks, units = len(outputs), 0, 0
    for a in range(n):
        grain = rows_in_block(outputs[a, 2])
        blocks += (outputs[a, 1] + grain - 1) // grain
        units += padded(outputs[a, 2])
    sums, alive, record = np.empty((blocks, 3)), np.empty(thread_count * units, like.dtype), local(1, OUTPUTS)
    listed = record[0]
    listed.outputs, listed.n, listed.bands = address(outputs), n, address(bands)
    listed.sums, listed.alive, listed.units = address(sums), address(alive), units
    run_kernel(launcher, function, thread_count, record, (sums, alive))
    block, flags = 0, 0
    for a in range(n):
        rows, columns = outputs[a, 1], outputs[a, 2]
        grain = rows_in_block(columns)
        join(rows, columns, grain, sums[block:], health[a])
        health[a, 3] = dead_of(rows, columns, thread_count, units, alive, flags)
        block, flags = block + (rows + grain - 1) // grain, flags + padded(columns)


def output_health(outputs, bands, health):
    """health (n, 4) of C-contiguous outputs (rows, columns): mean, spread, saturated and dead share, by bands (n, 4)."""
    dtype = outputs[0].dtype
    places = np.array([(address_of(y), *y.shape) for y in outputs], np.int64)
    function, values = output_health_part.address(dtype), int(places[:, 1:].prod(axis=1).sum())
    run(COST * values, _output_health, function, np.empty(0, dtype), places, bands, health)


# a value costs about as much as this many multiplications and additions
COST = 4
