"""Optimisers over lists of arrays: norm, clipping, weight decay, update, masks and constraints; formulas: kernels/reference/optim.py.

Passes: one over the gradients for their norm, if it is needed; one over params, grads and state, which clips, decays, updates,
masks and limits. Constraints on norms take one more pass where a norm is above its limit.

An update rule is an inline function of one value; `map_arrays` turns it into a loop, in a kernel of its own, which is compiled at its first
use and called by address for each block of values. The numbers of a rule are computed once a call, in float64: `lr` and `correction` hold
Adam's bias corrections. Adam needs a square root and a division a value, which bound its speed while the arrays are in cache; beyond the
cache memory does, with 28 bytes a float32 value.

An update that would turn finite values into infinity or NaN is not applied. A bound by the gradients' norm rules that out for nearly every
update. Where it cannot, the update runs on copies, which are checked and then copied back: see update_soundly.
"""

import math

import numpy as np
from numba import carray

from .. import types
from .clip import (
    SCALE,
    SQUARE,
    SUMS_AND_FACTORS,
    TINY,
    clamped,
    finish_norms,
    norm_of_norms,
    norms_again,
    norms_part,
    scale_part,
    sum_block,
)
from .engine.array_table import (
    ADDRESS,
    LENGTH,
    PLACE,
    START,
    SUMS,
    UNITS,
    WIDTH,
    block_size,
    first_block,
    next_block,
    previous_block,
    rows_at,
    sums_of,
    table,
)
from .engine.compile import MISSING, Addresses, device_function, driver, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_at,
    address_of,
    address_or_null,
    advance,
    call,
    copy,
    data,
    hide_alias,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import map_arrays, map_values, squares
from .health import CHANGE, sum_moved, update_change

# one update of some values. rows: of state, which are `stride` values apart; keep1: the factor of the momentum, 0 at the first step;
# rest1, rest2: 1 - beta; inside, outside: eps inside and outside the root, one of them 0; decay: of the L2 term; shrink: the factor of a
# parameter by decoupled decay
UPDATE = np.dtype(
    [(name, "i8") for name in "state stride rows optimizer".split()]
    + [(name, "f8") for name in "lr beta1 beta2 keep1 rest1 rest2 correction inside outside nesterov".split()]
    + [(name, "f8") for name in "scale decay shrink".split()]
)
# an update of lists of arrays. params, grads: tables; sums: of grads' squares by block; update: address of an UPDATE, rule: of its kernel;
# masks: of a byte a value, or 0; held_sums, held_counts: of updated values by block, as in clip.py, for a constraint on norms, and
# unit_sums: of the kernel that sums them; moved: (blocks, 2) as in health.py, or 0, and change: of the kernel update_change; room: scratch
# of `longest` values for each part, if moved
ARRAYS = np.dtype(
    [
        (name, "i8")
        for name in "params grads n sums update rule masks kind held_sums held_counts unit_sums moved".split()
    ]
    + [(name, "i8") for name in "change room longest".split()]
    + [("limit", "f8")]
)
# masks and constraint of an update: addresses of masks and of the constraint's widths, or 0; kind and limit of the constraint
HELD = np.dtype([(name, "i8") for name in "masks widths kind".split()] + [("limit", "f8")])
# an update costs about as much a value as this many multiplications and additions
COST = 32
# the square of a larger float64 has not vanished
SMALL = 1e-130
# of float32 and float64: a value whose square, or which itself, is lost when it is added to the largest one, so that no sum overflows by
# it; and the least normal one
SAFE, LOST, LEAST = (2.0**50, 2.0**484), (2.0**100, 2.0**968), (2.0**-126, 2.0**-1022)
# an update's length over the rate is at most the largest gradient, or where it is divided by a root about this
STEP = 1e4


@inline_function
def gradient(g, p, scale, decay):
    """The clipped gradient, with L2 decay where there is any: 0 * p would turn an infinite p into NaN."""
    return g * scale + decay * p if decay != real(0, p) else g * scale


