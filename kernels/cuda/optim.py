"""Optimisers over lists of arrays: clipping, weight decay, update, masks and limits in one pass. Formulas: kernels/reference/optim.py.

Launches: square_chunks computes sums of squares of the gradients, for clipping and to bound the update, one for each of at most NORM_BLOCKS
blocks; for very large gradients it also tries the update, and reports one that would turn finite values into infinity or NaN.
update_chunks updates: each of its blocks adds up those sums, in the same order, which costs less than a launch. So a step is two launches
for any number of arrays; it reads gradients twice and the rest once. Constraints on norms take more launches.

The norm stays on the device, and so does the status, which says whether the update was applied.

Each group of arrays with settings of its own has two such launches; all their sums are the norm's. Nothing is launched for frozen arrays.

In a CUDA graph Adam has one more launch: it counts the updates on the device and computes the numbers that depend on the count.
"""

import math
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float64

from .. import types
from .clip import norms_of, scale_arrays
from .engine import device
from .engine.array_table import COLUMNS, OFFSET, chunk_of, flat, offsets_of, table
from .engine.device import (
    BLOCK,
    Arrays,
    Flags,
    Integer,
    Integers,
    Number,
    Real,
    Values,
    Wide,
    WideNumber,
    bounded,
    device_function,
    fetch,
    launch,
    real,
    wide_kernel,
)
from .engine.reductions import add_down

# sums of squares at most: each block of the update reads all of them
NORM_BLOCKS = 512


# of float32 and float64: a value whose square, or which itself, is lost when it is added to the largest one, so that no sum overflows by
# it; and the least normal one
SAFE, LOST, LEAST = (2.0**50, 2.0**484), (2.0**100, 2.0**968), (2.0**-126, 2.0**-1022)
# an update's length over the rate is at most the largest gradient, or where it is divided by a root about this
STEP = 1e4


@bounded
@wide_kernel
def square_chunks(
    dtype: Real, count: Integer, doubtful: Number, clip_norm: Number, code: Integer, rows: Integer, form: Integer, size: Integer,
    decay: Number, shrink: Number, lr: Number, beta1: Number, beta2: Number, rest1: Number, rest2: Number,
    correction: Number, eps: Number, keep1: Number, limit: Number, masked: Integer, captured: Integer, chunks: Integers,
    p: Arrays, x: Arrays, state: Values, masks: Flags, captured_numbers: Values, sums: Wide,
):  # fmt: skip
    """Sums of squares of the gradients by block; -inf where the update would turn finite values into infinity or NaN.

    The update is tried for gradients above `doubtful`. The factor of clipping is not known yet, but no clipped gradient is above clip_norm.
    """
    if captured:
        lr, correction, eps = captured_numbers[0], captured_numbers[1], captured_numbers[2]
    shared, total, sound = cuda.shared.array(BLOCK, float64), 0.0, True
    for chunk in range(cuda.blockIdx.x, count, cuda.gridDim.x):
        a, _, _, _, row, end = chunk_of(chunks, chunk)
        offset = chunks[chunk * COLUMNS + OFFSET]
        while row < end:
            g = x[a][row]
            value = float64(g)
            total += value * value
            at = offset + row
            if abs(g) > doubtful and (not masked or masks[at]):
                old, d = p[a][row], clip_norm if g > clip_norm else -clip_norm if g < -clip_norm else g
                if decay != dtype(0):
                    d += decay * old
                first, second, third = values_at(dtype, rows, size, state, at)
                were_finite = is_finite(old) and is_finite(g)
                were_finite = were_finite and is_finite(first) and is_finite(second) and is_finite(third)
                step, first, second, third = optimizer_step(
                    code, rows, form, d, first, second, third, lr, beta1, beta2, rest1, rest2, correction, eps, keep1
                )
                new = shrink * old - step
                new = limit if new > limit else -limit if new < -limit else new
                are_finite = is_finite(new) and is_finite(first) and is_finite(second) and is_finite(third)
                sound = sound and (are_finite or not were_finite)
            row += BLOCK
    total = add_down(shared, total if sound else -math.inf, 1)
    if cuda.threadIdx.x == 0:
        sums[cuda.blockIdx.x] = total


@device_function
def is_finite(value):
    return abs(value) < real(math.inf, value)


@device_function
def squares_of(shared, block_count, sums):
    """The sum of all blocks' sums of squares, for every thread."""
    total = 0.0
    for i in range(cuda.threadIdx.x, block_count, BLOCK):
        total += sums[i]
    return add_down(shared, total, 1)


@device_function
def values_at(dtype, rows, size, state, at):
    """The three rows of state at an index, 0 for a row that does not exist."""
    first, second, third = dtype(0), dtype(0), dtype(0)
    if rows > 0:
        first = state[at]
    if rows > 1:
        second = state[size + at]
    if rows > 2:
        third = state[2 * size + at]
    return first, second, third


