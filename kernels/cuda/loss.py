"""Losses and their gradients times `scale`, and the sum of the losses in float64; formulas: kernels/reference/loss.py.

Two launches: one writes losses and gradients, and a sum for each block; the other adds those sums. The total stays on the device as a 0-d
array, so only a caller that reads its value waits. cross_entropy reads logits, and target probabilities, twice: once for the largest logit
and the sum of exponentials together, as softmax does, and once to write.
"""

import math

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
from .engine.reductions import add_across, add_down, larger, largest_across, tile_width, total_of


@device_function
def write_block_sum(value, partials):
    """Write the sum over the block's threads to its element of partials."""
    total = add_down(cuda.shared.array(BLOCK, float64), value, 1)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@wide_kernel
def cross_entropy_rows(
    dtype: Real, rows: Integer, columns: Integer, width: Integer, by_class: Integer, scale: Number,
    logits: Values, labels: Integers, targets: Values, losses: Values, dlogits: Values, partials: Wide,
):  # fmt: skip
    """A row by `width` threads side by side. labels (rows,) with by_class, else targets (rows, columns)."""
    shared = cuda.shared.array(BLOCK, dtype)
    lane = cuda.threadIdx.x & (width - 1)
    row = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    end = columns if row < rows else 0
    largest, total, weight = dtype(-math.inf), dtype(0), dtype(0)
    for column in range(lane, end, width):
        value = logits[row * columns + column]
        last_largest = largest
        largest = larger(value, largest)
        if largest > last_largest:
            total = total * math.exp(last_largest - largest) + dtype(1)
        elif value > dtype(-math.inf):
            total += math.exp(value - largest)
        if not by_class:
            weight += targets[row * columns + column]
    row_largest = largest_across(shared, largest, width)
    total = add_across(shared, total * math.exp(largest - row_largest) if total > dtype(0) else total, width)
    weight = dtype(1) if by_class else add_across(shared, weight, width)
    label = labels[row] if by_class and end > 0 else -1
    # of no class: the gradient becomes NaN, so that no update is made of it
    bad_label = by_class and (label < 0 or label >= columns)
    cost = dtype(0)
    for column in range(lane, end, width):
        at = row * columns + column
        shifted = logits[at] - row_largest
        target = (dtype(1) if column == label else dtype(0)) if by_class else targets[at]
        if bad_label:
            target = dtype(math.nan)
        dlogits[at] = (math.exp(shifted) / total * weight - target) * scale
        cost -= times(target, shifted)
    cost = add_across(shared, cost, width)
    is_writer = lane == 0 and end > 0
    if is_writer:
        cost += weight * math.log(total)
        if bad_label:
            # which is no cost of any class
            cost = dtype(-math.inf)
        losses[row] = cost
    write_block_sum(float64(cost) if is_writer else 0.0, partials)


@wide_kernel
def loss_values(
    dtype: Real, n: Integer, loss: Integer, scale: Number,
    y: Values, targets: Values, losses: Values, dy: Values, partials: Wide,
):  # fmt: skip
    """Losses of single values: mse, poisson_nll and binary_cross_entropy."""
    total = 0.0
    for i in range(grid_start(), n, grid_stride()):
        z, t = y[i], targets[i]
        if loss == types.MSE:
            cost, slope = (z - t) * (z - t), dtype(2) * (z - t)
        elif loss == types.POISSON_NLL:
            rate = math.exp(z)
            cost, slope = rate - times(t, z), rate - t
        else:
            cost, slope = binary_cost(z, t), sigmoid(z) - t
        losses[i] = cost
        dy[i] = slope * scale
        total += float64(cost)
    write_block_sum(total, partials)


@device_function
def times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return real(0, t) if t == real(0, t) and abs(log_p) == real(math.inf, t) else t * log_p


@device_function
def binary_cost(z, t):
    """-t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z))."""
    return times(real(1, t) - t if z > real(0, z) else t, abs(z)) + softplus(-abs(z))


def class_losses(logits, labels, losses, dlogits, scale):
    """cross_entropy, which returns the sums by block; -inf for a block with a label that is no class."""
    rows, columns = logits.shape
    width = tile_width(columns)
    grid, by_class = -(-rows // (BLOCK // width)), labels.ndim == 1
    partials = device.xp.empty(grid)
    flat_labels = flat(labels)
    targets = (flat_labels, None) if by_class else (None, flat_labels)
    with written(losses) as costs, written(dlogits) as gradient:
        arrays = flat(logits), *targets, costs, gradient, partials
        launch(cross_entropy_rows, logits.dtype, grid, rows, columns, width, by_class, scale, *arrays)
    return partials


def value_losses(loss, y, target, losses, dy, scale):
    """A loss of single values, which returns the sums by block."""
    partials = device.xp.empty(blocks(y.size))
    with written(losses) as costs, written(dy) as gradient:
        launch(
            loss_values, y.dtype, partials.size, y.size, loss, scale, flat(y), flat(target), costs, gradient, partials
        )
    return partials


def cross_entropy(logits, labels, losses, dlogits, scale):
    """losses (N,) and dlogits (N, C) are written; labels int64 (N,) or of the logits' dtype (N, C)."""
    return total_of(class_losses(logits, labels, losses, dlogits, scale), logits.dtype)


def binary_cross_entropy(logits, targets, losses, dlogits, scale):
    """losses and dlogits are written, of the logits' shape."""
    return _elementwise(types.BINARY_CROSS_ENTROPY, logits, targets, losses, dlogits, scale)


def mse(y, target, losses, dy, scale):
    """losses and dy are written, of y's shape."""
    return _elementwise(types.MSE, y, target, losses, dy, scale)


def poisson_nll(z, target, losses, dz, scale):
    """losses and dz are written, of z's shape."""
    return _elementwise(types.POISSON_NLL, z, target, losses, dz, scale)


def _elementwise(loss, y, target, losses, dy, scale):
    return total_of(value_losses(loss, y, target, losses, dy, scale), y.dtype)
