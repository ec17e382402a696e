"""Losses and their gradients; formulas: kernels/reference/loss.py.

A kernel writes losses, gradients times `scale`, and how many of a row's values are right; then it multiplies all three by the rows'
weights. cross_entropy works on rows of logits, the other losses value by value; exponentials are taken over all rows in one loop. What
of a loss is a setting (label smoothing, weights of classes, ...) is in its record. Each loss is a kernel of its own, compiled at its first
use; training_step.py calls it by its address.
"""

import numpy as np

from .. import types
from .engine import vector_math
from .engine.compile import device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_of,
    advance,
    call,
    carray,
    data,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import map_values


@inline_function
def times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return real(0, t) if t == real(0, t) and abs(log_p) == real(np.inf, t) else t * log_p


# kernel: address of the loss's; y, dy (rows, columns); labels (rows,), or 0 and then target (rows, columns); losses: losses_of_row of each
# row; right: one a row, or 0; row_weights: of all rows of the data, or 0, and order: the numbers of these rows there, or 0; weights
# (columns,), or 0, parameter and ignore_index: those of a types.Loss
LOSS = np.dtype(
    [(name, "i8") for name in "kernel rows columns losses_of_row itemsize y labels target losses dy right".split()]
    + [(name, "i8") for name in "row_weights order weights ignore_index".split()]
    + [("scale", "f8"), ("parameter", "f8")]
)


@device_function
def describe_rows(loss, part, lo, hi):
    """Fill the record of some of a loss's rows."""
    size = loss.itemsize
    row = loss.columns * size
    part.kernel, part.rows, part.columns, part.itemsize = loss.kernel, hi - lo, loss.columns, size
    part.y, part.dy, part.target = loss.y + lo * row, loss.dy + lo * row, loss.target + lo * row
    part.labels = loss.labels + lo * 8 if loss.labels else 0
    part.losses, part.losses_of_row = loss.losses + lo * loss.losses_of_row * size, loss.losses_of_row
    part.right = loss.right + lo * size if loss.right else 0
    part.order = loss.order + lo * 8 if loss.order else 0
    part.row_weights = loss.row_weights if loss.order or not loss.row_weights else loss.row_weights + lo * size
    part.weights, part.ignore_index, part.scale, part.parameter = (
        loss.weights,
        loss.ignore_index,
        loss.scale,
        loss.parameter,
    )


@kernel(LOSS)
def loss_part(thread_index, thread_count, record, like):
    """The loss of the thread's rows."""
    loss, part = carray(record, 1)[0], local(1, LOSS)
    lo, hi = thread_range(thread_index, thread_count, loss.rows, 1)
    describe_rows(loss, part[0], lo, hi)
    call(loss.kernel, 0, 1, part)


@device_function
def weigh_rows(loss, like):
    """Multiply losses, dy and right by the rows' weights."""
    if not loss.row_weights:
        return
    columns, losses_of_row = loss.columns, loss.losses_of_row
    order = carray(void_pointer(loss.order), loss.rows, np.int64)
    losses = carray(pointer(loss.losses, like), loss.rows * losses_of_row)
    dy = carray(pointer(loss.dy, like), loss.rows * columns)
    for i in range(loss.rows):
        weight = carray(advance(pointer(loss.row_weights, like), order[i] if loss.order else i), 1)[0]
        for j in range(losses_of_row):
            losses[i * losses_of_row + j] *= weight
        for j in range(columns):
            dy[i * columns + j] *= weight
        if loss.right:
            carray(advance(pointer(loss.right, like), i), 1)[0] *= weight


@inline_function
def is_ignored(label, ignore_index):
    """Whether a row is left out; NO_LABEL as a label, which NaN becomes as an integer, is a bad one."""
    return label == ignore_index and label != types.NO_LABEL


@device_function
def first_largest(values, at, n):
    """Column of the first of the largest of n values."""
    column = 0
    for j in range(1, n):
        column = j if values[at + j] > values[at + column] else column
    return column


