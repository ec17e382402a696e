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
    address_or_null,
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
from .engine.object_memory import address_of
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
    part.weights, part.ignore_index = loss.weights, loss.ignore_index
    part.scale, part.parameter = loss.scale, loss.parameter


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


@inline_function
def smoothed(t, own, other, ws, weighted, j):
    """The probability t of class j after smoothing, times the class's weight."""
    smooth = own * t + other
    return ws[j] * smooth if weighted else smooth


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
    plain = not weighted and other == 0
    # the losses' part that is linear in the logits
    for i in range(rows):
        at, largest, cost = i * n, zs[i * n], real(0, scale)
        for j in range(n):
            largest = zs[at + j] if zs[at + j] > largest else largest
        for j in range(n):
            dzs[at + j] = zs[at + j] - largest
        label = labels[i] if by_class else 0
        known = 0 <= label < n
        if by_class:
            cost = -times(own * ws[label] if weighted else own, dzs[at + label]) if known else real(np.nan, scale)
            if other != 0:
                for j in range(n):
                    cost -= times(other * ws[j] if weighted else other, dzs[at + j])
        elif plain:
            for j in range(n):
                cost -= times(ts[at + j], dzs[at + j])
        else:
            for j in range(n):
                cost -= times(smoothed(ts[at + j], own, other, ws, weighted, j), dzs[at + j])
        ls[i] = cost
        if loss.right:
            if not by_class:
                # column of the first of the largest logits, n where there is a NaN
                label = 0
                while label < n and dzs[at + label] != 0:
                    label += 1
            is_right = 0 <= label < n and dzs[at + label] == 0
            for j in range(label if is_right else 0):
                is_right &= dzs[at + j] != 0 if by_class else ts[at + j] < ts[at + label]
            for j in range(n if is_right and not by_class else 0):
                is_right &= ts[at + j] <= ts[at + label]
            rights[i] = real(is_right, scale) * (ws[label] if by_class and known and weighted else real(1, scale))
    map_values(vector_math.exp, rows * n, pointer(loss.dy, like), pointer(loss.dy, like), ())
    # the part of the normalisation, and gradients
    for i in range(rows):
        at, weight, total = i * n, real(0, scale), real(0, scale)
        label = labels[i] if by_class else 0
        if by_class and is_ignored(label, loss.ignore_index):
            ls[i] = real(0, scale)
            for j in range(n):
                dzs[at + j] = real(0, scale)
            if loss.right:
                rights[i] = real(0, scale)
            continue
        for j in range(n):
            total += dzs[at + j]
        known = 0 <= label < n
        if by_class:
            weight = (own * ws[label] if weighted else own) if known else real(np.nan, scale)
            if other != 0:
                for j in range(n):
                    weight += other * ws[j] if weighted else other
        elif plain:
            for j in range(n):
                weight += ts[at + j]
        else:
            for j in range(n):
                weight += smoothed(ts[at + j], own, other, ws, weighted, j)
        ls[i] += weight * vector_math.log(total)
        if loss.right and ls[i] != ls[i]:
            rights[i] = real(0, scale)
        factor = weight * (scale / total)
        if by_class:
            for j in range(n):
                dzs[at + j] *= factor
            if other != 0:
                for j in range(n):
                    dzs[at + j] -= (other * ws[j] if weighted else other) * scale
            if known:
                dzs[at + label] -= (own * ws[label] if weighted else own) * scale
        elif plain:
            for j in range(n):
                dzs[at + j] = dzs[at + j] * factor - ts[at + j] * scale
        else:
            for j in range(n):
                dzs[at + j] = dzs[at + j] * factor - smoothed(ts[at + j], own, other, ws, weighted, j) * scale
    weigh_rows(loss, like)


@inline_function
def binary_cross_entropy_values(loss, n, z, t, losses, dz, scale):
    zs, ts, ls, dzs, one = carray(z, n), carray(t, n), carray(losses, n), carray(dz, n), real(1, scale)
    columns = loss.columns
    # the part that is linear in |z|, without a difference of infinities
    if loss.weights:
        ps = carray(pointer(loss.weights, z), columns)
        for at in range(0, n, columns):
            for j in range(columns):
                i, p = at + j, ps[j]
                weight, rest = one - ts[i] if zs[i] > real(0, scale) else p * ts[i], one + (p - one) * ts[i]
                ls[i] = times(weight, abs(zs[i])) + rest * vector_math.softplus(-abs(zs[i]))
            for j in range(columns):
                i, p = at + j, ps[j]
                dzs[i] = (vector_math.sigmoid(zs[i]) * (one + (p - one) * ts[i]) - p * ts[i]) * scale
    else:
        for i in range(n):
            weight = one - ts[i] if zs[i] > real(0, scale) else ts[i]
            ls[i] = times(weight, abs(zs[i])) + vector_math.softplus(-abs(zs[i]))
        for i in range(n):
            dzs[i] = (vector_math.sigmoid(zs[i]) - ts[i]) * scale
    if loss.right:
        rights = carray(pointer(loss.right, z), loss.rows)
        for i in range(loss.rows):
            count = 0
            for j in range(i * columns, (i + 1) * columns):
                count += (ls[j] == ls[j]) & ((zs[j] > real(0, scale)) == (ts[j] > real(0.5, scale)))
            rights[i] = real(count, scale)


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


