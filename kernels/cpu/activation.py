"""Activations y = f(z) and their derivatives, over contiguous values; formulas: kernels/reference/activation.py.

An activation is an inline function of one value, and so is its derivative. `map_values` and `map_values_times` turn it into a loop that
LLVM vectorises. Loops work in place, on y and on dz: LLVM would not vectorise a loop over two arrays that may overlap. gelu, gelu_tanh and
silu, whose derivatives need z, have z and y in separate arrays. softmax works row by row. dense.py, conv.py and batch_norm.py call
`activate` and `differentiate` on the rows that they have in cache.
"""

import numpy as np
from numba import carray

from .. import types
from .engine import vector_math
from .engine.compile import device_function, inline_function, kernel
from .engine.intrinsics import address_of, advance, copy, pointer, real
from .engine.thread_pool import launch, thread_range
from .engine.vector_loops import map_values, map_values_times

SELU_SCALE = 1.0507009873554805
INV_SQRT_2PI = 0.3989422804014327
# 2 sqrt(2 / pi) and the cubic term of gelu's tanh form
GELU_SLOPE, GELU_CUBE = 1.5957691216057308, 0.044715


@inline_function
def relu(z, p):
    return real(0, z) if z < real(0, z) else z


@inline_function
def leaky_relu(z, p):
    return z if z > real(0, z) else p * z


@inline_function
def clipped_relu(z, p):
    z = real(0, z) if z < real(0, z) else z
    return p if z > p else z


@inline_function
def sigmoid(z, p):
    return vector_math.sigmoid(z)


@inline_function
def tanh(z, p):
    return vector_math.tanh(z)


@inline_function
def elu(z, p):
    return z if z > real(0, z) else p * vector_math.expm1(z)


@inline_function
def selu(z, p):
    return real(SELU_SCALE, z) * elu(z, p)


@inline_function
def softplus(z, p):
    return vector_math.softplus(z)


@inline_function
def gated(z, gate):
    """z * gate; 0 where the gate is 0, which is the limit for z = -inf."""
    return real(0, z) if gate == real(0, z) else z * gate


@inline_function
def gelu_logit(z):
    return real(GELU_SLOPE, z) * (z + real(GELU_CUBE, z) * z * z * z)


@inline_function
def gelu(z, p):
    return gated(z, vector_math.normal_cdf(z))


@inline_function
def gelu_tanh(z, p):
    return gated(z, vector_math.sigmoid(gelu_logit(z)))


@inline_function
def silu(z, p):
    return gated(z, vector_math.sigmoid(z))


@inline_function
def relu_slope(y, p):
    # a NaN in y stays one, here and below
    return real(1, y) if y > real(0, y) else y * real(0, y)


@inline_function
def leaky_relu_slope(y, p):
    return real(1, y) if y > real(0, y) else p


@inline_function
def clipped_relu_slope(y, p):
    return real(0, y) if y >= p else relu_slope(y, p)


@inline_function
def sigmoid_slope(y, p):
    return y * (real(1, y) - y)


@inline_function
def tanh_slope(y, p):
    return real(1, y) - y * y


@inline_function
def elu_slope(y, p):
    return real(1, y) if y > real(0, y) else y + p


@inline_function
def selu_slope(y, p):
    return real(SELU_SCALE, y) if y > real(0, y) else y + real(SELU_SCALE, y) * p


@inline_function
def softplus_slope(y, p):
    return -vector_math.expm1(-y)


@inline_function
def gelu_slope(z, p):
    return vector_math.normal_cdf(z) + gated(z, vector_math.exp(real(-0.5, z) * z * z) * real(INV_SQRT_2PI, z))


@inline_function
def gelu_tanh_slope(z, p):
    u = gelu_logit(z)
    g = vector_math.sigmoid(u)
    return g + gated(
        real(GELU_SLOPE, z) * z * (real(1, z) + real(3 * GELU_CUBE, z) * z * z), g * vector_math.sigmoid(-u)
    )


@inline_function
def silu_slope(z, p):
    g = vector_math.sigmoid(z)
    return g + gated(z, g * vector_math.sigmoid(-z))


@device_function
def softmax(rows, columns, y):
    """Rows of y (rows, columns), in place."""
    for i in range(rows):
        row = carray(advance(y, i * columns), columns)
        largest = row[0]
        for j in range(columns):
            largest = row[j] if row[j] > largest else largest
        for j in range(columns):
            row[j] -= largest
    # over all rows at once, since a row of ten leaves most of its vectors empty
    map_values(vector_math.exp, rows * columns, y, y, ())
    for i in range(rows):
        row = carray(advance(y, i * columns), columns)
        total = real(0, row[0])
        for j in range(columns):
            total += row[j]
        for j in range(columns):
            row[j] /= total


@device_function
def softmax_slope(rows, columns, y, dz):
    """dz_i = y_i (dz_i - sum_j dz_j y_j) by rows, in place."""
    for i in range(rows):
        ys, row = carray(advance(y, i * columns), columns), carray(advance(dz, i * columns), columns)
        total = real(0, ys[0])
        for j in range(columns):
            total += row[j] * ys[j]
        for j in range(columns):
            row[j] = ys[j] * (row[j] - total)