@kernel(LOSS)
def cross_entropy_kernel(thread_index, thread_count, record, like):
    """exp is taken over all rows in one loop, since a row of ten values leaves vectors nearly empty. A label that is no class makes its row
    NaN. Labels are checked each time they are used, since another thread may write to them."""
    loss = carray(record, 1)[0]
    rows, n = loss.rows, loss.columns
    if n == 0 or rows == 0:
        return
    zs, dzs = carray(pointer(loss.y, like), rows * n), carray(pointer(loss.dy, like), rows * n)
    ts, ls = carray(pointer(loss.target, like), rows * n), carray(pointer(loss.losses, like), rows)
    labels, by_class = carray(void_pointer(loss.labels), rows, np.int64), loss.labels != 0
    ws, weighted = carray(pointer(loss.weights, like), n), loss.weights != 0
    rights, scale = carray(pointer(loss.right, like), rows), real(loss.scale, dzs[0])
    # the parts of the target and of every class in the smoothed target
    own, other = real(1 - loss.parameter, scale), real(loss.parameter / n, scale)
    # the losses' part that is linear in the logits
    for i in range(rows):
        at, largest = i * n, zs[i * n]
        for j in range(n):
            largest = zs[at + j] if zs[at + j] > largest else largest
        for j in range(n):
            dzs[at + j] = zs[at + j] - largest
        ls[i] = real(0, scale)
        if by_class:
            label = labels[i]
            if not 0 <= label < n:
                ls[i] = real(np.nan, scale)
            else:
                ls[i] = -times(own * ws[label] if weighted else own, dzs[at + label])
                if other != 0:
                    for j in range(n):
                        ls[i] -= times(other * ws[j] if weighted else other, dzs[at + j])
        else:
            for j in range(n):
                t = own * ts[at + j] + other
                ls[i] -= times(ws[j] * t if weighted else t, dzs[at + j])
        if loss.right:
            label = labels[i] if by_class else first_largest(ts, at, n)
            known = 0 <= label < n
            is_right = known and dzs[at + label] == 0
            for j in range(label if is_right else 0):
                is_right &= dzs[at + j] != 0
            rights[i] = real(is_right, scale) * (ws[label] if by_class and known and weighted else real(1, scale))
    map_values(vector_math.exp, rows * n, pointer(loss.dy, like), pointer(loss.dy, like), ())
    # the part of the normalisation, and gradients
    for i in range(rows):
        at, weight, total = i * n, real(0, scale), real(0, scale)
        label = labels[i] if by_class else 0
        for j in range(n):
            total += dzs[at + j]
        if by_class and is_ignored(label, loss.ignore_index):
            ls[i] = real(0, scale)
            for j in range(n):
                dzs[at + j] = real(0, scale)
            if loss.right:
                rights[i] = real(0, scale)
            continue
        known = 0 <= label < n
        if by_class:
            weight = (own * ws[label] if weighted else own) if known else real(np.nan, scale)
            if other != 0:
                for j in range(n):
                    weight += other * ws[j] if weighted else other
        else:
            for j in range(n):
                t = own * ts[at + j] + other
                weight += ws[j] * t if weighted else t
        ls[i] += weight * vector_math.log(total)
        if loss.right and ls[i] != ls[i]:
            rights[i] = real(0, scale)
        factor = weight * (scale / total)
        if not by_class:
            for j in range(n):
                t = own * ts[at + j] + other
                dzs[at + j] = dzs[at + j] * factor - (ws[j] * t if weighted else t) * scale
        else:
            for j in range(n):
                dzs[at + j] *= factor
            if other != 0:
                for j in range(n):
                    dzs[at + j] -= (other * ws[j] if weighted else other) * scale
            if known:
                dzs[at + label] -= (own * ws[label] if weighted else own) * scale
    weigh_rows(loss, like)


