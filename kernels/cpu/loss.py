"""Losses and their gradients times `scale`; formulas: kernels/reference/loss.py.

cross_entropy works on rows of logits, the other losses value by value; exponentials are taken over all rows in one loop. The public
functions return the sum of the losses in float64. Each loss is a kernel of its own, compiled at its first use; training_step.py calls it
by its address.
"""

import numpy as np

from .. import types
from .engine import vector_math
from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import address_of, advance, carray, data, local_zeros, pointer, real, void_pointer
from .engine.thread_pool import launch, thread_range
from .engine.vector_loops import map_values


@inline_function
def times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return real(0, t) if t == real(0, t) and abs(log_p) == real(np.inf, t) else t * log_p


@device_function
def cross_entropy_rows(rows, n, z, labels, by_class, t, losses, dz, scale):
    """Rows of n logits z against classes, or against probabilities t. exp is taken over all rows in one loop, since a row of
    ten values leaves vectors nearly empty. A label that is no class makes its row NaN. Labels are checked each time they are used, since
    another thread may write to them."""
    zs, ts, dzs, ls = carray(z, rows * n), carray(t, rows * n), carray(dz, rows * n), carray(losses, rows)
    for i in range(rows):
        at, largest = i * n, zs[i * n]
        for j in range(n):
            largest = zs[at + j] if zs[at + j] > largest else largest
        for j in range(n):
            dzs[at + j] = zs[at + j] - largest
        if by_class:
            label = labels[i]
            ls[i] = -dzs[at + label] if 0 <= label < n else real(np.nan, scale)
        else:
            ls[i] = real(0, scale)
            for j in range(n):
                ls[i] -= times(ts[at + j], dzs[at + j])
    map_values(vector_math.exp, rows * n, dz, dz, ())
    for i in range(rows):
        at, weight, total = i * n, real(1, scale), real(0, scale)
        for j in range(n):
            total += dzs[at + j]
        factor = scale / total
        if not by_class:
            weight = real(0, scale)
            for j in range(n):
                weight += ts[at + j]
        ls[i] += weight * vector_math.log(total)
        if by_class:
            label = labels[i]
            if not 0 <= label < n:
                factor = real(np.nan, scale)
            for j in range(n):
                dzs[at + j] *= factor
            if 0 <= label < n:
                dzs[at + label] -= scale
        else:
            for j in range(n):
                dzs[at + j] = dzs[at + j] * (weight * factor) - ts[at + j] * scale


@device_function
def binary_cross_entropy_values(n, z, t, losses, dz, scale):
    zs, ts, ls, dzs = carray(z, n), carray(t, n), carray(losses, n), carray(dz, n)
    for j in range(n):
        # max(z, 0) - z t, without a difference of infinities
        weight = real(1, scale) - ts[j] if zs[j] > real(0, scale) else ts[j]
        ls[j] = times(weight, abs(zs[j])) + vector_math.softplus(-abs(zs[j]))
    for j in range(n):
        dzs[j] = (vector_math.sigmoid(zs[j]) - ts[j]) * scale


@device_function
def mse_values(n, y, t, losses, dy, scale):
    ys, ts, ls, dys = carray(y, n), carray(t, n), carray(losses, n), carray(dy, n)
    for j in range(n):
        ls[j] = (ys[j] - ts[j]) * (ys[j] - ts[j])
    for j in range(n):
        dys[j] = real(2, scale) * (ys[j] - ts[j]) * scale