_NO_ORDER = np.empty(0, np.int64)


@device_function
def sum_of_weights(loss, labels, order, first, n, like):
    """The sum of n rows' weights in the mean. labels: address of those of all rows, or 0; order: an array, or empty; like: of y's dtype."""
    has_rows = loss.row_weights != 0
    by_class = labels != 0 and (loss.weights != 0 or loss.ignore_index != types.NO_LABEL)
    if not (has_rows or by_class):
        return np.float64(n)
    all_labels, total_weight = carray(void_pointer(labels), 1, np.int64), 0.0
    weights = carray(pointer(loss.weights, data(like)), loss.columns)
    row_weights = carray(pointer(loss.row_weights, data(like)), 1)
    for i in range(first, first + n):
        row, weight = order[i] if len(order) else i, 1.0
        if has_rows:
            weight *= row_weights[row]
        if by_class:
            label = all_labels[row]
            if is_ignored(label, loss.ignore_index):
                continue
            if loss.weights != 0 and 0 <= label < loss.columns:
                weight *= weights[label]
        total_weight += weight
    return total_weight


@device_function
def mean_scale(weight, columns):
    """1 / count of the values in a mean, 0 of none."""
    return 1 / (weight * columns) if weight * columns else 0.0


@driver
def _loss_gradient(
    launcher, thread_count, kernels, rows, columns, losses_of_row, y, labels, target, losses, dy, right, row_weights, weights,
    ignore_index, parameter, mean, sums,
):  # fmt: skip
    """losses, dy, right and sums (3,) are written. kernels: addresses of loss_part and of the loss's; y, labels, target: addresses."""
    record = local_zeros(1, LOSS)
    loss = record[0]
    loss.kernel, loss.itemsize = kernels[1], dy.itemsize
    loss.rows, loss.columns, loss.losses_of_row = rows, columns, losses_of_row
    loss.y, loss.labels, loss.target, loss.dy = y, labels, target, address(dy)
    loss.losses, loss.right = address(losses), address_or_null(right)
    loss.row_weights, loss.weights = address_or_null(row_weights), address_or_null(weights)
    loss.ignore_index, loss.parameter = ignore_index, parameter
    sums[1] = sum_of_weights(loss, labels, _NO_ORDER, 0, rows, dy)
    loss.scale = mean_scale(sums[1], losses_of_row) if mean else 1.0
    run_kernel(launcher, kernels[0], thread_count, record, ())
    sums[0] = total(data(losses), losses.size) * loss.scale
    sums[2] = total(data(right), right.size) / max(losses_of_row, 1)


def loss_gradient(y, target, loss, losses, dy, *, row_weights=None, mean=True):
    """losses (N,) of cross_entropy or (N, K), and dy (N, K) are written; target int64 (N,) or of y's dtype (N, K). What is written
    overlaps nothing that is read.

    Returns (3,), float64: the mean or the sum of the losses, the sum of the rows' weights, and that of the right rows.
    """
    code, parameter, weights, ignore_index = loss
    rows, columns = y.shape
    y, target = np.ascontiguousarray(y), np.ascontiguousarray(target)
    if not columns:
        # kernels write nothing then
        losses[...] = 0
    # kernels write where arrays lie, one row after the other
    outputs = [a if a.flags.carray else np.zeros(a.shape, a.dtype) for a in (losses, dy)]
    row_weights, weights = or_empty(y.dtype, 1, row_weights, weights)
    right, sums, of_target = np.zeros(rows, y.dtype), np.empty(3), address_of(target.reshape(-1))
    run(
        COST * y.size, _loss_gradient, (loss_part.address(y.dtype), LOSSES[code].address(y.dtype)), rows, columns,
        1 if loss.by_row else columns, address_of(y.reshape(-1)), of_target if target.dtype == np.int64 else 0, of_target,
        outputs[0].reshape(-1), outputs[1].reshape(-1), right, row_weights, weights, ignore_index, parameter, mean, sums,
    )  # fmt: skip
    for array, values in zip((losses, dy), outputs, strict=True):
        if values is not array:
            array[...] = values
    return sums
