"""Batch normalisation, as in kernels/reference/batch_norm.py, which has the formulas.

x (M, C) is worked on in rows of W >= 256 columns where C is smaller: several of its rows side by side, and the vectors of mean, scale
and shift repeated as often. The last row may be a part of one.

The statistics are made chunk by chunk while one is in the first-level cache: its mean, from its first row, then the squares of what is
left, and in float64 the mean's own rounding; chunks are merged as Chan, Golub & LeVeque (1979) do. So x comes from memory once.
Everything is subtracted from x before it is multiplied, and the mean in two parts, since it may have more digits than the dtype.

Backward passes twice over dy and x, for the sums and for dx. The activation's slope is made again for the second pass, and after relu
and its like from x alone: its sign costs less than reading y. Chunks and blocks of them have sizes of their own, whatever the threads.
"""

import numpy as np
from numba import carray

from .. import types
from .activation import (
    activate,
    clipped_relu,
    clipped_relu_slope,
    differentiate,
    leaky_relu,
    leaky_relu_slope,
    relu,
    relu_slope,
)
from .engine.compile import Addresses, device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    copy,
    data,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import LINE, add, fence, map_arrays, stream, times
from .gemm import clear

# columns that make loops over them worth starting; values of a chunk; chunks whose sums are kept in one block of partial sums
COLUMNS, CHUNK, BLOCK = 256, 8192, 4
FOUR_ROWS = 4 * COLUMNS
# values between vectors of W: at a power of two from each other they would share places of the first-level cache
APART = 48
# values that are made at a time where each is met once; bytes of an array from which on its reader will not find it in cache
STEP, STREAMED = 2048, 1 << 24
STATISTICS = np.dtype([(name, "i8") for name in "x rows W n_blocks means squares".split()])
NORM = np.dtype(
    [(name, "i8") for name in "M C W n_blocks code relus has_dz of_batch streams room room_size".split()]
    + [(name, "i8") for name in "x dy residual z y dz dx high scale shift slope offset sums".split()]
    + [("parameter", "f8")]
)
STATISTICS_PART, FORWARD_PART, SUMS_PART, BACKWARD_PART = range(4)


@inline_function
def add_distance(total, x, start):
    return (total + (x - start),)


@inline_function
def moved(start, total, share_of_one):
    return (start + total * share_of_one,)


@inline_function
def add_squares(total, squares, x, mean):
    left = x - mean
    return total + left, squares + left * left


@inline_function
def merged(mean, squares, other_mean, other_squares, n_before, n):
    """Mean and sum of squared distances from it of two sets of values."""
    distance, part = other_mean - mean, n / (n_before + n)
    return mean + distance * part, squares + other_squares + distance * distance * (n_before * part)


@inline_function
def merge(mean, squares, chunk_mean, left, left_squares, n_before, n):
    """Mean and sum of squares of n_before values and of n more, of which left is the sum of what chunk_mean leaves."""
    left = np.float64(left)
    return merged(mean, squares, chunk_mean + left / n, left_squares - left * left / n, n_before, n)


@inline_function
def normalise(x, high, scale, shift):
    return ((x - high) * scale + shift,)


@inline_function
def normalise_add(x, residual, high, scale, shift):
    return ((x - high) * scale + shift + residual,)


@inline_function
def add_products(total, products, dz, x, high):
    return total + dz, products + dz * (x - high)


@inline_function
def below_mean(dz, x, high, scale, slope, offset):
    return (scale * (dz + ((x - high) * slope + offset)),)


def fused(f, derivative):
    """The same two with dz made on the way, of dy and z, and add_products with dz of dy and y, which it returns too."""

    @inline_function
    def add_fused(total, products, dy, x, high, scale, shift, p):
        dz = dy * derivative(f((x - high) * scale + shift, p), p)
        return total + dz, products + dz * (x - high)

    @inline_function
    def add_kept(total, products, dy, x, high, y, p):
        dz = dy * derivative(y, p)
        return total + dz, products + dz * (x - high), dz

    @inline_function
    def below_fused(dy, x, high, scale, shift, slope, offset, p):
        dz = dy * derivative(f((x - high) * scale + shift, p), p)
        return (scale * (dz + ((x - high) * slope + offset)),)

    return add_fused, add_kept, below_fused


add_relu, add_kept_relu, below_relu = fused(relu, relu_slope)
add_leaky, add_kept_leaky, below_leaky = fused(leaky_relu, leaky_relu_slope)
add_clipped, add_kept_clipped, below_clipped = fused(clipped_relu, clipped_relu_slope)