@device_function
def total(source, n):
    """The sum of n values in float64, in eight chains that do not wait for each other."""
    sums, values = local_zeros(8, np.float64), carray(source, n)
    whole = n - n % 8
    for i in range(0, whole, 8):
        for lane in range(8):
            sums[lane] += values[i + lane]
    for i in range(whole, n):
        sums[0] += values[i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


@device_function
def poisson_nll_values(n, z, t, losses, dz, scale):
    zs, ts, ls, dzs = carray(z, n), carray(t, n), carray(losses, n), carray(dz, n)
    for j in range(n):
        dzs[j] = vector_math.exp(zs[j])
    for j in range(n):
        ls[j] = dzs[j] - times(ts[j], zs[j])
        dzs[j] = (dzs[j] - ts[j]) * scale


# labels 0: targets are values like y; losses: one a row for cross_entropy, else one a value
LOSS = np.dtype([(name, "i8") for name in "rows columns y labels target losses dy".split()] + [("scale", "f8")])


@kernel(LOSS)
def cross_entropy_kernel(thread_index, thread_count, record, like):
    """The thread's rows: losses, and dy."""
    loss = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, loss.rows, 1)
    n = loss.columns
    if n == 0:
        return
    y, target = advance(pointer(loss.y, like), lo * n), advance(pointer(loss.target, like), lo * n)  # (rows, n)
    dy, losses = advance(pointer(loss.dy, like), lo * n), advance(pointer(loss.losses, like), lo)  # (rows, n), (rows,)
    labels, scale = carray(void_pointer(loss.labels + lo * 8), hi - lo, np.int64), real(loss.scale, carray(dy, 1)[0])
    cross_entropy_rows(hi - lo, n, y, labels, loss.labels != 0, target, losses, dy, scale)


def elementwise(values):
    """The kernel of a loss that is a function of each value."""

    def loss_values(thread_index, thread_count, record, like):
        loss = carray(record, 1)[0]
        lo, hi = thread_range(thread_index, thread_count, loss.rows, 1)
        at, n = lo * loss.columns, (hi - lo) * loss.columns
        if n:
            y, target = advance(pointer(loss.y, like), at), advance(pointer(loss.target, like), at)  # (n,)
            dy, losses = advance(pointer(loss.dy, like), at), advance(pointer(loss.losses, like), at)  # (n,)
            values(n, y, target, losses, dy, real(loss.scale, carray(dy, 1)[0]))

    loss_values.__name__ = loss_values.__qualname__ = f"{values.__name__}_kernel"
    return kernel(LOSS)(loss_values)


# by code
LOSSES = cross_entropy_kernel, *map(elementwise, (binary_cross_entropy_values, mse_values, poisson_nll_values))


@driver
def _total(values):
    return total(data(values), values.size)


# a loss costs about as much a value as this many multiplications and additions
COST = 32


def _launch(kind, y, target, losses, dy, scale):
    """The loss of contiguous copies; an elementwise one takes any shape, as one row."""
    shape = y.shape if kind == types.CROSS_ENTROPY else (1, y.size)
    arrays = [
        np.ascontiguousarray(y),
        np.ascontiguousarray(target),
        np.zeros(losses.shape, y.dtype),
        np.empty(y.shape, y.dtype),
    ]
    addresses = [address_of(a.reshape(-1)) for a in arrays]
    labels = addresses[1] if target.dtype == np.int64 else 0
    record = np.array([(*shape, addresses[0], labels, *addresses[1:], scale)], LOSS)
    launch(LOSSES[kind], y.dtype, record, COST * y.size)
    losses[...], dy[...] = arrays[2:]
    return _total(arrays[2].reshape(-1))


def cross_entropy(logits, labels, losses, dlogits, scale):
    """losses (N,) and dlogits (N, C) are written; labels int64 (N,) or of the logits' dtype (N, C)."""
    return _launch(types.CROSS_ENTROPY, logits, labels, losses, dlogits, scale)


def binary_cross_entropy(logits, targets, losses, dlogits, scale):
    """losses and dlogits are written, of the logits' shape."""
    return _launch(types.BINARY_CROSS_ENTROPY, logits, targets, losses, dlogits, scale)


def mse(y, target, losses, dy, scale):
    """losses and dy are written, of y's shape."""
    return _launch(types.MSE, y, target, losses, dy, scale)


def poisson_nll(z, target, losses, dz, scale):
    """losses and dz are written, of z's shape."""
    return _launch(types.POISSON_NLL, z, target, losses, dz, scale)