@device_function
def optimizer_step(code, rows, form, d, first, second, third, lr, beta1, beta2, rest1, rest2, correction, eps, keep1):
    """(step, first, second, third): what the update subtracts from a parameter with gradient d, and the new rows of its state."""
    if code == types.ADAM:
        first = beta1 * first + rest1 * d
        second = beta2 * second + rest2 * d * d
        if rows == 3:
            # what is not a number stays in both
            third = third if third >= second or third != third else second
        root = math.sqrt(third if rows == 3 else second)
        return lr * first / (root * correction + eps), first, second, third
    if code != types.SGD:
        # the second moment is the last row
        v = beta2 * (second if rows == 2 else first) + rest2 * d * d
        d = d / (math.sqrt(v + eps) if form else math.sqrt(v) + eps)
        if rows == 2:
            first = beta1 * first + d
            return lr * first, first, v, third
        return lr * d, v, second, third
    if rows:
        # at the first step the velocity is the gradient, whatever the state holds
        first = keep1 * first + d if keep1 != real(0, d) else d
        return lr * (d + beta1 * first if form else first), first, second, third
    return lr * d, first, second, third


@bounded
@wide_kernel
def update_chunks(
    dtype: Real, block_count: Integer, clips: Integer, clip_norm: WideNumber, code: Integer, rows: Integer, form: Integer, size: Integer,
    decay: Number, shrink: Number, lr: Number, beta1: Number, beta2: Number, rest1: Number, rest2: Number,
    correction: Number, eps: Number, keep1: Number, limit: Number, masked: Integer, measured: Integer, has_status: Integer,
    captured: Integer, count: Integer, chunks: Integers,
    p: Arrays, grads: Arrays, state: Values, masks: Flags, sums: Wide, norm: Wide, last_status: Integers, status: Integers,
    changes: Wide, captured_numbers: Values,
):  # fmt: skip
    """The update of each chunk's values, unless the status is not OK; the status and, with clips, the norm."""
    if captured:
        lr, correction, eps = captured_numbers[0], captured_numbers[1], captured_numbers[2]
    squares = squares_of(cuda.shared.array(BLOCK, float64), block_count, sums)
    outcome, is_sound = last_status[0] if has_status else types.OK, squares != -math.inf
    total = math.sqrt(squares) if is_sound else math.inf
    if outcome == types.OK and not (is_sound and (total < math.inf or not clips)):
        outcome = types.NONFINITE
    if cuda.blockIdx.x == 0 and cuda.threadIdx.x == 0:
        if clips:
            norm[0] = total
        status[0] = outcome
    if outcome != types.OK:
        return
    scale = dtype(min(1.0, clip_norm / (total + 1e-6))) if clips else dtype(1)
    if cuda.blockIdx.x >= count:
        # a grid for no values has one block, for the norm
        return
    a, _, _, _, row, end = chunk_of(chunks, cuda.blockIdx.x)
    offset = chunks[cuda.blockIdx.x * COLUMNS + OFFSET]
    change_squares, weight_squares = 0.0, 0.0
    while row < end:
        at, old = offset + row, p[a][row]
        d = grads[a][row] * scale
        if decay != dtype(0):
            d += decay * old
        first, second, third = values_at(dtype, rows, size, state, at)
        step, first, second, third = optimizer_step(
            code, rows, form, d, first, second, third, lr, beta1, beta2, rest1, rest2, correction, eps, keep1
        )
        if rows > 0:
            state[at] = first
        if rows > 1:
            state[size + at] = second
        if rows > 2:
            state[2 * size + at] = third
        value = shrink * old - step
        if masked and not masks[at]:
            # what is pruned stays 0
            value = dtype(0)
            for state_row in range(rows):
                state[state_row * size + at] = dtype(0)
        if measured:
            change = float64(value) - float64(old)
            change_squares += change * change
            weight_squares += float64(old) * float64(old)
        p[a][row] = limit if value > limit else -limit if value < -limit else value
        row += BLOCK
    if measured:
        shared = cuda.shared.array(BLOCK, float64)
        change_squares, weight_squares = add_down(shared, change_squares, 1), add_down(shared, weight_squares, 1)
        if cuda.threadIdx.x == 0:
            changes[2 * cuda.blockIdx.x], changes[2 * cuda.blockIdx.x + 1] = change_squares, weight_squares