@inline_function
def sgd(p, g, scale, decay, shrink, lr):
    return (shrink * p - lr * gradient(g, p, scale, decay),)


@inline_function
def momentum_sgd(p, g, v, scale, decay, shrink, lr, momentum, keep, nesterov):
    """keep: the factor of the old velocity, 0 at the first step, when the velocity is the gradient."""
    d = gradient(g, p, scale, decay)
    v = keep * v + d if keep != real(0, d) else d
    return shrink * p - lr * (d + momentum * v if nesterov != real(0, d) else v), v


@inline_function
def adam(p, g, m, v, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * m / (np.sqrt(v) * correction + eps), m, v


@inline_function
def amsgrad(p, g, m, v, most, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    # NaN in either stays NaN
    most = most if most >= v or most != most else v
    return shrink * p - lr * m / (np.sqrt(most) * correction + eps), m, v, most


@inline_function
def rmsprop(p, g, v, scale, decay, shrink, lr, beta2, rest2, inside, outside):
    """Adagrad's too, with 1 for beta2 and for rest2."""
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * (d / (np.sqrt(v + inside) + outside)), v


@inline_function
def momentum_rmsprop(p, g, m, v, scale, decay, shrink, lr, beta2, rest2, inside, outside, momentum):
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    m = momentum * m + d / (np.sqrt(v + inside) + outside)
    return shrink * p - lr * m, m, v


# n values and their gradients; state: of its first row; update: address of an UPDATE
BLOCK = np.dtype([(name, "i8") for name in "n params grads state update".split()])


@device_function
def rule_of(record):
    """The UPDATE record of a block."""
    return carray(void_pointer(carray(record, 1)[0].update), 1, UPDATE)[0]


@device_function
def arrays_of(record, like):
    """n; pointers to params, grads and two rows of state; and the numbers that all rules begin with."""
    block, t = carray(record, 1)[0], rule_of(record)
    params, grads, state = pointer(block.params, like), pointer(block.grads, like), pointer(block.state, like)  # (n,)
    one = carray(params, 1)[0]
    numbers = real(t.scale, one), real(t.decay, one), real(t.shrink, one), real(t.lr, one)
    return block.n, (params, grads, state, advance(state, t.stride)), numbers


@kernel(BLOCK)
def sgd_block(_, __, record, like):
    n, (params, grads, _, _), numbers = arrays_of(record, like)
    map_arrays(sgd, n, (params, grads), (params,), numbers)


@kernel(BLOCK)
def momentum_sgd_block(_, __, record, like):
    t, (n, (params, grads, v, _), numbers) = rule_of(record), arrays_of(record, like)
    velocity = real(t.beta1, numbers[0]), real(t.keep1, numbers[0]), real(t.nesterov, numbers[0])
    map_arrays(momentum_sgd, n, (params, grads, v), (params, v), numbers + velocity)


@device_function
def moment_numbers(t, one):
    """What adam and amsgrad take after the numbers of all rules."""
    betas = real(t.beta1, one), real(t.beta2, one), real(t.rest1, one), real(t.rest2, one)
    # numba adds tuples, but cannot unpack one in another
    return betas + (real(t.correction, one), real(t.outside, one))  # noqa: RUF005


@kernel(BLOCK)
def adam_block(_, __, record, like):
    t, (n, (params, grads, m, v), numbers) = rule_of(record), arrays_of(record, like)
    map_arrays(adam, n, (params, grads, m, v), (params, m, v), numbers + moment_numbers(t, numbers[0]))


@kernel(BLOCK)
def amsgrad_block(_, __, record, like):
    t, (n, (params, grads, m, v), numbers) = rule_of(record), arrays_of(record, like)
    most = advance(v, t.stride)
    map_arrays(amsgrad, n, (params, grads, m, v, most), (params, m, v, most), numbers + moment_numbers(t, numbers[0]))


@device_function
def root_numbers(t, one):
    """What rmsprop and momentum_rmsprop take after the numbers of all rules."""
    return real(t.beta2, one), real(t.rest2, one), real(t.inside, one), real(t.outside, one)


@kernel(BLOCK)
def rmsprop_block(_, __, record, like):
    t, (n, (params, grads, v, _), numbers) = rule_of(record), arrays_of(record, like)
    map_arrays(rmsprop, n, (params, grads, v), (params, v), numbers + root_numbers(t, numbers[0]))


@kernel(BLOCK)
def momentum_rmsprop_block(_, __, record, like):
    t, (n, (params, grads, m, v), numbers) = rule_of(record), arrays_of(record, like)
    roots = root_numbers(t, numbers[0]) + (real(t.beta1, numbers[0]),)  # noqa: RUF005
    map_arrays(momentum_rmsprop, n, (params, grads, m, v), (params, m, v), numbers + roots)


def rule_number(optimizer, rows):
    """Which of these kernels an optimiser with so many rows of state has, as a place in UPDATE_KERNELS."""
    if optimizer == types.ADAM:
        return RULES + (2 if rows == 2 else 3)
    if optimizer == types.SGD:
        return RULES + (1 if rows else 0)
    return RULES + (4 if rows == 1 else 5)


# places in UPDATE_KERNELS
BLOCKS, SQUARES, NORMS, SCALES, UNIT_SUMS, CHANGES, RULES = range(7)
rule_place = device_function(rule_number)


@device_function
def describe_update(job, size, state, rows, optimizer, hyper, lr, step, scale):
    """Fill an UPDATE record; lr is the rate of this update, whatever hyper says."""
    t = job[0]
    t.state, t.stride, t.rows = state, size, rows
    t.optimizer, t.scale = optimizer, scale
    beta1, beta2, eps, weight_decay = hyper[1], hyper[2], hyper[3], hyper[4]
    form, decoupled = hyper[5] != 0, hyper[6] != 0
    t.decay = 0.0 if decoupled else weight_decay
    t.shrink = 1 - lr * weight_decay if decoupled else 1.0
    t.lr, t.beta1, t.beta2, t.rest1, t.rest2 = lr, beta1, beta2, 1 - beta1, 1 - beta2
    t.correction, t.inside, t.outside = 1.0, 0.0, eps
    t.keep1, t.nesterov = 0.0 if step == 1 else beta1, form
    if optimizer == types.ADAM:
        t.lr = lr / (1 - beta1**step)
        t.correction = 1 / math.sqrt(1 - beta2**step)
        if form:
            t.outside = eps * t.correction
    else:
        if optimizer == types.ADAGRAD:
            t.beta2, t.rest2 = 1.0, 1.0
        if form:
            t.inside, t.outside = eps, 0.0


@kernel(ARRAYS)
def square_arrays_part(part, parts, job, like):
    """The sum of the squares of each of the part's blocks of gradients."""
    g = carray(job, 1)[0]
    t = rows_at(g.grads, g.n)
    sums = carray(void_pointer(g.sums), t[g.n, SUMS], np.float64)
    lo, hi = thread_range(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        sums[sums_of(t, a, at)] = squares(advance(pointer(t[a, ADDRESS], like), at), block_size(t, a, at))
        a, at = next_block(t, g.n, a, at)


@inline_function
def alive(x, mask):
    """x, or 0 if it is pruned, even if x is NaN."""
    return (x if mask else real(0, x),)


@device_function
def zero_pruned(n, params, row, stride, rows, mask):
    """Make n values that are pruned 0, and their state in every row."""
    map_arrays(alive, n, (hide_alias(params), mask), (params,), ())
    for _ in range(rows):
        map_arrays(alive, n, (hide_alias(row), mask), (row,), ())
        row = advance(row, stride)


# a block of n updated values in units of `width`, for a constraint on norms, and where its sums and its count go
UNITS_BLOCK = np.dtype([(name, "i8") for name in "n params width sums count".split()])


@kernel(UNITS_BLOCK)
def unit_sums(_, __, record, like):
    """The sums of squares of a block of updated values, by unit, and how many are not finite."""
    block, room = carray(record, 1)[0], local(SUMS_AND_FACTORS, np.float64)
    room[:] = 1
    sums = carray(void_pointer(block.sums), block.width, np.float64)
    count = sum_block(SQUARE, 2.0, pointer(block.params, like), block.n, sums, room[:0], room)
    carray(void_pointer(block.count), 1, np.int64)[0] = count


@device_function
def update_block(arrays, block, thread_index, place, like):
    """Update a block of values; and if health asks for it, the sums of its change."""
    if not arrays.moved:
        call(arrays.rule, 0, 1, block)
        return
    before, changes = pointer(arrays.room + 8 * thread_index * arrays.longest, like), local(1, CHANGE)
    copy(block[0].n, pointer(block[0].params, like), before)
    call(arrays.rule, 0, 1, block)
    change = changes[0]
    change.n, change.before, change.after = block[0].n, address_at(before), block[0].params
    change.totals = arrays.moved + 16 * place
    call(arrays.change, 0, 1, changes)


@kernel(ARRAYS)
def update_arrays_part(thread_index, thread_count, record, like):
    """The thread's blocks, from the last, since those read last for the norm are still in cache: update, masks, constraint."""
    arrays, blocks, unit_blocks = carray(record, 1)[0], local(1, BLOCK), local(1, UNITS_BLOCK)
    t, block = carray(void_pointer(arrays.update), 1, UPDATE)[0], blocks[0]
    params, grads, state = rows_at(arrays.params, arrays.n), rows_at(arrays.grads, arrays.n), pointer(t.state, like)
    block.update = arrays.update
    lo, hi = thread_range(thread_index, thread_count, params[arrays.n, START], 64)
    a, at = previous_block(params, *first_block(params, arrays.n, hi))
    while a >= 0 and params[a, START] + at >= lo:
        size, flat, place = block_size(params, a, at), params[a, PLACE] + at, sums_of(params, a, at)
        # the block's values of params, of grads and of the first row of state
        p, row = advance(pointer(params[a, ADDRESS], like), at), advance(state, flat)
        block.n, block.params, block.state = size, address_at(p), address_at(row)
        block.grads = address_at(advance(pointer(grads[a, ADDRESS], like), at))
        update_block(arrays, blocks, thread_index, place, like)
        # masks, and constraints of values; of norms the sums for `project`
        if arrays.masks:
            mask = data(carray(void_pointer(arrays.masks + flat), size, np.uint8))
            zero_pruned(size, p, row, t.stride, t.rows, mask)
        if arrays.kind == types.MAX_VALUE:
            map_values(clamped, size, p, p, (real(arrays.limit, carray(p, 1)[0]),))
        elif arrays.kind != types.FREE:
            units = unit_blocks[0]
            units.n, units.params, units.width = size, address_at(p), params[a, WIDTH]
            units.sums, units.count = arrays.held_sums + 8 * place, arrays.held_counts + 8 * place
            call(arrays.unit_sums, 0, 1, unit_blocks)
        a, at = previous_block(params, a, at)


# no optimizer: a step without its update
NO_UPDATE = -1


@device_function
def lacks_kernels(kernels, optimizer, rows, held, moved):
    """Whether the address of a kernel is missing that an update calls. kernels: as in UPDATE_KERNELS."""
    if optimizer == NO_UPDATE:
        return False
    kind = carray(void_pointer(held), 1, HELD)[0].kind if held else types.FREE
    of_norms = kind == types.MAX_NORM or kind == types.MAX_NORM_EACH
    if of_norms and not (kernels[NORMS] and kernels[SCALES] and kernels[UNIT_SUMS]):
        return True
    if moved and not kernels[CHANGES]:
        return True
    return not (kernels[BLOCKS] and kernels[SQUARES] and kernels[rule_place(optimizer, rows)])


def needed_kernels(rule, moved):
    """Places in UPDATE_KERNELS of those that an update calls."""
    if rule[0] == NO_UPDATE:
        return []
    places, constraint = [BLOCKS, SQUARES, rule_number(rule[0], len(rule[1]))], rule[5]
    if constraint and constraint[0] in (types.MAX_NORM, types.MAX_NORM_EACH):
        places += NORMS, SCALES, UNIT_SUMS
    return [*places, CHANGES] if moved else places


@device_function
def update_all(launcher, parts, kernels, params, grads, n, update, held, moved, totals):
    """The update that a record describes, and its constraint. kernels: as in UPDATE_KERNELS.

    held: address of a HELD, or 0, which Python holds; moved: of sums of health.py by block, or 0; totals: the array that they lie in.
    """
    job, longest = local_zeros(1, ARRAYS), 0
    t = job[0]
    for a in range(n if moved else 0):
        longest = max(longest, params[a, LENGTH])
    room = np.empty(parts * longest)
    t.moved, t.room, t.longest, t.change = moved, address(room), longest, kernels[CHANGES]
    t.params, t.grads, t.n, t.update = address(params), address(grads), n, address(update)
    t.rule, t.unit_sums = kernels[rule_place(update[0].optimizer, update[0].rows)], kernels[UNIT_SUMS]
    if held:
        h = carray(void_pointer(held), 1, HELD)[0]
        t.masks, t.kind, t.limit = h.masks, h.kind, h.limit
        if t.kind == types.MAX_NORM or t.kind == types.MAX_NORM_EACH:
            project(launcher, parts, kernels, params, n, job, room, totals, carray(void_pointer(h.widths), n, np.int64))
            return
    run_kernel(launcher, kernels[BLOCKS], parts, job, (room, totals))


@device_function
def project(launcher, parts, kernels, params, n, job, room, totals, widths):
    """Update, then scale arrays or units whose norm is above the limit. room and totals: as the job has them."""
    limit = job[0].limit
    sums, counts = np.empty(params[n, SUMS]), np.empty(params[n, SUMS], np.int64)
    job[0].held_sums, job[0].held_counts = address(sums), address(counts)
    run_kernel(launcher, kernels[BLOCKS], parts, job, (room, totals, sums, counts))
    norms, scales = np.empty(params[n, UNITS]), np.ones(params[n, UNITS])
    nonfinite, doubtful = np.empty(n, np.int64), np.empty(norms.size, np.bool_)
    # squares that vanish are those of norms that are smaller
    least = TINY if limit < SMALL else 0.0
    if finish_norms(params, n, SQUARE, 2.0, least, sums, counts, norms, nonfinite, doubtful):
        norms_again(launcher, parts, kernels[NORMS], params, n, SQUARE, 2.0, sums, counts, norms, doubtful)
    for a in range(n):
        if widths[a] == 0:
            norms[params[a, UNITS]] = 0
    if job[0].kind == types.MAX_NORM:
        norms[:] = norm_of_norms(norms, 2.0)
    any_larger = False
    for a in range(n):
        for unit in range(params[a, UNITS], params[a + 1, UNITS]):
            if widths[a] and norms[unit] > limit:
                scales[unit] = limit / norms[unit]
                any_larger = True
    if any_larger:
        scale = local(1, SCALE)
        t = scale[0]
        t.table, t.n, t.scales = address(params), n, address(scales)
        run_kernel(launcher, kernels[SCALES], parts, scale, (scales,))


@device_function
def norm_of(launcher, parts, kernel, arrays, n):
    """The norm of all values of a table's arrays. kernel: square_arrays_part."""
    sums, job = np.empty(arrays[n, SUMS]), local_zeros(1, ARRAYS)
    t, squared = job[0], 0.0
    t.grads, t.n, t.sums = address(arrays), n, address(sums)
    run_kernel(launcher, kernel, parts, job, (sums,))
    for square in sums:
        squared += square
    return math.sqrt(squared)


@device_function
def may_overflow(launcher, parts, kernels, params, n, update, norm, size):
    """Whether the update may turn finite values into infinity or NaN: a bound, by the norm of the gradients before scaling."""
    t, k = update[0], 0 if size == 4 else 1
    largest = norm * t.scale
    if t.optimizer != types.SGD:
        if max(t.inside, t.outside) < LEAST[k]:
            return True
        if t.decay != 0:
            largest += t.decay * norm_of(launcher, parts, kernels[SQUARES], params, n)
    # NaN is no bound
    return not (largest <= SAFE[k] and t.beta1 <= 1 and t.lr * max(largest, STEP) <= LOST[k])


@device_function
def value_at(address, i, size):
    """Value number i of an array of float32 or float64."""
    if size == 4:
        return np.float64(carray(void_pointer(address + 4 * i), 1, np.float32)[0])
    return carray(void_pointer(address + 8 * i), 1, np.float64)[0]


@device_function
def copy_bytes(n, source, target):
    of, to = carray(void_pointer(source), n, np.uint8), carray(void_pointer(target), n, np.uint8)
    for i in range(n):
        to[i] = of[i]


@device_function
def spoils(params, copies, grads, n, state, state_copy, stride, rows, size):
    """Whether a value with finite parameter, gradient and state has a parameter or state in the copies that is not finite."""
    for a in range(n):
        for i in range(params[a + 1, START] - params[a, START]):
            before, after = value_at(params[a, ADDRESS], i, size), value_at(copies[a, ADDRESS], i, size)
            was, still = np.isfinite(before) and np.isfinite(value_at(grads[a, ADDRESS], i, size)), np.isfinite(after)
            for row in range(rows):
                place = row * stride + params[a, PLACE] + i
                was &= np.isfinite(value_at(state, place, size))
                still &= np.isfinite(value_at(state_copy, place, size))
            if was and not still:
                return True
    return False


@device_function
def update_copies(launcher, parts, kernels, params, grads, n, update, held, moved, size, totals, copies, room):
    """update_all on copies of params and state, copied back if all finite values stayed finite; OK or NONFINITE.

    copies: a table like params; room: for the values of params, and then of state.
    """
    t, values = update[0], params[n, START]
    state, length = t.state, t.rows * t.stride * size
    for a in range(n):
        copies[a, ADDRESS] = address(room) + params[a, START] * size
        copy_bytes((params[a + 1, START] - params[a, START]) * size, params[a, ADDRESS], copies[a, ADDRESS])
    t.state = address(room) + values * size
    copy_bytes(length, state, t.state)
    update_all(launcher, parts, kernels, copies, grads, n, update, held, moved, totals)
    spoilt = spoils(params, copies, grads, n, state, t.state, t.stride, t.rows, size)
    if not spoilt:
        for a in range(n):
            copy_bytes((params[a + 1, START] - params[a, START]) * size, copies[a, ADDRESS], params[a, ADDRESS])
        copy_bytes(length, t.state, state)
    t.state = state
    return types.NONFINITE if spoilt else types.OK


@device_function
def update_soundly(launcher, parts, kernels, params, grads, n, update, held, moved, norm, size, totals):
    """update_all, unless it would turn finite values into infinity or NaN; OK or NONFINITE.

    norm: of the gradients before scaling; size: bytes of a value. A bound by the norm rules that out for nearly every update; the
    others run on copies.
    """
    if may_overflow(launcher, parts, kernels, params, n, update, norm, size):
        room = np.empty(((params[n, START] + update[0].rows * update[0].stride) * size + 7) // 8)
        return update_copies(
            launcher, parts, kernels, params, grads, n, update, held, moved, size, totals, params.copy(), room
        )
    update_all(launcher, parts, kernels, params, grads, n, update, held, moved, totals)
    return types.OK


@driver
def _update_arrays(
    launcher, parts, kernels, params, grads, n, state, rows, optimizer, hyper, step, clip_norm, held, record, moved,
    updates, size,
):  # fmt: skip
    if lacks_kernels(kernels, optimizer, rows, held, moved):
        return MISSING
    for a in range(n):
        if params[a + 1, START] != grads[a + 1, START]:
            return UNLIKE
    update, scale, norm = local(1, UPDATE), 1.0, 0.0
    # without state nothing is kept that could be spoilt for good
    if record.size or rows:
        norm = norm_of(launcher, parts, kernels[SQUARES], grads, n)
    if record.size:
        record[0] = norm
        if not math.isfinite(norm):
            return types.NONFINITE
        scale = min(1.0, clip_norm / (norm + 1e-6))
    describe_update(update, params[n, START], state, rows, optimizer, hyper, hyper[0], step, scale)
    totals = np.zeros((params[n, SUMS] if moved else 0, 2))
    status = update_soundly(
        launcher, parts, kernels, params, grads, n, update, held, address_or_null(totals), norm, size, totals
    )
    if status == types.OK and len(updates):
        updates[0] += 1
    changes = carray(void_pointer(moved), (n if moved else 0, 2), np.float64)  # (n, 2)
    for a in range(len(changes)):
        changes[a, 0], changes[a, 1] = sum_moved(totals, params[a, SUMS], params[a + 1, SUMS])
    return status


# gradients that are not as many as their parameters
UNLIKE = -1
UPDATE_KERNELS = (
    update_arrays_part, square_arrays_part, norms_part, scale_part, unit_sums, update_change,
    sgd_block, momentum_sgd_block, adam_block, amsgrad_block, rmsprop_block, momentum_rmsprop_block,
)  # fmt: skip
_KERNELS = Addresses(choices=UPDATE_KERNELS)
_NO_RECORD = np.empty(0)
NO_UPDATES = np.empty(0, np.int64)


def held_by(masks, constraint):
    """A HELD, or None. The caller keeps masks and widths, whose addresses it has."""
    if masks is None and constraint is None:
        return None
    kind, limit, widths = constraint or (types.FREE, np.inf, None)
    places = (0 if a is None else address_of(a) for a in (masks, widths))
    return np.array([(*places, kind, limit)], HELD).view(np.int64)


def update_arrays(params, grads, rule, step, record, *, moved=None, updates=None, only_if=None):
    """Update number `step` of a list of C-contiguous params from grads of the same shapes, times min(1, clip_norm / (norm + 1e-6)).

    The rule's state (S, P) and masks: the values of all arrays in their order. record (1,) = norm over all of grads; without it no norm
    is computed, and nothing clipped. moved (n, 2), or None: for each array the sum of squares of the optimiser's change, and of the
    values before it. updates (1,), int64, or None: a counter, to which one is added in the same compiled call as the update, so that an
    interrupt cannot separate the two. only_if, or None: a status; where it is not OK nothing is updated, and that status is returned.
    Returns OK, or NONFINITE for a norm that is not finite, or for an update that would turn finite values into infinity or NaN; then
    nothing is updated.
    Raises ValueError, and updates nothing, where sizes differ: kernels walk the table of params and find all other values by its offsets.
    """
    if only_if is not None and only_if != types.OK:
        return only_if
    optimizer, state, hyper, clip_norm, masks, constraint = rule
    to, of, dtype = table(params, constraint.widths) if constraint else table(params), table(grads), params[0].dtype
    held, size = held_by(masks, constraint), int(to[-1, START])
    if len(params) != len(grads) or dtype != grads[0].dtype:
        raise ValueError("update_arrays: grads must be as many as params, and of their dtype")
    if state.size != len(state) * size or state.dtype != dtype or not state.flags.c_contiguous:
        raise ValueError(
            f"update_arrays: state must have rows of {size} values like params, contiguous, got {state.shape}"
        )
    if masks is not None and masks.size != size:
        raise ValueError(f"update_arrays: masks must have {size} values like params, got {masks.size}")
    arguments = (
        COST * size, _update_arrays, _KERNELS[dtype.char], to, of, len(params), address_of(state.reshape(-1)),
        len(state), optimizer, hyper, step, clip_norm, 0 if held is None else address_of(held),
        _NO_RECORD if record is None else record, 0 if moved is None else address_of(moved),
        NO_UPDATES if updates is None else updates, dtype.itemsize,
    )  # fmt: skip
    status = run(*arguments)
    if status == MISSING:
        _KERNELS.provide(dtype.char, needed_kernels(rule, moved is not None))
        status = run(*arguments)
    if status == UNLIKE:
        raise ValueError("update_arrays: grads must have the sizes of params")
    return status
