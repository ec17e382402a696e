"""What the recurrent ops share, LSTM and GRU: the sequences of a thread, products of a step, and the weights as these read them.

`record` is an op's own, with the fields that describe_sequences and describe_scratch fill in, and accumulate. C are the columns of x.

How a step multiplies depends on the sizes:

    IN_PANELS  weights are packed into panels once a call
    IN_PLACE   at most FEW_STEPS steps: weights are read in place
    IN_ROWS    few sequences a thread: weights are read in place, or from a copy whose rows are contiguous
"""

import numpy as np

from .engine.compile import device_function, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_at,
    advance,
    call,
    carray,
    copy,
    data,
    is_null,
    lanes,
    local,
    pointer,
    run_kernel,
)
from .engine.matrix import (
    MATRIX,
    array_matrix,
    field_matrix,
    matrix_of,
    null_matrix,
    rows_apart,
    set_field,
    submatrix,
    transposed,
)
from .engine.microkernel import VECTORS, provide_microkernel
from .engine.thread_pool import thread_range
from .gemm import GEMM, SCRATCH, clear, describe, pack_b, panel_tiles, transpose_rows
from .packing import order_of

# w (K, N), and the panels of this depth whose columns from `start` on it becomes
PACK = np.dtype([(name, "i8") for name in "K N panels depth start".split()] + [("w", MATRIX)])
IN_PANELS, IN_PLACE, IN_ROWS = range(3)
FEW_ROWS, FEW_STEPS = 3, 4
# places among an op's kernels
GEMM_PART, PACK_PART, FORWARD_PART, BACKWARD_PART, WEIGHTS_PART = range(5)


@inline_function
def values_at(base, offset, like):
    """Pointer to the value at this offset from an address."""
    return advance(pointer(base, like), offset)


@device_function
def thread_sequences(thread_index, thread_count, n):
    """How many of the first n sequences are the thread's."""
    return (n - thread_index + thread_count - 1) // thread_count


