"""Activations y = f(z) and their derivatives, as in kernels/reference/activation.py, over contiguous values.

Each is a line of arithmetic on one value; simd's `each` and `each_times` make it a loop that LLVM vectorises. They run in place, on y
and on dz: a loop over two arrays that might be one would stay scalar. An activation whose derivative needs z gets z and y apart.
"""

import numpy as np
from numba import carray

from .. import names
from . import vmath
from .jit import compiled, inlined, kernel
from .loops import each, each_times
from .parallel import address_of, launch, share
from .simd import advance, copy, pointer, real

SELU_SCALE = 1.0507009873554805
INV_SQRT_2PI = 0.3989422804014327
# 2 sqrt(2 / pi) and the cubic term of gelu's tanh form
GELU_SLOPE, GELU_CUBE = 1.5957691216057308, 0.044715


@inlined
def relu(z, p):
    return real(0, z) if z < real(0, z) else z


@inlined
def leaky_relu(z, p):
    return z if z > real(0, z) else p * z


@inlined
def clipped_relu(z, p):
    z = real(0, z) if z < real(0, z) else z
    return p if z > p else z


@inlined
def sigmoid(z, p):
    return vmath.sigmoid(z)


@inlined
def tanh(z, p):
    return vmath.tanh(z)


@inlined
def elu(z, p):
    return z if z > real(0, z) else p * vmath.expm1(z)


@inlined
def selu(z, p):
    return real(SELU_SCALE, z) * elu(z, p)


@inlined
def softplus(z, p):
    return vmath.softplus(z)


@inlined
def gated(z, gate):
    """z * gate, and its limit 0 where z is -inf and the gate has closed."""
    return real(0, z) if gate == real(0, z) else z * gate


@inlined
def gelu_logit(z):
    return real(GELU_SLOPE, z) * (z + real(GELU_CUBE, z) * z * z * z)


@inlined
def gelu(z, p):
    return gated(z, vmath.normal_cdf(z))


@inlined
def gelu_tanh(z, p):
    return gated(z, vmath.sigmoid(gelu_logit(z)))


@inlined
def silu(z, p):
    return gated(z, vmath.sigmoid(z))


@inlined
def relu_slope(y, p):
    # a NaN in y stays one, here and below
    return real(1, y) if y > real(0, y) else y * real(0, y)


@inlined
def leaky_relu_slope(y, p):
    return real(1, y) if y > real(0, y) else p


@inlined
def clipped_relu_slope(y, p):
    return real(0, y) if y >= p else relu_slope(y, p)


@inlined
def sigmoid_slope(y, p):
    return y * (real(1, y) - y)


@inlined
def tanh_slope(y, p):
    return real(1, y) - y * y


@inlined
def elu_slope(y, p):
    return real(1, y) if y > real(0, y) else y + p


@inlined
def selu_slope(y, p):
    return real(SELU_SCALE, y) if y > real(0, y) else y + real(SELU_SCALE, y) * p


@inlined
def softplus_slope(y, p):
    return -vmath.expm1(-y)


@inlined
def gelu_slope(z, p):
    return vmath.normal_cdf(z) + gated(z, vmath.exp(real(-0.5, z) * z * z) * real(INV_SQRT_2PI, z))


@inlined
def gelu_tanh_slope(z, p):
    u = gelu_logit(z)
    g = vmath.sigmoid(u)
    return g + gated(real(GELU_SLOPE, z) * z * (real(1, z) + real(3 * GELU_CUBE, z) * z * z), g * vmath.sigmoid(-u))


@inlined
def silu_slope(z, p):
    g = vmath.sigmoid(z)
    return g + gated(z, g * vmath.sigmoid(-z))


@compiled
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
    each(vmath.exp, rows * columns, y, y, ())
    for i in range(rows):
        row = carray(advance(y, i * columns), columns)
        total = real(0, row[0])
        for j in range(columns):
            total += row[j]
        for j in range(columns):
            row[j] /= total


@compiled
def softmax_slope(rows, columns, y, dz):
    """dz_i = y_i (dz_i - sum_j dz_j y_j) by rows, in place."""
    for i in range(rows):
        ys, row = carray(advance(y, i * columns), columns), carray(advance(dz, i * columns), columns)
        total = real(0, ys[0])
        for j in range(columns):
            total += row[j] * ys[j]
        for j in range(columns):
            row[j] = ys[j] * (row[j] - total)


@compiled
def activate(code, parameter, rows, columns, z, y):
    """y = f(z), rows x columns contiguous. z is y but for gelu, gelu_tanh and silu, where the two are apart."""
    n = rows * columns
    if n == 0:
        return
    p = real(parameter, carray(y, 1)[0])
    if code == names.RELU:
        each(relu, n, y, y, (p,))
    elif code == names.LEAKY_RELU:
        each(leaky_relu, n, y, y, (p,))
    elif code == names.CLIPPED_RELU:
        each(clipped_relu, n, y, y, (p,))
    elif code == names.SIGMOID:
        each(sigmoid, n, y, y, (p,))
    elif code == names.TANH:
        each(tanh, n, y, y, (p,))
    elif code == names.ELU:
        each(elu, n, y, y, (p,))
    elif code == names.SELU:
        each(selu, n, y, y, (p,))
    elif code == names.SOFTPLUS:
        each(softplus, n, y, y, (p,))
    elif code == names.GELU:
        each(gelu, n, z, y, (p,))
    elif code == names.GELU_TANH:
        each(gelu_tanh, n, z, y, (p,))
    elif code == names.SILU:
        each(silu, n, z, y, (p,))
    elif code == names.SOFTMAX:
        softmax(rows, columns, y)


@compiled
def differentiate(code, parameter, rows, columns, z, y, dz):
    """dz *= f', from z for gelu, gelu_tanh and silu, else from y; rows x columns contiguous."""
    n = rows * columns
    if n == 0:
        return
    p = real(parameter, carray(dz, 1)[0])
    if code == names.RELU:
        each_times(relu_slope, n, y, dz, (p,))
    elif code == names.LEAKY_RELU:
        each_times(leaky_relu_slope, n, y, dz, (p,))
    elif code == names.CLIPPED_RELU:
        each_times(clipped_relu_slope, n, y, dz, (p,))
    elif code == names.SIGMOID:
        each_times(sigmoid_slope, n, y, dz, (p,))
    elif code == names.TANH:
        each_times(tanh_slope, n, y, dz, (p,))
    elif code == names.ELU:
        each_times(elu_slope, n, y, dz, (p,))
    elif code == names.SELU:
        each_times(selu_slope, n, y, dz, (p,))
    elif code == names.SOFTPLUS:
        each_times(softplus_slope, n, y, dz, (p,))
    elif code == names.GELU:
        each_times(gelu_slope, n, z, dz, (p,))
    elif code == names.GELU_TANH:
        each_times(gelu_tanh_slope, n, z, dz, (p,))
    elif code == names.SILU:
        each_times(silu_slope, n, z, dz, (p,))
    elif code == names.SOFTMAX:
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
    lo, hi = share(part, parts, t.rows, 1)
    at = lo * t.columns
    z, y = advance(pointer(t.z, like), at), advance(pointer(t.y, like), at)
    activate(t.code, t.parameter, hi - lo, t.columns, z, y)


@kernel(ACTIVATION)
def differentiate_part(part, parts, job, like):
    """dz = dy f', a few rows at a time, while they are in cache."""
    t = carray(job, 1)[0]
    lo, hi = share(part, parts, t.rows, 1)
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
