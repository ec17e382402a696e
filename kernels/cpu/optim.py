"""Optimisers over lists of arrays: norm, clipping, weight decay, update, masks and constraints; formulas: kernels/reference/optim.py.

Passes: one over the gradients for their norm, for clipping and to bound the update; one over params, grads and state, which clips, decays,
updates, masks and limits. Constraints on norms take one more pass where a norm is above its limit.

update_rules.py has the arithmetic of each optimiser, a kernel that is called by address for each block of values.

An update that would turn finite values into infinity or NaN is not applied. A bound by the gradients' norm rules that out for nearly every
update. Where it cannot, the update runs on copies, which are checked and then copied back: see checked_update.
"""

import math

import numpy as np

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
from .engine.compile import (
    MISSING,
    Addresses,
    device_function,
    driver,
    driver_function,
    kernel,
    routine,
)
from .engine.intrinsics import (
    address,
    address_at,
    address_or_null,
    advance,
    call,
    carray,
    copy,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.object_memory import address_of, address_or_zero
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import map_values, squares
from .health import CHANGE, sum_moved, update_change
from .update_rules import BLOCK, BLOCK_KERNELS, HYPER_SIZE, UPDATE, UPDATE_BYTES, block_kernel_number, describe_updates

# an update of lists of arrays. params, grads: tables; sums: of grads' squares by block; update: address of n_groups UPDATE records;
# kernels: of the addresses of UPDATE_KERNELS; restriction: of a RESTRICTION, and from it masks: of a byte a value, or 0, groups: of each
# array's record in `update`, or FROZEN, or 0: all have the first one; kind and limit; norm_sums, norm_counts: of updated values by block,
# as in clip.py, for a constraint on norms; moved: (blocks, 2) as in health.py, or 0; scratch: of `longest` values a thread, if moved;
# norm: of the gradients before scaling; itemsize: bytes of a value; status: OK, NONFINITE, or at first FAILED
ARRAYS = np.dtype(
    [
        (name, "i8")
        for name in "params grads n sums update kernels restriction masks groups kind norm_sums norm_counts moved".split()
    ]
    + [(name, "i8") for name in "scratch longest itemsize status n_groups".split()]
    + [("limit", "f8"), ("norm", "f8")]
)
FAILED = -3
# masks, constraint and groups of an update: addresses of masks, of the constraint's widths and of groups, or 0; kind and limit of the
# constraint
RESTRICTION = np.dtype([(name, "i8") for name in "masks widths groups kind".split()] + [("limit", "f8")])


@device_function
def describe_restriction(record, masks, widths, groups, kind, limit):
    """Fill a RESTRICTION; returns its address, good for as long as the record."""
    restriction = record[0]
    restriction.masks, restriction.widths, restriction.groups = masks, widths, groups
    restriction.kind, restriction.limit = kind, limit
    return address(record)


# an update costs about as much a value as this many multiplications and additions
COST = 32
# the square of a float64 above this does not underflow to 0
SMALL = 1e-130
# of float32 and float64. SAFE: a value whose square is lost when it is added to the largest finite value; LOST: a value that is lost
# itself, so that neither sum overflows; LEAST: the smallest normal value
SAFE, LOST, LEAST = (2.0**50, 2.0**484), (2.0**100, 2.0**968), (2.0**-126, 2.0**-1022)
# bound of |update| / lr where the optimiser divides by a root; else |update| / lr is at most the largest gradient
STEP = 1e4


# places in UPDATE_KERNELS; at the last one BLOCK_KERNELS begin
BLOCKS, SQUARES, NORMS, SCALES, UNIT_SUMS, CHANGES, CHECKED_UPDATE, CONSTRAINED, FIRST_BLOCK_KERNEL = range(9)
N_KERNELS = FIRST_BLOCK_KERNEL + len(BLOCK_KERNELS)
compiled_kernel_number = device_function(block_kernel_number)


@device_function
def group_of(groups, a):
    """The group of array number a. groups: address of those of all arrays, or 0."""
    return carray(void_pointer(groups), a + 1, np.int64)[a] if groups else 0


@kernel(ARRAYS)
def square_arrays_part(thread_index, thread_count, record, like):
    """The sum of the squares of each of the thread's blocks of gradients; 0 of those of frozen arrays."""
    arrays = carray(record, 1)[0]
    t = rows_at(arrays.grads, arrays.n)
    sums = carray(void_pointer(arrays.sums), t[arrays.n, SUMS], np.float64)
    lo, hi = thread_range(thread_index, thread_count, t[arrays.n, START], 64)
    a, at = first_block(t, arrays.n, lo)
    while a < arrays.n and t[a, START] + at < hi:
        place, sum_of_squares = sums_of(t, a, at), 0.0
        if group_of(arrays.groups, a) != types.FROZEN:
            sum_of_squares = squares(advance(pointer(t[a, ADDRESS], like), at), block_size(t, a, at))
        sums[place] = sum_of_squares
        a, at = next_block(t, arrays.n, a, at)


# a block of n updated values in units of `width`, for a constraint on norms, and where its sums and its count go
UNITS_BLOCK = np.dtype([(name, "i8") for name in "n params width sums count".split()])


@kernel(UNITS_BLOCK)
def unit_sums(_, __, record, like):
    """The sums of squares of a block of updated values, by unit, and how many are not finite."""
    block, scratch = carray(record, 1)[0], local(SUMS_AND_FACTORS, np.float64)
    scratch[:] = 1
    sums = carray(void_pointer(block.sums), block.width, np.float64)
    count = sum_block(SQUARE, 2.0, pointer(block.params, like), block.n, sums, scratch[:0], scratch)
    carray(void_pointer(block.count), 1, np.int64)[0] = count


@device_function
def kernels_of(arrays):
    return carray(void_pointer(arrays.kernels), N_KERNELS, np.int64)


@device_function
def update_block(arrays, block_kernel, group, block, thread_index, place, like):
    """Update a block of values, unless it is frozen; and if health asks for it, the sums of its change."""
    # a frozen block has no record, and nothing reads its address
    block[0].update = arrays.update + group * UPDATE_BYTES
    if not arrays.moved:
        if group != types.FROZEN:
            call(block_kernel, 0, 1, block)
        return
    before, changes = pointer(arrays.scratch + 8 * thread_index * arrays.longest, like), local(1, CHANGE)
    copy(block[0].n, pointer(block[0].params, like), before)
    if group != types.FROZEN:
        call(block_kernel, 0, 1, block)
    change = changes[0]
    change.n, change.before, change.after = block[0].n, address_at(before), block[0].params
    change.totals = arrays.moved + 16 * place
    call(kernels_of(arrays)[CHANGES], 0, 1, changes)


@kernel(ARRAYS)
def update_arrays_part(thread_index, thread_count, record, like):
    """The thread's blocks, from the last, since those read last for the norm are still in cache: update, masks, constraint."""
    arrays, blocks, unit_blocks = carray(record, 1)[0], local(1, BLOCK), local(1, UNITS_BLOCK)
    t, block = carray(void_pointer(arrays.update), 1, UPDATE)[0], blocks[0]
    params, grads, state = rows_at(arrays.params, arrays.n), rows_at(arrays.grads, arrays.n), pointer(t.state, like)
    block_kernel = kernels_of(arrays)[
        FIRST_BLOCK_KERNEL + compiled_kernel_number(t.optimizer, t.rows, arrays.masks != 0)
    ]
    lo, hi = thread_range(thread_index, thread_count, params[arrays.n, START], 64)
    a, at = previous_block(params, *first_block(params, arrays.n, hi))
    while a >= 0 and params[a, START] + at >= lo:
        size, flat, place = block_size(params, a, at), params[a, PLACE] + at, sums_of(params, a, at)
        # the block's values of params, of grads and of the first row of state
        p, row = advance(pointer(params[a, ADDRESS], like), at), advance(state, flat)
        block.n, block.params, block.state = size, address_at(p), address_at(row)
        # nothing reads it where there are no masks
        block.masks = arrays.masks + flat
        block.grads, group = address_at(advance(pointer(grads[a, ADDRESS], like), at)), group_of(arrays.groups, a)
        update_block(arrays, block_kernel, group, blocks, thread_index, place, like)
        # constraints on values; for those on norms, the sums that constrained_update reads
        if arrays.kind == types.MAX_VALUE:
            if group != types.FROZEN:
                map_values(clamped, size, p, p, (real(arrays.limit, carray(p, 1)[0]),))
        elif arrays.kind != types.FREE:
            units = unit_blocks[0]
            units.n, units.params, units.width = size, address_at(p), params[a, WIDTH]
            units.sums, units.count = arrays.norm_sums + 8 * place, arrays.norm_counts + 8 * place
            call(kernels_of(arrays)[UNIT_SUMS], 0, 1, unit_blocks)
        a, at = previous_block(params, a, at)


# no optimizer: a step without its update
NO_UPDATE = -1


@device_function
def lacks_kernels(kernels, optimizer, rows, restriction, moved):
    """Whether the address of a kernel is missing that an update calls. kernels: as in UPDATE_KERNELS."""
    if optimizer == NO_UPDATE:
        return False
    restricted = carray(void_pointer(restriction), 1, RESTRICTION)[0]
    of_norms = restricted.kind == types.MAX_NORM or restricted.kind == types.MAX_NORM_EACH
    if of_norms and not (kernels[NORMS] and kernels[SCALES] and kernels[UNIT_SUMS] and kernels[CONSTRAINED]):
        return True
    if moved and not kernels[CHANGES]:
        return True
    common = kernels[BLOCKS] and kernels[SQUARES] and kernels[CHECKED_UPDATE]
    return not (common and kernels[FIRST_BLOCK_KERNEL + compiled_kernel_number(optimizer, rows, restricted.masks != 0)])


def needed_kernels(rule, moved):
    """Places in UPDATE_KERNELS of those that an update calls."""
    optimizer, state, _, _, masks, constraint, _ = rule
    if optimizer == NO_UPDATE:
        return []
    places = [
        BLOCKS,
        SQUARES,
        CHECKED_UPDATE,
        FIRST_BLOCK_KERNEL + block_kernel_number(optimizer, len(state), masks is not None),
    ]
    if constraint and constraint[0] in (types.MAX_NORM, types.MAX_NORM_EACH):
        places += NORMS, SCALES, UNIT_SUMS, CONSTRAINED
    return [*places, CHANGES] if moved else places


@driver_function
def update_all(launcher, thread_count, record, params):
    """The update that a record describes, and its constraint."""
    arrays, longest = record[0], 0
    for a in range(arrays.n if arrays.moved else 0):
        longest = max(longest, params[a, LENGTH])
    scratch = np.empty(thread_count * longest)
    arrays.scratch, arrays.longest = address(scratch), longest
    if arrays.kind == types.MAX_NORM or arrays.kind == types.MAX_NORM_EACH:
        run_kernel(kernels_of(arrays)[CONSTRAINED], launcher, thread_count, record, (scratch,))
        return
    run_kernel(launcher, kernels_of(arrays)[BLOCKS], thread_count, record, (scratch,))
    arrays.status = types.OK


@routine(ARRAYS)
def constrained_update(launcher, thread_count, record, like):
    """Update, then scale arrays or units whose norm is above the limit."""
    record = carray(record, 1)
    arrays = record[0]
    params, n, limit = rows_at(arrays.params, arrays.n), arrays.n, arrays.limit
    widths, kernels = (
        carray(void_pointer(carray(void_pointer(arrays.restriction), 1, RESTRICTION)[0].widths), n, np.int64),
        kernels_of(arrays),
    )
    sums, counts = np.empty(params[n, SUMS]), np.empty(params[n, SUMS], np.int64)
    arrays.norm_sums, arrays.norm_counts = address(sums), address(counts)
    norms, scales = np.empty(params[n, UNITS]), np.ones(params[n, UNITS])
    nonfinite, doubtful = np.empty(n, np.int64), np.empty(norms.size, np.bool_)
    run_kernel(launcher, kernels[BLOCKS], thread_count, record, (sums, counts))
    # squares that vanish are those of norms that are smaller
    least = TINY if limit < SMALL else 0.0
    if finish_norms(params, n, SQUARE, 2.0, least, sums, counts, norms, nonfinite, doubtful):
        norms_again(launcher, thread_count, kernels[NORMS], params, n, SQUARE, 2.0, sums, counts, norms, doubtful)
    for a in range(n):
        if widths[a] == 0:
            norms[params[a, UNITS]] = 0
    if arrays.kind == types.MAX_NORM:
        norms[:] = norm_of_norms(norms, 2.0)
    any_larger = False
    for a in range(n):
        for unit in range(params[a, UNITS], params[a + 1, UNITS]):
            if widths[a] and norms[unit] > limit:
                scales[unit] = limit / norms[unit]
                any_larger = True
    if any_larger:
        scale_job = local(1, SCALE)
        scale = scale_job[0]
        scale.table, scale.n, scale.scales = arrays.params, n, address(scales)
        run_kernel(launcher, kernels[SCALES], thread_count, scale_job, (scales,))
    arrays.status = types.OK


@driver_function
def norm_of(launcher, thread_count, kernel, arrays, n, groups):
    """The norm of all values of a table's arrays but the frozen ones. kernel: square_arrays_part; groups: as in ARRAYS."""
    sums, record = np.empty(arrays[n, SUMS]), local_zeros(1, ARRAYS)
    t, squared = record[0], 0.0
    t.grads, t.n, t.sums, t.groups = address(arrays), n, address(sums), groups
    run_kernel(launcher, kernel, thread_count, record, (sums,))
    for square in sums:
        squared += square
    return math.sqrt(squared)


@device_function
def group_updates_of(arrays):
    """The UPDATE records of all groups."""
    return carray(void_pointer(arrays.update), arrays.n_groups, UPDATE)


@device_function
def may_overflow(launcher, thread_count, arrays, params):
    """Whether the update may turn finite values into infinity or NaN: a bound, by the norm of the gradients before scaling."""
    k, group_updates, weights = 0 if arrays.itemsize == 4 else 1, group_updates_of(arrays), -1.0
    for group in range(arrays.n_groups):
        update = group_updates[group]
        largest = arrays.norm * update.scale
        if update.optimizer != types.SGD:
            if max(update.inside, update.outside) < LEAST[k]:
                return True
            if update.decay != 0:
                if weights < 0:
                    kernel = kernels_of(arrays)[SQUARES]
                    weights = norm_of(launcher, thread_count, kernel, params, arrays.n, arrays.groups)
                largest += update.decay * weights
        # NaN is no bound
        if not (largest <= SAFE[k] and update.beta1 <= 1 and update.lr * max(largest, STEP) <= LOST[k]):
            return True
    return False


@device_function
def value_at(address, i, itemsize):
    """Value number i of an array of float32 or float64."""
    if itemsize == 4:
        return np.float64(carray(void_pointer(address + 4 * i), 1, np.float32)[0])
    return carray(void_pointer(address + 8 * i), 1, np.float64)[0]


@device_function
def copy_bytes(n, source, target):
    of, to = carray(void_pointer(source), n, np.uint8), carray(void_pointer(target), n, np.uint8)
    for i in range(n):
        to[i] = of[i]


@device_function
def loses_finite_values(params, copies, grads, n, state, state_copy, stride, rows, itemsize):
    """Whether a value with finite parameter, gradient and state has a parameter or state in the copies that is not finite."""
    for a in range(n):
        for i in range(params[a + 1, START] - params[a, START]):
            before, after = value_at(params[a, ADDRESS], i, itemsize), value_at(copies[a, ADDRESS], i, itemsize)
            was = np.isfinite(before) and np.isfinite(value_at(grads[a, ADDRESS], i, itemsize))
            still = np.isfinite(after)
            for row in range(rows):
                place = row * stride + params[a, PLACE] + i
                was &= np.isfinite(value_at(state, place, itemsize))
                still &= np.isfinite(value_at(state_copy, place, itemsize))
            if was and not still:
                return True
    return False


@device_function
def set_state(arrays, state):
    """Let the update read and write its state at this address."""
    group_updates = group_updates_of(arrays)
    for group in range(arrays.n_groups):
        group_updates[group].state = state


@device_function
def update_copies(launcher, thread_count, record, update, params, copies, scratch):
    """update_all on copies of params and state, which are copied back if all finite values stayed finite.

    copies: a table like params; scratch: for the values of params, and then of state.
    """
    arrays, itemsize, n, values = record[0], record[0].itemsize, record[0].n, params[record[0].n, START]
    state, length = update.state, update.rows * update.stride * itemsize
    for a in range(n):
        copies[a, ADDRESS] = address(scratch) + params[a, START] * itemsize
        copy_bytes((params[a + 1, START] - params[a, START]) * itemsize, params[a, ADDRESS], copies[a, ADDRESS])
    set_state(arrays, address(scratch) + values * itemsize)
    arrays.params = address(copies)
    copy_bytes(length, state, update.state)
    update_all(launcher, thread_count, record, copies)
    grads, stride, rows = rows_at(arrays.grads, n), update.stride, update.rows
    if arrays.status == types.OK:
        if loses_finite_values(
            params, copies, grads, n, state, address(scratch) + values * itemsize, stride, rows, itemsize
        ):
            arrays.status = types.NONFINITE
        else:
            for a in range(n):
                copy_bytes((params[a + 1, START] - params[a, START]) * itemsize, copies[a, ADDRESS], params[a, ADDRESS])
            copy_bytes(length, address(scratch) + values * itemsize, state)
    set_state(arrays, state)


@routine(ARRAYS)
def checked_update(launcher, thread_count, record, like):
    """update_all, unless it would turn finite values into infinity or NaN.

    A bound by the norm rules that out for nearly every update; the others run on copies.
    """
    record = carray(record, 1)
    arrays = record[0]
    params, update = rows_at(arrays.params, arrays.n), group_updates_of(arrays)[0]
    if may_overflow(launcher, thread_count, arrays, params):
        n_bytes = (params[arrays.n, START] + update.rows * update.stride) * arrays.itemsize
        copies, scratch = params.copy(), np.empty((n_bytes + 7) // 8)
        update_copies(launcher, thread_count, record, update, params, copies, scratch)
    else:
        update_all(launcher, thread_count, record, params)


@device_function
def run_update(
    launcher, thread_count, kernels, params, grads, n, group_updates, restriction, moved, norm, itemsize, totals
):
    """Update arrays by checked_update; OK or NONFINITE. kernels: as in UPDATE_KERNELS; group_updates: the UPDATE records of all groups.

    restriction: address of a RESTRICTION; moved: of sums of health.py by block, or 0; totals: the array that they lie in;
    norm: of the gradients before scaling; itemsize: bytes of a value.
    """
    record = local_zeros(1, ARRAYS)
    arrays = record[0]
    arrays.params, arrays.grads, arrays.n = address(params), address(grads), n
    arrays.update, arrays.n_groups = address(group_updates), len(group_updates)
    arrays.kernels, arrays.moved, arrays.norm, arrays.itemsize = address(kernels), moved, norm, itemsize
    restricted = carray(void_pointer(restriction), 1, RESTRICTION)[0]
    arrays.restriction, arrays.masks, arrays.groups = restriction, restricted.masks, restricted.groups
    arrays.kind, arrays.limit = restricted.kind, restricted.limit
    arrays.status = FAILED
    run_kernel(kernels[CHECKED_UPDATE], launcher, thread_count, record, (totals, group_updates))
    if arrays.status == FAILED:
        raise MemoryError
    return arrays.status


@driver
def _update_arrays(
    launcher, thread_count, kernels, params, grads, n, state, rows, optimizer, hyper, step, clip_norm, masks, widths, groups,
    constraint, limit, record, moved, updates, itemsize,
):  # fmt: skip
    restriction = describe_restriction(local(1, RESTRICTION), masks, widths, groups, constraint, limit)
    if lacks_kernels(kernels, optimizer, rows, restriction, moved):
        return MISSING
    for a in range(n):
        if params[a + 1, START] != grads[a + 1, START]:
            return SIZES_DIFFER
    group_updates, scale = np.empty(hyper.size // HYPER_SIZE, UPDATE), 1.0
    # without clipping it still bounds the update, see may_overflow
    norm = norm_of(launcher, thread_count, kernels[SQUARES], grads, n, groups)
    if record.size:
        record[0] = norm
        if not math.isfinite(norm):
            return types.NONFINITE
        scale = min(1.0, clip_norm / (norm + 1e-6))
    describe_updates(group_updates, params[n, START], state, rows, optimizer, hyper, hyper[::HYPER_SIZE], step, scale)
    totals = np.zeros((params[n, SUMS] if moved else 0, 2))
    status = run_update(
        launcher,
        thread_count,
        kernels,
        params,
        grads,
        n,
        group_updates,
        restriction,
        address_or_null(totals),
        norm,
        itemsize,
        totals,
    )
    if status == types.OK and len(updates):
        updates[0] += 1
    changes = carray(void_pointer(moved), (n if moved else 0, 2), np.float64)  # (n, 2)
    for a in range(len(changes)):
        changes[a, 0], changes[a, 1] = sum_moved(totals, params[a, SUMS], params[a + 1, SUMS])
    return status


# a gradient has another number of values than its parameter
SIZES_DIFFER = -1
UPDATE_KERNELS = (
    update_arrays_part, square_arrays_part, norms_part, scale_part, unit_sums, update_change, checked_update, constrained_update,
    *BLOCK_KERNELS,
)  # fmt: skip
_KERNELS = Addresses(choices=UPDATE_KERNELS)
_NO_RECORD = np.empty(0)
NO_UPDATES = np.empty(0, np.int64)


_UNRESTRICTED = 0, 0, 0, types.FREE, np.inf


def restriction_of(masks, constraint, groups):
    """What a driver makes a RESTRICTION of. The caller keeps masks, widths and groups, whose addresses these are."""
    if masks is None and constraint is None and groups is None:
        return _UNRESTRICTED
    kind, limit, widths = constraint or (types.FREE, np.inf, None)
    return address_or_zero(masks), address_or_zero(widths), address_or_zero(groups), kind, limit


def update_arrays(params, grads, rule, step, record, *, moved=None, updates=None, only_if=None):
    """Update number `step` of a list of C-contiguous params from grads of the same shapes, times min(1, clip_norm / (norm + 1e-6)).

    The rule's state (S, P) and masks: the values of all arrays in their order. record (1,) = norm of the grads of all arrays that are not
    frozen; without it nothing is clipped. moved (n, 2), or None: for each array the sum of squares of the change, by the optimiser and
    masks but not by a constraint, and of the values before it. updates (1,), int64, or None: a counter, to which one is added in the same
    compiled call as the update, so that an interrupt cannot separate the two. only_if, or None: a status; where it is not OK nothing is
    updated, and that status is returned.
    Returns OK, or NONFINITE for a norm that is not finite, or for an update that would turn finite values into infinity or NaN; then
    nothing is updated.
    Raises ValueError, and updates nothing, where sizes differ: kernels walk the table of params and find all other values by its offsets.
    """
    if only_if is not None and only_if != types.OK:
        return only_if
    optimizer, state, hyper, clip_norm, masks, constraint, groups = rule
    to, of, dtype = table(params, constraint.widths) if constraint else table(params), table(grads), params[0].dtype
    size = int(to[-1, START])
    if len(params) != len(grads) or dtype != grads[0].dtype:
        raise ValueError("update_arrays: grads must be as many as params, and of their dtype")
    if state.size != len(state) * size or state.dtype != dtype or not state.flags.c_contiguous:
        raise ValueError(
            f"update_arrays: state must have rows of {size} values like params, contiguous, got {state.shape}"
        )
    if masks is not None and masks.size != size:
        raise ValueError(f"update_arrays: masks must have {size} values like params, got {masks.size}")
    if groups is not None and len(groups) != len(params):
        raise ValueError(f"update_arrays: groups must be as many as params, {len(params)}, got {len(groups)}")
    arguments = (
        COST * size, _update_arrays, _KERNELS[dtype.char], to, of, len(params), address_of(state.reshape(-1)),
        len(state), optimizer, hyper if groups is None else hyper.reshape(-1), step, clip_norm,
        *restriction_of(masks, constraint, groups), _NO_RECORD if record is None else record, address_or_zero(moved),
        NO_UPDATES if updates is None else updates, dtype.itemsize,
    )  # fmt: skip
    status = run(*arguments)
    if status == MISSING:
        _KERNELS.provide(dtype.char, needed_kernels(rule, moved is not None))
        status = run(*arguments)
    if status == SIZES_DIFFER:
        raise ValueError("update_arrays: grads must have the sizes of params")
    return status
