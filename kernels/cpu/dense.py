"""Chains of dense layers, a_{l+1} = f_l(a_l w_l + b_l): forward, backward, inference. Formulas: kernels/reference/dense.py.

Passes: a thread takes its rows of the batch through all layers, forward or backward, without a barrier, since rows are independent. Then,
in a second launch, it computes its rows of every dw and its columns of every db, which are sums over all rows of the batch.

The product's sums start at the bias, so adding it needs no pass. The product, activations and statistics of health are kernels of their
own, called by address: each is compiled once, and only if a chain uses it. Drivers read addresses and shapes of a chain's arrays from the
Python objects: see engine/object_memory.py.
"""

from functools import lru_cache

import numpy as np
from numba import carray

from .. import types
from .activation import ACTIVATION, FORWARD, backward_address, forward_address
from .engine.compile import MISSING, Addresses, device_function, driver, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_of,
    address_or_null,
    advance,
    call,
    data,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.microkernel import ROWS
from .engine.object_memory import DATA, FLAGS, HEAD, ITEMS, SHAPE, STRIDES, low_word, word
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays, squares
from .gemm import GEMM, SCRATCH, TURNED_AT, TURNED_SIZE, clear, describe, gemm_part
from .health import LAYER_HEALTH, padded
from .sparse import SPARSE

# addresses of a layer's arrays, 0 where there is none; z is y but where the activation keeps both; dw is C-contiguous, or its transpose;
# code: of the activation; activate, differentiate: addresses of its kernels, 0 for the identity
LAYER = np.dtype(
    [(name, "i8") for name in "n_in n_out w w_row w_col b z y dz dw dw_turned db".split()]
    + [(name, "i8") for name in "code activate differentiate".split()]
    + [("parameter", "f8")]
)
# layers: address of the LAYER records; norms: of one float64 a row of every dw, its sum of squares, or 0; squares: of one a row of every
# contiguous w, its sum of squares, and then decay w is added to dw; or 0; gemm: of gemm_part;
# watch: of a WATCH of health.py, or 0, and then output_health and gradient_health: of kernels of health.py; nonzeros: of a NONZEROS of
# sparse.py in place of x, or 0, and then sparse_forward and sparse_gradient: of kernels of sparse.py
CHAIN = np.dtype(
    [(name, "i8") for name in "rows depth layers x x_row x_col residual dy dx norms squares panels itemsize".split()]
    + [
        (name, "i8")
        for name in "gemm watch output_health gradient_health nonzeros sparse_forward sparse_gradient".split()
    ]
    + [("decay", "f8")]
)
LAYER_BYTES = LAYER.itemsize
needs_input = device_function(types.needs_input)
# rows of a weight's gradient in one product, so that their squares are summed while they are in cache
GRADIENT_ROWS = 480
# rows of these whose health is measured while they are in the first-level cache
FEW_ROWS = 16
# rows that are summed in one chain of their dtype, and columns that are summed at a time: bytes of room for their sums
SUMMED_ROWS, SUMMED_COLUMNS = 256, 1024
SUMS_ROOM = 16 * SUMMED_COLUMNS + 8


@device_function
def layers_of(chain):
    return carray(void_pointer(chain.layers), chain.depth, LAYER)


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
def forward_rows(chain, part, lo, hi, panels, like):
    """Rows lo..hi, the part's, through all layers."""
    product, activation = local(1, GEMM), local(1, ACTIVATION)
    layers, size = layers_of(chain), chain.itemsize
    a, a_row, a_col, units = chain.x + lo * chain.x_row * size, chain.x_row, chain.x_col, 0
    for l in range(chain.depth):
        layer = layers[l]
        at = lo * layer.n_out * size
        # z = a w, from the bias or from what else it begins with
        start, start_row = layer.b, 0
        if l == chain.depth - 1 and chain.residual:
            add_bias(hi - lo, layer.n_out, chain.residual + at, layer.b, layer.z + at, like)
            start, start_row = layer.z + at, layer.n_out
        if l == 0 and chain.nonzeros:
            sparse_product(chain, chain.sparse_forward, layer, lo, hi, layer.w, layer.z, panels)
        else:
            describe(
                product, hi - lo, layer.n_out, layer.n_in, a, a_row, a_col, layer.w, layer.w_row, layer.w_col,
                start, start_row, layer.z + at, layer.n_out, panels,
            )  # fmt: skip
            call(chain.gemm, 0, 1, product)
        # y = f(z)
        activate_rows(chain, layer.activate, layer, lo, hi, activation)
        if chain.watch:
            watch_values(chain, chain.output_health, part, l, units, lo, hi, layer.n_out, layer.y)
            units += padded(layer.n_out)
        a, a_row, a_col = layer.y + at, layer.n_out, 1


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
        da = layers[l - 1].dz if l else chain.dx
        if da:
            describe(
                product, hi - lo, layer.n_in, layer.n_out, layer.dz + lo * layer.n_out * size, layer.n_out, 1,
                layer.w, layer.w_col, layer.w_row, 0, 0, da + lo * layer.n_in * size, layer.n_in, panels,
            )  # fmt: skip
            call(chain.gemm, 0, 1, product)


