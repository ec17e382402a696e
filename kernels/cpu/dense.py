"""Chains of dense layers, a_{l+1} = f_l(a_l w_l + b_l): forward, backward, inference. Formulas: kernels/reference/dense.py.

Passes: a thread takes its rows of the batch through all layers, forward or backward, without a barrier, since rows are independent. Then,
in a second launch, it computes its rows of every dw and its columns of every db, which are sums over all rows of the batch.

The product's sums start at the bias, so adding it needs no pass. The product, activations and statistics of health are kernels of their
own, called by address: each is compiled once, and only if a chain uses it. chain.py has the records and fills them.
"""

from functools import lru_cache

import numpy as np

from .. import types
from .activation import ACTIVATION, FORWARD, backward_address, forward_address
from .chain import (
    CHAIN,
    LAYER,
    LAYER_BYTES,
    describe_activation,
    describe_chain,
    describe_layer,
    find_activations,
    flat_layers,
    layers_of,
    needs_input,
    read_chain,
)
from .engine.compile import EMPTY, MISSING, Addresses, device_function, driver, kernel
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
from .engine.matrix import field_matrix, rows_apart, rows_from, transposed
from .engine.microkernel import ROWS
from .engine.object_memory import address_of, address_or_zero, readable_objects
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays, squares
from .gemm import GEMM, SCRATCH, TURNED_AT, TURNED_SIZE, clear, describe, gemm_part
from .health import LAYER_HEALTH, padded
from .sparse import SPARSE

# rows of a weight's gradient in one product, so that their squares are summed while they are in cache
GRADIENT_ROWS = 480
# rows of these whose health is measured while they are in the first-level cache
FEW_ROWS = 16
# rows that are summed in one chain of their dtype, and columns that are summed at a time: bytes of scratch for their sums
SUMMED_ROWS, SUMMED_COLUMNS = 256, 1024
SUMS_ROOM = 16 * SUMMED_COLUMNS + 8


@device_function
def activate_rows(chain, function, layer, lo, hi, record):
    """Rows lo..hi of a layer through its activation, forward or backward, by the kernel at `function`; without one nothing is done."""
    if function:
        activation, at = record[0], lo * layer.n_out * chain.itemsize
        activation.parameter, activation.rows, activation.columns = layer.parameter, hi - lo, layer.n_out
        activation.z, activation.y, activation.dy, activation.dz = (
            layer.z + at,
            layer.y + at,
            layer.dz + at,
            layer.dz + at,
        )
        call(function, 0, 1, record)


@device_function
def forward_rows(chain, thread_index, lo, hi, panels, like):
    """Rows lo..hi, the thread's, through all layers."""
    product, activation = local(1, GEMM), local(1, ACTIVATION)
    layers, size = layers_of(chain), chain.itemsize
    a, units = rows_from(field_matrix(chain.x), lo, size), 0
    for l in range(chain.depth):
        layer = layers[l]
        at = lo * layer.n_out * size
        # z = a w, from the bias or from what else it begins with
        start = rows_apart(layer.b, 0)
        if l == chain.depth - 1 and chain.residual:
            add_bias(hi - lo, layer.n_out, chain.residual + at, layer.b, layer.z + at, like)
            start = rows_apart(layer.z + at, layer.n_out)
        if l == 0 and chain.nonzeros:
            sparse_product(chain, chain.sparse_forward, layer, lo, hi, layer.w.at, layer.z, panels)
        else:
            z = rows_apart(layer.z + at, layer.n_out)
            describe(product, (hi - lo, layer.n_out, layer.n_in), a, field_matrix(layer.w), start, z, panels)
            call(chain.gemm, 0, 1, product)
        # y = f(z)
        activate_rows(chain, layer.activate, layer, lo, hi, activation)
        if chain.watch:
            watch_values(chain, chain.output_health, thread_index, l, units, lo, hi, layer.n_out, layer.y)
            units += padded(layer.n_out)
        a = rows_apart(layer.y + at, layer.n_out)


@device_function
def watch_values(chain, function, thread_index, layer, units, lo, hi, columns, values):
    """Health of a layer's output or gradient, by a kernel of health.py."""
    record = local(1, LAYER_HEALTH)
    health = record[0]
    health.watch, health.thread_index, health.layer, health.units = chain.watch, thread_index, layer, units
    health.lo, health.hi, health.columns, health.values = lo, hi, columns, values
    call(function, 0, 1, record)


