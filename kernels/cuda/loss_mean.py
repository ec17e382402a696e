"""The weights of a mean of losses, and its sums, in float64 on the device; formulas: kernels/reference/loss.py."""

import math

from numba import cuda, float64

from .. import types
from .engine import device
from .engine.device import (
    BLOCK,
    Integer,
    Integers,
    Real,
    Values,
    Wide,
    WideNumber,
    blocks,
    device_function,
    flat,
    grid_start,
    grid_stride,
    launch,
    wide_kernel,
)
from .engine.reductions import add_down


@device_function
def block_sum(value):
    """The sum over the block's threads."""
    return add_down(cuda.shared.array(BLOCK, float64), value, 1)


@wide_kernel
def row_counts(
    dtype: Real, rows: Integer, columns: Integer, ignore_index: Integer, by_class: Integer, has_weights: Integer,
    has_row_weights: Integer, labels: Integers, weights: Values, row_weights: Values, partials: Wide,
):  # fmt: skip
    """Sums by block of the weights that rows have in the mean."""
    total = 0.0
    for row in range(grid_start(), rows, grid_stride()):
        weight = float64(row_weights[row]) if has_row_weights else 1.0
        if by_class:
            label = labels[row]
            if label == ignore_index:
                weight = 0.0
            elif has_weights and label >= 0 and label < columns:
                weight *= float64(weights[label])
        total += weight
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        partials[cuda.blockIdx.x] = total


@device_function
def scale_of(count, columns):
    """1 / (count columns), 0 where the rows of the mean have no weight."""
    return 1.0 / (count * columns) if count * columns != 0.0 else 0.0


@wide_kernel
def mean_scales(dtype: Real, n: Integer, columns: Integer, partials: Wide, count: Wide, scale: Values):
    """count (1,) of parts (n,), and the scale (1,) of the gradients of a mean over so many columns of it, by one block."""
    total = 0.0
    for i in range(cuda.threadIdx.x, n, BLOCK):
        total += partials[i]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        count[0] = total
        scale[0] = dtype(scale_of(total, float64(columns)))


@wide_kernel
def loss_sums(
    dtype: Real, blocks: Integer, columns: Integer, mean: Integer, has_count: Integer, rows: WideNumber, scale: WideNumber, count: Wide,
    partials: Wide, before: Integers, status: Integers, record: Wide, sums: Wide,
):  # fmt: skip
    """sums (3,), as loss_gradient returns them, of partials (2, blocks); status: that before, or BAD_LABEL, which a loss of -inf
    stands for; and record[0], the loss, where that is OK."""
    cost, right = 0.0, 0.0
    for i in range(cuda.threadIdx.x, blocks, BLOCK):
        cost += partials[i]
        right += partials[blocks + i]
    cost = block_sum(cost)
    right = block_sum(right)
    if cuda.threadIdx.x == 0:
        outcome = before[0]
        if outcome == types.OK and cost == -math.inf:
            outcome = types.BAD_LABEL
        status[0] = outcome
        if mean:
            cost *= scale_of(count[0], float64(columns)) if has_count else scale
        sums[0], sums[1] = cost, count[0] if has_count else rows
        sums[2] = right / float64(columns)
        if outcome == types.OK:
            record[0] = cost


def mean_weight(target, loss, columns, row_weights, weights, values, dtype):
    """The sum of the rows' weights in the mean and the scale of its gradients, both (1,) on the device; (None, None) where the weight is
    the number of rows."""
    by_class = target.ndim == 1
    labels = target if by_class and (weights is not None or loss.ignore_index != types.NO_LABEL) else None
    if labels is None and row_weights is None:
        return None, None
    rows, xp = len(target), device.xp
    partials, of_class = xp.empty(blocks(rows)), weights if by_class else None
    flags = labels is not None, of_class is not None, row_weights is not None
    launch(
        row_counts, dtype, partials.size, rows, columns, loss.ignore_index, *flags, flat(labels), of_class, row_weights, partials
    )  # fmt: skip
    count, scale = xp.empty(1), xp.empty(1, dtype)
    launch(mean_scales, dtype, 1, partials.size, values, partials, count, scale)
    return count, scale