@device_function
def chunk(W):
    """Values of a chunk: whole rows."""
    return max(1, CHUNK // W) * W


@device_function
def doubles(address):
    return data(carray(void_pointer(address), 1, np.float64))


@kernel(STATISTICS)
def statistics_part(part, parts, job, like):
    """means and squares (n_blocks, W), float64, of the whole rows of each block: the part's share of blocks and groups of columns."""
    g = carray(job, 1)[0]
    W, groups, depth = g.W, (g.W + COLUMNS - 1) // COLUMNS, CHUNK // COLUMNS
    room = local(FOUR_ROWS, like)
    start, total, mean = data(room), data(room[COLUMNS:]), data(room[2 * COLUMNS :])
    squares = data(room[3 * COLUMNS :])
    lo, hi = thread_range(part, parts, g.n_blocks * groups, 1)
    for item in range(lo, hi):
        block, first_column = item // groups, item % groups * COLUMNS
        n, at = min(COLUMNS, W - first_column), block * W + first_column
        means, sums = doubles(g.means + 8 * at), doubles(g.squares + 8 * at)
        clear(n, means)
        clear(n, sums)
        first, last = block * BLOCK * depth, min(g.rows, (block + 1) * BLOCK * depth)
        for r0 in range(first, last, depth):
            rows, x = min(depth, last - r0), advance(pointer(g.x, like), r0 * W + first_column)
            copy(n, x, start)
            clear(3 * COLUMNS, total)
            for r in range(rows):
                map_arrays(add_distance, n, (total, advance(x, r * W), start), (total,), ())
            map_arrays(moved, n, (start, total), (mean,), (real(1 / rows, room[0]),))
            clear(n, total)
            for r in range(rows):
                map_arrays(add_squares, n, (total, squares, advance(x, r * W), mean), (total, squares), ())
            map_arrays(merge, n, (means, sums, mean, total, squares), (means, sums), (float(r0 - first), float(rows)))


@device_function
def slopes(g, at, n, room, like):
    """dz of n values from `at` on, whole rows of x: in dz, in room, or in dy itself where it is the same."""
    dy = advance(pointer(g.dy, like), at)
    if g.code == types.IDENTITY and not g.has_dz:
        return dy
    dz = advance(pointer(g.dz, like), at) if g.has_dz else room
    copy(n, dy, dz)
    z, y = advance(pointer(g.z, like), at), advance(pointer(g.y, like), at)
    differentiate(g.code, g.parameter, n // g.C, g.C, z, y, dz)
    return dz


@device_function
def normalise_rows(g, at, n, z, like):
    """z of n values from `at` on, without what follows."""
    high, scale, shift = pointer(g.high, like), pointer(g.scale, like), pointer(g.shift, like)
    for j in range(0, n, g.W):
        x = advance(pointer(g.x, like), at + j)
        if g.residual:
            sources = x, advance(pointer(g.residual, like), at + j), high, scale, shift
            map_arrays(normalise_add, min(g.W, n - j), sources, (advance(z, j),), ())
        else:
            map_arrays(normalise, min(g.W, n - j), (x, high, scale, shift), (advance(z, j),), ())


@device_function
def room_of(g, part, like):
    """The part's own values in the job's room."""
    return advance(pointer(g.room, like), part * g.room_size)


@kernel(NORM)
def batch_norm_forward_part(part, parts, job, like):
    """Backwards, since the statistics' last rows may still be in cache."""
    g = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, g.M * g.C, g.W)
    step, room = max(1, STEP // g.W) * g.W, room_of(g, part, like)
    for at in range(lo + (hi - lo - 1) // step * step, lo - 1, -step):
        n, y = min(step, hi - at), advance(pointer(g.y, like), at)
        made = room if g.streams else y
        z = advance(pointer(g.z, like), at) if g.z != g.y else made
        normalise_rows(g, at, n, z, like)
        activate(g.code, g.parameter, n // g.C, g.C, z, made)
        if g.streams:
            stream(n, made, y)
    fence()


@kernel(NORM)
def batch_norm_sums_part(part, parts, job, like):
    """sums (n_blocks, 2, W), float64: of dz and of dz (x - high), over the rows of each block; and dz, where it is wanted."""
    g = carray(job, 1)[0]
    W, step, room = g.W, chunk(g.W), room_of(g, part, like)
    total, products = advance(room, W + CHUNK), advance(room, W + CHUNK + W + APART)
    lo, hi = thread_range(part, parts, g.n_blocks, 1)
    for block in range(lo, hi):
        sums = doubles(g.sums + 16 * W * block)
        clear(2 * W, sums)
        end = min(g.M * g.C, (block + 1) * BLOCK * step)
        for at in range(block * BLOCK * step, end, step):
            clear(W, total)
            clear(W, products)
            add_rows(g, at, min(step, end - at), total, products, room, like)
            map_arrays(add, W, (sums, total), (sums,), ())
            map_arrays(add, W, (advance(sums, W), products), (advance(sums, W),), ())
    fence()


@device_function
def add_rows(g, at, n, total, products, room, like):
    """Add dz and dz (x - high) of n values from `at` on to total and products (W,)."""
    W, p = g.W, real(g.parameter, carray(total, 1)[0])
    high, scale, shift = pointer(g.high, like), pointer(g.scale, like), pointer(g.shift, like)
    dz = room if g.relus else slopes(g, at, n, room, like)
    for j in range(0, n, W):
        columns, x = min(W, n - j), advance(pointer(g.x, like), at + j)
        if not g.relus:
            map_arrays(add_products, columns, (total, products, advance(dz, j), x, high), (total, products), ())
            continue
        dy = advance(pointer(g.dy, like), at + j)
        if g.has_dz:
            kept = total, products, dy, x, high, advance(pointer(g.y, like), at + j)
            to = advance(pointer(g.dz, like), at + j)
            targets = total, products, room if g.streams else to
            if g.code == types.RELU:
                map_arrays(add_kept_relu, columns, kept, targets, (p,))
            elif g.code == types.LEAKY_RELU:
                map_arrays(add_kept_leaky, columns, kept, targets, (p,))
            else:
                map_arrays(add_kept_clipped, columns, kept, targets, (p,))
            if g.streams:
                stream(columns, room, to)
        else:
            sources = total, products, dy, x, high, scale, shift
            if g.code == types.RELU:
                map_arrays(add_relu, columns, sources, (total, products), (p,))
            elif g.code == types.LEAKY_RELU:
                map_arrays(add_leaky, columns, sources, (total, products), (p,))
            else:
                map_arrays(add_clipped, columns, sources, (total, products), (p,))


@kernel(NORM)
def batch_norm_backward_part(part, parts, job, like):
    """dx, from dz where it is kept, or from dy once more; backwards, as above."""
    g = carray(job, 1)[0]
    W, step, room = g.W, chunk(g.W), room_of(g, part, like)
    lo, hi = thread_range(part, parts, g.M * g.C, W)
    for at in range(lo + (hi - lo - 1) // step * step, lo - 1, -step):
        inputs_of(g, at, min(step, hi - at), room, advance(room, W + CHUNK), like)
    fence()


@device_function
def inputs_of(g, at, n, room, row, like):
    """dx of n values from `at` on."""
    fuses, p = g.relus and g.of_batch and not g.has_dz, real(g.parameter, carray(room, 1)[0])
    high, scale, shift = pointer(g.high, like), pointer(g.scale, like), pointer(g.shift, like)
    slope, offset = pointer(g.slope, like), pointer(g.offset, like)
    dz = advance(pointer(g.dz, like), at) if g.has_dz else room if fuses else slopes(g, at, n, room, like)
    for j in range(0, n, g.W):
        columns, dz_j, to = min(g.W, n - j), advance(dz, j), advance(pointer(g.dx, like), at + j)
        dx = row if g.streams else to
        x = advance(pointer(g.x, like), at + j)
        if fuses:
            sources = advance(pointer(g.dy, like), at + j), x, high, scale, shift, slope, offset
            if g.code == types.RELU:
                map_arrays(below_relu, columns, sources, (dx,), (p,))
            elif g.code == types.LEAKY_RELU:
                map_arrays(below_leaky, columns, sources, (dx,), (p,))
            else:
                map_arrays(below_clipped, columns, sources, (dx,), (p,))
        elif g.of_batch:
            map_arrays(below_mean, columns, (dz_j, x, high, scale, slope, offset), (dx,), ())
        else:
            map_arrays(times, columns, (dz_j, scale), (dx,), ())
        if g.streams:
            stream(columns, dx, to)


@device_function
def wide(M, C):
    """How many rows of x go side by side."""
    return max(1, min(M, COLUMNS // max(C, 1)))


@device_function
def of_batch(launcher, parts, kernels, x, mean, var, room):
    """mean and var (C,) of x, M from 1."""
    (M, C), depth = x.shape, BLOCK * (CHUNK // COLUMNS)
    repeat = wide(M, C)
    W, rows = repeat * C, M // repeat
    n_blocks = (rows + depth - 1) // depth
    means, squares = room[: n_blocks * W], room[n_blocks * W : 2 * n_blocks * W]
    job = local(1, STATISTICS)
    g = job[0]
    g.x, g.rows, g.W, g.n_blocks, g.means, g.squares = address(x), rows, W, n_blocks, address(means), address(squares)
    run_kernel(launcher, kernels[STATISTICS_PART], parts, job, ())
    for block in range(1, n_blocks):
        before, n = float(block * depth), float(min(depth, rows - block * depth))
        mean_of, squares_of = data(means), data(squares)
        others = advance(mean_of, block * W), advance(squares_of, block * W)
        map_arrays(merged, W, (mean_of, squares_of, *others), (mean_of, squares_of), (before, n))
    for c in range(C):
        m, s = means[c], squares[c]
        for k in range(1, repeat):
            m, s = merged(m, s, means[k * C + c], squares[k * C + c], float(k * rows), float(rows))
        for r in range(rows * repeat, M):
            m, s = merged(m, s, np.float64(x[r, c]), 0.0, float(r), 1.0)
        mean[c], var[c] = m, s / M
        if not np.isfinite(var[c]):
            mean[c], var[c] = wide_moments(x, c)


@device_function
def wide_moments(x, c):
    """Mean and var of a column in float64: of values whose squares, or sums, overflow in the dtype."""
    start, total, square = np.float64(x[0, c]), 0.0, 0.0
    for r in range(len(x)):
        total += np.float64(x[r, c]) - start
    mean = start + total / len(x)
    for r in range(len(x)):
        square += (np.float64(x[r, c]) - mean) ** 2
    return mean, square / len(x)


@device_function
def held_by_dtype(value, like):
    """A finite value that is past the array's dtype is the largest of it: a running variance would never come back from infinity."""
    most = np.float64(np.finfo(like.dtype).max)
    return most if most < value < np.inf else value


@driver
def _statistics(
    launcher, parts, kernels, x, running_mean, running_var, training, momentum, eps, unbiased, mean, rstd, room
):  # fmt: skip
    M, C = x.shape
    if not training:
        for c in range(C):
            mean[c], rstd[c] = running_mean[c], running_var[c]
    elif M == 0:
        mean[:], rstd[:] = 0, 1
    else:
        of_batch(launcher, parts, kernels, x, mean, rstd, room)
        for c in range(len(running_mean)):
            var = rstd[c] * M / (M - 1) if unbiased else rstd[c]
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c]
            running_var[c] = held_by_dtype((1 - momentum) * running_var[c] + momentum * var, running_var)
    for c in range(C):
        rstd[c] = 1 / np.sqrt(rstd[c] + eps)


@device_function
def repeat_columns(g, vector):
    """The first C values of a vector again, up to W."""
    for at in range(g.C, g.W, g.C):
        copy(g.C, data(vector), data(vector[at:]))


@device_function
def describe(g, x, code, parameter, mean, rstd, gamma, beta, room):
    """What both directions need: sizes, and the factors of wide rows."""
    g.M, g.C = x.shape
    repeat = wide(g.M, g.C)
    g.W, g.code, g.parameter, g.x = repeat * g.C, code, parameter, address(x)
    high, scale, shift = room[0], room[1], room[2]
    g.high, g.scale, g.shift = address(high), address(scale), address(shift)
    for c in range(g.C):
        high[c], scale[c] = mean[c], gamma[c] * rstd[c]
        shift[c] = beta[c] - (mean[c] - high[c]) * (gamma[c] * rstd[c])
    repeat_columns(g, high)
    repeat_columns(g, scale)
    repeat_columns(g, shift)


@device_function
def streams(g, array):
    """Whether an output goes past the caches: a large one whose wide rows are whole cache lines."""
    size = array.itemsize
    return array.size * size >= STREAMED and g.W * size % LINE == 0 and address(array) % LINE == 0


@device_function
def vectors_of(room, n, C):
    """(n, more than W): vectors at the beginning of room."""
    columns = max(COLUMNS, C) + APART
    return room[: n * columns].reshape(n, columns)


@driver
def _forward(launcher, parts, kernels, x, mean, rstd, gamma, beta, residual, code, parameter, z, y, room):
    job = local_zeros(1, NORM)
    g = job[0]
    vectors = vectors_of(room, 3, x.shape[1])
    describe(g, x, code, parameter, mean, rstd, gamma, beta, vectors)
    own = room[vectors.size :]
    g.room, g.room_size = address(own), own.size // parts
    g.z, g.y, g.residual = address(z), address(y), address_or_null(residual)
    g.streams = streams(g, y)
    run_kernel(launcher, kernels[FORWARD_PART], parts, job, ())


@driver
def _backward(
    launcher, parts, kernels, dy, x, mean, rstd, gamma, beta, code, parameter, of_batch, z, y, dz, dx, dgamma, dbeta, n_sums, room
):  # fmt: skip
    job = local_zeros(1, NORM)
    g = job[0]
    sums, values = room[:n_sums], room[n_sums:].view(x.dtype)
    vectors = vectors_of(values, 5, x.shape[1])
    describe(g, x, code, parameter, mean, rstd, gamma, beta, vectors)
    own = values[vectors.size :]
    g.room, g.room_size = address(own), own.size // parts
    W, depth = g.W, BLOCK * chunk(g.W)
    g.n_blocks, g.has_dz, g.of_batch = (x.size + depth - 1) // depth, min(1, dz.size), of_batch
    g.relus = code == types.RELU or code == types.LEAKY_RELU or code == types.CLIPPED_RELU
    g.streams = streams(g, dz)
    g.dy, g.z, g.y, g.dz, g.dx, g.sums = address(dy), address(z), address(y), address(dz), address(dx), address(sums)
    run_kernel(launcher, kernels[SUMS_PART], parts, job, ())
    slope, offset = vectors[3], vectors[4]
    g.slope, g.offset, g.streams = address(slope), address(offset), streams(g, dx)
    first = data(sums)
    for block in range(1, g.n_blocks):
        map_arrays(add, 2 * W, (first, advance(first, 2 * W * block)), (first,), ())
    for c in range(g.C):
        total = products = 0.0
        for j in range(c, W if g.n_blocks else c, g.C):
            total += sums[j]
            products += sums[W + j]
        low = mean[c] - vectors[0, c]
        products = (products - low * total) * rstd[c]
        dbeta[c], dgamma[c] = total, products
        slope[c] = -rstd[c] * products / g.M
        offset[c] = (rstd[c] * products * low - total) / g.M
    repeat_columns(g, slope)
    repeat_columns(g, offset)
    if dx.size:
        run_kernel(launcher, kernels[BACKWARD_PART], parts, job, ())


_KERNELS = Addresses(statistics_part, batch_norm_forward_part, batch_norm_sums_part, batch_norm_backward_part)
# a value costs about as much as this many multiplications and additions
COST = 16
DOUBLE = np.dtype(np.float64)


def batch_norm_statistics(x, running, training, eps, statistics):
    """statistics: mean and rstd (C,), float64, of x (M, C) in training, from which running's mean and var (C,), unless None, are moved
    by its momentum, with var unbiased or not; else of the running ones. In training without rows 0 and 1, and nothing is moved.
    """
    columns, rows = max(COLUMNS, x.shape[1]), BLOCK * CHUNK // COLUMNS
    mean, var, momentum, unbiased = running
    run(
        COST * x.size if training else 0, _statistics, _KERNELS[x.dtype.char], x, *or_empty(x.dtype, 1, mean, var), training,
        momentum, eps, unbiased, *statistics, scratch=(DOUBLE, 2 * (x.size // rows + columns), 0),
    )  # fmt: skip


def batch_norm_forward(x, statistics, affine, residual, activation, saved):
    """saved: z, which is y where the activation does not need it, and y (M, C); residual (M, C) may be None."""
    dtype, columns = x.dtype, max(COLUMNS, x.shape[1])
    run(
        COST * x.size, _forward, _KERNELS[dtype.char], x, *statistics, *affine, *or_empty(dtype, 2, residual), *activation, *saved,
        scratch=(dtype, 3 * (columns + APART), columns + STEP),
    )  # fmt: skip


def batch_norm_backward(dy, x, statistics, affine, activation, of_batch, saved, gradients):
    """gradients, which are overwritten: dz (M, C), which is dresidual and None where there was no residual, dx (M, C) or None, dgamma
    and dbeta (C,).

    of_batch: whether the statistics are the batch's.
    """
    dtype, columns = x.dtype, max(COLUMNS, x.shape[1])
    dz, dx, dgamma, dbeta = gradients
    sums = 2 * columns * (2 * x.size // (BLOCK * CHUNK) + 1)
    run(
        2 * COST * x.size, _backward, _KERNELS[dtype.char], dy, x, *statistics, *affine, *activation, of_batch, *saved,
        *or_empty(dtype, 2, dz, dx), dgamma, dbeta, sums,
        scratch=(DOUBLE, sums + 5 * (columns + APART), CHUNK + 3 * columns + 2 * APART),
    )  # fmt: skip