@inline_function
def binary_cross_entropy_values(loss, n, z, t, losses, dz, scale):
    # rows of `period` columns with weights of their own, or one row without
    weighted, period = loss.weights != 0, loss.columns if loss.weights else n
    for at in range(0, n, period):
        zs, ts = carray(advance(z, at), period), carray(advance(t, at), period)
        ls, dzs = carray(advance(losses, at), period), carray(advance(dz, at), period)
        ps, one = carray(pointer(loss.weights, z), period), real(1, scale)
        for j in range(period):
            p = ps[j] if weighted else one
            # the part that is linear in |z|, without a difference of infinities
            weight = one - ts[j] if zs[j] > real(0, scale) else p * ts[j]
            ls[j] = times(weight, abs(zs[j])) + (one + (p - one) * ts[j]) * vector_math.softplus(-abs(zs[j]))
        for j in range(period):
            p = ps[j] if weighted else one
            dzs[j] = (vector_math.sigmoid(zs[j]) * (one + (p - one) * ts[j]) - p * ts[j]) * scale
    if loss.right:
        zs, ts, ls = carray(z, n), carray(t, n), carray(losses, n)
        rights, columns = carray(pointer(loss.right, z), loss.rows), loss.columns
        for i in range(loss.rows):
            count = real(0, scale)
            for j in range(i * columns, (i + 1) * columns):
                is_right = ls[j] == ls[j] and (zs[j] > real(0, scale)) == (ts[j] > real(0.5, scale))
                count += real(1, scale) if is_right else real(0, scale)
            rights[i] = count


@inline_function
def mse_values(loss, n, y, t, losses, dy, scale):
    ys, ts, ls, dys = carray(y, n), carray(t, n), carray(losses, n), carray(dy, n)
    for j in range(n):
        ls[j] = (ys[j] - ts[j]) * (ys[j] - ts[j])
    for j in range(n):
        dys[j] = real(2, scale) * (ys[j] - ts[j]) * scale


@inline_function
def poisson_nll_values(loss, n, z, t, losses, dz, scale):
    zs, ts, ls, dzs = carray(z, n), carray(t, n), carray(losses, n), carray(dz, n)
    for j in range(n):
        dzs[j] = vector_math.exp(zs[j])
    for j in range(n):
        ls[j] = dzs[j] - times(ts[j], zs[j])
        dzs[j] = (dzs[j] - ts[j]) * scale


@inline_function
def mae_values(loss, n, y, t, losses, dy, scale):
    ys, ts, ls, dys = carray(y, n), carray(t, n), carray(losses, n), carray(dy, n)
    for j in range(n):
        difference = ys[j] - ts[j]
        ls[j] = abs(difference)
        # 0 and NaN are their own sign
        sign = scale if difference > real(0, scale) else difference
        dys[j] = -scale if difference < real(0, scale) else sign


@inline_function
def huber_values(loss, n, y, t, losses, dy, scale):
    ys, ts, ls, dys = carray(y, n), carray(t, n), carray(losses, n), carray(dy, n)
    delta, half = real(loss.parameter, scale), real(0.5, scale)
    for j in range(n):
        difference = ys[j] - ts[j]
        size = abs(difference)
        ls[j] = half * difference * difference if size < delta else delta * (size - half * delta)
        slope = delta if difference > delta else difference
        dys[j] = (-delta if difference < -delta else slope) * scale


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


def elementwise(values):
    """The kernel of a loss that is a function of each value."""

    def loss_values(thread_index, thread_count, record, like):
        loss = carray(record, 1)[0]
        n = loss.rows * loss.columns
        if n:
            y, target = pointer(loss.y, like), pointer(loss.target, like)  # (n,)
            dy, losses = pointer(loss.dy, like), pointer(loss.losses, like)  # (n,)
            values(loss, n, y, target, losses, dy, real(loss.scale, carray(dy, 1)[0]))
        weigh_rows(loss, like)

    loss_values.__name__ = loss_values.__qualname__ = f"{values.__name__}_kernel"
    return kernel(LOSS)(loss_values)


