"""Losses, each with its gradient times `scale`, as in kernels/reference/loss.py, a row at a time."""

import numpy as np
from numba import carray

from .. import names
from . import vmath
from .jit import compiled, entry, kernel
from .parallel import address_of, launch, share
from .simd import advance, pointer, real, void_pointer


@compiled
def cross_entropy_row(n, z, label, t, dz, scale):
    """The loss of n logits z against the class `label`, or against the probabilities t where label is -1."""
    zs, dzs = carray(z, n), carray(dz, n)
    largest = zs[0]
    for j in range(n):
        largest = zs[j] if zs[j] > largest else largest
    for j in range(n):
        dzs[j] = vmath.exp(zs[j] - largest)
    total = real(0, scale)
    for j in range(n):
        total += dzs[j]
    log_total = vmath.log(total)
    if label >= 0:
        factor = scale / total
        for j in range(n):
            dzs[j] *= factor
        dzs[label] -= scale
        return log_total - (zs[label] - largest)
    ts = carray(t, n)
    loss = weight = real(0, scale)
    for j in range(n):
        loss += ts[j] * (log_total - (zs[j] - largest))
        weight += ts[j]
    factor = weight / total
    for j in range(n):
        dzs[j] = (dzs[j] * factor - ts[j]) * scale
    return loss


@compiled
def binary_cross_entropy_row(n, z, t, losses, dz, scale):
    zs, ts, ls, dzs = carray(z, n), carray(t, n), carray(losses, n), carray(dz, n)
    for j in range(n):
        positive = real(0, scale) if zs[j] < real(0, scale) else zs[j]
        ls[j] = (positive - zs[j] * ts[j]) + vmath.softplus(-abs(zs[j]))
    for j in range(n):
        dzs[j] = (vmath.sigmoid(zs[j]) - ts[j]) * scale


@compiled
def mse_row(n, y, t, losses, dy, scale):
    ys, ts, ls, dys = carray(y, n), carray(t, n), carray(losses, n), carray(dy, n)
    for j in range(n):
        ls[j] = (ys[j] - ts[j]) * (ys[j] - ts[j])
    for j in range(n):
        dys[j] = real(2, scale) * (ys[j] - ts[j]) * scale


@compiled
def total(values):
    """The sum in float64, in eight chains that do not wait for each other."""
    sums = np.zeros(8)
    whole = values.size - values.size % 8
    for i in range(0, whole, 8):
        for lane in range(8):
            sums[lane] += values[i + lane]
    for i in range(whole, values.size):
        sums[0] += values[i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


# labels 0: targets are values like y; losses: one a row for cross_entropy, else one a value
LOSS = np.dtype([(name, "i8") for name in "kind rows columns y labels target losses dy".split()] + [("scale", "f8")])


@kernel(LOSS)
def loss_part(part, parts, job, like):
    t = carray(job, 1)[0]
    lo, hi = share(part, parts, t.rows, 1)
    n = t.columns
    if n == 0:
        return
    scale = real(t.scale, carray(pointer(t.dy, like), 1)[0])
    losses, labels = pointer(t.losses, like), carray(void_pointer(t.labels), t.rows, np.int64)
    for i in range(lo, hi):
        y, target = advance(pointer(t.y, like), i * n), advance(pointer(t.target, like), i * n)
        dy = advance(pointer(t.dy, like), i * n)
        if t.kind == names.CROSS_ENTROPY:
            label = labels[i] if t.labels else -1
            carray(losses, t.rows)[i] = cross_entropy_row(n, y, label, target, dy, scale)
        elif t.kind == names.BINARY_CROSS_ENTROPY:
            binary_cross_entropy_row(n, y, target, advance(losses, i * n), dy, scale)
        else:
            mse_row(n, y, target, advance(losses, i * n), dy, scale)


@entry
def _total(values):
    return total(values)


# a loss costs about as much a value as this many multiplications and additions
COST = 32


def _launch(kind, y, target, losses, dy, scale):
    """The loss of contiguous copies; an elementwise one takes any shape, as one row."""
    shape = y.shape if kind == names.CROSS_ENTROPY else (1, y.size)
    arrays = [np.ascontiguousarray(a) for a in (y, target)] + [
        np.zeros(losses.shape, y.dtype),
        np.empty(y.shape, y.dtype),
    ]
    addresses = [address_of(a.reshape(-1)) for a in arrays]
    labels = addresses[1] if target.dtype == np.int64 else 0
    job = np.array([(kind, *shape, addresses[0], labels, *addresses[1:], scale)], LOSS)
    launch(loss_part, y.dtype, job, COST * y.size)
    losses[...], dy[...] = arrays[2:]
    return _total(arrays[2].reshape(-1))


def cross_entropy(logits, labels, losses, dlogits, scale):
    """losses (N,) and dlogits (N, C) are written; labels int64 (N,) or of the logits' dtype (N, C)."""
    return _launch(names.CROSS_ENTROPY, logits, labels, losses, dlogits, scale)


def binary_cross_entropy(logits, targets, losses, dlogits, scale):
    """losses and dlogits are written, of the logits' shape."""
    return _launch(names.BINARY_CROSS_ENTROPY, logits, targets, losses, dlogits, scale)


def mse(y, target, losses, dy, scale):
    """losses and dy are written, of y's shape."""
    return _launch(names.MSE, y, target, losses, dy, scale)
