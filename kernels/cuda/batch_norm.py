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
    function,
    launch,
    wide_kernel,
)
from .engine.reductions import TILE_ROWS, add_down, row_limit, tile_column, tile_row, tile_width, tiles

# columns side by side where blocks' sums are added up: few, since there are many blocks and no column has to wait long
JOINED = 8


@function
def merged(mean, squares, before, other_mean, other_squares, n):
    """Mean and sum of squared distances from it of two sets, of `before` and of n values."""
    distance, part = other_mean - mean, n / (before + n)
    return mean + distance * part, squares + other_squares + distance * distance * (before * part)


@function
def merged_down(shared, mean, squares, n, rows, width):
    """The same for the sets of all rows of a tile, `rows` values in all; the first `width` threads get the result."""
    # from a value that is there, so that equal ones have exactly this mean
    start = add_down(shared, mean if cuda.threadIdx.x < width else 0.0, width)
    whole = start + add_down(shared, n * (mean - start), width) / rows
    return whole, add_down(shared, squares + n * (mean - whole) * (mean - whole), width)


@wide_kernel
def block_moments(dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, x: Values, parts: Wide):
    """Means of each block's `depth` rows to parts[0] (blocks, columns), and sums of squared distances from them to parts[1]."""
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
    mean, squares = merged_down(shared, mean, squares, count, end - begin, width)
    if cuda.threadIdx.x < width and column < columns:
        at = cuda.blockIdx.x * columns + column
        parts[at], parts[cuda.gridDim.x * columns + at] = mean, squares


