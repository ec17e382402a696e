"""Losses and their gradients, and the sums of a mean in float64; formulas: kernels/reference/loss.py.

Two launches: one writes losses and gradients, and two sums for each block; the other adds those sums (loss_mean.py). The sums stay on the
device, so only a caller that reads their values waits. Where the mean is over weights, two launches before these add them up.
cross_entropy reads logits, and target probabilities, twice: once for the largest logit and the sum of exponentials together, as softmax
does, and once to write.
"""

import math

import numpy as np
from numba import cuda, float64

from .. import types
from .activation import sigmoid, softplus
from .engine import device
from .engine.device import (
    BLOCK,
    Integer,
    Integers,
    Number,
    Real,
    Values,
    Wide,
    blocks,
    device_function,
    flat,
    grid_start,
    grid_stride,
    launch,
    real,
    wide_kernel,
    written,
)
from .engine.reductions import add_across, larger, largest_across, tile_width
from .loss_mean import block_sum, loss_sums, mean_weight


@device_function
def write_block_sums(cost, right, partials):
    """Write the sums over the block's threads to its elements of partials (2, blocks)."""
    total = block_sum(cost)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total
    total = block_sum(right)
    if cuda.threadIdx.x == 0:
        partials[cuda.gridDim.x + cuda.blockIdx.x] = total


@wide_kernel
def cross_entropy_rows(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, ignore_index: Integer, by_class: Integer, has_weights: Integer,
    has_row_weights: Integer, has_scale: Integer, own: Number, other: Number, scale: Number, logits: Values, labels: Integers,
    targets: Values, weights: Values, row_weights: Values, mean_scale: Values, losses: Values, dlogits: Values, partials: Wide,
):  # fmt: skip
    """A row by `width` threads side by side. labels (rows,) with by_class, else targets (rows, columns). own, other: the parts of the
    target and of every class in the smoothed target."""
    shared = cuda.shared.array(BLOCK, dtype)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    end = columns if row < rows else 0
    label = labels[row] if by_class and end > 0 else -1
    is_ignored = by_class and label == ignore_index and label != types.NO_LABEL
    # of no class: the gradient becomes NaN, so that no update is made of it
    bad_label = by_class and not is_ignored and (label < 0 or label >= columns)
    # of no column where there is no label, or a bad one; columns are int32, which takes one register, not two
    own_column = np.int32(label) if 0 <= label < columns else np.int32(-1)
    largest, total, weight = dtype(-math.inf), dtype(0), dtype(0)
    largest_target = dtype(-math.inf)
    for column in range(np.int32(lane), np.int32(end), np.int32(width)):
        at = row * columns + column
        value = logits[at]
        last_largest = largest
        largest = larger(value, largest)
        if largest > last_largest:
            total = total * math.exp(last_largest - largest) + dtype(1)
        elif value > dtype(-math.inf):
            total += math.exp(value - largest)
        target = (dtype(1) if column == own_column else dtype(0)) if by_class else targets[at]
        largest_target = target if target > largest_target else largest_target
        target = own * target + other
        weight += weights[column] * target if has_weights else target
    row_largest = largest_across(shared, largest, width)
    total = add_across(shared, total * math.exp(largest - row_largest) if total > dtype(0) else total, width)
    weight = add_across(shared, weight, width)
    row_target = largest_across(shared, largest_target, width)
    # columns of the first largest logit and target
    first, first_target = np.int32(columns), np.int32(columns)
    if bad_label:
        weight = dtype(math.nan)
    factor = mean_scale[0] if has_scale else scale
    if has_row_weights and end > 0:
        factor *= row_weights[row]
    cost = weight * math.log(total) if lane == 0 and end > 0 else dtype(0)
    for column in range(np.int32(lane), np.int32(end), np.int32(width)):
        at = row * columns + column
        shifted = logits[at] - row_largest
        target = (dtype(1) if column == own_column else dtype(0)) if by_class else targets[at]
        if shifted == dtype(0):
            first = min(first, column)
        if target == row_target:
            first_target = min(first_target, column)
        target = own * target + other
        if has_weights:
            target = weights[column] * target
        slope = (math.exp(shifted) / total * weight - target) * factor
        dlogits[at] = dtype(0) if is_ignored else slope
        cost -= times(target, shifted)
    cost = add_across(shared, cost, width)
    is_right = largest_across(shared, -dtype(first), width) == largest_across(shared, -dtype(first_target), width)
    is_writer, right = lane == 0 and end > 0, 0.0
    if is_writer:
        # read again, which takes fewer registers than to keep it
        row_weight = row_weights[row] if has_row_weights else dtype(1)
        cost = dtype(0) if is_ignored else cost * row_weight
        if cost == cost and is_right and not is_ignored and not bad_label:
            right = float64(row_weight * weights[own_column] if by_class and has_weights else row_weight)
        if bad_label:
            # which is no cost of any class
            cost = dtype(-math.inf)
        losses[row] = cost
    write_block_sums(float64(cost) if is_writer else 0.0, right, partials)