@device_function
def activate(code, parameter, rows, columns, z, y):
    """y = f(z), rows x columns contiguous. z and y are one array, except for gelu, gelu_tanh and silu, where they are two."""
    n = rows * columns
    if n == 0:
        return
    p = real(parameter, carray(y, 1)[0])
    if code == types.RELU:
        map_values(relu, n, y, y, (p,))
    elif code == types.LEAKY_RELU:
        map_values(leaky_relu, n, y, y, (p,))
    elif code == types.CLIPPED_RELU:
        map_values(clipped_relu, n, y, y, (p,))
    elif code == types.SIGMOID:
        map_values(sigmoid, n, y, y, (p,))
    elif code == types.TANH:
        map_values(tanh, n, y, y, (p,))
    elif code == types.ELU:
        map_values(elu, n, y, y, (p,))
    elif code == types.SELU:
        map_values(selu, n, y, y, (p,))
    elif code == types.SOFTPLUS:
        map_values(softplus, n, y, y, (p,))
    elif code == types.GELU:
        map_values(gelu, n, z, y, (p,))
    elif code == types.GELU_TANH:
        map_values(gelu_tanh, n, z, y, (p,))
    elif code == types.SILU:
        map_values(silu, n, z, y, (p,))
    elif code == types.SOFTMAX:
        softmax(rows, columns, y)


@device_function
def differentiate(code, parameter, rows, columns, z, y, dz):
    """dz *= f', from z for gelu, gelu_tanh and silu, else from y; rows x columns contiguous."""
    n = rows * columns
    if n == 0:
        return
    p = real(parameter, carray(dz, 1)[0])
    if code == types.RELU:
        map_values_times(relu_slope, n, y, dz, (p,))
    elif code == types.LEAKY_RELU:
        map_values_times(leaky_relu_slope, n, y, dz, (p,))
    elif code == types.CLIPPED_RELU:
        map_values_times(clipped_relu_slope, n, y, dz, (p,))
    elif code == types.SIGMOID:
        map_values_times(sigmoid_slope, n, y, dz, (p,))
    elif code == types.TANH:
        map_values_times(tanh_slope, n, y, dz, (p,))
    elif code == types.ELU:
        map_values_times(elu_slope, n, y, dz, (p,))
    elif code == types.SELU:
        map_values_times(selu_slope, n, y, dz, (p,))
    elif code == types.SOFTPLUS:
        map_values_times(softplus_slope, n, y, dz, (p,))
    elif code == types.GELU:
        map_values_times(gelu_slope, n, z, dz, (p,))
    elif code == types.GELU_TANH:
        map_values_times(gelu_tanh_slope, n, z, dz, (p,))
    elif code == types.SILU:
        map_values_times(silu_slope, n, z, dz, (p,))
    elif code == types.SOFTMAX:
        softmax_slope(rows, columns, y, dz)


ACTIVATION = np.dtype(
    [
        ("code", "i8"),
        ("parameter", "f8"),
        ("rows", "i8"),
        ("columns", "i8"),
        ("z", "i8"),
        ("y", "i8"),
        ("dy", "i8"),
        ("dz", "i8"),
    ]
)


@kernel(ACTIVATION)
def activate_part(part, parts, job, like):
    t = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, t.rows, 1)
    at = lo * t.columns
    z, y = advance(pointer(t.z, like), at), advance(pointer(t.y, like), at)
    activate(t.code, t.parameter, hi - lo, t.columns, z, y)


@kernel(ACTIVATION)
def differentiate_part(part, parts, job, like):
    """dz = dy f', a few rows at a time, while they are in cache."""
    t = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, t.rows, 1)
    step = max(1, CHUNK // max(1, t.columns))
    for row in range(lo, hi, step):
        rows, at = min(step, hi - row), row * t.columns
        z, y, dz = advance(pointer(t.z, like), at), advance(pointer(t.y, like), at), advance(pointer(t.dz, like), at)
        if t.dy != t.dz:
            copy(rows * t.columns, advance(pointer(t.dy, like), at), dz)
        differentiate(t.code, t.parameter, rows, t.columns, z, y, dz)


# values that the first-level cache keeps beside those of two other arrays
CHUNK = 2048
# an activation costs about as much as this many multiplications and additions
COST = 16


def _launch(part, activation, shape, arrays, dtype):
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1]))
    addresses = [address_of(a.reshape(-1)) if a is not None else 0 for a in arrays]
    job = np.array([(*activation, rows, columns, *addresses)], ACTIVATION)
    launch(part, dtype, job, COST * rows * columns)


def activation_forward(z, y, activation):
    """y = f(z); y may be z."""
    result = np.empty(y.shape, y.dtype)
    source = np.ascontiguousarray(z) if activation.needs_input else result
    if not activation.needs_input:
        result[...] = z
    _launch(activate_part, activation, y.shape, (source, result, None, None), y.dtype)
    y[...] = result


def activation_backward(dy, z, y, dz, activation):
    """dz = dy f'(z), from z where activation.needs_input, else from y; the other may be None. dz may be dy."""
    result = dz if dz.flags.c_contiguous else np.empty(dz.shape, dz.dtype)
    saved = np.ascontiguousarray(z if activation.needs_input else y)
    z, y = (saved, None) if activation.needs_input else (None, saved)
    _launch(differentiate_part, activation, dz.shape, (z, y, np.ascontiguousarray(dy), result), dz.dtype)
    if result is not dz:
        dz[...] = result
