"""Batch normalisation with residual and activation; formulas: kernels/reference/batch_norm.py.

Statistics: two launches, which read x once. A thread goes down a column and sums distances from its first value, and their squares. That
value lies within sqrt(n) standard deviations of the mean (Samuelson 1968), so little precision is lost. Means and squares are merged as
by Chan, Golub & LeVeque (1979): over the rows of a block, and over all blocks by the second launch.

Forward: one launch, which computes scale and shift of each column where it needs them.

Backward: three launches: sums by block, sums of all blocks, dx. Two where mean and rstd are not the batch's, since dx then needs no sums.
dy and x are read twice, the least possible. y, or z, is read twice too, but not for the relus: their z is recomputed from x, which costs
less than reading y. Where dz is stored for a residual, dx is computed from it. softmax, whose rows span many columns, is computed by the
launches of activation.py.

Kernels are wide (float64): sums, and the numbers of a column. The mean has more digits than the dtype and is subtracted in two parts.
"""

import math

import numpy as np
from numba import cuda, float64

from .. import types
from .activation import activate, activate_matrix, clipped_relu, differentiate_matrix, leaky_relu, relu, slope
from .engine import device
from .engine.device import (
    BLOCK,
    MOST_BLOCKS,
    Integer,
    Number,
    Real,
    Values,
    Wide,
    WideNumber,
    device_function,
    launch,
    wide_kernel,
)
from .engine.reductions import TILE_ROWS, add_down, row_limit, tile_column, tile_row, tile_width, tiles

# columns side by side where blocks' sums are added up: few, so that many threads share the blocks of a column
JOIN_WIDTH = 8


@device_function
def merge_moments(mean, squares, before, other_mean, other_squares, n):
    """Mean and sum of squared distances from it of two sets, of `before` and of n values."""
    distance, weight = other_mean - mean, n / (before + n)
    return mean + distance * weight, squares + other_squares + distance * distance * (before * weight)


@device_function
def merge_down(shared, mean, squares, n, rows, width):
    """The same for the sets of all rows of a tile, `rows` values in all; the first `width` threads get the result."""
    # from a value that is there, so that equal ones have exactly this mean
    start = add_down(shared, mean if cuda.threadIdx.x < width else 0.0, width)
    joint_mean = start + add_down(shared, n * (mean - start), width) / rows
    return joint_mean, add_down(shared, squares + n * (mean - joint_mean) * (mean - joint_mean), width)


