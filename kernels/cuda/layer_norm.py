"""Layer normalisation with residual and activation; formulas: kernels/reference/layer_norm.py.

Rows: the `width` threads side by side of a tile share a row. Forward: one launch, which reads x twice, the second time from cache: for its
sums, as distances from the row's first value, which lies within sqrt(C) standard deviations of the mean (Samuelson 1968), and for y.

Backward: up to four launches. The first computes dz, the second dx row by row. The third goes down the columns of dz and x, for sums of
each block of rows; the fourth joins them to dgamma and dbeta. With the activation in the second one it would have too many registers.

softmax is computed by the launches of activation.py. Kernels are wide (float64): sums, and the numbers of a row. The mean has more digits
than the dtype and is subtracted in two parts.
"""

import math

from numba import cuda, float64

from .. import types
from .activation import activate, activate_matrix, activation_backward
from .batch_norm import column_grid, row_blocks
from .engine import device
from .engine.device import (
    BLOCK,
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
from .engine.reductions import add_across, add_down, tile_column, tile_width

# options of a forward: a residual to add, a z to keep
RESIDUAL, KEEP = 1, 2


@device_function
def row_factors(dtype, mean, rstd):
    """(high, factor, low) of xhat = (x - high) factor + low."""
    high = dtype(mean)
    return high, dtype(rstd), dtype((float64(high) - mean) * rstd)


@wide_kernel
def normalise_rows(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number, options: Integer, eps: WideNumber,
    x: Values, gamma: Values, beta: Values, residual: Values, mean: Wide, rstd: Wide, z: Values, y: Values,
):  # fmt: skip
    """mean and rstd, and y = f(z), z = xhat gamma + beta + residual."""
    shared = cuda.shared.array(BLOCK, float64)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    first, end = row * columns, columns if row < rows else 0
    start, total, squares = 0.0, 0.0, 0.0
    # before y, which may be x, is written
    if end:
        start = float64(x[first])
    for column in range(lane, end, width):
        distance = float64(x[first + column]) - start
        total += distance
        squares += distance * distance
    total, squares = add_across(shared, total, width), add_across(shared, squares, width)
    if row < rows:
        row_mean = start + total / columns
        var = (squares - total * (total / columns)) / columns
        # rounding may leave a little less than nothing
        row_rstd = 1.0 / math.sqrt((0.0 if var < 0.0 else var) + eps)
        if lane == 0:
            mean[row], rstd[row] = row_mean, row_rstd
        high, factor, low = row_factors(dtype, row_mean, row_rstd)
        for column in range(lane, end, width):
            at = first + column
            value = ((x[at] - high) * factor + low) * gamma[column] + beta[column]
            if options & RESIDUAL:
                value += residual[at]
            if options & KEEP:
                z[at] = value
            y[at] = activate(code, p, value)


@wide_kernel
def row_gradients(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, dz: Values, x: Values, mean: Wide, rstd: Wide, gamma: Values, dx: Values
):  # fmt: skip
    """dx = rstd (g - (sum g + xhat sum g xhat) / C) with g = dz gamma."""
    shared = cuda.shared.array(BLOCK, float64)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    first, end = row * columns, columns if row < rows else 0
    row_mean, row_rstd = mean[min(row, rows - 1)], rstd[min(row, rows - 1)]
    high, factor, low = row_factors(dtype, row_mean, row_rstd)
    total, products = 0.0, 0.0
    for column in range(lane, end, width):
        at = first + column
        g = dz[at] * gamma[column]
        total += float64(g)
        products += float64(g * ((x[at] - high) * factor + low))
    total, products = add_across(shared, total, width), add_across(shared, products, width)
    slope, offset = dtype(-row_rstd * products / columns), dtype(-row_rstd * total / columns)
    for column in range(lane, end, width):
        at = first + column
        g = dz[at] * gamma[column]
        dx[at] = factor * g + (((x[at] - high) * factor + low) * slope + offset)


@wide_kernel
def block_products(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, depth: Integer, dz: Values, x: Values, mean: Wide, rstd: Wide,
    partials: Wide,
):  # fmt: skip
    """Sums of dz over each block's `depth` rows to partials[0] (blocks, columns), and of dz xhat to partials[1]."""
    shared = cuda.shared.array(BLOCK, float64)
    column, begin = tile_column(width), cuda.blockIdx.x * depth
    total, products = 0.0, 0.0
    if column < columns:
        for row in range(begin + cuda.threadIdx.x // width, min(begin + depth, rows), BLOCK // width):
            at = row * columns + column
            high, factor, low = row_factors(dtype, mean[row], rstd[row])
            total += float64(dz[at])
            products += float64(dz[at] * ((x[at] - high) * factor + low))
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        at = cuda.blockIdx.x * columns + column
        partials[at], partials[cuda.gridDim.x * columns + at] = total, products


@wide_kernel
def join_products(
    dtype: Real, columns: Integer, width: Integer, block_count: Integer, partials: Wide, dgamma: Values, dbeta: Values
):
    """dgamma and dbeta from the blocks' sums."""
    shared, column = cuda.shared.array(BLOCK, float64), tile_column(width)
    total, products = 0.0, 0.0
    if column < columns:
        for block in range(cuda.threadIdx.x // width, block_count, BLOCK // width):
            at = block * columns + column
            total += partials[at]
            products += partials[block_count * columns + at]
    total, products = add_down(shared, total, width), add_down(shared, products, width)
    if cuda.threadIdx.x < width and column < columns:
        dgamma[column], dbeta[column] = dtype(products), dtype(total)


def layer_norm_forward(x, affine, eps, residual, activation, statistics, saved):
    """Write statistics, mean and rstd (M,), float64, and saved: z, which is the array y where the activation does not need z, and y.

    x, z and y (M, C), C at least 1; residual (M, C) may be None.
    """
    rows, columns = x.shape
    width, is_softmax = tile_width(columns), activation.code == types.SOFTMAX
    f = types.ACTIVATIONS["identity"] if is_softmax else activation
    options = RESIDUAL * (residual is not None) + KEEP * activation.needs_input
    arrays = x, *affine, residual, *statistics, *saved
    launch(normalise_rows, x.dtype, -(-rows // (BLOCK // width)), rows, columns, width, *f, options, eps, *arrays)
    if is_softmax:
        activate_matrix(saved.y, None, None, saved.y, activation, keep=False)


def layer_norm_backward(dy, x, statistics, affine, activation, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,)."""
    (rows, columns), dtype, width = x.shape, x.dtype, tile_width(x.shape[1])
    dz, dx, dgamma, dbeta = gradients
    source = dy
    if dz is not None or activation.code != types.IDENTITY:
        source = device.xp.empty_like(dy) if dz is None else dz
        activation_backward(dy, *saved, source, activation)
    if dx is not None:
        launch(
            row_gradients, dtype, -(-rows // (BLOCK // width)), rows, columns, width, source, x, *statistics, affine.gamma, dx
        )  # fmt: skip
    grid, depth = row_blocks(rows, columns)
    partials = device.xp.empty((2, grid[0], columns))
    launch(block_products, dtype, grid, rows, columns, width, depth, source, x, *statistics, partials)
    column_blocks, join_width = column_grid(columns)
    launch(join_products, dtype, column_blocks, columns, join_width, grid[0], partials, dgamma, dbeta)