@wide_kernel
def add_changes(dtype: Real, chunk_offsets: Integers, changes: Wide, moved: Wide):
    """moved (n, 2) from the chunks' changes: a block for each array."""
    shared, a = cuda.shared.array(BLOCK, float64), cuda.blockIdx.x
    change_squares, weight_squares = 0.0, 0.0
    for chunk in range(chunk_offsets[a] + cuda.threadIdx.x, chunk_offsets[a + 1], BLOCK):
        change_squares += changes[2 * chunk]
        weight_squares += changes[2 * chunk + 1]
    change_squares, weight_squares = add_down(shared, change_squares, 1), add_down(shared, weight_squares, 1)
    if cuda.threadIdx.x == 0:
        moved[2 * a], moved[2 * a + 1] = change_squares, weight_squares


@device_function
def power(base, exponent):
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def bias_correction(form, lr, power1, power2, eps):
    """Adam's lr, correction and eps, from the betas' powers of the step."""
    correction = 1 / math.sqrt(1 - power2)
    # Keras's epsilon hat is beside the uncorrected root
    return lr / (1 - power1), correction, eps * correction if form else eps


bias_correction_device = device_function(bias_correction)


@wide_kernel
def count_update(
    dtype: Real, form: Integer, step: Integer, lr: WideNumber, beta1: WideNumber, beta2: WideNumber, eps: WideNumber, is_last: Integer,
    replays: Integers, numbers: Values,
):  # fmt: skip
    """Compute lr, correction and eps of Adam's update number step + done[0], and with the last group count it in done; by one thread."""
    if cuda.threadIdx.x:
        return
    step += replays[0]
    if is_last:
        replays[0] += 1
    lr, correction, eps = bias_correction_device(form, lr, power(beta1, step), power(beta2, step), eps)
    numbers[0], numbers[1], numbers[2] = dtype(lr), dtype(correction), dtype(eps)


def settings(optimizer, hyper, step):
    """(form, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps, keep1) of update number `step`, worked out in float64.

    hyper (7,): of one group.
    """
    lr, beta1, beta2, eps, weight_decay, form, decoupled = hyper.tolist()
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    rest2, correction = 1 - beta2, 1.0
    if optimizer == types.ADAM:
        lr, correction, eps = bias_correction(form, lr, beta1**step, beta2**step, eps)
    elif optimizer == types.ADAGRAD:
        beta2, rest2 = 1.0, 1.0
    keep1 = 0.0 if step == 1 else beta1
    return int(form), decay, shrink, lr, beta1, beta2, 1 - beta1, rest2, correction, eps, keep1


def doubtful(optimizer, numbers, dtype):
    """The gradient above which the update may turn finite values into infinity or NaN; -1 if any gradient may."""
    k = 0 if dtype == np.float32 else 1
    decay, _, lr, beta1, *_, eps, _ = numbers
    if optimizer != types.SGD and (decay or eps < LEAST[k]):
        return -1.0
    return min(SAFE[k], LOST[k] / lr if lr else math.inf) if beta1 <= 1 and lr * STEP <= LOST[k] else -1.0


def update_arrays(params, grads, rule, step, record, *, moved=None, updates=None, only_if=None):
    """Update number `step` of a list of C-contiguous params from grads of the same shapes, times min(1, clip_norm / (norm + 1e-6)).

    The rule's state (S, P) and masks: the values of all arrays in their order. record (1,) = norm of the grads of all arrays that are not
    frozen; without it nothing is clipped. moved (n, 2), or None: for each array the sum of squares of the change, by the optimiser and
    masks but not by a constraint, and of the values before it. updates (1,), int64, or None: one is added to it with the launch, whatever
    the status. only_if, or None: a status, an array () on the device or an int; where it is not OK nothing is updated, and it is returned.
    Returns OK, or NONFINITE for a norm that is not finite, or for an update that would turn finite values into infinity or NaN, an array ()
    on the device; then nothing is updated.
    """
    xp = device.xp
    norm, status = None if record is None else xp.empty(1), xp.empty(1, np.int64)
    last_status = None if only_if is None else xp.asarray(only_if, np.int64).reshape(1)
    update_all(params, grads, rule, step, norm, status, moved, last_status)
    count(updates, status)
    if record is not None:
        fetch(norm, record)
    return status.reshape(())


def count(updates, status):
    """Add one to updates (1,), unless None. On a GPU whatever the status, since that would need a wait."""
    if updates is not None and not (isinstance(status, np.ndarray) and status.item() != types.OK):
        updates += 1


class Group(NamedTuple):
    """Arrays of one group: which of all they are, and their values, gradients and chunks; form, numbers: see settings; captured_numbers:
    of count_update, or None.
    """

    indices: Any
    values: Any
    grads: Any
    chunks: Any
    form: int
    numbers: Any
    captured_numbers: Any


