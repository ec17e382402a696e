"""Activations y = f(z) and their derivatives, with the bias and residual before them; formulas: kernels/reference/activation.py.

Forward: y = f(z + b + residual), b (columns,), residual like z. So a dense layer or a convolution is a GEMM and one launch, which reads z
and residual once and writes y, and the sum to z where backward needs it.

Backward: dz = dy f', and the sums of dz by column, which are the gradient of b. One launch writes dz and a row of sums for each block of
rows; if there are several blocks, a second launch adds those up.

The code of the activation is an argument, the same for all threads: one kernel serves all activations and is compiled once.

softmax reads its row twice: once for the largest value and the sum together (Milakov & Gimelshein 2018), once for the quotient.
"""

import math

from numba import cuda

from .. import types
from .engine import device
from .engine.device import BLOCK, Integer, Number, Real, Values, device_function, flat, kernel, launch, real, written
from .engine.reductions import (
    add_across,
    add_down,
    larger,
    largest_across,
    row_limit,
    sum_rows,
    tile_column,
    tile_row,
    tile_width,
    tiles,
)

SELU_SCALE = 1.0507009873554805
INV_SQRT2 = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
# 2 sqrt(2 / pi) and the cubic term of gelu's tanh form
GELU_SLOPE, GELU_CUBE = 1.5957691216057308, 0.044715


@device_function
def relu(z):
    # a NaN stays one
    return real(0, z) if z < real(0, z) else z


@device_function
def leaky_relu(p, z):
    return z if z > real(0, z) else p * z


@device_function
def clipped_relu(p, z):
    return p if z > p else relu(z)


@device_function
def sigmoid(z):
    """1 / (1 + exp(-z)), from the exponential that does not overflow."""
    e = math.exp(-abs(z))
    return (real(1, z) if z >= real(0, z) else e) / (real(1, z) + e)


@device_function
def softplus(z):
    """log(1 + exp(z)), from the exponential that does not overflow."""
    return relu(z) + math.log1p(math.exp(-abs(z)))


@device_function
def normal_cdf(z):
    return real(0.5, z) * math.erfc(-z * real(INV_SQRT2, z))


@device_function
def gated(z, gate):
    """z * gate; 0 where the gate is 0, which is the limit for z = -inf."""
    return real(0, z) if gate == real(0, z) else z * gate


@device_function
def gelu_logit(z):
    return real(GELU_SLOPE, z) * (z + real(GELU_CUBE, z) * z * z * z)


@device_function
def activate(code, p, z):
    """f(z), of all but softmax."""
    if code == types.RELU:
        return relu(z)
    if code == types.LEAKY_RELU:
        return leaky_relu(p, z)
    if code == types.CLIPPED_RELU:
        return clipped_relu(p, z)
    if code == types.SIGMOID:
        return sigmoid(z)
    if code == types.TANH:
        return math.tanh(z)
    if code == types.ELU:
        return z if z > real(0, z) else p * math.expm1(z)
    if code == types.SELU:
        return real(SELU_SCALE, z) * (z if z > real(0, z) else p * math.expm1(z))
    if code == types.GELU:
        return gated(z, normal_cdf(z))
    if code == types.GELU_TANH:
        return gated(z, sigmoid(gelu_logit(z)))
    if code == types.SILU:
        return gated(z, sigmoid(z))
    if code == types.SOFTPLUS:
        return softplus(z)
    return z


@device_function
def relu_slope(y):
    return real(1, y) if y > real(0, y) else y * real(0, y)


@device_function
def gelu_tanh_slope(z):
    u = gelu_logit(z)
    g = sigmoid(u)
    return g + gated(real(GELU_SLOPE, z) * z * (real(1, z) + real(3 * GELU_CUBE, z) * z * z), g * sigmoid(-u))


@device_function
def slope(code, p, saved):
    """f'(z), from z for gelu, gelu_tanh and silu, else from y; of all but softmax."""
    one, zero = real(1, saved), real(0, saved)
    if code == types.RELU:
        return relu_slope(saved)
    if code == types.LEAKY_RELU:
        return one if saved > zero else p
    if code == types.CLIPPED_RELU:
        return zero if saved >= p else relu_slope(saved)
    if code == types.SIGMOID:
        return saved * (one - saved)
    if code == types.TANH:
        return one - saved * saved
    if code == types.ELU:
        return one if saved > zero else saved + p
    if code == types.SELU:
        return real(SELU_SCALE, saved) if saved > zero else saved + real(SELU_SCALE, saved) * p
    if code == types.GELU:
        bell = math.exp(real(-0.5, saved) * saved * saved) * real(INV_SQRT_2PI, saved)
        return normal_cdf(saved) + gated(saved, bell)
    if code == types.GELU_TANH:
        return gelu_tanh_slope(saved)
    if code == types.SILU:
        g = sigmoid(saved)
        return g + gated(saved, g * sigmoid(-saved))
    if code == types.SOFTPLUS:
        return -math.expm1(-saved)
    return one


# options of a forward: a bias to add, a residual to add, the sum to keep in z
BIAS, RESIDUAL, KEEP = 1, 2, 4


@device_function
def sum_before(options, at, column, z, b, residual):
    """z + b + residual at an index."""
    value = z[at]
    if options & BIAS:
        value += b[column]
    if options & RESIDUAL:
        value += residual[at]
    return value


