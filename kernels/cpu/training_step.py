"""Training steps of a dense chain, one step or an epoch in one compiled call; formulas and layout: kernels/reference/training_step.py.

Passes, three launches a step; threads wait for each other only between them:

    train_part          a thread's rows of the batch: gather, forward, loss, backward
    gradients_part      the weights' gradients, and their squares for the norm
    update_arrays_part  clipping and update (optim.py)

Parameters and gradients are flat arrays. In an epoch a thread gathers the rows that it works on.
"""

import math

import numpy as np

from .. import types
from .activation import BACKWARD, FORWARD
from .chain import CHAIN, LAYER, describe_chain, find_activations, flat_layers, needs_input, place_tensors
from .dense import backward_rows, forward_rows, gradients_part
from .engine.array_table import ADDRESS, COLUMNS, SUMS, AddressList, add_array
from .engine.compile import EMPTY, MISSING, Addresses, device_function, driver, kernel
from .engine.intrinsics import (
    address,
    advance,
    call,
    carray,
    data,
    local,
    local_zeros,
    pointer,
    run_kernel,
    void_pointer,
)
from .engine.microkernel import ROWS
from .engine.object_memory import address_of, address_or_zero
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import squares
from .gemm import SCRATCH, gemm_part
from .health import (
    REPORT,
    describe_watch,
    health_record,
    is_due,
    layer_gradient,
    layer_output,
    layers_report,
    updates_report,
    watch_of,
    watch_size,
)
from .loss import LOSS, LOSSES, describe_rows, is_ignored, mean_scale, sum_of_weights, total
from .optim import (
    NO_UPDATE,
    NO_UPDATES,
    RESTRICTION,
    UPDATE_KERNELS,
    describe_restriction,
    group_of,
    lacks_kernels,
    needed_kernels,
    restriction_of,
    run_update,
)
from .sparse import NONZEROS, sparse_forward_part, sparse_gradient_part
from .update_rules import HYPER_SIZE, UPDATE, describe_updates

# the addresses of a CHAIN and of the LOSS of all rows. rows_x, rows_target: where the batch is gathered from, by the row
# numbers at `order`, which is 0 for rows as they are; target_row: values of a target row
TRAIN = np.dtype([(name, "i8") for name in "chain loss order rows_x rows_target target_row".split()])

# values of a block of the update: fewer than for lists of arrays, so that a small net's blocks divide evenly among threads
BLOCK_VALUES = 4096


# places in _KERNELS; at each of the last three a group of kernels begins
ROWS_KERNEL, GRADIENTS_KERNEL, GEMM_KERNEL, SPARSE_FORWARD, SPARSE_GRADIENT = range(5)
LAYER_OUTPUT, LAYER_GRADIENT, LAYERS_REPORT, UPDATES_REPORT, LOSS_KERNELS = range(5, 10)
FIRST_ACTIVATION = LOSS_KERNELS + len(LOSSES)
FIRST_UPDATE_KERNEL = FIRST_ACTIVATION + len(FORWARD) + len(BACKWARD)


@device_function
def gather(n, order, source, target, lo, hi):
    """target[i] = source[order[i]], rows of n values."""
    for i in range(lo, hi):
        of, to = carray(advance(source, order[i] * n), n), carray(advance(target, i * n), n)
        for j in range(n):
            to[j] = of[j]


@kernel(TRAIN)
def train_part(thread_index, thread_count, record, like):
    """The thread's rows: forward, loss and backward."""
    train = carray(record, 1)[0]
    chain = carray(void_pointer(train.chain), 1, CHAIN)[0]
    lo, hi = thread_range(thread_index, thread_count, chain.rows, ROWS)
    loss = carray(void_pointer(train.loss), 1, LOSS)[0]
    panels = chain.panels + thread_index * SCRATCH * chain.itemsize
    # gather the rows of the batch
    if train.order:
        order = carray(void_pointer(train.order), chain.rows, np.int64)  # (N,)
        if not chain.nonzeros:
            gather(chain.x.row, order, pointer(train.rows_x, like), pointer(chain.x.at, like), lo, hi)
        if loss.labels:
            labels = carray(void_pointer(loss.labels), chain.rows, np.int64)  # (N,)
            all_labels = carray(void_pointer(train.rows_target), 1, np.int64)
            for i in range(lo, hi):
                labels[i] = all_labels[order[i]]
        else:
            gather(train.target_row, order, pointer(train.rows_target, like), pointer(loss.target, like), lo, hi)
    forward_rows(chain, thread_index, lo, hi, panels, like)
    # losses, and dy to where the last layer's dz will be
    part = local(1, LOSS)
    describe_rows(loss, part[0], lo, hi)
    call(loss.kernel, 0, 1, part)
    backward_rows(chain, lo, hi, panels)


