"""Layer normalisation with residual and activation; formulas: kernels/reference/layer_norm.py.

Layout: rows x (M, C). Rows are taken a few at a time, as many as the first-level cache keeps beside the other arrays.

Forward: one pass over memory. A row is read for its sums, as distances from its first value, which lies within sqrt(C) standard
deviations of the mean (Samuelson 1968), in float64; then, from cache, for z = ((x - high) rstd + low) gamma + beta. high is the mean
rounded to the dtype; what the rounding lost is in low.

Backward: one pass over memory. A row's dz, which its two sums and dx need, stays in cache. dgamma and dbeta are sums over rows: each block
of rows has sums of its own in float64, to which CHUNK rows are added at a time; the driver joins the blocks from the first to the last.

The size of blocks does not depend on the number of threads, and so neither do the bits of the results. A row's results depend on no other.
"""

import numpy as np

from .activation import activate, backward_address, differentiate, forward_address
from .engine.compile import Addresses, device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
    copy,
    data,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.reductions import about_first, weighted_sums
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, fence, is_stored_nontemporal, map_arrays, store_nontemporal
from .gemm import clear

# values that are taken at a time; rows whose sums are added up in the dtype; values of a block of rows at least, and blocks at most
STEP, CHUNK, BLOCK, MOST_BLOCKS = 2048, 32, 32768, 128
# values between rows of the scratch: at a power of two from each other they would share sets of the first-level cache
PADDING = 48
# x (M, C), gamma and beta (C,); mean and rstd (M,), float64; block: rows of a block; sums (n_blocks, 2, C), float64, of dz xhat and of dz;
# nontemporal: whether what is written goes past the caches; scratch: scratch_size values a thread; function: address of the activation's
# kernel, forward or backward; saved: z where the activation needs its input, else y; dy, residual, z, y, dz and dx (M, C), null for None
LAYER_NORM = np.dtype(
    [(name, "i8") for name in "M C block n_blocks function nontemporal scratch scratch_size mean rstd sums".split()]
    + [(name, "i8") for name in "x gamma beta residual z y dy saved dz dx".split()]
    + [(name, "f8") for name in ("parameter", "eps")]
)
FORWARD_PART, BACKWARD_PART = range(2)


@inline_function
def normalise(x, gamma, beta, high, rstd, low):
    return (((x - high) * rstd + low) * gamma + beta,)


@inline_function
def normalise_add(x, gamma, beta, residual, high, rstd, low):
    return (((x - high) * rstd + low) * gamma + beta + residual,)


@inline_function
def add_products(products, total, dz, x, high, rstd, low):
    return products + dz * ((x - high) * rstd + low), total + dz


@inline_function
def add_products_and_gradient(products, total, dz, x, gamma, high, rstd, low, slope, offset):
    xhat = (x - high) * rstd + low
    return products + dz * xhat, total + dz, rstd * (dz * gamma) + (xhat * slope + offset)


@device_function
def float64s(address, n):
    return carray(void_pointer(address), n, np.float64)


@device_function
def row_moments(x):
    """Mean and var of a row in float64: of values whose distances overflow in the dtype."""
    start, total, square = np.float64(x[0]), 0.0, 0.0
    for value in x:
        total += np.float64(value) - start
    mean = start + total / len(x)
    for value in x:
        square += (np.float64(value) - mean) ** 2
    return mean, square / len(x)


@device_function
def mean_and_rstd(x, C, eps):
    """Mean and rstd of a row at the pointer x, in float64."""
    total, square = about_first(x, C)
    values = carray(x, C)
    mean, var = np.float64(values[0]) + total / C, (square - total * (total / C)) / C
    if not np.isfinite(var):
        mean, var = row_moments(values)
    # rounding may leave a little less than nothing
    return mean, 1 / np.sqrt((0.0 if var < 0 else var) + eps)


@device_function
def factors_of(mean, rstd, one):
    """(high, rstd, low) of xhat = (x - high) rstd + low, in the dtype."""
    high = real(mean, one)
    return high, real(rstd, one), real((np.float64(high) - mean) * rstd, one)


@device_function
def row_factors(norm, row, one):
    """The factors of a row that has been measured."""
    return factors_of(float64s(norm.mean, norm.M)[row], float64s(norm.rstd, norm.M)[row], one)


@device_function
def gradient_factors(dz, gamma, x, C, factors):
    """Of a row's dx = rstd dz gamma + (xhat slope + offset): those of xhat, slope and offset."""
    high, rstd, low = factors
    g, g_distance = weighted_sums(dz, gamma, x, high, C)
    g_xhat = g_distance * np.float64(rstd) + g * np.float64(low)
    return high, rstd, low, real(-np.float64(rstd) * g_xhat / C, high), real(-np.float64(rstd) * g / C, high)