@kernel
def activate_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number, options: Integer,
    z: Values, b: Values, residual: Values, y: Values,
):  # fmt: skip
    """y = f(z + b + residual), and with KEEP z = z + b + residual."""
    column = tile_column(width)
    if column < columns:
        for row in range(tile_row(width), row_limit(width, rows), BLOCK // width):
            at = row * columns + column
            value = sum_before(options, at, column, z, b, residual)
            if options & KEEP:
                z[at] = value
            y[at] = activate(code, p, value)


@kernel
def softmax_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, options: Integer,
    z: Values, b: Values, residual: Values, y: Values,
):  # fmt: skip
    """The `width` threads side by side of a tile share a row."""
    shared = cuda.shared.array(BLOCK, dtype)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    end = columns if row < rows else 0
    largest, total = dtype(-math.inf), dtype(0)
    for column in range(lane, end, width):
        value = sum_before(options, row * columns + column, column, z, b, residual)
        last_largest = largest
        largest = larger(value, largest)
        if largest > last_largest:
            total = total * math.exp(last_largest - largest) + dtype(1)
        elif value > dtype(-math.inf):
            total += math.exp(value - largest)
    row_largest = largest_across(shared, largest, width)
    # a thread without values has a total of 0, which the NaN of -inf - -inf would spoil
    total = add_across(shared, total * math.exp(largest - row_largest) if total > dtype(0) else total, width)
    for column in range(lane, end, width):
        at = row * columns + column
        y[at] = math.exp(sum_before(options, at, column, z, b, residual) - row_largest) / total


@kernel
def differentiate_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, code: Integer, p: Number, with_sums: Integer,
    dy: Values, saved: Values, dz: Values, partials: Values,
):  # fmt: skip
    """dz = dy f', and with with_sums the sums by columns of this block's rows to partials (blocks, columns)."""
    column, total = tile_column(width), dtype(0)
    if column < columns:
        for row in range(tile_row(width), row_limit(width, rows), BLOCK // width):
            at = row * columns + column
            value = dy[at] if code == types.IDENTITY else dy[at] * slope(code, p, saved[at])
            dz[at] = value
            total += value
    if with_sums:
        shared = cuda.shared.array(BLOCK, dtype)
        total = add_down(shared, total, width)
        if cuda.threadIdx.x < width and column < columns:
            partials[cuda.blockIdx.x * columns + column] = total


@kernel
def softmax_slope_tiles(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, dy: Values, y: Values, dz: Values
):
    """dz_i = y_i (dy_i - sum_j dy_j y_j); `width` threads side by side share a row."""
    shared = cuda.shared.array(BLOCK, dtype)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    end, total = columns if row < rows else 0, dtype(0)
    for column in range(lane, end, width):
        total += dy[row * columns + column] * y[row * columns + column]
    total = add_across(shared, total, width)
    for column in range(lane, end, width):
        at = row * columns + column
        dz[at] = y[at] * (dy[at] - total)


def activate_matrix(z, b, residual, y, activation, keep):
    """y (rows, columns) = f(z + b + residual), all C-contiguous; b and residual may be None, y may be z. keep: z becomes the sum."""
    rows, columns = y.shape
    width = tile_width(columns)
    options = BIAS * (b is not None) + RESIDUAL * (residual is not None) + KEEP * keep
    arrays = options, z, b, residual, y
    if activation.code == types.SOFTMAX:
        launch(softmax_tiles, y.dtype, -(-rows // (BLOCK // width)), rows, columns, width, *arrays)
    else:
        launch(activate_tiles, y.dtype, tiles(rows, columns), rows, columns, width, *activation, *arrays)


def differentiate_matrix(dy, saved, dz, db, activation):
    """dz (rows, columns) = dy f' from the saved z or y, and db (columns,) its sum over rows, or None; C-contiguous. dz may be dy."""
    rows, columns = dz.shape
    width, grid = tile_width(columns), tiles(rows, columns)
    if activation.code == types.SOFTMAX:
        launch(softmax_slope_tiles, dz.dtype, -(-rows // (BLOCK // width)), rows, columns, width, dy, saved, dz)
        if db is not None:
            sum_rows(dz, db)
        return
    several_blocks = db is not None and grid[0] != 1
    partials = device.xp.empty((grid[0], columns), dz.dtype) if several_blocks else db
    arrays = int(db is not None), dy, saved, dz, partials
    launch(differentiate_tiles, dz.dtype, grid, rows, columns, width, *activation, *arrays)
    if several_blocks:
        sum_rows(partials, db)


def activation_forward(z, y, activation):
    """y = f(z); y may be z."""
    with written(y) as out:
        activate_matrix(_matrix(flat(z)), None, None, _matrix(out), activation, keep=False)


def activation_backward(dy, z, y, dz, activation):
    """dz = dy f'(z), from z where activation.needs_input, else from y; the other may be None. dz may be dy."""
    saved = z if activation.needs_input else y
    with written(dz) as out:
        differentiate_matrix(_matrix(flat(dy)), _matrix(flat(saved)), _matrix(out), None, activation)


def _matrix(array):
    """As (rows, columns) of the last axis."""
    return array.reshape(-1, array.shape[-1]) if array.ndim and array.shape[-1] else array.reshape(array.size, 1)