@device_function
def sequences_before(thread_index, thread_count, n):
    """How many of the first n sequences are those of the threads before this one."""
    return thread_index * (n // thread_count) + min(thread_index, n % thread_count)


@device_function
def step_sequences(offsets, steps, t):
    """How many sequences have step t; 0 before the first step and after the last."""
    return offsets[t + 1] - offsets[t] if 0 <= t < steps else 0


@device_function
def copy_states(record, thread_index, thread_count, columns, states, states_row, array, store):
    """Copy the states of the thread's sequences from an array (N, columns), zeros if it is null, or with `store` to it."""
    order = order_of(record)
    for i in range(thread_sequences(thread_index, thread_count, record.n)):
        row = advance(states, i * states_row)  # (columns,)
        values = values_at(array, order[thread_index + i * thread_count] * columns, states)  # (columns,)
        if store:
            copy(columns, row, values)
        elif array:
            copy(columns, values, row)
        else:
            clear(columns, row)


@device_function
def step_product(record, thread_index, rows, N, K, a, a_row, w, start, start_row, c, c_row):
    """c (rows, N) = start + a (rows, K) @ w (K, N), a MATRIX; a null start is zero, start_row 0 a bias."""
    if rows == 0:
        return
    if not w.row:
        begin = null_matrix(a) if is_null(start) else rows_apart(start, start_row)
        panel_tiles(rows, N, K, rows_apart(a, a_row), pointer(w.at, a), begin, rows_apart(c, c_row))
        return
    product, scratch = local(1, GEMM), record.scratch + thread_index * SCRATCH * record.itemsize
    begin = rows_apart(address_at(start), start_row)
    out = rows_apart(address_at(c), c_row)
    describe(product, (rows, N, K), rows_apart(address_at(a), a_row), field_matrix(w), begin, out, scratch)
    call(record.gemm, 0, 1, product)


@kernel(PACK, needs=provide_microkernel)
def pack_part(thread_index, thread_count, record, like):
    """The thread's columns of w (K, N) into panels."""
    pack = carray(record, 1)[0]
    width = VECTORS * lanes(like)
    lo, hi = thread_range(thread_index, thread_count, pack.N, width)
    w, column = submatrix(matrix_of(pack.w, like), 0, lo), pack.start + lo  # (K, hi - lo)
    # the first ones may lie in a panel that another w's columns begin
    rest = min(hi - lo, -column % width)
    panel = values_at(pack.panels, (column - column % width) * pack.depth + column % width, like)  # (depth, width)
    pack_b(pack.K, rest, w, panel, pack.depth)
    panel = values_at(pack.panels, (column + rest) * pack.depth, like)  # (depth, width)
    pack_b(pack.K, hi - lo - rest, submatrix(w, 0, rest), panel, pack.depth)


@device_function
def weight_gradient(record, thread_index, thread_count, M, N, a, a_row, b, b_row, dw, dw_row):
    """The thread's columns of dw (M, N) = a (R, M)^T @ b (R, N), added to what dw holds if the gradients accumulate."""
    lo, hi = thread_range(thread_index, thread_count, N, VECTORS * lanes(a))
    if hi == lo or M == 0:
        return
    product, at = local(1, GEMM), address_at(advance(dw, lo))
    start, scratch = at if record.accumulate else 0, record.scratch + thread_index * SCRATCH * record.itemsize
    a_matrix = transposed(rows_apart(address_at(a), a_row))  # (M, R)
    b_matrix = rows_apart(address_at(advance(b, lo)), b_row)  # (R, hi - lo)
    describe(
        product,
        (M, hi - lo, record.rows),
        a_matrix,
        b_matrix,
        rows_apart(start, dw_row),
        rows_apart(at, dw_row),
        scratch,
    )
    product[0].sums = 1
    call(record.gemm, 0, 1, product)


@device_function
def weights_matrix(w, transpose):
    """The matrix of w, or of its transpose."""
    matrix = array_matrix(w)
    return transposed(matrix) if transpose else matrix


@device_function
def describe_sequences(record, xs, h_0, order, offsets, reverse, gates, h):
    """Fill in the sizes and arrays that an op's forward and backward share; H, the columns of its states, is the op's own."""
    record.n, record.steps, record.rows, record.reverse = len(order), len(offsets) - 1, offsets[-1], reverse
    record.order, record.offsets, record.h_0 = address(order), address(offsets), address(h_0)
    record.C, record.xs, record.xs_row, record.itemsize = xs.shape[1], address(xs), array_matrix(xs).row, xs.itemsize
    record.gates, record.h, record.h_row = address(gates), address(h), array_matrix(h).row


@device_function
def describe_scratch(record, thread_count, kernels, scratch, states_size):
    """Fill in gemm_part, its panels of each thread, and all threads' states; the address of the scratch behind them."""
    record.gemm, record.scratch = kernels[GEMM_PART], address(scratch)
    record.states = record.scratch + thread_count * SCRATCH * record.itemsize
    return record.states + states_size * record.itemsize


@device_function
def fill_panels(launcher, thread_count, kernels, transposed, w, rows, columns, panels, depth, start):
    """w (rows, columns), or its transpose, into panels, behind `start` rows of another w, columns if transposed."""
    record = local(1, PACK)
    pack = record[0]
    pack.depth, pack.panels, pack.start = depth, panels, start
    set_field(pack.w, weights_matrix(w, transposed))
    pack.K, pack.N = (columns, rows) if transposed else (rows, columns)
    if not transposed:
        pack.start, pack.panels = 0, panels + start * VECTORS * lanes(data(w)) * w.itemsize
    run_kernel(launcher, kernels[PACK_PART], thread_count, record, ())


@device_function
def describe_matrix(matrix, mode, transposed, w, w_rows, w_columns, scratch):
    """w (w_rows, w_columns), or its transpose, for products that read it as it lies, or from a copy."""
    set_field(matrix, weights_matrix(w, transposed))
    rows, columns = (w_columns, w_rows) if transposed else (w_rows, w_columns)
    if matrix.col != 1 and not (transposed and mode == IN_PLACE):
        transpose_rows(columns, rows, data(w), matrix.col, pointer(scratch, data(w)), columns)
        set_field(matrix, rows_apart(scratch, columns))


@device_function
def launch_product(launcher, thread_count, kernels, transposed, w_ih, record, a, a_row, start, c):
    """For all steps at once c = start + a @ w_ih, or its transpose; a, start and c are addresses."""
    product = local(1, GEMM)
    C, columns = record.C, w_ih.shape[1]
    K, N = (columns, C) if transposed else (C, columns)
    w, out = weights_matrix(w_ih, transposed), rows_apart(c, N)
    describe(product, (record.rows, N, K), rows_apart(a, a_row), w, rows_apart(start, 0), out, record.scratch)
    run_kernel(launcher, kernels[GEMM_PART], thread_count, product, ())