@device_function
def sparse_product(chain, function, layer, lo, hi, of, out, scratch):
    """Rows lo..hi of the first layer's z or dw."""
    product = local(1, SPARSE)
    t = product[0]
    t.nonzeros, t.rows, t.lo, t.hi, t.n_out = chain.nonzeros, chain.rows, lo, hi, layer.n_out
    t.of, t.b, t.out, t.scratch = of, layer.b, out, scratch
    call(function, 0, 1, product)


@device_function
def add_bias(rows, columns, residual, b, z, like):
    """z = residual + b, where there is a b."""
    bias = carray(pointer(b, like), columns)  # (K,)
    for i in range(rows):
        to = carray(advance(pointer(z, like), i * columns), columns)  # (K,)
        of = carray(advance(pointer(residual, like), i * columns), columns)  # (K,)
        for j in range(columns):
            to[j] = of[j] + bias[j] if b else of[j]


@device_function
def backward_rows(chain, lo, hi, panels):
    """Rows lo..hi back through all layers: dz of the last layer holds dy, and every dz is left for the weights' gradients."""
    product, activation = local(1, GEMM), local(1, ACTIVATION)
    layers, size = layers_of(chain), chain.itemsize
    for l in range(chain.depth - 1, -1, -1):
        layer = layers[l]
        # dz = da f'(z), in place
        activate_rows(chain, layer.differentiate, layer, lo, hi, activation)
        # da of the layer below = dz w^T, to where its dz will be
        da_at = layers[l - 1].dz if l else chain.dx
        if da_at:
            sizes = hi - lo, layer.n_in, layer.n_out
            dz = rows_apart(layer.dz + lo * layer.n_out * size, layer.n_out)
            da = rows_apart(da_at + lo * layer.n_in * size, layer.n_in)
            describe(product, sizes, dz, transposed(field_matrix(layer.w)), rows_apart(0, 0), da, panels)
            call(chain.gemm, 0, 1, product)


