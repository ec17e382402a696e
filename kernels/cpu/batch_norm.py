"""Batch normalisation with residual and activation; formulas: kernels/reference/batch_norm.py.

Layout: x (M, C). Where C is below 256, kernels treat several rows of x as one wide row of W = C (256 // C) values, and repeat the vectors
of mean, scale and shift up to W. The last wide row may be incomplete.

Statistics: one pass over memory. A chunk of x that fits into the first-level cache is read twice: for its mean, as the mean distance from
its first row, and for the squared distances from that mean; the sum of the distances corrects the mean's rounding, in float64. Chunks and
then blocks of chunks are merged as by Chan, Golub & LeVeque (1979).

Forward: one pass, z = (x - high) scale + shift. high is the mean rounded to the dtype; what the rounding lost is in shift.

Backward: two passes over dy and x. The first sums dz and dz (x - high), the second computes dx. Both compute f'(z). For relu, leaky_relu
and clipped_relu they compute it from x, where dz is not stored: recomputing z costs less than reading y.

Sizes of chunks and blocks do not depend on the number of threads, and so neither do the bits of the results.
"""

import numpy as np

from .. import types
from .activation import (
    activate,
    backward_address,
    clipped_relu,
    clipped_relu_slope,
    differentiate,
    forward_address,
    leaky_relu,
    leaky_relu_slope,
    relu,
    relu_slope,
)
from .engine.compile import Addresses, device_function, driver, driver_function, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
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
from .engine.vector_loops import add, fence, is_stored_nontemporal, map_arrays, store_nontemporal, times
from .gemm import clear

# columns that make loops over them worth starting; values of a chunk; chunks whose sums are kept in one block of partial sums
COLUMNS, CHUNK, BLOCK = 256, 8192, 4
FOUR_ROWS = 4 * COLUMNS
# values between vectors of W: at a power of two from each other they would share sets of the first-level cache
PADDING = 48
# values that are computed at a time where each is read once
STEP = 2048
# sets of rows (rows, W) of x, whole ones: means and squares (n_blocks, W), float64, of blocks of them
STATISTICS = np.dtype([(name, "i8") for name in "x rows W n_blocks means squares".split()])
# x (M, C) in rows of W values; high, scale and shift (W,) of z = (x - high) scale + shift; slope and offset (W,) of
# dx = scale (dz + (x - high) slope + offset); sums (n_blocks, 2, W), float64, of dz and of dz (x - high); is_relu: whether f is relu,
# leaky_relu or clipped_relu; has_dz: whether dz is stored; batch_statistics: whether mean and rstd are the batch's; nontemporal: whether
# what is written goes past the caches; scratch: scratch_size values a thread; function: address of the activation's kernel, forward or
# backward; dy, residual, z, y, dz, dx, code and parameter: as in batch_norm_forward and batch_norm_backward, null for None
NORM = np.dtype(
    [
        (name, "i8")
        for name in "M C W n_blocks code function is_relu has_dz batch_statistics nontemporal scratch scratch_size".split()
    ]
    + [(name, "i8") for name in "x dy residual z y dz dx high scale shift slope offset sums".split()]
    + [("parameter", "f8")]
)
needs_input = device_function(types.needs_input)
STATISTICS_PART, FORWARD_PART, SUMS_PART, BACKWARD_PART = range(4)


@inline_function
def add_distance(total, x, start):
    return (total + (x - start),)


@inline_function
def add_mean(start, total, factor):
    return (start + total * factor,)


@inline_function
def add_squares(total, squares, x, mean):
    distances = x - mean
    return total + distances, squares + distances * distances


@inline_function
def merge_moments(mean, squares, other_mean, other_squares, n_before, n):
    """Mean and sum of squared distances from it of two sets of values."""
    distance, weight = other_mean - mean, n / (n_before + n)
    return mean + distance * weight, squares + other_squares + distance * distance * (n_before * weight)


@inline_function
def merge_chunk(mean, squares, chunk_mean, total, total_squares, n_before, n):
    """Mean and sum of squares of n_before values and of n more, over which x - chunk_mean and its square sum to total and total_squares."""
    total = np.float64(total)
    return merge_moments(mean, squares, chunk_mean + total / n, total_squares - total * total / n, n_before, n)


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
def input_gradient(dz, x, high, scale, slope, offset):
    return (scale * (dz + ((x - high) * slope + offset)),)