def fused(kind, code):
    """The last layer's activation, which is the identity if the loss is computed from the logits."""
    softmax = kind == types.CROSS_ENTROPY and code == types.SOFTMAX
    sigmoid = kind == types.BINARY_CROSS_ENTROPY and code == types.SIGMOID
    return types.IDENTITY if softmax or sigmoid else code


fused_code = device_function(fused)


@device_function
def lay_out(layers, work, n, size):
    """Place n rows of y of every layer, then of z, then of dz in `work`; returns the address of the rest of it."""
    block = 0
    for l in range(len(layers)):
        block += n * layers[l].n_out * size
    y = work
    for l in range(len(layers)):
        layer = layers[l]
        layer.y, layer.dz = y, y + 2 * block
        layer.z = y + block if needs_input(layer.code) else y
        y += n * layer.n_out * size
    return work + 3 * block


@device_function
def has_bad_label(labels, order, first, n, classes, ignore_index):
    """Whether one of the batch's labels, at this address, is no class."""
    all_labels = carray(void_pointer(labels), 1, np.int64)
    for i in range(first, first + n):
        label = all_labels[order[i] if len(order) else i]
        if (label < 0 or label >= classes) and not is_ignored(label, ignore_index):
            return True
    return False


@device_function
def sum_values(values, first, n):
    """The sum in float64 of n values of an array."""
    return total(advance(data(values), first), n)


@device_function
def gradient_norm(norms, grads, table, rows, groups):
    """The norm of all gradients but those of frozen arrays, from the squares of every row of every dw.

    rows: the column of the table with the number of a dw's rows. groups: address of those of all arrays, or 0.
    """
    squared, first, a = 0.0 if groups else total(data(norms), norms.size), 0, 0
    for l in range(len(table)):
        b = table[l, 3]
        if groups:
            if group_of(groups, a) != types.FROZEN:
                squared += total(advance(data(norms), first), table[l, rows])
            first, a = first + table[l, rows], a + 1
        if b >= 0:
            if group_of(groups, a) != types.FROZEN:
                squared += squares(data(grads[b:]), table[l, 1])
            a += 1
    return math.sqrt(squared)


@device_function
def list_arrays(table, flat, size, widths, rows):
    """Fill a table of array_table.py with w and b of every layer; returns how many there are."""
    n, units = 0, carray(void_pointer(widths), 2 * len(table) if widths else 0, np.int64)
    for l in range(len(table)):
        n_in, n_out, w, b = table[l, 0], table[l, 1], table[l, 2], table[l, 3]
        add_array(rows, n, flat + w * size, n_in * n_out, units[n] if widths else 1, w, BLOCK_VALUES)
        n += 1
        if b >= 0:
            add_array(rows, n, flat + b * size, n_out, units[n] if widths else 1, b, BLOCK_VALUES)
            n += 1
    return n


