"""Activations y = f(z) and their derivatives, over contiguous values; formulas: kernels/reference/activation.py.

An activation is an inline function of one value, and so is its derivative. `map_values` and `map_values_times` turn each into a loop that
LLVM vectorises; softmax works row by row. gelu, gelu_tanh and silu, whose derivatives need z, have z and y in separate arrays; for the
others z and y are one array, which holds z before the forward pass and y after it.

Each is a kernel of its own, compiled at its first use: FORWARD and BACKWARD list them by code. Other kernels have its address from their
driver, and call it with `activate` and `differentiate` on the rows that they have in cache. The identity has no kernel and no address.
"""

import numpy as np

from .engine import vector_math
from .engine.compile import Choice, device_function, inline_function, kernel
from .engine.intrinsics import address_at, advance, call, carray, copy, local, pointer, real
from .engine.object_memory import address_of
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


# z, y: of the forward pass, and of the backward pass z as it was saved, which is y's array where the derivative needs y; dy may be dz
ACTIVATION = np.dtype([("parameter", "f8")] + [(name, "i8") for name in "rows columns z y dy dz".split()])
# values that the first-level cache keeps beside those of two other arrays
CHUNK = 2048


def forward_kernel(f):
    """The kernel y = f(z) of an elementwise activation."""

    def forward(thread_index, thread_count, record, like):
        activation = carray(record, 1)[0]
        lo, hi = thread_range(thread_index, thread_count, activation.rows, 1)
        at, n = lo * activation.columns, (hi - lo) * activation.columns
        if n:
            z, y = advance(pointer(activation.z, like), at), advance(pointer(activation.y, like), at)  # (rows, columns)
            map_values(f, n, z, y, (real(activation.parameter, carray(y, 1)[0]),))

    forward.__name__ = forward.__qualname__ = f"{f.__name__}_forward"
    return kernel(ACTIVATION)(forward)


@device_function
def next_rows(activation, row, end, like):
    """Copy dy to dz, some rows from `row` on, which then are in cache: how many they are, and their saved values and dz."""
    rows, at = min(max(1, CHUNK // max(1, activation.columns)), end - row), row * activation.columns
    saved, dz = advance(pointer(activation.z, like), at), advance(pointer(activation.dz, like), at)  # (rows, columns)
    if activation.dy != activation.dz:
        copy(rows * activation.columns, advance(pointer(activation.dy, like), at), dz)
    return rows, saved, dz


def backward_kernel(slope):
    """The kernel dz = dy f' of an elementwise activation."""

    def backward(thread_index, thread_count, record, like):
        activation = carray(record, 1)[0]
        row, end = thread_range(thread_index, thread_count, activation.rows, 1)
        while row < end and activation.columns:
            rows, saved, dz = next_rows(activation, row, end, like)
            map_values_times(
                slope, rows * activation.columns, saved, dz, (real(activation.parameter, carray(dz, 1)[0]),)
            )
            row += rows

    backward.__name__ = backward.__qualname__ = f"{slope.__name__}_backward"
    return kernel(ACTIVATION)(backward)


@kernel(ACTIVATION)
def softmax_forward(thread_index, thread_count, record, like):
    """Softmax of the thread's rows."""
    activation = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, activation.rows, 1)
    columns = activation.columns
    if columns == 0:
        return
    y = advance(pointer(activation.y, like), lo * columns)  # (rows, columns)
    for i in range(hi - lo):
        row = carray(advance(y, i * columns), columns)
        largest = row[0]
        for j in range(columns):
            largest = row[j] if row[j] > largest else largest
        for j in range(columns):
            row[j] -= largest
    # over all rows at once, since a row of ten leaves most of its vectors empty
    map_values(vector_math.exp, (hi - lo) * columns, y, y, ())
    for i in range(hi - lo):
        row = carray(advance(y, i * columns), columns)
        total = real(0, row[0])
        for j in range(columns):
            total += row[j]
        for j in range(columns):
            row[j] /= total


@kernel(ACTIVATION)
def softmax_backward(thread_index, thread_count, record, like):
    """dz_i = y_i (dy_i - sum_j dy_j y_j) of the thread's rows."""
    activation = carray(record, 1)[0]
    first, end = thread_range(thread_index, thread_count, activation.rows, 1)
    columns = activation.columns
    while first < end and columns:
        rows, saved, dz = next_rows(activation, first, end, like)
        for i in range(rows):
            ys, row = carray(advance(saved, i * columns), columns), carray(advance(dz, i * columns), columns)
            total = real(0, ys[0])
            for j in range(columns):
                total += row[j] * ys[j]
            for j in range(columns):
                row[j] = ys[j] * (row[j] - total)
        first += rows


# by code; the identity does nothing
FORWARD = (
    None, *map(forward_kernel, (relu, leaky_relu, clipped_relu, sigmoid, tanh, elu, selu, gelu, gelu_tanh, silu, softplus)),
    softmax_forward,
)  # fmt: skip
BACKWARD = (
    None, *map(backward_kernel, (relu_slope, leaky_relu_slope, clipped_relu_slope, sigmoid_slope, tanh_slope, elu_slope, selu_slope,
    gelu_slope, gelu_tanh_slope, silu_slope, softplus_slope)), softmax_backward,
)  # fmt: skip
forward_address, backward_address = Choice(*FORWARD), Choice(*BACKWARD)


@device_function
def activate(function, parameter, rows, columns, z, y):
    """y = f(z), rows x columns contiguous, by the kernel at `function`; without one y is z already."""
    if function:
        record = local(1, ACTIVATION)
        activation = record[0]
        activation.parameter, activation.rows, activation.columns = parameter, rows, columns
        activation.z, activation.y = address_at(z), address_at(y)
        call(function, 0, 1, record)


@device_function
def differentiate(function, parameter, rows, columns, saved, dz):
    """dz *= f', by the kernel at `function`; saved: z where the activation needs its input, else y. rows x columns contiguous."""
    if function:
        record = local(1, ACTIVATION)
        activation = record[0]
        activation.parameter, activation.rows, activation.columns = parameter, rows, columns
        activation.z, activation.dy, activation.dz = address_at(saved), address_at(dz), address_at(dz)
        call(function, 0, 1, record)


# an activation costs about as much as this many multiplications and additions
COST = 16


def _launch(kernel, activation, shape, arrays, dtype):
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1]))
    addresses = [address_of(a.reshape(-1)) if a is not None else 0 for a in arrays]
    record = np.array([(activation.parameter, rows, columns, *addresses)], ACTIVATION)
    launch(kernel, dtype, record, COST * rows * columns)


def activation_forward(z, y, activation):
    """y = f(z); y may be z."""
    result = np.empty(y.shape, y.dtype)
    source = np.ascontiguousarray(z) if activation.needs_input else result
    if not activation.needs_input:
        result[...] = z
    if FORWARD[activation.code] is not None:
        _launch(FORWARD[activation.code], activation, y.shape, (source, result, None, None), y.dtype)
    y[...] = result


def activation_backward(dy, z, y, dz, activation):
    """dz = dy f'(z), from z where activation.needs_input, else from y; the other may be None. dz may be dy."""
    if BACKWARD[activation.code] is None:
        dz[...] = dy
        return
    result = dz if dz.flags.c_contiguous else np.empty(dz.shape, dz.dtype)
    saved = np.ascontiguousarray(z if activation.needs_input else y)
    arrays = saved, None, np.ascontiguousarray(dy), result
    _launch(BACKWARD[activation.code], activation, dz.shape, arrays, dz.dtype)
    if result is not dz:
        dz[...] = result