def relu_functions(f, derivative):
    """For one of the relus: add_products with dz from dy and z; with dz from dy and y, which it returns; input_gradient from dy and z."""

    @inline_function
    def products_by_z(total, products, dy, x, high, scale, shift, p):
        dz = dy * derivative(f((x - high) * scale + shift, p), p)
        return total + dz, products + dz * (x - high)

    @inline_function
    def products_by_y(total, products, dy, x, high, y, p):
        dz = dy * derivative(y, p)
        return total + dz, products + dz * (x - high), dz

    @inline_function
    def gradient_by_z(dy, x, high, scale, shift, slope, offset, p):
        dz = dy * derivative(f((x - high) * scale + shift, p), p)
        return (scale * (dz + ((x - high) * slope + offset)),)

    return products_by_z, products_by_y, gradient_by_z


relu_products, relu_products_by_y, relu_gradient = relu_functions(relu, relu_slope)
leaky_products, leaky_products_by_y, leaky_gradient = relu_functions(leaky_relu, leaky_relu_slope)
clipped_products, clipped_products_by_y, clipped_gradient = relu_functions(clipped_relu, clipped_relu_slope)


def select_relu(relu_function, leaky_function, clipped_function):
    """map_arrays with one of three functions, by the activation. The result holds them: as arguments they would be addresses."""

    @device_function
    def map_by_code(norm, n, sources, targets):
        p = real(norm.parameter, carray(sources[0], 1)[0])
        if norm.code == types.RELU:
            map_arrays(relu_function, n, sources, targets, (p,))
        elif norm.code == types.LEAKY_RELU:
            map_arrays(leaky_function, n, sources, targets, (p,))
        else:
            map_arrays(clipped_function, n, sources, targets, (p,))

    return map_by_code


map_products = select_relu(relu_products, leaky_products, clipped_products)
map_products_by_y = select_relu(relu_products_by_y, leaky_products_by_y, clipped_products_by_y)
map_gradient = select_relu(relu_gradient, leaky_gradient, clipped_gradient)