@wide_kernel
def block_moments(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, x: Values, partials: Wide
):
    """Means of each block's `depth` rows to partials[0] (blocks, columns), and sums of squared distances from them to partials[1]."""
    shared = cuda.shared.array(BLOCK, float64)
    column, step, begin = tile_column(width), BLOCK // width, cuda.blockIdx.x * depth
    end = min(begin + depth, rows)
    mean, squares, count = 0.0, 0.0, 0.0
    if column < columns:
        start = begin + cuda.threadIdx.x // width
        if start < end:
            first, total, count = x[start * columns + column], 0.0, float64((end - start - 1) // step + 1)
            for at in range((start + step) * columns + column, end * columns, step * columns):
                distance = float64(x[at] - first)
                total += distance
                squares += distance * distance
            mean, squares = float64(first) + total / count, squares - total * (total / count)
    mean, squares = merge_down(shared, mean, squares, count, end - begin, width)
    if cuda.threadIdx.x < width and column < columns:
        at = cuda.blockIdx.x * columns + column
        partials[at], partials[cuda.gridDim.x * columns + at] = mean, squares


@wide_kernel
def join_moments(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, block_count: Integer,
    update_running: Integer, momentum: WideNumber, eps: WideNumber, unbiased: Integer, largest: WideNumber, partials: Wide,
    running_mean: Values, running_var: Values, mean: Wide, rstd: Wide,
):  # fmt: skip
    """mean and rstd from the blocks' moments, and with update_running new running ones."""
    shared, column = cuda.shared.array(BLOCK, float64), tile_column(width)
    joint_mean, squares, count = 0.0, 0.0, 0.0
    if column < columns:
        for block in range(cuda.threadIdx.x // width, block_count, BLOCK // width):
            at, n = block * columns + column, float64(min(depth, rows - block * depth))
            block_mean, block_squares = partials[at], partials[block_count * columns + at]
            joint_mean, squares = merge_moments(joint_mean, squares, count, block_mean, block_squares, n)
            count += n
    joint_mean, squares = merge_down(shared, joint_mean, squares, count, rows, width)
    if cuda.threadIdx.x < width and column < columns:
        mean[column], rstd[column] = joint_mean, 1.0 / math.sqrt(squares / rows + eps)
        if update_running:
            var = squares / (rows - 1 if unbiased else rows)
            running_mean[column] = dtype((1.0 - momentum) * float64(running_mean[column]) + momentum * joint_mean)
            new_var = (1.0 - momentum) * float64(running_var[column]) + momentum * var
            # from infinity it would never come back
            running_var[column] = dtype(largest if largest < new_var < math.inf else new_var)


@wide_kernel
def running_moments(
    dtype: Real, columns: Integer, eps: WideNumber, running_mean: Values, running_var: Values, mean: Wide, rstd: Wide
):
    column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if column < columns:
        mean[column] = float64(running_mean[column])
        rstd[column] = 1.0 / math.sqrt(float64(running_var[column]) + eps)


@device_function
def scale_and_shift(dtype, mean, rstd, gamma, beta):
    """(high, scale, shift) of xhat gamma + beta = (x - high) scale + shift."""
    high = dtype(mean)
    return high, dtype(float64(gamma) * rstd), dtype(float64(beta) - (mean - float64(high)) * (float64(gamma) * rstd))


@device_function
def is_relu(code):
    """Whether f is relu, leaky_relu or clipped_relu, which cost less to recompute than to read."""
    return types.RELU <= code <= types.CLIPPED_RELU


@device_function
def relu_of(code, p, z):
    """f(z) of one of the relus."""
    if code == types.LEAKY_RELU:
        return leaky_relu(p, z)
    return clipped_relu(p, z) if code == types.CLIPPED_RELU else relu(z)


# options: of a forward a residual to add, a z to keep; of a backward a dz to keep, a dx of running statistics
RESIDUAL, KEEP, DZ, DX = 1, 2, 1, 2


@wide_kernel
def normalise_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number, options: Integer,
    x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, residual: Values, z: Values, y: Values,
):  # fmt: skip
    """y = f(z), z = (x - high) scale + shift + residual."""
    column = tile_column(width)
    if column < columns:
        high, scale, shift = scale_and_shift(dtype, mean[column], rstd[column], gamma[column], beta[column])
        last = row_limit(width, rows) * columns
        for at in range(tile_row(width) * columns + column, last, BLOCK // width * columns):
            value = (x[at] - high) * scale + shift
            if options & RESIDUAL:
                value += residual[at]
            if options & KEEP:
                z[at] = value
            y[at] = activate(code, p, value)


@wide_kernel
def block_sums(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, code: Integer, p: Number, options: Integer,
    dy: Values, x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, saved: Values, dz: Values, dx: Values, partials: Wide,
):  # fmt: skip
    """Sums of dz over each block's `depth` rows to partials[0] (blocks, columns), and of dz (x - high) to partials[1]; dz and dx too."""
    shared = cuda.shared.array(BLOCK, float64)
    column, step, begin = tile_column(width), BLOCK // width, cuda.blockIdx.x * depth
    end = min(begin + depth, rows)
    total, products = 0.0, 0.0
    if column < columns:
        high, scale, shift = scale_and_shift(dtype, mean[column], rstd[column], gamma[column], beta[column])
        for at in range((begin + cuda.threadIdx.x // width) * columns + column, end * columns, step * columns):
            value, from_mean = dy[at], x[at] - high
            if code != types.IDENTITY:
                z = from_mean * scale + shift
                value *= slope(code, p, saved[at] if options & DZ or not is_relu(code) else relu_of(code, p, z))
            if options & DZ:
                dz[at] = value
            if options & DX:
                dx[at] = scale * value
            total += float64(value)
            products += float64(value * from_mean)
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        at = cuda.blockIdx.x * columns + column
        partials[at], partials[cuda.gridDim.x * columns + at] = total, products


@wide_kernel
def join_sums(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, block_count: Integer,
    partials: Wide, mean: Wide, rstd: Wide, gamma: Values, dgamma: Values, dbeta: Values, slope_offset: Values,
):  # fmt: skip
    """dgamma and dbeta, and slope and offset of dx = scale (dz + (x - high) slope + offset) as slope_offset (2, columns)."""
    shared, column = cuda.shared.array(BLOCK, float64), tile_column(width)
    total, products = 0.0, 0.0
    if column < columns:
        for block in range(cuda.threadIdx.x // width, block_count, BLOCK // width):
            at = block * columns + column
            total += partials[at]
            products += partials[block_count * columns + at]
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        mean_rest = mean[column] - float64(dtype(mean[column]))
        products = (products - mean_rest * total) * rstd[column]
        dgamma[column], dbeta[column] = dtype(products), dtype(total)
        slope_offset[column] = dtype(-rstd[column] * products / max(rows, 1))
        slope_offset[columns + column] = dtype((rstd[column] * products * mean_rest - total) / max(rows, 1))


@wide_kernel
def input_gradients(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number,
    dz: Values, x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, saved: Values, slope_offset: Values, dx: Values,
):  # fmt: skip
    """dx from dz; where f is not the identity the argument dz is dy."""
    column = tile_column(width)
    if column < columns:
        high, scale, shift = scale_and_shift(dtype, mean[column], rstd[column], gamma[column], beta[column])
        slope_value, offset = slope_offset[column], slope_offset[columns + column]
        last = row_limit(width, rows) * columns
        for at in range(tile_row(width) * columns + column, last, BLOCK // width * columns):
            value, from_mean = dz[at], x[at] - high
            if code != types.IDENTITY:
                z = from_mean * scale + shift
                value *= slope(code, p, relu_of(code, p, z) if is_relu(code) else saved[at])
            dx[at] = scale * (value + (from_mean * slope_value + offset))


def row_blocks(rows, columns):
    """The grid of sums over rows, and how many rows a block has: as many as leave no more than MOST_BLOCKS blocks."""
    width = tile_width(columns)
    least_rows, across = TILE_ROWS * (BLOCK // width), -(-columns // width)
    depth = least_rows * max(-(-rows // (least_rows * max(MOST_BLOCKS // across, 1))), 1)
    return (-(-rows // depth), across), depth


def column_grid(columns):
    """The grid over columns where blocks' sums are added up, and its width."""
    width = min(tile_width(columns), JOIN_WIDTH)
    return (1, -(-columns // width)), width


def batch_norm_statistics(x, running, training, eps, statistics):
    """Write statistics, mean and rstd (C,), float64: of x (M, C) in training, else from the running mean and var.

    In training the running mean and var (C,), unless None, move by momentum towards the batch's; var unbiased or not. With no rows mean is
    0, rstd is that of var 1, and nothing moves.
    """
    rows, columns = x.shape
    if not training:
        launch(running_moments, x.dtype, -(-columns // BLOCK), columns, eps, running.mean, running.var, *statistics)
    elif rows == 0:
        statistics.mean[...], statistics.rstd[...] = 0.0, 1 / math.sqrt(1 + eps)
    else:
        grid, depth = row_blocks(rows, columns)
        partials = device.xp.empty((2, grid[0], columns))
        launch(block_moments, x.dtype, grid, rows, columns, tile_width(columns), depth, x, partials)
        column_blocks, width = column_grid(columns)
        update_running, largest = running.mean is not None, float(np.finfo(x.dtype).max)
        settings = grid[0], update_running, running.momentum, eps, running.unbiased, largest
        arrays = partials, running.mean, running.var, *statistics
        launch(join_moments, x.dtype, column_blocks, rows, columns, width, depth, *settings, *arrays)


def batch_norm_forward(x, statistics, affine, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (M, C); residual (M, C) may be None."""
    rows, columns = x.shape
    is_softmax = activation.code == types.SOFTMAX
    f = types.ACTIVATIONS["identity"] if is_softmax else activation
    options = RESIDUAL * (residual is not None) + KEEP * activation.needs_input
    arrays = x, *statistics, *affine, residual, *saved
    launch(normalise_tiles, x.dtype, tiles(rows, columns), rows, columns, tile_width(columns), *f, options, *arrays)
    if is_softmax:
        activate_matrix(saved.y, None, None, saved.y, activation, keep=False)


def batch_norm_backward(dy, x, statistics, affine, activation, batch_statistics, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,).

    batch_statistics: whether mean and rstd are the batch's.
    """
    (rows, columns), dtype, width = x.shape, x.dtype, tile_width(x.shape[1])
    dz, dx, dgamma, dbeta = gradients
    stores_dz, source, identity = dz is not None, dy, types.ACTIVATIONS["identity"]
    saved_values = saved.z if activation.needs_input else saved.y
    if activation.code == types.SOFTMAX:
        source = device.xp.empty_like(dy) if dz is None else dz
        differentiate_matrix(dy, saved_values, source, None, activation)
        stores_dz, activation = False, identity
    grid, depth = row_blocks(rows, columns)
    partials, slope_offset = device.xp.empty((2, grid[0], columns)), device.xp.empty((2, columns), dtype)
    options = DZ * stores_dz + DX * (dx is not None and not batch_statistics)
    arrays = source, x, *statistics, *affine, saved_values, dz, dx, partials
    launch(block_sums, dtype, grid, rows, columns, width, depth, *activation, options, *arrays)
    column_blocks, join_width = column_grid(columns)
    arrays = partials, *statistics, affine.gamma, dgamma, dbeta, slope_offset
    launch(join_sums, dtype, column_blocks, rows, columns, join_width, grid[0], *arrays)
    if dx is not None and batch_statistics:
        source, f = (dz, identity) if stores_dz else (source, activation)
        arrays = source, x, *statistics, *affine, saved_values, slope_offset, dx
        launch(input_gradients, dtype, tiles(rows, columns), rows, columns, width, *f, *arrays)