@device_function
def step_rows(norm):
    """Rows that are taken at a time."""
    return max(1, STEP // norm.C)


@device_function
def thread_scratch(norm, thread_index, like):
    """The thread's part of the scratch (scratch_size,)."""
    return advance(pointer(norm.scratch, like), thread_index * norm.scratch_size)


@kernel(LAYER_NORM)
def layer_norm_forward_part(thread_index, thread_count, record, like):
    """Statistics, normalisation, residual and activation of the thread's rows."""
    norm = carray(record, 1)[0]
    C, scratch = norm.C, thread_scratch(norm, thread_index, like)
    gamma, beta = pointer(norm.gamma, like), pointer(norm.beta, like)  # (C,) each
    lo, hi = thread_range(thread_index, thread_count, norm.M, 1)
    for first in range(lo, hi, step_rows(norm)):
        rows, at = min(step_rows(norm), hi - first), first * C
        y = advance(pointer(norm.y, like), at)  # (rows, C)
        target = scratch if norm.nontemporal else y
        z = advance(pointer(norm.z, like), at) if norm.z != norm.y else target  # (rows, C)
        for i in range(rows):
            x, z_row = advance(pointer(norm.x, like), at + i * C), (advance(z, i * C),)  # (C,) each
            mean, rstd = mean_and_rstd(x, C, norm.eps)
            float64s(norm.mean, norm.M)[first + i], float64s(norm.rstd, norm.M)[first + i] = mean, rstd
            factors = factors_of(mean, rstd, carray(x, 1)[0])
            if norm.residual:
                residual = advance(pointer(norm.residual, like), at + i * C)  # (C,)
                map_arrays(normalise_add, C, (x, gamma, beta, residual), z_row, factors)
            else:
                map_arrays(normalise, C, (x, gamma, beta), z_row, factors)
        activate(norm.function, norm.parameter, rows, C, z, target)
        if norm.nontemporal:
            store_nontemporal(rows * C, target, y)
    fence()


@device_function
def activation_gradient(norm, at, rows, target, like):
    """dz (rows, C) from `at` on: in target, or dy itself for the identity where dz is not stored."""
    dy = advance(pointer(norm.dy, like), at)  # (rows, C)
    if not (norm.function or norm.dz):
        return dy
    copy(rows * norm.C, dy, target)
    differentiate(norm.function, norm.parameter, rows, norm.C, advance(pointer(norm.saved, like), at), target)
    return target


@device_function
def add_row(norm, row, dz, dx, products, total, like):
    """Add dz xhat and dz of a row to products and total (C,), and write its dx (C,) unless there is none."""
    C, x, gamma = norm.C, advance(pointer(norm.x, like), row * norm.C), pointer(norm.gamma, like)  # (C,) each
    factors = row_factors(norm, row, carray(x, 1)[0])
    if not norm.dx:
        map_arrays(add_products, C, (products, total, dz, x), (products, total), factors)
        return
    sources = products, total, dz, x, gamma
    map_arrays(add_products_and_gradient, C, sources, (products, total, dx), gradient_factors(dz, gamma, x, C, factors))


@kernel(LAYER_NORM)
def layer_norm_backward_part(thread_index, thread_count, record, like):
    """dz and dx of the thread's blocks of rows, and sums (n_blocks, 2, C), float64, which give dgamma and dbeta."""
    norm = carray(record, 1)[0]
    C, step, scratch = norm.C, min(step_rows(norm), CHUNK), thread_scratch(norm, thread_index, like)
    products, total = scratch, advance(scratch, C + PADDING)  # (C,) each
    # (step, C) each
    dz_scratch = advance(scratch, 2 * (C + PADDING))
    dx_scratch = advance(dz_scratch, max(C, STEP) + PADDING)
    lo, hi = thread_range(thread_index, thread_count, norm.n_blocks, 1)
    for block in range(lo, hi):
        sums = data(float64s(norm.sums + 16 * C * block, 2 * C))  # (2, C)
        clear(2 * C, sums)
        end, left = min(norm.M, (block + 1) * norm.block), 0
        clear(C, products)
        clear(C, total)
        for first in range(block * norm.block, end, step):
            rows, at = min(step, end - first), first * C
            dz_place, dx_place = (
                advance(pointer(norm.dz, like), at),
                advance(pointer(norm.dx, like), at),
            )  # (rows, C) each
            dz = activation_gradient(norm, at, rows, dz_place if norm.dz and not norm.nontemporal else dz_scratch, like)
            dx = dx_scratch if norm.nontemporal else dx_place
            for i in range(rows):
                add_row(norm, first + i, advance(dz, i * C), advance(dx, i * C), products, total, like)
            if norm.nontemporal and norm.dz:
                store_nontemporal(rows * C, dz, dz_place)
            if norm.nontemporal and norm.dx:
                store_nontemporal(rows * C, dx, dx_place)
            left += rows
            # so few values are added up in the dtype
            if left + step > CHUNK or first + rows == end:
                map_arrays(add, C, (sums, products), (sums,), ())
                map_arrays(add, C, (advance(sums, C), total), (advance(sums, C),), ())
                clear(C, products)
                clear(C, total)
                left = 0
    fence()


@device_function
def describe(norm, x, affine, function, parameter, mean, rstd, scratch, thread_count):
    """Fill in what both passes need."""
    norm.M, norm.C = x.shape
    norm.x, norm.gamma, norm.beta, norm.mean, norm.rstd = address(x), affine[0], affine[1], address(mean), address(rstd)
    norm.function, norm.parameter = function, parameter
    norm.scratch, norm.scratch_size = address(scratch), scratch.size // thread_count


@driver
def _forward(
    launcher, thread_count, kernels, x, gamma, beta, eps, residual, function, parameter, mean, rstd, z, y, scratch
):
    record = local_zeros(1, LAYER_NORM)
    norm = record[0]
    describe(norm, x, (address(gamma), address(beta)), function, parameter, mean, rstd, scratch, thread_count)
    norm.eps, norm.residual, norm.z, norm.y = eps, address_or_null(residual), address(z), address(y)
    norm.nontemporal = is_stored_nontemporal(y, norm.C)
    run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, ())