@device_function
def chunk_size(W):
    """Values of a chunk: whole rows."""
    return max(1, CHUNK // W) * W


@device_function
def float64_at(address):
    return data(carray(void_pointer(address), 1, np.float64))


@device_function
def normalise_rows(norm, at, n, z, like):
    """z (n,) of n values from `at` on, with the residual."""
    high, scale, shift = pointer(norm.high, like), pointer(norm.scale, like), pointer(norm.shift, like)  # (W,) each
    for j in range(0, n, norm.W):
        x = advance(pointer(norm.x, like), at + j)  # (W,)
        if norm.residual:
            sources = x, advance(pointer(norm.residual, like), at + j), high, scale, shift
            map_arrays(normalise_add, min(norm.W, n - j), sources, (advance(z, j),), ())
        else:
            map_arrays(normalise, min(norm.W, n - j), (x, high, scale, shift), (advance(z, j),), ())


@device_function
def activation_gradient(norm, at, n, scratch, like):
    """dz of n values from `at` on, which undoes the activation: in norm.dz, in scratch, or dy itself for the identity."""
    dy = advance(pointer(norm.dy, like), at)  # (n / C, C)
    if norm.code == types.IDENTITY and not norm.has_dz:
        return dy
    dz = advance(pointer(norm.dz, like), at) if norm.has_dz else scratch  # (n / C, C)
    copy(n, dy, dz)
    saved = advance(pointer(norm.z if needs_input(norm.code) else norm.y, like), at)  # (n / C, C)
    differentiate(norm.function, norm.parameter, n // norm.C, norm.C, saved, dz)
    return dz


@device_function
def thread_scratch(norm, thread_index, like):
    """The thread's part of the scratch (scratch_size,)."""
    return advance(pointer(norm.scratch, like), thread_index * norm.scratch_size)


@kernel(STATISTICS)
def statistics_part(thread_index, thread_count, record, like):
    """Means and squares (n_blocks, W), float64, of the rows of each block: the thread's blocks and groups of columns."""
    moments = carray(record, 1)[0]
    W, groups, depth = moments.W, (moments.W + COLUMNS - 1) // COLUMNS, CHUNK // COLUMNS
    scratch = local(FOUR_ROWS, like)
    # (COLUMNS,) each
    start, total = data(scratch), data(scratch[COLUMNS:])
    mean, squares = data(scratch[2 * COLUMNS :]), data(scratch[3 * COLUMNS :])
    lo, hi = thread_range(thread_index, thread_count, moments.n_blocks * groups, 1)
    for item in range(lo, hi):
        block, first_column = item // groups, item % groups * COLUMNS
        n, at = min(COLUMNS, W - first_column), block * W + first_column
        means, sums = float64_at(moments.means + 8 * at), float64_at(moments.squares + 8 * at)  # (n,)
        clear(n, means)
        clear(n, sums)
        first, last = block * BLOCK * depth, min(moments.rows, (block + 1) * BLOCK * depth)
        for r0 in range(first, last, depth):
            rows = min(depth, last - r0)
            x = advance(pointer(moments.x, like), r0 * W + first_column)  # (rows, n), W apart
            # the chunk's mean, from the distances to its first row; this also clears mean and squares
            copy(n, x, start)
            clear(3 * COLUMNS, total)
            for r in range(rows):
                map_arrays(add_distance, n, (total, advance(x, r * W), start), (total,), ())
            map_arrays(add_mean, n, (start, total), (mean,), (real(1 / rows, scratch[0]),))
            # the squared distances from that mean
            clear(n, total)
            for r in range(rows):
                map_arrays(add_squares, n, (total, squares, advance(x, r * W), mean), (total, squares), ())
            sources, targets = (means, sums, mean, total, squares), (means, sums)
            map_arrays(merge_chunk, n, sources, targets, (float(r0 - first), float(rows)))


@kernel(NORM)
def batch_norm_forward_part(thread_index, thread_count, record, like):
    """Normalisation, residual and activation of the thread's rows, from the last, which may still be in cache after the statistics."""
    norm = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, norm.M * norm.C, norm.W)
    step, scratch = max(1, STEP // norm.W) * norm.W, thread_scratch(norm, thread_index, like)
    for at in range(lo + (hi - lo - 1) // step * step, lo - 1, -step):
        n, y = min(step, hi - at), advance(pointer(norm.y, like), at)  # (n,)
        target = scratch if norm.nontemporal else y
        z = advance(pointer(norm.z, like), at) if norm.z != norm.y else target  # (n,)
        normalise_rows(norm, at, n, z, like)
        activate(norm.function, norm.parameter, n // norm.C, norm.C, z, target)
        if norm.nontemporal:
            store_nontemporal(n, target, y)
    fence()


@device_function
def add_rows(norm, at, n, total, products, scratch, like):
    """Add dz and dz (x - high) of n values from `at` on to total and products (W,)."""
    W, sums = norm.W, (total, products)
    high, scale, shift = pointer(norm.high, like), pointer(norm.scale, like), pointer(norm.shift, like)  # (W,) each
    dz = scratch if norm.is_relu else activation_gradient(norm, at, n, scratch, like)  # (n,)
    for j in range(0, n, W):
        columns, x = min(W, n - j), advance(pointer(norm.x, like), at + j)  # (W,)
        if not norm.is_relu:
            map_arrays(add_products, columns, (total, products, advance(dz, j), x, high), sums, ())
            continue
        dy = advance(pointer(norm.dy, like), at + j)  # (W,)
        if norm.has_dz:
            sources = total, products, dy, x, high, advance(pointer(norm.y, like), at + j)
            target = advance(pointer(norm.dz, like), at + j)  # (W,)
            targets = total, products, scratch if norm.nontemporal else target
            map_products_by_y(norm, columns, sources, targets)
            if norm.nontemporal:
                store_nontemporal(columns, scratch, target)
        else:
            map_products(norm, columns, (total, products, dy, x, high, scale, shift), sums)


@kernel(NORM)
def batch_norm_sums_part(thread_index, thread_count, record, like):
    """sums (n_blocks, 2, W), float64, of the thread's blocks: of dz and of dz (x - high), which give dbeta and dgamma; and dz itself."""
    norm = carray(record, 1)[0]
    W, step, scratch = norm.W, chunk_size(norm.W), thread_scratch(norm, thread_index, like)
    total, products = advance(scratch, W + CHUNK), advance(scratch, W + CHUNK + W + PADDING)  # (W,) each
    lo, hi = thread_range(thread_index, thread_count, norm.n_blocks, 1)
    for block in range(lo, hi):
        sums = float64_at(norm.sums + 16 * W * block)  # (2, W)
        clear(2 * W, sums)
        end = min(norm.M * norm.C, (block + 1) * BLOCK * step)
        for at in range(block * BLOCK * step, end, step):
            clear(W, total)
            clear(W, products)
            add_rows(norm, at, min(step, end - at), total, products, scratch, like)
            map_arrays(add, W, (sums, total), (sums,), ())
            map_arrays(add, W, (advance(sums, W), products), (advance(sums, W),), ())
    fence()


@device_function
def input_gradient_rows(norm, at, n, scratch, scratch_row, like):
    """dx of n values from `at` on; scratch_row (W,): its place before it is stored."""
    high, scale, shift = pointer(norm.high, like), pointer(norm.scale, like), pointer(norm.shift, like)  # (W,) each
    slope, offset = pointer(norm.slope, like), pointer(norm.offset, like)  # (W,) each
    fuse, dz = norm.is_relu and norm.batch_statistics, scratch
    if norm.has_dz:
        dz, fuse = advance(pointer(norm.dz, like), at), False
    elif not fuse:
        dz = activation_gradient(norm, at, n, scratch, like)
    for j in range(0, n, norm.W):
        columns, dz_row, target = min(norm.W, n - j), advance(dz, j), advance(pointer(norm.dx, like), at + j)  # (W,)
        dx = scratch_row if norm.nontemporal else target
        x = advance(pointer(norm.x, like), at + j)  # (W,)
        if fuse:
            sources = advance(pointer(norm.dy, like), at + j), x, high, scale, shift, slope, offset
            map_gradient(norm, columns, sources, (dx,))
        elif norm.batch_statistics:
            map_arrays(input_gradient, columns, (dz_row, x, high, scale, slope, offset), (dx,), ())
        else:
            map_arrays(times, columns, (dz_row, scale), (dx,), ())
        if norm.nontemporal:
            store_nontemporal(columns, dx, target)


@kernel(NORM)
def batch_norm_backward_part(thread_index, thread_count, record, like):
    """dx of the thread's rows, which undoes the normalisation: from dz if it was stored, else from dy; from the last row, as forward."""
    norm = carray(record, 1)[0]
    W, step, scratch = norm.W, chunk_size(norm.W), thread_scratch(norm, thread_index, like)
    lo, hi = thread_range(thread_index, thread_count, norm.M * norm.C, W)
    for at in range(lo + (hi - lo - 1) // step * step, lo - 1, -step):
        input_gradient_rows(norm, at, min(step, hi - at), scratch, advance(scratch, W + CHUNK), like)
    fence()


@device_function
def wide_rows(M, C):
    """How many rows of x a wide row has."""
    return max(1, min(M, COLUMNS // max(C, 1)))


@device_function
def batch_moments(launcher, thread_count, kernels, x, mean, var, scratch):
    """mean and var (C,) of x (M, C), M at least 1."""
    (M, C), depth = x.shape, BLOCK * (CHUNK // COLUMNS)
    repeat = wide_rows(M, C)
    W, rows = repeat * C, M // repeat
    n_blocks = (rows + depth - 1) // depth
    means, squares = scratch[: n_blocks * W], scratch[n_blocks * W : 2 * n_blocks * W]
    record = local(1, STATISTICS)
    moments = record[0]
    moments.x, moments.rows, moments.W, moments.n_blocks = address(x), rows, W, n_blocks
    moments.means, moments.squares = address(means), address(squares)
    run_kernel(launcher, kernels[STATISTICS_PART], thread_count, record, ())
    for block in range(1, n_blocks):
        before, n = float(block * depth), float(min(depth, rows - block * depth))
        first = data(means), data(squares)  # (W,)
        others = advance(data(means), block * W), advance(data(squares), block * W)
        map_arrays(merge_moments, W, (*first, *others), first, (before, n))
    for c in range(C):
        m, s = means[c], squares[c]
        for k in range(1, repeat):
            m, s = merge_moments(m, s, means[k * C + c], squares[k * C + c], float(k * rows), float(rows))
        for r in range(rows * repeat, M):
            m, s = merge_moments(m, s, np.float64(x[r, c]), 0.0, float(r), 1.0)
        mean[c], var[c] = m, s / M
        if not np.isfinite(var[c]):
            mean[c], var[c] = column_moments(x, c)


@device_function
def column_moments(x, c):
    """Mean and var of a column in float64: of values whose squares, or sums, overflow in the dtype."""
    start, total, square = np.float64(x[0, c]), 0.0, 0.0
    for r in range(len(x)):
        total += np.float64(x[r, c]) - start
    mean = start + total / len(x)
    for r in range(len(x)):
        square += (np.float64(x[r, c]) - mean) ** 2
    return mean, square / len(x)


@device_function
def clamp_to_dtype(value, like):
    """A finite value, at most the largest of the dtype: a running variance could never return from infinity."""
    most = np.float64(np.finfo(like.dtype).max)
    return most if most < value < np.inf else value


@driver
def _statistics(
    launcher, thread_count, kernels, x, running_mean, running_var, training, momentum, eps, unbiased, mean, rstd, scratch
):  # fmt: skip
    M, C = x.shape
    if not training:
        for c in range(C):
            mean[c], rstd[c] = running_mean[c], running_var[c]
    elif M == 0:
        mean[:], rstd[:] = 0, 1
    else:
        batch_moments(launcher, thread_count, kernels, x, mean, rstd, scratch)
        for c in range(len(running_mean)):
            var = rstd[c] * M / (M - 1) if unbiased else rstd[c]
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * mean[c]
            running_var[c] = clamp_to_dtype((1 - momentum) * running_var[c] + momentum * var, running_var)
    for c in range(C):
        rstd[c] = 1 / np.sqrt(rstd[c] + eps)


@device_function
def repeat_columns(norm, vector):
    """Repeat the first C values of a vector, up to W."""
    for at in range(norm.C, norm.W, norm.C):
        copy(norm.C, data(vector), data(vector[at:]))


@driver_function
def describe(norm, x, code, function, parameter, mean, rstd, gamma, beta, n_vectors, scratch, thread_count):
    """Fill in sizes and scratch; returns vectors (n_vectors, more than W), of which the first are high, scale and shift of wide rows."""
    norm.M, norm.C = x.shape
    norm.W, norm.x = wide_rows(norm.M, norm.C) * norm.C, address(x)
    norm.code, norm.function, norm.parameter = code, function, parameter
    columns = max(COLUMNS, norm.C) + PADDING
    vectors = scratch[: n_vectors * columns].reshape(n_vectors, columns)
    norm.scratch = address(scratch[n_vectors * columns :])
    norm.scratch_size = (scratch.size - n_vectors * columns) // thread_count
    high, scale, shift = vectors[0], vectors[1], vectors[2]
    norm.high, norm.scale, norm.shift = address(high), address(scale), address(shift)
    for c in range(norm.C):
        high[c], scale[c] = mean[c], gamma[c] * rstd[c]
        shift[c] = beta[c] - (mean[c] - high[c]) * (gamma[c] * rstd[c])
    repeat_columns(norm, high)
    repeat_columns(norm, scale)
    repeat_columns(norm, shift)
    return vectors


@driver
def _forward(
    launcher, thread_count, kernels, x, mean, rstd, gamma, beta, residual, code, function, parameter, z, y, scratch
):
    record = local_zeros(1, NORM)
    norm = record[0]
    describe(norm, x, code, function, parameter, mean, rstd, gamma, beta, 3, scratch, thread_count)
    norm.z, norm.y, norm.residual = address(z), address(y), address_or_null(residual)
    norm.nontemporal = is_stored_nontemporal(y, norm.W)
    run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, ())


@driver
def _backward(
    launcher, thread_count, kernels, dy, x, mean, rstd, gamma, beta, code, function, parameter, batch_statistics, z, y, dz, dx,
    dgamma, dbeta, n_sums, scratch,
):  # fmt: skip
    record = local_zeros(1, NORM)
    norm = record[0]
    sums, values = scratch[:n_sums], scratch[n_sums:].view(x.dtype)
    vectors = describe(norm, x, code, function, parameter, mean, rstd, gamma, beta, 5, values, thread_count)
    W, depth = norm.W, BLOCK * chunk_size(norm.W)
    norm.n_blocks, norm.has_dz, norm.batch_statistics = (x.size + depth - 1) // depth, min(1, dz.size), batch_statistics
    norm.is_relu = code == types.RELU or code == types.LEAKY_RELU or code == types.CLIPPED_RELU
    norm.nontemporal = is_stored_nontemporal(dz, norm.W)
    norm.dy, norm.z, norm.y, norm.sums = address(dy), address(z), address(y), address(sums)
    norm.dz, norm.dx = address(dz), address(dx)
    run_kernel(launcher, kernels[SUMS_PART], thread_count, record, ())
    slope, offset = vectors[3], vectors[4]
    norm.slope, norm.offset, norm.nontemporal = address(slope), address(offset), is_stored_nontemporal(dx, norm.W)
    first = data(sums)
    for block in range(1, norm.n_blocks):
        map_arrays(add, 2 * W, (first, advance(first, 2 * W * block)), (first,), ())
    for c in range(norm.C):
        total = products = 0.0
        for j in range(c, W if norm.n_blocks else c, norm.C):
            total += sums[j]
            products += sums[W + j]
        low = mean[c] - vectors[0, c]
        products = (products - low * total) * rstd[c]
        dbeta[c], dgamma[c] = total, products
        slope[c] = -rstd[c] * products / norm.M
        offset[c] = (rstd[c] * products * low - total) / norm.M
    repeat_columns(norm, slope)
    repeat_columns(norm, offset)
    if dx.size:
        run_kernel(launcher, kernels[BACKWARD_PART], thread_count, record, ())


_KERNELS = Addresses(statistics_part, batch_norm_forward_part, batch_norm_sums_part, batch_norm_backward_part)
# a value costs about as much as this many multiplications and additions
COST = 64
DOUBLE = np.dtype(np.float64)


def batch_norm_statistics(x, running, training, eps, statistics):
    """Write statistics, mean and rstd (C,), float64: of x (M, C) in training, else from the running mean and var.

    In training the running mean and var (C,), unless None, move by momentum towards the batch's; var unbiased or not. With no rows mean is
    0, rstd is that of var 1, and nothing moves.
    """
    columns, rows = max(COLUMNS, x.shape[1]), BLOCK * CHUNK // COLUMNS
    mean, var, momentum, unbiased = running
    run(
        COST * x.size if training else 0, _statistics, _KERNELS[x.dtype.char], x, *or_empty(x.dtype, 1, mean, var), training,
        momentum, eps, unbiased, *statistics, scratch=(DOUBLE, 2 * (x.size // rows + columns), 0),
    )  # fmt: skip


def batch_norm_forward(x, statistics, affine, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (M, C); residual (M, C) may be None."""
    dtype, columns = x.dtype, max(COLUMNS, x.shape[1])
    run(
        COST * x.size, _forward, _KERNELS[dtype.char], x, *statistics, *affine, *or_empty(dtype, 2, residual),
        activation.code, forward_address[dtype.char, activation.code], activation.parameter, *saved,
        scratch=(dtype, 3 * (columns + PADDING), columns + STEP),
    )  # fmt: skip


def batch_norm_backward(dy, x, statistics, affine, activation, batch_statistics, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,).

    batch_statistics: whether mean and rstd are the batch's.
    """
    dtype, columns = x.dtype, max(COLUMNS, x.shape[1])
    dz, dx, dgamma, dbeta = gradients
    sums = 2 * columns * (2 * x.size // (BLOCK * CHUNK) + 1)
    run(
        2 * COST * x.size, _backward, _KERNELS[dtype.char], dy, x, *statistics, *affine, activation.code,
        backward_address[dtype.char, activation.code], activation.parameter, batch_statistics, *saved,
        *or_empty(dtype, 2, dz, dx), dgamma, dbeta, sums,
        scratch=(DOUBLE, sums + 5 * (columns + PADDING), CHUNK + 3 * columns + 2 * PADDING),
    )  # fmt: skip