def groups_of(params, grads, rule, step):
    """A Group for each group that has arrays; one without values if all are frozen."""
    optimizer, state, hyper = rule[:3]
    values, gradients, dtype = [p.reshape(-1) for p in params], flat(grads), params[0].dtype
    if rule.groups is None:
        members = {0: range(len(params))}
    else:
        group_of = on_host(rule.groups).tolist()
        members = {
            g: [a for a, group in enumerate(group_of) if group == g] for g in sorted({*group_of} - {types.FROZEN})
        }
        if not members:
            members, values, gradients = {0: [0]}, [values[0][:0]], [gradients[0][:0]]
    offsets, rows, groups = offsets_of([p.size for p in params]), hyper.reshape(-1, 7), []
    captured = device.update_count(state, step) if optimizer == types.ADAM else None
    for number, indices in members.items():
        form, *numbers = settings(optimizer, rows[number], step)
        captured_numbers = None
        if captured:
            # each replay of a graph is an update of its own; momentum's first update comes before, when the graph is recorded
            first_step, replays = captured
            captured_numbers, is_last = device.xp.empty(3, dtype), len(groups) == len(members) - 1
            launch(
                count_update, dtype, 1, form, first_step, *rows[number].tolist()[:4], is_last, replays, captured_numbers
            )
        p, g = ([arrays[a] for a in indices] for arrays in (values, gradients))
        chunks = table(p, None, tuple(offsets[a] for a in indices))
        groups.append(Group(indices, p, g, chunks, form, numbers, captured_numbers))
    return groups


def update_all(params, grads, rule, step, norm, status, moved=None, last_status=None):
    """update_arrays with norm (1,) and status (1,) on the device; where last_status (1,) is not OK, it is the status."""
    optimizer, state, _, clip_norm, masks, constraint, _ = rule
    xp, dtype, groups = device.xp, params[0].dtype, groups_of(params, grads, rule, step)
    clips = norm is not None
    limit = constraint.limit if constraint is not None and constraint.kind == types.MAX_VALUE else math.inf
    flags = None if masks is None else masks.view("u1")
    # blocks of sums before each group's
    most = max(NORM_BLOCKS // len(groups), 1)
    firsts = [0, *accumulate(min(max(group.chunks.count, 1), most) for group in groups)]
    sums = xp.empty(firsts[-1])
    for group, (first, last) in zip(groups, pairwise(firsts), strict=True):
        _, values, gradients, chunks, form, numbers, captured_numbers = group
        launch(
            square_chunks, dtype, last - first, chunks.count, doubtful(optimizer, numbers, dtype), clip_norm, optimizer,
            len(state), form, state.shape[1], *numbers, limit, masks is not None, captured_numbers is not None, chunks.chunks,
            values, gradients, state, flags, captured_numbers, sums[first:last],
        )  # fmt: skip
    by_array = None if moved is None else unchanged(params, rule.groups)
    for indices, values, gradients, chunks, form, numbers, captured_numbers in groups:
        changes = None if moved is None else xp.zeros(2 * chunks.count)
        launch(
            update_chunks, dtype, max(chunks.count, 1), firsts[-1], clips, clip_norm, optimizer,
            len(state), form, state.shape[1], *numbers, limit, masks is not None, moved is not None, last_status is not None,
            captured_numbers is not None, chunks.count, chunks.chunks, values, gradients, state, flags, sums, norm, last_status, status,
            changes, captured_numbers,
        )  # fmt: skip
        if moved is not None and chunks.count:
            of_group = xp.empty((len(values), 2))
            launch(add_changes, dtype, len(values), chunks.chunk_offsets, changes, of_group)
            for i, a in enumerate(indices):
                by_array[a] = of_group[i]
    if moved is not None:
        fetch(by_array, moved)
    if constraint is not None and constraint.kind != types.MAX_VALUE:
        apply_constraint(params, constraint, status)


def unchanged(params, groups):
    """(n, 2): 0 and, of frozen arrays, the sum of the squares of their values."""
    by_array = device.xp.zeros((len(params), 2))
    frozen = [] if groups is None else np.flatnonzero(on_host(groups) == types.FROZEN).tolist()
    for a in frozen:
        by_array[a, 1] = norms_of([params[a]], None, 2.0)[0] ** 2
    return by_array


def on_host(array):
    return array if type(array) is np.ndarray else array.get()


def apply_constraint(params, constraint, status):
    """Scale updated weights to the limit of a norm. Where a norm is NaN, or the update was not applied, they stay as they are."""
    kind, limit, widths = constraint
    xp = device.xp
    limited_params = [p for p, width in zip(params, widths, strict=True) if width]
    widths = widths[widths > 0]
    norms = norms_of(limited_params, widths, 2.0)
    norms_to_limit = norms_of([norms], None, 2.0) if kind == types.MAX_NORM else norms
    exceeds = (norms_to_limit > limit) & (status == types.OK)
    scales = xp.where(exceeds, limit / xp.where(exceeds, norms_to_limit, 1.0), 1.0)
    scale_arrays(limited_params, widths, xp.broadcast_to(scales, norms.shape).copy())