# by code
LOSSES = (
    cross_entropy_kernel,
    *map(elementwise, (binary_cross_entropy_values, mse_values, poisson_nll_values, mae_values, huber_values)),
)


# a loss costs about as much a value as this many multiplications and additions
COST = 32


@device_function
def sum_of_weights(labels, order, first, n, row_weights, weights, ignore_index):
    """The sum of n rows' weights in the mean. labels: address of those of all rows, or 0; order, row_weights, weights: arrays, or empty."""
    if len(row_weights) == 0 and not (labels and (len(weights) or ignore_index != types.NO_LABEL)):
        return np.float64(n)
    all_labels, total_weight = carray(void_pointer(labels), 1, np.int64), 0.0
    for i in range(first, first + n):
        row, weight = order[i] if len(order) else i, 1.0
        if len(row_weights):
            weight *= row_weights[row]
        if labels:
            label = all_labels[row]
            if is_ignored(label, ignore_index):
                continue
            if 0 <= label < len(weights):
                weight *= weights[label]
        total_weight += weight
    return total_weight


@device_function
def mean_scale(weight, columns):
    """1 / count of the values in a mean, 0 of none."""
    return 1 / (weight * columns) if weight * columns else 0.0


@driver
def _loss_gradient(launcher, thread_count, part, record, order, row_weights, weights, mean, losses, right, sums):
    """sums (3,) are written; losses and right are those whose addresses the record has."""
    loss = carray(void_pointer(address(record)), 1, LOSS)[0]
    sums[1] = sum_of_weights(loss.labels, order, 0, loss.rows, row_weights, weights, loss.ignore_index)
    loss.scale = mean_scale(sums[1], loss.losses_of_row) if mean else 1.0
    run_kernel(launcher, part, thread_count, record, ())
    sums[0] = total(data(losses), losses.size) * loss.scale
    sums[2] = total(data(right), right.size) / max(loss.losses_of_row, 1)


_NO_ORDER = np.empty(0, np.int64)


def loss_gradient(y, target, loss, losses, dy, *, row_weights=None, mean=True):
    """losses (N,) of cross_entropy or (N, K), and dy (N, K) are written; target int64 (N,) or of y's dtype (N, K).

    Returns (3,), float64: the mean or the sum of the losses, the sum of the rows' weights, and that of the right rows.
    """
    code, parameter, weights, ignore_index = loss
    rows, columns = y.shape
    y, target = np.ascontiguousarray(y), np.ascontiguousarray(target)
    if not columns:
        # kernels write nothing then
        losses[...] = 0
    outputs = [a if _takes_values(a, y, target) else np.empty(a.shape, a.dtype) for a in (losses, dy)]
    row_weights, weights = or_empty(y.dtype, 1, row_weights, weights)
    right, sums = np.zeros(rows, y.dtype), np.empty(3)
    record = np.zeros(1, LOSS)
    record[0] = (
        LOSSES[code].address(y.dtype), rows, columns, 1 if loss.by_row else columns, y.itemsize,
        address_of(y.reshape(-1)), address_of(target.reshape(-1)) if target.dtype == np.int64 else 0,
        *(address_of(a.reshape(-1)) for a in (target, *outputs, right)),
        *(address_of(a) if a.size else 0 for a in (row_weights, _NO_ORDER, weights)), ignore_index, 1.0, parameter,
    )  # fmt: skip
    run(
        COST * y.size, _loss_gradient, loss_part.address(y.dtype), record.view(np.int64), _NO_ORDER, row_weights, weights, mean,
        outputs[0].reshape(-1), right, sums,
    )  # fmt: skip
    for array, values in zip((losses, dy), outputs, strict=True):
        if values is not array:
            array[...] = values
    return sums


def _takes_values(output, y, target):
    """Whether kernels may write an output where it lies: row after row, and not over what they read."""
    return output.flags.carray and not (np.may_share_memory(output, y) or np.may_share_memory(output, target))