@driver
def _train(
    launcher, thread_count, kernels, x, rows, nonzeros, target, by_class, order, batch_size, table, parameters, kind, loss_parameter,
    loss_weights, ignore_index, params, grads, work, optimizer, state, hyper, rates, clip_norm, masks, widths, groups,
    constraint, limit, step, record, row_weights, l2, mean, health, updates, counts, tensors, panels,
):  # fmt: skip
    """Steps on the rows of x, in batches by `order`, or on all `rows` in one where there is no order; (status, batches done).

    With NO_UPDATE a step ends with its gradients, and record has no norm; they are of the loss' mean, or of its sum.

    hyper: flat, settings of each group. rates: the learning rates of each batch, one a group. updates (1,), or empty: counts them.

    Addresses: x (rows, n_in); target (rows, n_out), or with by_class labels (rows,). Addresses, or 0: nonzeros, a NONZEROS with the
    values of x, whose own address is 0 then; loss_weights, those of a types.Loss; masks, widths and groups, those of a RESTRICTION, as
    are constraint and limit; row_weights (rows,); health, a HEALTH; counts (B, 2); tensors, those of place_tensors, in place of params.
    """
    depth, size = len(table), params.itemsize
    restriction = describe_restriction(local(1, RESTRICTION), masks, widths, groups, constraint, limit)
    layers, n_groups = np.empty(depth, LAYER), hyper.size // HYPER_SIZE
    group_updates = np.empty(n_groups, UPDATE)
    chain_record, train_record, loss_record = local_zeros(1, CHAIN), local_zeros(1, TRAIN), local_zeros(1, LOSS)
    chain, train, loss = chain_record[0], train_record[0], loss_record[0]
    flat_layers(layers, table, parameters, address(params), address(grads), size)
    if tensors:
        place_tensors(layers, tensors)
    layers[depth - 1].code = fused_code(kind, layers[depth - 1].code)
    # kernels that this net is the first one to use, see Addresses
    if not find_activations(layers, kernels, FIRST_ACTIVATION, True) or not kernels[LOSS_KERNELS + kind]:
        return MISSING, 0
    if nonzeros and not (kernels[SPARSE_FORWARD] and kernels[SPARSE_GRADIENT]):
        return MISSING, 0
    for place in range(LAYER_OUTPUT, UPDATES_REPORT + 1 if health else LAYER_OUTPUT):
        if not kernels[place]:
            return MISSING, 0
    if lacks_kernels(kernels[FIRST_UPDATE_KERNEL:], optimizer, len(state), restriction, health):
        return MISSING, 0
    n_in, n_out = table[0, 0], table[depth - 1, 1]
    if len(order):
        rows = len(order)
    batch_size = min(batch_size, rows)
    # rows of all dw
    dw_rows, rows_column = 0, 1 if tensors else 0
    for l in range(depth):
        dw_rows += table[l, rows_column]
    weight_squares = np.zeros(dw_rows if l2 else 0)

    tables = np.empty((2, 2 * depth + 1, COLUMNS), np.int64)
    arrays, gradients = tables[0], tables[1]
    list_arrays(table, address(grads), size, 0, gradients)
    n_arrays = list_arrays(table, address(params), size, widths, arrays)
    if tensors:
        weights = carray(void_pointer(tensors), n_arrays, np.int64)
        for a in range(n_arrays):
            arrays[a, ADDRESS] = weights[a]

    blocks = arrays[n_arrays, SUMS]
    # arrays for health lie behind the norms
    scratch = np.empty(dw_rows + (watch_size(table, batch_size, thread_count, blocks) if health else 0))
    norms, labels = scratch[:dw_rows], np.empty(batch_size if by_class else 0, np.int64)
    watch = scratch[dw_rows:]
    reports = local_zeros(1, REPORT)
    report = reports[0]
    if health:
        describe_watch(watch, health, table, batch_size, thread_count, blocks)
        report.watch, report.layers, report.depth = address(watch), address(table), depth
        report.grads, report.norms, report.arrays = address(grads), address(norms), address(arrays)

    train.chain, train.loss, train.target_row = address(chain_record), address(loss_record), n_out
    describe_chain(chain, layers, 0, 0, n_in, size, address(panels), kernels[GEMM_KERNEL])
    chain.norms = 0 if optimizer == NO_UPDATE else address(norms)
    chain.squares = address(weight_squares) if l2 else 0
    columns = 1 if kind == types.CROSS_ENTROPY else n_out
    counts_right = counts != 0 and (kind == types.CROSS_ENTROPY or kind == types.BINARY_CROSS_ENTROPY)
    loss.kernel, loss.columns, loss.losses_of_row, loss.itemsize = kernels[LOSS_KERNELS + kind], n_out, columns, size
    loss.row_weights, loss.weights = row_weights, loss_weights
    loss.ignore_index, loss.parameter = ignore_index, loss_parameter
    chain.nonzeros = nonzeros
    chain.sparse_forward, chain.sparse_gradient = kernels[SPARSE_FORWARD], kernels[SPARSE_GRADIENT]
    chain.output_health, chain.gradient_health = kernels[LAYER_OUTPUT], kernels[LAYER_GRADIENT]
    x_size = 0 if chain.nonzeros else n_in * size
    batches = max(1, (rows + batch_size - 1) // max(batch_size, 1))
    for batch in range(batches):
        first = batch * batch_size
        n = min(batch_size, rows - first)
        all_labels = target if by_class else 0
        if by_class and has_bad_label(all_labels, order, first, n, n_out, ignore_index):
            return types.BAD_LABEL, batch

        chain.rows, chain.x.at = n, lay_out(layers, address(work), n, size)
        loss.rows, loss.y, loss.dy = n, layers[depth - 1].y, layers[depth - 1].dz
        loss.target, loss.labels = chain.x.at + n * x_size, address(labels) if by_class else 0
        loss.losses = loss.target + n * n_out * size
        losses = (loss.losses - address(work)) // size
        loss.right = loss.losses + n * columns * size if counts_right else 0
        if chain.nonzeros:
            carray(void_pointer(chain.nonzeros), 1, NONZEROS)[0].order = address(order) + first * 8
        if len(order):
            train.order, train.rows_x, train.rows_target = address(order) + first * 8, x, target
            loss.order = train.order
        else:
            chain.x.at, loss.target, loss.labels = x, 0 if by_class else target, all_labels
        weight = sum_of_weights(loss, all_labels, order, first, n, params)
        loss.scale, chain.decay = 1.0, l2 if weight else 0.0
        if mean:
            loss.scale = mean_scale(weight, columns)
            chain.decay = l2 / weight if weight else 0.0
        chain.watch = address(watch) if health and is_due(health, step + batch) else 0
        # forward, loss and backward; then the weights' gradients
        run_kernel(launcher, kernels[ROWS_KERNEL], thread_count, train_record, (layers, labels, scratch, loss_record))
        run_kernel(launcher, kernels[GRADIENTS_KERNEL], thread_count, chain_record, (layers, weight_squares, scratch))

        record[batch, 0] = sum_values(work, losses, n * columns) * loss.scale
        if counts:
            count = carray(void_pointer(counts + batch * 16), 2, np.float64)
            count[0], count[1] = weight, sum_values(work, losses + n * columns, n) / columns if counts_right else 0.0
        if l2:
            record[batch, 1 if optimizer == NO_UPDATE else 2] = sum_values(weight_squares, 0, weight_squares.size)
        if optimizer == NO_UPDATE:
            continue
        # clip and update
        norm = gradient_norm(norms, grads, table, rows_column, groups)
        record[batch, 1] = norm
        report.batch, report.rows = batch, n
        if chain.watch:
            run_kernel(kernels[LAYERS_REPORT], 0, thread_count, reports, (scratch,))
        if not math.isfinite(norm):
            return types.NONFINITE, batch
        describe_updates(
            group_updates, grads.size, address(state), len(state), optimizer, hyper, rates[batch * n_groups :], step + batch + 1,
            min(1.0, clip_norm / (norm + 1e-6)),
        )  # fmt: skip
        status = run_update(
            launcher, thread_count, kernels[FIRST_UPDATE_KERNEL:], arrays, gradients, n_arrays, group_updates, restriction,
            watch_of(chain.watch).moved if chain.watch else 0, norm, size, scratch,
        )  # fmt: skip
        if status != types.OK:
            return status, batch
        if len(updates):
            updates[0] += 1
        if chain.watch:
            run_kernel(kernels[UPDATES_REPORT], 0, thread_count, reports, (scratch, tables))
    return types.OK, batches


_KERNELS = Addresses(
    train_part, gradients_part, gemm_part,
    choices=(
        sparse_forward_part, sparse_gradient_part, layer_output, layer_gradient, layers_report, updates_report,
        *LOSSES, *FORWARD, *BACKWARD, *UPDATE_KERNELS,
    ),
)  # fmt: skip


def _needed_kernels(table, loss, rule, nonzeros, watch):
    """Places in _KERNELS of those of its choices that a call uses."""
    codes = {*table[:-1, 4].tolist(), fused(loss, table[-1, 4])}
    places = [LOSS_KERNELS + loss, *(FIRST_ACTIVATION + code + n for code in codes for n in (0, len(FORWARD)))]
    if nonzeros:
        places += SPARSE_FORWARD, SPARSE_GRADIENT
    if watch:
        places += range(LAYER_OUTPUT, UPDATES_REPORT + 1)
    return places + [FIRST_UPDATE_KERNEL + place for place in needed_kernels(rule, watch)]


_NO_ORDER, _NO_HYPER = np.empty(0, np.int64), np.zeros(7)


def _run(x, target, batches, net, rule, step, record, row_weights, l2, watch, updates, counts, mean=True):
    table, parameters, loss, params, grads, work = net
    code, loss_parameter, loss_weights, ignore_index = loss
    optimizer, state, hyper, clip_norm, masks, constraint, groups = rule
    order, batch_size, rates = batches
    tensors = 0
    if groups is not None:
        hyper, rates = hyper.reshape(-1), rates.reshape(-1)
    if type(params) is AddressList:
        # its sizes are the caller's care
        tensors, params = address_of(params.addresses), grads
    size = params.size
    if state.size != len(state) * size or grads.size != size:
        # kernels take from the table of layers where the values of all three lie
        raise ValueError(f"dense_chain_step: state and grads must have {size} values a row like params")
    if isinstance(x, types.Nonzeros):
        values = np.array([address_of(a) for a in (x.starts, x.columns, x.values, order)])
        at, nonzeros = 0, address_of(values)
    else:
        at, nonzeros = address_of(x), 0
    dtype = grads.dtype
    char = dtype.char
    # operations of a launch, on average: the pool wakes threads only for enough of them; arrays of more than one type by their addresses,
    # so that the driver is compiled once a dtype
    arguments = (
        2 * batch_size * size, _train, _KERNELS.get(char, _NO_ORDER), at, len(x), nonzeros, address_of(target), target.ndim == 1, order,
        batch_size, table, parameters, code, loss_parameter, address_or_zero(loss_weights), ignore_index,
        params, grads, work, optimizer, state, hyper, rates, clip_norm,
        *restriction_of(masks, constraint, groups), step, record,
        address_or_zero(row_weights), l2, mean,
        0 if watch is None else health_record(watch), NO_UPDATES if updates is None else updates,
        address_or_zero(counts), tensors,
    )  # fmt: skip
    result = run(*arguments, scratch=(dtype, 0, SCRATCH)) if char in _KERNELS else (MISSING, 0)
    if result[0] == MISSING:
        needed = _needed_kernels(table, code, rule, nonzeros != 0, watch is not None)
        _KERNELS.provide(char, needed, _train, (0, 1, *arguments[2:], EMPTY[char, 1]))
        result = run(*arguments[:2], _KERNELS[char], *arguments[3:], scratch=(dtype, 0, SCRATCH))
    return result


def dense_chain_gradients(x, target, net, record, *, row_weights=None, l2=0.0, mean=True, counts=None):
    """grads = the gradient of the mean loss, or of the sum: a step without its update.

    record (1,) = the loss, or with l2 (2,), and the sum of squares of every w. x may be Nonzeros. counts (2,), or None.
    Returns OK or BAD_LABEL.
    """
    # the row numbers of Nonzeros are always read
    order = np.arange(len(x)) if isinstance(x, types.Nonzeros) else _NO_ORDER
    rule = NO_UPDATE, np.empty((0, net.grads.size), x.dtype), _NO_HYPER, math.inf, None, None, None
    batches, record = (order, len(x), _NO_HYPER), record[None]
    return _run(x, target, batches, net, rule, 0, record, row_weights, l2, None, None, counts, mean)[0]


def dense_chain_step(
    x, target, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """Training step after `step` others; record (2,) = mean loss and norm, or with l2 (3,), the third the sum of squares of every w.

    updates (1,), int64, or None: one is added to it with the update. counts (2,), or None.

    Returns OK, BAD_LABEL or NONFINITE.
    """
    # hyper begins with the rate
    rates = rule.hyper if rule.groups is None else rule.hyper[:, 0].copy()
    batches, record = (_NO_ORDER, len(x), rates), record[None]
    return _run(x, target, batches, net, rule, step, record, row_weights, l2, watch, updates, counts)[0]


def dense_chain_epoch(
    x, target, batches, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """A step on each of the batches; record (n_batches, 2), or 3 with l2; counts (n_batches, 2), or None. The rate of a batch
    replaces the rule's.

    x may be Nonzeros. updates (1,), int64, or None: one is added to it with each update. Returns (status, batches done).
    """
    if len(batches.order) == 0:
        return types.OK, 0
    return _run(x, target, batches, net, rule, step, record, row_weights, l2, watch, updates, counts)