@driver
def _backward(
    launcher, thread_count, kernels, dy, x, mean, rstd, gamma, function, parameter, saved, dz, dx, dgamma, dbeta, n_blocks, block, scratch,
):  # fmt: skip
    record = local_zeros(1, LAYER_NORM)
    norm = record[0]
    C = x.shape[1]
    n_sums = 2 * n_blocks * C
    sums, values = scratch[:n_sums], scratch[n_sums:].view(x.dtype)
    describe(norm, x, (address(gamma), 0), function, parameter, mean, rstd, values, thread_count)
    norm.block, norm.n_blocks, norm.sums = block, n_blocks, address(sums)
    norm.dy, norm.saved, norm.dz, norm.dx = address(dy), address(saved), address_or_null(dz), address_or_null(dx)
    norm.nontemporal = (
        (dz.size or dx.size)
        and (not dz.size or is_stored_nontemporal(dz, norm.C))
        and (not dx.size or is_stored_nontemporal(dx, norm.C))
    )
    run_kernel(launcher, kernels[BACKWARD_PART], thread_count, record, ())
    first = data(sums)
    for other in range(1, n_blocks):
        map_arrays(add, 2 * C, (first, advance(first, 2 * C * other)), (first,), ())
    for c in range(C):
        dgamma[c], dbeta[c] = (sums[c], sums[C + c]) if n_blocks else (0.0, 0.0)


_KERNELS = Addresses(layer_norm_forward_part, layer_norm_backward_part)
# a value costs about as much as this many multiplications and additions
COST = 16
DOUBLE = np.dtype(np.float64)


def layer_norm_forward(x, affine, eps, residual, activation, statistics, saved):
    """Write statistics, mean and rstd (M,), float64, and saved: z, which is the array y where the activation does not need z, and y.

    x, z and y (M, C), C at least 1; residual (M, C) may be None.
    """
    dtype = x.dtype
    run(
        COST * x.size, _forward, _KERNELS[dtype.char], x, *affine, eps, *or_empty(dtype, 2, residual),
        forward_address[dtype.char, activation.code], activation.parameter, *statistics, *saved,
        scratch=(dtype, 0, max(x.shape[1], STEP) + PADDING),
    )  # fmt: skip


def layer_norm_backward(dy, x, statistics, affine, activation, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,)."""
    dtype, (rows, columns) = x.dtype, x.shape
    dz, dx, dgamma, dbeta = gradients
    block = max(1, BLOCK // columns, -(-rows // MOST_BLOCKS))
    n_blocks = -(-rows // block)
    run(
        2 * COST * x.size, _backward, _KERNELS[dtype.char], dy, x, *statistics, affine.gamma,
        backward_address[dtype.char, activation.code], activation.parameter, saved.z if activation.needs_input else saved.y,
        *or_empty(dtype, 2, dz, dx), dgamma, dbeta, n_blocks, block,
        scratch=(DOUBLE, 2 * n_blocks * columns, 2 * columns + 2 * max(columns, STEP) + 4 * PADDING),
    )  # fmt: skip