@device_function
def column_sums(rows, columns, lo, hi, values, sums, scratch):
    """Sums over all rows of the columns lo..hi of values (rows, columns): of each block of rows in their dtype, of all blocks in float64.

    scratch: address of SUMS_ROOM bytes.
    """
    totals = data(carray(void_pointer((scratch + 7) // 8 * 8), SUMMED_COLUMNS, np.float64))  # (SUMMED_COLUMNS,)
    block = pointer((scratch + 7) // 8 * 8 + 8 * SUMMED_COLUMNS, values)  # (SUMMED_COLUMNS,)
    for first in range(lo, hi, SUMMED_COLUMNS):
        n, source = min(SUMMED_COLUMNS, hi - first), advance(values, first)
        clear(n, totals)
        for begin in range(0, rows, SUMMED_ROWS):
            clear(n, block)
            for i in range(begin, min(begin + SUMMED_ROWS, rows)):
                map_arrays(add, n, (block, advance(source, i * columns)), (block,), ())
            map_arrays(add, n, (totals, block), (totals,), ())
        of, to = carray(totals, n), carray(advance(sums, first), n)
        for j in range(n):
            to[j] = of[j]


@device_function
def decay_rows(rows, columns, w, dw, decay, sums):
    """dw += decay w, and the sum of squares of every row of w."""
    of, to = carray(w, rows * columns), carray(dw, rows * columns)
    for j in range(rows * columns):
        to[j] += real(decay, of[j]) * of[j]
    for i in range(rows):
        sums[i] = squares(advance(w, i * columns), columns)


@kernel(CHAIN)
def forward_part(thread_index, thread_count, record, like):
    """The thread's rows through all layers."""
    chain = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, chain.rows, ROWS)
    forward_rows(chain, thread_index, lo, hi, chain.panels + thread_index * SCRATCH * chain.itemsize, like)


@kernel(CHAIN)
def backward_part(thread_index, thread_count, record, like):
    """The thread's rows back through all layers."""
    chain = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, chain.rows, ROWS)
    last = layers_of(chain)[chain.depth - 1]
    n, at = (hi - lo) * last.n_out, lo * last.n_out
    # dy, to where the last layer's dz will be
    to = carray(advance(pointer(last.dz, like), at), n)  # (rows, K)
    of = carray(advance(pointer(chain.dy, like), at), n)  # (rows, K)
    for i in range(n):
        to[i] = of[i]
    backward_rows(chain, lo, hi, chain.panels + thread_index * SCRATCH * chain.itemsize)


@kernel(CHAIN)
def gradients_part(thread_index, thread_count, record, like):
    """The thread's rows of every dw = a^T dz, and its columns of every db."""
    chain = carray(record, 1)[0]
    product = local(1, GEMM)
    layers, size = layers_of(chain), chain.itemsize
    norms, before = chain.norms, 0
    a = field_matrix(chain.x)
    for l in range(chain.depth):
        layer = layers[l]
        # dw = a^T dz, or where it is turned dw^T = dz^T a, some rows at a time, and what is asked of them while they are in cache
        rows, columns, left, right = layer.n_in, layer.n_out, transposed(a), rows_apart(layer.dz, layer.n_out)
        if layer.dw_turned:
            rows, columns, left, right = columns, rows, transposed(right), a
        lo, hi = thread_range(thread_index, thread_count, rows, ROWS)
        for i in range(lo, hi, GRADIENT_ROWS):
            m = min(GRADIENT_ROWS, hi - i)
            dw, scratch = layer.dw + i * columns * size, chain.panels + thread_index * SCRATCH * size
            if l == 0 and chain.nonzeros:
                sparse_product(chain, chain.sparse_gradient, layer, i, i + m, layer.dz, layer.dw, scratch)
            else:
                sizes, out = (m, columns, chain.rows), rows_apart(dw, columns)
                describe(product, sizes, rows_from(left, i, size), right, rows_apart(0, 0), out, scratch)
                product[0].sums = 1
                call(chain.gemm, 0, 1, product)
            if chain.squares:
                sums = carray(void_pointer(chain.squares + (before + i) * 8), m, np.float64)  # (m,)
                w = pointer(layer.w.at + i * columns * size, like)
                decay_rows(m, columns, w, pointer(dw, like), chain.decay, sums)
            if norms:
                sums = carray(void_pointer(norms + (before + i) * 8), m, np.float64)  # (m,)
                for first in range(0, m, FEW_ROWS):
                    last = min(first + FEW_ROWS, m)
                    for r in range(first, last):
                        sums[r] = squares(pointer(dw + r * columns * size, like), columns)
                    if chain.watch:
                        values = dw + first * columns * size
                        watch_values(chain, chain.gradient_health, thread_index, l, 0, first, last, columns, values)
        # db = the sums of dz over the rows
        if layer.db:
            lo, hi = thread_range(thread_index, thread_count, layer.n_out, 16)
            scratch = chain.panels + thread_index * SCRATCH * size
            column_sums(chain.rows, layer.n_out, lo, hi, pointer(layer.dz, like), pointer(layer.db, like), scratch)
        before += rows
        a = rows_apart(layer.y, layer.n_out)


@driver
def _forward_chain(launcher, thread_count, kernels, x, lists, functions, parameters, none, size, residual, scratch):
    layers, record = np.empty(len(functions), LAYER), local_zeros(1, CHAIN)
    read_chain(record, layers, x, lists, functions, parameters, none, size, address(scratch), kernels[0])
    record[0].residual = residual
    run_kernel(launcher, kernels[1], thread_count, record, (layers,))


@driver
def _backward_chain(launcher, thread_count, kernels, x, lists, functions, parameters, none, size, dy, dx, scratch):
    layers, record = np.empty(len(functions), LAYER), local_zeros(1, CHAIN)
    read_chain(record, layers, x, lists, functions, parameters, none, size, address(scratch), kernels[0])
    record[0].dy, record[0].dx = dy, dx
    run_kernel(launcher, kernels[1], thread_count, record, (layers,))
    run_kernel(launcher, kernels[2], thread_count, record, (layers,))


@lru_cache
def _functions(char, activations, backward):
    """(L, 3), int64, and parameters (L,), as read_chain takes them."""
    functions = [
        (forward_address[char, a.code], backward_address[char, a.code] if backward else 0, a.needs_input)
        for a in activations
    ]
    return np.array(functions, np.int64), np.array([a.parameter for a in activations], np.float64)


def _run_chain(driver, kernels, x, weights, activations, lists, ends):
    """lists: weights, biases, zs, outputs, dzs, dweights, dbiases, each None for none; ends: the addresses that the driver takes last."""
    char = x.dtype.char
    _held, array, places = readable_objects(x, lists)
    run(
        2 * len(x) * sum(w.size for w in weights), driver, kernels[char], array, places,
        *_functions(char, tuple(activations), kernels is _BACKWARD), id(None), x.itemsize, *ends, scratch=(x.dtype, 0, SCRATCH),
    )  # fmt: skip


@driver
def _forward(launcher, thread_count, kernels, x, w, b, residual, function, parameter, z, y, scratch):
    layers, record = local_zeros(1, LAYER), local_zeros(1, CHAIN)
    describe_chain(record[0], layers, len(x), address(x), x.shape[1], x.itemsize, address(scratch), kernels[0])
    describe_layer(layers[0], *w.shape, address(w), address_or_null(b), 0, 0)
    describe_activation(layers[0], (function, 0), parameter, address(z), address(y), 0)
    record[0].residual = address_or_null(residual)
    run_kernel(launcher, kernels[1], thread_count, record, ())


@driver
def _backward(launcher, thread_count, kernels, dy, x, w, function, parameter, z, y, dz, dx, dw, db, scratch):
    layers, record = local_zeros(1, LAYER), local_zeros(1, CHAIN)
    describe_chain(record[0], layers, len(x), address(x), x.shape[1], x.itemsize, address(scratch), kernels[0])
    describe_layer(layers[0], *w.shape, address(w), 0, address(dw), address_or_null(db))
    describe_activation(layers[0], (0, function), parameter, address(z), address(y), address(dz))
    record[0].dy, record[0].dx = address(dy), address_or_null(dx)
    run_kernel(launcher, kernels[1], thread_count, record, ())
    run_kernel(launcher, kernels[2], thread_count, record, ())


def _is_one(x, weights):
    """Whether a chain is one layer of contiguous x and w, for which _forward and _backward take a fifth of the time."""
    return len(weights) == 1 and x.flags.c_contiguous and weights[0].flags.c_contiguous


def dense_chain_forward(chain, saved):
    """saved.outputs[l] = a_{l+1}, saved.zs[l] = z_l, or outputs[l] where the activation does not need its input."""
    x, weights, biases, activations, residual = chain
    zs, outputs = saved
    residual = None if residual is None else np.ascontiguousarray(residual)
    if _is_one(x, weights):
        b = None if biases[0] is None else np.ascontiguousarray(biases[0])
        (code, parameter), char = activations[0], x.dtype.char
        run(
            2 * len(x) * weights[0].size, _forward, _FORWARD[char], x, weights[0], EMPTY[char, 1] if b is None else b,
            EMPTY[char, 2] if residual is None else residual, forward_address[char, code], parameter, zs[0], outputs[0],
            scratch=(x.dtype, 0, SCRATCH),
        )  # fmt: skip
        return
    biases = [b if b is None or b.flags.c_contiguous else b.copy() for b in biases]
    lists = weights, biases, zs, outputs, None, None, None
    ends = [address_or_zero(residual)]
    _run_chain(_forward_chain, _FORWARD, x, weights, activations, lists, ends)


def dense_chain_backward(dy, chain, saved, gradients):
    """gradients are overwritten; each of dweights is C-contiguous, or the transpose of an array that is."""
    x, weights, _, activations, _ = chain
    zs, outputs = saved
    dzs, dx, dweights, dbiases = gradients
    dy = np.ascontiguousarray(dy)
    if _is_one(x, weights) and dweights[0].flags.c_contiguous:
        (code, parameter), char = activations[0], x.dtype.char
        run(
            2 * len(x) * weights[0].size, _backward, _BACKWARD[char], dy, x, weights[0], backward_address[char, code], parameter,
            zs[0], outputs[0], dzs[0], EMPTY[char, 2] if dx is None else dx, dweights[0],
            EMPTY[char, 1] if dbiases[0] is None else dbiases[0], scratch=(x.dtype, 0, SCRATCH),
        )  # fmt: skip
        return
    lists = weights, None, zs, outputs, dzs, dweights, dbiases
    ends = address_of(dy), address_or_zero(dx)
    _run_chain(_backward_chain, _BACKWARD, x, weights, activations, lists, ends)


# rows that a thread of infer takes through the chain at a time, so that its buffers are small whatever the batch
INFER_ROWS = 20 * ROWS


@device_function
def rows_at_once(rows, thread_count):
    """How many rows a thread of infer takes through the chain at a time: the rows of its buffers."""
    grains = (rows + ROWS - 1) // ROWS
    return min(rows, INFER_ROWS, (grains + thread_count - 1) // thread_count * ROWS)


@kernel(CHAIN)
def infer_part(thread_index, thread_count, record, like):
    """The thread's rows through all layers, a few at a time; `dz` of the first layer is scratch for wide layers or 0, `dy` the output.

    Behind the layers' records are as many for each thread, which are its own.
    """
    whole = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, whole.rows, ROWS)
    chains, layers_at = local(1, CHAIN), whole.layers + (thread_index + 1) * whole.depth * LAYER_BYTES
    layers = carray(void_pointer(layers_at), whole.depth, LAYER)  # (L,)
    chain, size = chains[0], whole.itemsize
    chain.residual, chain.watch, chain.nonzeros = 0, 0, 0
    describe_chain(chain, layers, whole.rows, whole.x.at, whole.x.row, size, whole.panels, whole.gemm)
    widest = 0
    for l in range(whole.depth):
        layers[l] = layers_of(whole)[l]
        widest = max(widest, layers[l].n_out)
    last = layers[whole.depth - 1]
    most, panels = rows_at_once(whole.rows, thread_count), whole.panels + thread_index * SCRATCH * size
    # in a forward over flat weights no product is turned: its piece of scratch is free
    buffers = panels + TURNED_AT * size
    if layers[0].dz:
        buffers = layers[0].dz + thread_index * 3 * most * widest * size
    for l in range(whole.depth):
        # a layer reads one buffer and writes another; an activation that keeps z has the third for it
        layers[l].dz = 0
        layers[l].y = buffers + l % 2 * most * widest * size
        layers[l].z = buffers + 2 * most * widest * size if needs_input(layers[l].code) else layers[l].y
    keeps_z = last.z != last.y
    for i in range(lo, hi, max(most, 1)):
        chain.x.at = rows_from(field_matrix(whole.x), i, size).at
        last.y = whole.dy + i * last.n_out * size
        if not keeps_z:
            last.z = last.y
        forward_rows(chain, 0, 0, min(most, hi - i), panels, like)


@driver
def _infer(launcher, thread_count, kernels, x, table, parameters, params, out, scratch):
    layers, record = np.empty((thread_count + 1) * len(table), LAYER), local_zeros(1, CHAIN)
    size = x.itemsize
    flat_layers(layers, table, parameters, address(params), 0, size)
    if not find_activations(layers[: len(table)], kernels, 2, False):
        return MISSING
    needed = 3 * rows_at_once(len(x), thread_count) * table[:, 1].max()
    buffers = np.empty(needed * thread_count if needed > TURNED_SIZE else 0, x.dtype)
    layers[0].dz = address(buffers) if needed > TURNED_SIZE else 0
    describe_chain(record[0], layers[: len(table)], len(x), address(x), x.shape[1], size, address(scratch), kernels[1])
    record[0].dy = address(out)
    run_kernel(launcher, kernels[0], thread_count, record, (layers, buffers))
    return types.OK


_FORWARD = Addresses(gemm_part, forward_part)
_BACKWARD = Addresses(gemm_part, backward_part, gradients_part)
_INFER = Addresses(infer_part, gemm_part, choices=FORWARD)


def dense_chain_infer(x, table, parameters, params, out):
    """out (N, K_L) = y, over flat params laid out as in training_step.py; keeps nothing."""
    char = x.dtype.char
    arguments = 2 * len(x) * params.size, _infer, _INFER[char], x, table, parameters, params, out
    if run(*arguments, scratch=(x.dtype, 0, SCRATCH)) == MISSING:
        _INFER.provide(char, 2 + table[:, 4])
        run(*arguments, scratch=(x.dtype, 0, SCRATCH))