@device_function
def column_sums(rows, columns, lo, hi, values, sums, room):
    """Sums over all rows of the columns lo..hi of values (rows, columns): of each block of rows in their dtype, of all blocks in float64.

    room: address of SUMS_ROOM bytes.
    """
    totals = data(carray(void_pointer((room + 7) // 8 * 8), SUMMED_COLUMNS, np.float64))  # (SUMMED_COLUMNS,)
    block = pointer((room + 7) // 8 * 8 + 8 * SUMMED_COLUMNS, values)  # (SUMMED_COLUMNS,)
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
def forward_part(part, parts, job, like):
    """The part's rows through all layers."""
    chain = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, chain.rows, ROWS)
    forward_rows(chain, part, lo, hi, chain.panels + part * SCRATCH * chain.itemsize, like)


@kernel(CHAIN)
def backward_part(part, parts, job, like):
    """The part's rows back through all layers."""
    chain = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, chain.rows, ROWS)
    last = layers_of(chain)[chain.depth - 1]
    n, at = (hi - lo) * last.n_out, lo * last.n_out
    # dy, to where the last layer's dz will be
    to = carray(advance(pointer(last.dz, like), at), n)  # (rows, K)
    of = carray(advance(pointer(chain.dy, like), at), n)  # (rows, K)
    for i in range(n):
        to[i] = of[i]
    backward_rows(chain, lo, hi, chain.panels + part * SCRATCH * chain.itemsize)


@device_function
def turned_gradient(chain, layer, part, parts, a, a_row, a_col, product):
    """The part's rows of dw^T = dz^T a."""
    size = chain.itemsize
    lo, hi = thread_range(part, parts, layer.n_out, ROWS)
    describe(
        product, hi - lo, layer.n_in, chain.rows, layer.dz + lo * size, 1, layer.n_out, a, a_row, a_col,
        0, 0, layer.dw + lo * layer.n_in * size, layer.n_in, chain.panels + part * SCRATCH * size,
    )  # fmt: skip
    product[0].sums = 1
    if hi > lo:
        call(chain.gemm, 0, 1, product)


@kernel(CHAIN)
def gradients_part(part, parts, job, like):
    """The part's rows of every dw = a^T dz, and its columns of every db."""
    chain = carray(job, 1)[0]
    product = local(1, GEMM)
    layers, size = layers_of(chain), chain.itemsize
    norms, before = chain.norms, 0
    a, a_row, a_col = chain.x, chain.x_row, chain.x_col
    for l in range(chain.depth):
        layer = layers[l]
        if layer.dw_turned:
            turned_gradient(chain, layer, part, parts, a, a_row, a_col, product)
        lo, hi = thread_range(part, parts, 0 if layer.dw_turned else layer.n_in, ROWS)
        # dw = a^T dz, some rows at a time, and what is asked of them while they are in cache
        for i in range(lo, hi, GRADIENT_ROWS):
            m = min(GRADIENT_ROWS, hi - i)
            dw, scratch = layer.dw + i * layer.n_out * size, chain.panels + part * SCRATCH * size
            if l == 0 and chain.nonzeros:
                sparse_product(chain, chain.sparse_gradient, layer, i, i + m, layer.dz, layer.dw, scratch)
            else:
                describe(
                    product, m, layer.n_out, chain.rows, a + i * a_col * size, a_col, a_row, layer.dz, layer.n_out, 1,
                    0, 0, dw, layer.n_out, scratch,
                )  # fmt: skip
                product[0].sums = 1
                call(chain.gemm, 0, 1, product)
            if chain.squares:
                sums = carray(void_pointer(chain.squares + (before + i) * 8), m, np.float64)  # (m,)
                w = pointer(layer.w + i * layer.n_out * size, like)
                decay_rows(m, layer.n_out, w, pointer(dw, like), chain.decay, sums)
            if norms:
                sums = carray(void_pointer(norms + (before + i) * 8), m, np.float64)  # (m,)
                for first in range(0, m, FEW_ROWS):
                    last = min(first + FEW_ROWS, m)
                    for r in range(first, last):
                        sums[r] = squares(pointer(dw + r * layer.n_out * size, like), layer.n_out)
                    if chain.watch:
                        values = dw + first * layer.n_out * size
                        watch_values(chain, chain.gradient_health, part, l, 0, first, last, layer.n_out, values)
        # db = the sums of dz over the rows
        if layer.db:
            lo, hi = thread_range(part, parts, layer.n_out, 16)
            room = chain.panels + part * SCRATCH * size
            column_sums(chain.rows, layer.n_out, lo, hi, pointer(layer.dz, like), pointer(layer.db, like), room)
        before += layer.n_in
        a, a_row, a_col = layer.y, layer.n_out, 1


@device_function
def fields_of(items, l, none):
    """Address of the fields of a list's array number l: see object_memory.py. items: of the list, or 0. 0 for None and without a list."""
    array = word(items, l) if items else none
    return array + HEAD if array != none else 0


@device_function
def data_of(items, l, none):
    """Address of the array's values, or 0."""
    fields = fields_of(items, l, none)
    return word(fields, DATA) if fields else 0


@device_function
def items_of(array_list, none):
    """Address of a list's items; 0 for None."""
    return word(array_list + HEAD, ITEMS) if array_list != none else 0


@device_function
def describe_chain(chain, layers, rows, x, x_row, size, panels, gemm):
    """Fill the record of a chain of dense rows x, which has no gradients, health and nonzeros yet."""
    chain.depth, chain.layers, chain.rows, chain.itemsize = len(layers), address(layers), rows, size
    chain.x, chain.x_row, chain.x_col, chain.panels, chain.gemm = x, x_row, 1, panels, gemm


@device_function
def describe_layer(layer, n_in, n_out, w, b, dw, db):
    """Fill the record of a layer of contiguous w."""
    layer.n_in, layer.n_out, layer.w, layer.w_row, layer.w_col, layer.b = n_in, n_out, w, n_out, 1, b
    layer.dw, layer.dw_turned, layer.db = dw, 0, db


@device_function
def describe_activation(layer, functions, parameter, z, y, dz):
    """functions: addresses of the activation's two kernels."""
    layer.activate, layer.differentiate, layer.parameter = functions[0], functions[1], parameter
    layer.z, layer.y, layer.dz = z, y, dz


@device_function
def read_chain(record, layers, x, lists, functions, parameters, none, size, panels, gemm):
    """Fill the records of a chain from the objects themselves: x and the seven lists as below.

    functions (L, 3): of every layer the addresses of the activation's kernels, and whether it keeps z.
    """
    weights, biases, zs = items_of(lists[0], none), items_of(lists[1], none), items_of(lists[2], none)
    outputs, dzs = items_of(lists[3], none), items_of(lists[4], none)
    dweights, dbiases = items_of(lists[5], none), items_of(lists[6], none)
    strides, chain = word(x + HEAD, STRIDES), record[0]
    rows = word(word(x + HEAD, SHAPE), 0)
    describe_chain(chain, layers, rows, word(x + HEAD, DATA), word(strides, 0) // size, size, panels, gemm)
    chain.x_col = word(strides, 1) // size
    for l in range(len(layers)):
        layer, w, dw = layers[l], fields_of(weights, l, none), fields_of(dweights, l, none)
        shape, strides = word(w, SHAPE), word(w, STRIDES)
        b, db = data_of(biases, l, none), data_of(dbiases, l, none)
        describe_layer(layer, word(shape, 0), word(shape, 1), word(w, DATA), b, data_of(dweights, l, none), db)
        layer.w_row, layer.w_col = word(strides, 0) // size, word(strides, 1) // size
        layer.dw_turned = 1 - (low_word(dw, FLAGS) & 1) if dw else 0
        y = data_of(outputs, l, none)
        z = data_of(zs, l, none) if functions[l, 2] else y
        describe_activation(layer, functions[l], parameters[l], z, y, data_of(dzs, l, none))


@driver
def _forward_chain(launcher, parts, kernels, x, lists, functions, parameters, none, size, residual, room):
    layers, job = np.empty(len(functions), LAYER), local_zeros(1, CHAIN)
    read_chain(job, layers, x, lists, functions, parameters, none, size, address(room), kernels[0])
    job[0].residual = residual
    run_kernel(launcher, kernels[1], parts, job, (layers,))


@driver
def _backward_chain(launcher, parts, kernels, x, lists, functions, parameters, none, size, dy, dx, room):
    layers, job = np.empty(len(functions), LAYER), local_zeros(1, CHAIN)
    read_chain(job, layers, x, lists, functions, parameters, none, size, address(room), kernels[0])
    job[0].dy, job[0].dx = dy, dx
    run_kernel(launcher, kernels[1], parts, job, (layers,))
    run_kernel(launcher, kernels[2], parts, job, (layers,))


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
    # of our own, since the driver reads them without Python's lock
    lists, char = [a if a is None else list(a) for a in lists], x.dtype.char
    run(
        2 * len(x) * sum(w.size for w in weights), driver, kernels[char], id(x), tuple(map(id, lists)),
        *_functions(char, tuple(activations), kernels is _BACKWARD), id(None), x.itemsize, *ends, scratch=(x.dtype, 0, SCRATCH),
    )  # fmt: skip


@driver
def _forward(launcher, parts, kernels, x, w, b, residual, function, parameter, z, y, room):
    layers, job = local_zeros(1, LAYER), local_zeros(1, CHAIN)
    describe_chain(job[0], layers, len(x), address(x), x.shape[1], x.itemsize, address(room), kernels[0])
    describe_layer(layers[0], *w.shape, address(w), address_or_null(b), 0, 0)
    describe_activation(layers[0], (function, 0), parameter, address(z), address(y), 0)
    job[0].residual = address_or_null(residual)
    run_kernel(launcher, kernels[1], parts, job, ())


@driver
def _backward(launcher, parts, kernels, dy, x, w, function, parameter, z, y, dz, dx, dw, db, room):
    layers, job = local_zeros(1, LAYER), local_zeros(1, CHAIN)
    describe_chain(job[0], layers, len(x), address(x), x.shape[1], x.itemsize, address(room), kernels[0])
    describe_layer(layers[0], *w.shape, address(w), 0, address(dw), address_or_null(db))
    describe_activation(layers[0], (0, function), parameter, address(z), address(y), address(dz))
    job[0].dy, job[0].dx = address(dy), address_or_null(dx)
    run_kernel(launcher, kernels[1], parts, job, ())
    run_kernel(launcher, kernels[2], parts, job, ())


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
            2 * len(x) * weights[0].size, _forward, _FORWARD[char], x, weights[0], *or_empty(x.dtype, 1, b),
            *or_empty(x.dtype, 2, residual), forward_address[char, code], parameter, zs[0], outputs[0],
            scratch=(x.dtype, 0, SCRATCH),
        )  # fmt: skip
        return
    biases = [b if b is None or b.flags.c_contiguous else b.copy() for b in biases]
    lists = weights, biases, zs, outputs, None, None, None
    ends = [0 if residual is None else address_of(residual)]
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
            zs[0], outputs[0], dzs[0], *or_empty(x.dtype, 2, dx), dweights[0], *or_empty(x.dtype, 1, dbiases[0]),
            scratch=(x.dtype, 0, SCRATCH),
        )  # fmt: skip
        return
    lists = weights, None, zs, outputs, dzs, dweights, dbiases
    ends = address_of(dy), 0 if dx is None else address_of(dx)
    _run_chain(_backward_chain, _BACKWARD, x, weights, activations, lists, ends)


# rows that a thread of infer takes through the chain at a time, so that its buffers are small whatever the batch
INFER_ROWS = 20 * ROWS


@device_function
def rows_at_once(rows, parts):
    """How many rows a part of infer takes through the chain at a time: the rows of its buffers."""
    grains = (rows + ROWS - 1) // ROWS
    return min(rows, INFER_ROWS, (grains + parts - 1) // parts * ROWS)


@device_function
def flat_layers(layers, table, parameters, params, grads, size):
    """Fill LAYER records from a table of offsets into params and grads (their addresses; grads 0: none)."""
    for l in range(len(table)):
        n_in, n_out, w, b = table[l, 0], table[l, 1], table[l, 2], table[l, 3]
        dw, db = grads + w * size if grads else 0, grads + b * size if grads and b >= 0 else 0
        describe_layer(layers[l], n_in, n_out, params + w * size, params + b * size if b >= 0 else 0, dw, db)
        layers[l].code, layers[l].parameter = table[l, 4], parameters[l]


@device_function
def find_activations(layers, kernels, first, backward):
    """Put the addresses of the activations' kernels into the records of layers; returns False where one is missing.

    kernels: from `first` on the ones of FORWARD and then, with `backward`, of BACKWARD.
    """
    for l in range(len(layers)):
        layer = layers[l]
        layer.activate = kernels[first + layer.code]
        layer.differentiate = kernels[first + N_ACTIVATIONS + layer.code] if backward else 0
        if layer.code != types.IDENTITY and (layer.activate == 0 or (backward and layer.differentiate == 0)):
            return False
    return True


@kernel(CHAIN)
def infer_part(part, parts, job, like):
    """The part's rows through all layers, a few at a time; `dz` of the first layer is room for wide layers or 0, `dy` the output.

    Behind the layers' records are as many for each part, which are its own.
    """
    whole = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, whole.rows, ROWS)
    chains, layers_at = local(1, CHAIN), whole.layers + (part + 1) * whole.depth * LAYER_BYTES
    layers = carray(void_pointer(layers_at), whole.depth, LAYER)  # (L,)
    chain, size = chains[0], whole.itemsize
    chain.residual, chain.watch, chain.nonzeros = 0, 0, 0
    describe_chain(chain, layers, whole.rows, whole.x, whole.x_row, size, whole.panels, whole.gemm)
    widest = 0
    for l in range(whole.depth):
        layers[l] = layers_of(whole)[l]
        widest = max(widest, layers[l].n_out)
    last = layers[whole.depth - 1]
    most, panels = rows_at_once(whole.rows, parts), whole.panels + part * SCRATCH * size
    # in a forward over flat weights no product is turned: its piece of scratch is free
    buffers = panels + TURNED_AT * size
    if layers[0].dz:
        buffers = layers[0].dz + part * 3 * most * widest * size
    for l in range(whole.depth):
        # a layer reads one buffer and writes another; an activation that keeps z has the third for it
        layers[l].dz = 0
        layers[l].y = buffers + l % 2 * most * widest * size
        layers[l].z = buffers + 2 * most * widest * size if needs_input(layers[l].code) else layers[l].y
    keeps_z = last.z != last.y
    for i in range(lo, hi, max(most, 1)):
        chain.x = whole.x + i * chain.x_row * size
        last.y = whole.dy + i * last.n_out * size
        if not keeps_z:
            last.z = last.y
        forward_rows(chain, 0, 0, min(most, hi - i), panels, like)


@driver
def _infer(launcher, parts, kernels, x, table, parameters, params, out, room):
    layers, job = np.empty((parts + 1) * len(table), LAYER), local_zeros(1, CHAIN)
    size = x.itemsize
    flat_layers(layers, table, parameters, address(params), 0, size)
    if not find_activations(layers[: len(table)], kernels, 2, False):
        return MISSING
    needed = 3 * rows_at_once(len(x), parts) * table[:, 1].max()
    buffers = np.empty(needed * parts if needed > TURNED_SIZE else 0, x.dtype)
    layers[0].dz = address(buffers) if needed > TURNED_SIZE else 0
    describe_chain(job[0], layers[: len(table)], len(x), address(x), x.shape[1], size, address(room), kernels[1])
    job[0].dy = address(out)
    run_kernel(launcher, kernels[0], parts, job, (layers, buffers))
    return types.OK


N_ACTIVATIONS = len(FORWARD)
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