@wide_kernel
def loss_values(
    dtype: Real, n: Integer, columns: Integer, loss: Integer, has_weights: Integer, has_row_weights: Integer, has_scale: Integer,
    parameter: Number, scale: Number, y: Values, targets: Values, weights: Values, row_weights: Values, mean_scale: Values,
    losses: Values, dy: Values, partials: Wide,
):  # fmt: skip
    """Losses of single values: all but cross_entropy."""
    total, right = 0.0, 0.0
    value_scale = mean_scale[0] if has_scale else scale
    for i in range(grid_start(), n, grid_stride()):
        z, t = y[i], targets[i]
        is_right = False
        if loss == types.MSE:
            cost, slope = (z - t) * (z - t), dtype(2) * (z - t)
        elif loss == types.POISSON_NLL:
            rate = math.exp(z)
            cost, slope = rate - times(t, z), rate - t
        elif loss == types.MAE:
            cost, slope = abs(z - t), sign(z - t)
        elif loss == types.HUBER:
            cost, slope = huber_cost(z - t, parameter), huber_slope(z - t, parameter)
        else:
            weight = weights[i % columns] if has_weights else dtype(1)
            cost, slope = binary_cost(z, t, weight), sigmoid(z) * (dtype(1) + (weight - dtype(1)) * t) - weight * t
            is_right = cost == cost and (z > dtype(0)) == (t > dtype(0.5))
        factor = row_weights[i // columns] if has_row_weights else dtype(1)
        losses[i] = cost * factor
        dy[i] = slope * value_scale * factor
        total += float64(cost * factor)
        right += float64(factor) if is_right else 0.0
    write_block_sums(total, right, partials)


@device_function
def times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return real(0, t) if t == real(0, t) and abs(log_p) == real(math.inf, t) else t * log_p


@device_function
def binary_cost(z, t, weight):
    """-weight t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z))."""
    one = real(1, t)
    linear = times(one - t if z > real(0, z) else weight * t, abs(z))
    return linear + (one + (weight - one) * t) * softplus(-abs(z))


@device_function
def sign(value):
    """-1, 0 or 1; NaN of NaN."""
    return real(1, value) if value > real(0, value) else (real(-1, value) if value < real(0, value) else value)


@device_function
def huber_cost(difference, delta):
    size, half = abs(difference), real(0.5, delta)
    return half * difference * difference if size < delta else delta * (size - half * delta)


@device_function
def huber_slope(difference, delta):
    return delta if difference > delta else (-delta if difference < -delta else difference)


def write_loss(y, target, loss, losses, dy, row_weights, *, mean, before, status, record, sums):
    """loss_gradient, which writes sums (3,), status and record[0] as loss_sums has them. Returns the weight of mean_weight, or None."""
    rows, columns = y.shape
    values, dtype = 1 if loss.by_row else columns, y.dtype
    row_weights, weights, target = flat(row_weights), flat(loss.weights), flat(target)
    count, mean_scale = mean_weight(target, loss, columns, row_weights, weights, values, dtype)
    scale = 1 / (rows * values) if mean and rows * values else 1.0
    # the gradients of a sum need no count
    mean_scale = mean_scale if mean else None
    flags = weights is not None, row_weights is not None, mean_scale is not None
    with written(losses) as costs, written(dy) as gradient:
        if loss.by_row:
            width, by_class = tile_width(columns), target.ndim == 1
            grid = -(-rows // (BLOCK // width))
            partials = device.xp.empty((2, grid))
            # the kernel adds up smoothed targets of at least one class
            smoothing = 1 - loss.parameter, loss.parameter / max(columns, 1)
            launch(
                cross_entropy_rows, dtype, grid, rows, columns, width, loss.ignore_index, by_class, *flags, *smoothing, scale, flat(y),
                target if by_class else None, None if by_class else target, weights, row_weights, mean_scale, costs, gradient, partials,
            )  # fmt: skip
        else:
            grid = blocks(y.size)
            partials = device.xp.empty((2, grid))
            launch(
                loss_values, dtype, grid, y.size, columns, loss.code, *flags, loss.parameter, scale, flat(y), target, weights, row_weights,
                mean_scale, costs, gradient, partials,
            )  # fmt: skip
    launch(
        loss_sums, dtype, 1, grid, max(values, 1), mean, count is not None, rows, scale, count, partials, before, status, record, sums
    )  # fmt: skip
    return count


def loss_gradient(y, target, loss, losses, dy, *, row_weights=None, mean=True):
    """losses (N,) of cross_entropy or (N, K), and dy (N, K) are written; target int64 (N,) or of y's dtype (N, K).

    Returns (3,), float64, on the device: the mean or the sum of the losses, the sum of the rows' weights, and that of the right rows.
    """
    xp, sums = device.xp, device.xp.zeros(3)
    before, status = xp.zeros(1, np.int64), xp.empty(1, np.int64)
    write_loss(
        y, target, loss, losses, dy, row_weights, mean=mean, before=before, status=status, record=sums, sums=sums
    )
    return sums