@wide_kernel
def moments(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, blocks: Integer,
    moving: Integer, momentum: WideNumber, eps: WideNumber, unbiased: Integer, most: WideNumber, parts: Wide,
    running_mean: Values, running_var: Values, mean: Wide, rstd: Wide,
):  # fmt: skip
    """mean and rstd from the blocks' moments, and with `moving` the running ones moved."""
    shared, column = cuda.shared.array(BLOCK, float64), tile_column(width)
    middle, squares, count = 0.0, 0.0, 0.0
    if column < columns:
        for block in range(cuda.threadIdx.x // width, blocks, BLOCK // width):
            at, n = block * columns + column, float64(min(depth, rows - block * depth))
            middle, squares = merged(middle, squares, count, parts[at], parts[blocks * columns + at], n)
            count += n
    middle, squares = merged_down(shared, middle, squares, count, rows, width)
    if cuda.threadIdx.x < width and column < columns:
        mean[column], rstd[column] = middle, 1.0 / math.sqrt(squares / rows + eps)
        if moving:
            var = squares / (rows - 1 if unbiased else rows)
            running_mean[column] = dtype((1.0 - momentum) * float64(running_mean[column]) + momentum * middle)
            value = (1.0 - momentum) * float64(running_var[column]) + momentum * var
            # from infinity it would never come back
            running_var[column] = dtype(most if most < value < math.inf else value)


@wide_kernel
def running_moments(
    dtype: Real, columns: Integer, eps: WideNumber, running_mean: Values, running_var: Values, mean: Wide, rstd: Wide
):
    column = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
    if column < columns:
        mean[column] = float64(running_mean[column])
        rstd[column] = 1.0 / math.sqrt(float64(running_var[column]) + eps)


@function
def line(dtype, mean, rstd, gamma, beta):
    """(high, scale, shift) of xhat gamma + beta = (x - high) scale + shift."""
    high = dtype(mean)
    return high, dtype(float64(gamma) * rstd), dtype(float64(beta) - (mean - float64(high)) * (float64(gamma) * rstd))


@function
def is_relu(code):
    """Whether f is relu, leaky_relu or clipped_relu, which cost less to recompute than to read."""
    return types.RELU <= code <= types.CLIPPED_RELU


@function
def bend(code, p, z):
    """f(z) of the relus."""
    if code == types.LEAKY_RELU:
        return leaky_relu(p, z)
    return clipped_relu(p, z) if code == types.CLIPPED_RELU else relu(z)


# what there is: in forward a residual to add, a z to keep; in backward a dz to keep, a dx of running statistics
RESIDUAL, KEEP, DZ, DX = 1, 2, 1, 2


@wide_kernel
def normalise_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number, options: Integer,
    x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, residual: Values, z: Values, y: Values,
):  # fmt: skip
    column = tile_column(width)
    if column < columns:
        high, scale, shift = line(dtype, mean[column], rstd[column], gamma[column], beta[column])
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
    dy: Values, x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, saved: Values, dz: Values, dx: Values, parts: Wide,
):  # fmt: skip
    """Sums of dz over each block's `depth` rows to parts[0] (blocks, columns), and of dz (x - high) to parts[1]; dz and dx too."""
    shared = cuda.shared.array(BLOCK, float64)
    column, step, begin = tile_column(width), BLOCK // width, cuda.blockIdx.x * depth
    end = min(begin + depth, rows)
    total, products = 0.0, 0.0
    if column < columns:
        high, scale, shift = line(dtype, mean[column], rstd[column], gamma[column], beta[column])
        for at in range((begin + cuda.threadIdx.x // width) * columns + column, end * columns, step * columns):
            value, from_mean = dy[at], x[at] - high
            if code != types.IDENTITY:
                z = from_mean * scale + shift
                value *= slope(code, p, saved[at] if options & DZ or not is_relu(code) else bend(code, p, z))
            if options & DZ:
                dz[at] = value
            if options & DX:
                dx[at] = scale * value
            total += float64(value)
            products += float64(value * from_mean)
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        at = cuda.blockIdx.x * columns + column
        parts[at], parts[cuda.gridDim.x * columns + at] = total, products


@wide_kernel
def sums(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, blocks: Integer,
    parts: Wide, mean: Wide, rstd: Wide, gamma: Values, dgamma: Values, dbeta: Values, below: Values,
):  # fmt: skip
    """dgamma and dbeta from the blocks' sums, and (slope, offset) of dx = scale (dz + (x - high) slope + offset) to below (2, columns)."""
    shared, column = cuda.shared.array(BLOCK, float64), tile_column(width)
    total, products = 0.0, 0.0
    if column < columns:
        for block in range(cuda.threadIdx.x // width, blocks, BLOCK // width):
            at = block * columns + column
            total += parts[at]
            products += parts[blocks * columns + at]
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        low = mean[column] - float64(dtype(mean[column]))
        products = (products - low * total) * rstd[column]
        dgamma[column], dbeta[column] = dtype(products), dtype(total)
        below[column] = dtype(-rstd[column] * products / max(rows, 1))
        below[columns + column] = dtype((rstd[column] * products * low - total) / max(rows, 1))


@wide_kernel
def inputs(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number,
    dz: Values, x: Values, mean: Wide, rstd: Wide, gamma: Values, beta: Values, saved: Values, below: Values, dx: Values,
):  # fmt: skip
    """dx from dz; where f is not the identity the argument dz is dy."""
    column = tile_column(width)
    if column < columns:
        high, scale, shift = line(dtype, mean[column], rstd[column], gamma[column], beta[column])
        steep, offset = below[column], below[columns + column]
        last = row_limit(width, rows) * columns
        for at in range(tile_row(width) * columns + column, last, BLOCK // width * columns):
            value, from_mean = dz[at], x[at] - high
            if code != types.IDENTITY:
                z = from_mean * scale + shift
                value *= slope(code, p, bend(code, p, z) if is_relu(code) else saved[at])
            dx[at] = scale * (value + (from_mean * steep + offset))


def shares(rows, columns):
    """The grid of sums over rows, and how many rows a block has: as many as leave no more than MOST_BLOCKS blocks."""
    width = tile_width(columns)
    least, across = TILE_ROWS * (BLOCK // width), -(-columns // width)
    depth = least * max(-(-rows // (least * max(MOST_BLOCKS // across, 1))), 1)
    return (-(-rows // depth), across), depth


def joined(columns):
    """The grid over columns where blocks' sums are added up, and its width."""
    width = min(tile_width(columns), JOINED)
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
        grid, depth = shares(rows, columns)
        parts = device.xp.empty((2, grid[0], columns))
        launch(block_moments, x.dtype, grid, rows, columns, tile_width(columns), depth, x, parts)
        over_columns, width = joined(columns)
        moves, most = running.mean is not None, float(np.finfo(x.dtype).max)
        settings = grid[0], moves, running.momentum, eps, running.unbiased, most
        arrays = parts, running.mean, running.var, *statistics
        launch(moments, x.dtype, over_columns, rows, columns, width, depth, *settings, *arrays)


def batch_norm_forward(x, statistics, affine, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (M, C); residual (M, C) may be None."""
    rows, columns = x.shape
    alone = activation.code == types.SOFTMAX
    f = types.ACTIVATIONS["identity"] if alone else activation
    options = RESIDUAL * (residual is not None) + KEEP * activation.needs_input
    arrays = x, *statistics, *affine, residual, *saved
    launch(normalise_tiles, x.dtype, tiles(rows, columns), rows, columns, tile_width(columns), *f, options, *arrays)
    if alone:
        activate_matrix(saved.y, None, None, saved.y, activation, keep=False)


def batch_norm_backward(dy, x, statistics, affine, activation, of_batch, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,).

    of_batch: whether the statistics are the batch's.
    """
    (rows, columns), dtype, width = x.shape, x.dtype, tile_width(x.shape[1])
    dz, dx, dgamma, dbeta = gradients
    keeps_dz, source, identity = dz is not None, dy, types.ACTIVATIONS["identity"]
    kept = saved.z if activation.needs_input else saved.y
    if activation.code == types.SOFTMAX:
        source = device.xp.empty_like(dy) if dz is None else dz
        differentiate_matrix(dy, kept, source, None, activation)
        keeps_dz, activation = False, identity
    grid, depth = shares(rows, columns)
    parts, below = device.xp.empty((2, grid[0], columns)), device.xp.empty((2, columns), dtype)
    options = DZ * keeps_dz + DX * (dx is not None and not of_batch)
    arrays = source, x, *statistics, *affine, kept, dz, dx, parts
    launch(block_sums, dtype, grid, rows, columns, width, depth, *activation, options, *arrays)
    over_columns, narrow = joined(columns)
    arrays = parts, *statistics, affine.gamma, dgamma, dbeta, below
    launch(sums, dtype, over_columns, rows, columns, narrow, grid[0], *arrays)
    if dx is not None and of_batch:
        source, f = (dz, identity) if keeps_dz else (source, activation)
        arrays = source, x, *statistics, *affine, kept, below, dx
        launch(inputs, dtype, tiles(rows, columns), rows, columns, width, *f, *arrays)
