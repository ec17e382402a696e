"""LSTM over whole sequences; formulas and layout of rows: kernels/reference/lstm.py.

Passes: a thread takes its sequences through all time steps, forward or backward, without a barrier, since sequences are independent.
Thread i of n has those at i, i + n, ... in the order by length: long and short ones. A step is the product with w_hh, and then the gates,
row by row while they are in cache. After the steps a second launch computes the gradients of the weights, as products over all steps at
once: they have no order in time.

How a step multiplies depends on the sizes:

    IN_PANELS  weights are packed into panels once a call; x_t and h_{t-1} lie side by side, [x_t, h_{t-1}] @ [w_ih; w_hh] is one product
    IN_PLACE   at most FEW_STEPS steps: weights are read in place; x_t w_ih and h_{t-1} w_hh are two products
    IN_ROWS    few sequences a thread: h_{t-1} w_hh alone; x w_ih is one product over all steps before the loop, as is dx after it
"""

import numpy as np

from .dense import SUMMED_ROWS
from .engine import vector_math
from .engine.compile import Addresses, device_function, driver, driver_function, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
    copy,
    data,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.matrix import (
    MATRIX,
    array_matrix,
)
from .engine.microkernel import provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, add_times, map_arrays, map_values, squares, times
from .gemm import SCRATCH, clear, gemm_part
from .packing import offsets_of, order_of
from .recurrence import (
    BACKWARD_PART,
    FEW_ROWS,
    FEW_STEPS,
    FORWARD_PART,
    IN_PANELS,
    IN_PLACE,
    IN_ROWS,
    WEIGHTS_PART,
    copy_states,
    describe_matrix,
    describe_scratch,
    describe_sequences,
    fill_panels,
    launch_product,
    pack_part,
    sequences_before,
    step_product,
    step_sequences,
    thread_sequences,
    values_at,
    weight_gradient,
)

# addresses of arrays, 0 where there is none, values from row to row (_row), and sizes
LSTM = np.dtype(
    # N, T, R; C, H and P; X: columns of x that stand beside h in the products in time, C or 0; ones: 1 if there is a bias
    [(name, "i8") for name in "n steps rows C H P X ones itemsize reverse accumulate order offsets".split()]
    # of each thread gemm_part's panels (SCRATCH,), and c and tanh c of a row (2, H), if they are not kept; all threads' states
    + [(name, "i8") for name in "gemm scratch cells states".split()]
    # as the products in time read them; row is 0 for a matrix in panels
    + [(name, MATRIX) for name in "w_ih w_hh w_proj".split()]
    # a forward's arrays, as reference/lstm.py has them
    + [(name, "i8") for name in "xs xs_row b peephole h_0 c_0 gates c tanh_c h h_row h_n c_n".split()]
    # a backward's
    + [(name, "i8") for name in "dh dh_row dh_n dc_n dz dxs dh_0 dc_0 squares dw_ih dw_hh db dpeephole dw_proj".split()]
    # what it leaves for the weights' gradients: inputs (R, C + P + ones) = x_t, h_{t-1}, 1; with a projection r (R, H) = o tanh c, and
    # dh_whole (R, P) = dL/dh_t
    + [(name, "i8") for name in "inputs r dh_whole".split()]
)


@device_function
def thread_states(lstm, thread_index, thread_count, like):
    """Scratch for the states of the thread's n sequences: x_t beside h_{t-1} (n, X + P), that h, c_{t-1} (n, H) and r (n, H)."""
    width, sequences = lstm.X + lstm.P, thread_sequences(thread_index, thread_count, lstm.n)
    before = sequences_before(thread_index, thread_count, lstm.n)
    state_x = values_at(lstm.states, (width + 2 * lstm.H) * before, like)
    state_c = advance(state_x, sequences * width)
    return state_x, advance(state_x, lstm.X), width, state_c, advance(state_c, sequences * lstm.H)


@inline_function
def next_cell(i, f, g, c_before):
    """c_t, twice: for the array c and for the state."""
    c = f * c_before + i * g
    return c, c


@device_function
def gates_forward(H, z, peephole, has_peephole, state_c, c, tanh_c, r):
    """The gates of one row from its z, in place, and its c, tanh c and r = o tanh c."""
    i, f, g, o = z, advance(z, H), advance(z, 2 * H), advance(z, 3 * H)  # (H,) each
    if has_peephole:
        map_arrays(add_times, H, (i, peephole, state_c), (i,), ())
        map_arrays(add_times, H, (f, advance(peephole, H), state_c), (f,), ())
    map_values(vector_math.sigmoid, 2 * H, i, i, ())
    map_values(vector_math.tanh, H, g, g, ())
    map_arrays(next_cell, H, (i, f, g, state_c), (c, state_c), ())
    if has_peephole:
        map_arrays(add_times, H, (o, advance(peephole, 2 * H), c), (o,), ())
    map_values(vector_math.sigmoid, H, o, o, ())
    map_values(vector_math.tanh, H, c, tanh_c, ())
    map_arrays(times, H, (o, tanh_c), (r,), ())


@inline_function
def gate_gradients(i, f, g, o, tanh_c, c_before, dr, dc):
    """dz of all four gates, and dc of the step before."""
    one = real(1, i)
    dc = dc + dr * o * (one - tanh_c * tanh_c)
    dz_i, dz_f, dz_g = dc * g * i * (one - i), dc * c_before * f * (one - f), dc * i * (one - g * g)
    return dz_i, dz_f, dz_g, dr * tanh_c * o * (one - o), dc * f


@inline_function
def gate_gradients_peephole(i, f, g, o, tanh_c, c_before, dr, dc, p_i, p_f, p_o):
    one = real(1, i)
    dz_o = dr * tanh_c * o * (one - o)
    dc = dc + dr * o * (one - tanh_c * tanh_c) + p_o * dz_o
    dz_i, dz_f, dz_g = dc * g * i * (one - i), dc * c_before * f * (one - f), dc * i * (one - g * g)
    return dz_i, dz_f, dz_g, dz_o, dc * f + (p_i * dz_i + p_f * dz_f)


@device_function
def gates_backward(H, gates, tanh_c, c_before, dr, peephole, has_peephole, dz, dc):
    """dz of one row from its dr and dc, and dc of the step before, in place of dc."""
    i, f, g, o = gates, advance(gates, H), advance(gates, 2 * H), advance(gates, 3 * H)  # (H,) each
    dz_i, dz_f, dz_g, dz_o = dz, advance(dz, H), advance(dz, 2 * H), advance(dz, 3 * H)  # (H,) each
    sources, targets = (i, f, g, o, tanh_c, c_before, dr, dc), (dz_i, dz_f, dz_g, dz_o, dc)
    if has_peephole:
        peepholes = peephole, advance(peephole, H), advance(peephole, 2 * H)
        map_arrays(gate_gradients_peephole, H, sources + peepholes, targets, ())
    else:
        map_arrays(gate_gradients, H, sources, targets, ())


@kernel(LSTM, needs=provide_microkernel)
def lstm_forward_part(thread_index, thread_count, record, like):
    """The thread's sequences through all steps, forward."""
    lstm = carray(record, 1)[0]
    H, P, X, offsets, null = lstm.H, lstm.P, lstm.X, offsets_of(lstm), pointer(lstm.n * 0, like)
    b, peephole = pointer(lstm.b, like), pointer(lstm.peephole, like)  # (4H,), (3, H)
    state_x, state_h, state_row, state_c, state_r = thread_states(lstm, thread_index, thread_count, like)
    copy_states(lstm, thread_index, thread_count, P, state_h, state_row, lstm.h_0, False)
    copy_states(lstm, thread_index, thread_count, H, state_c, H, lstm.c_0, False)
    for s in range(lstm.steps):
        t = lstm.steps - 1 - s if lstm.reverse else s
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, lstm.steps, t))
        first = offsets[t] + thread_index
        # the step's rows are thread_count rows apart
        z, z_row = values_at(lstm.gates, first * 4 * H, like), thread_count * 4 * H  # (rows, 4H)
        h, h_row = values_at(lstm.h, first * lstm.h_row, like), thread_count * lstm.h_row  # (rows, P)
        xs, xs_row = values_at(lstm.xs, first * lstm.xs_row, like), thread_count * lstm.xs_row  # (rows, C)
        # z = x_t w_ih + h_{t-1} w_hh + b: one product, two, or one where x's part is in z already
        start, start_row = z, z_row
        if X:
            start, start_row = b, 0
            for i in range(rows):
                copy(X, advance(xs, i * xs_row), advance(state_x, i * state_row))
        elif lstm.w_ih.at:
            step_product(lstm, thread_index, rows, 4 * H, lstm.C, xs, xs_row, lstm.w_ih, b, 0, z, z_row)
        step_product(lstm, thread_index, rows, 4 * H, X + P, state_x, state_row, lstm.w_hh, start, start_row, z, z_row)
        # the gates, c_t and h_t, or with a projection r
        for i in range(rows):
            c = values_at(lstm.cells, thread_index * 2 * H, like)  # (H,)
            tanh_c = advance(c, H)  # (H,)
            if lstm.c:
                row = first + i * thread_count
                c, tanh_c = values_at(lstm.c, row * H, like), values_at(lstm.tanh_c, row * H, like)  # (H,) each
            r = advance(state_r, i * H) if lstm.w_proj.at else advance(h, i * h_row)  # (H,)
            c_before = advance(state_c, i * H)  # (H,)
            gates_forward(H, advance(z, i * z_row), peephole, lstm.peephole != 0, c_before, c, tanh_c, r)
        # h_t = r w_proj
        if lstm.w_proj.at:
            step_product(lstm, thread_index, rows, P, H, state_r, H, lstm.w_proj, null, 0, h, h_row)
        for i in range(rows):
            copy(P, advance(h, i * h_row), advance(state_h, i * state_row))
    copy_states(lstm, thread_index, thread_count, P, state_h, state_row, lstm.h_n, True)
    copy_states(lstm, thread_index, thread_count, H, state_c, H, lstm.c_n, True)


@kernel(LSTM, needs=provide_microkernel)
def lstm_backward_part(thread_index, thread_count, record, like):
    """The thread's sequences back through all steps of the forward, to dz; the weights are their transposes."""
    lstm = carray(record, 1)[0]
    C, H, P, X, order, offsets = lstm.C, lstm.H, lstm.P, lstm.X, order_of(lstm), offsets_of(lstm)
    null, peephole = pointer(lstm.n * 0, like), pointer(lstm.peephole, like)  # (3, H)
    state_dx, state_dh, state_row, state_dc, state_dr = thread_states(lstm, thread_index, thread_count, like)
    copy_states(lstm, thread_index, thread_count, P, state_dh, state_row, lstm.dh_n, False)
    copy_states(lstm, thread_index, thread_count, H, state_dc, H, lstm.dc_n, False)
    for s in range(lstm.steps):
        t = s if lstm.reverse else lstm.steps - 1 - s
        step_before = t + 1 if lstm.reverse else t - 1
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, lstm.steps, t))
        rows_before = thread_sequences(thread_index, thread_count, step_sequences(offsets, lstm.steps, step_before))
        first = offsets[t] + thread_index
        # the whole dL/dh_t: what the step after has of it, and what comes from above
        for i in range(rows):
            row, dh = first + i * thread_count, advance(state_dh, i * state_row)  # (P,)
            if lstm.dh:
                map_arrays(add, P, (dh, values_at(lstm.dh, row * lstm.dh_row, like)), (dh,), ())
            if lstm.squares:
                carray(void_pointer(lstm.squares), row + 1, np.float64)[row] = squares(dh, P)
            if lstm.w_proj.at:
                copy(P, dh, values_at(lstm.dh_whole, row * P, like))
        # h_t = r w_proj, back: dr = dh w_proj^T
        if lstm.w_proj.at:
            step_product(lstm, thread_index, rows, H, P, state_dh, state_row, lstm.w_proj, null, 0, state_dr, H)
        # the gates, back: dz, and dc of the step before; and what the weights' gradients need
        for i in range(rows):
            row, n = first + i * thread_count, order[thread_index + i * thread_count]
            h_before, c_before = values_at(lstm.h_0, n * P, like), values_at(lstm.c_0, n * H, like)  # (P,), (H,)
            if i < rows_before:
                row_before = offsets[step_before] + thread_index + i * thread_count
                h_before = values_at(lstm.h, row_before * lstm.h_row, like)
                c_before = values_at(lstm.c, row_before * H, like)
            inputs = values_at(lstm.inputs, row * (C + P + lstm.ones), like)  # (C + P + ones,)
            copy(C, values_at(lstm.xs, row * lstm.xs_row, like), inputs)
            copy(P, h_before, advance(inputs, C))
            if lstm.ones:
                carray(advance(inputs, C + P), 1)[0] = 1
            gates = values_at(lstm.gates, row * 4 * H, like)  # (4H,)
            tanh_c = values_at(lstm.tanh_c, row * H, like)  # (H,)
            dr = advance(state_dr, i * H) if lstm.w_proj.at else advance(state_dh, i * state_row)  # (H,)
            if lstm.w_proj.at:
                map_arrays(times, H, (advance(gates, 3 * H), tanh_c), (values_at(lstm.r, row * H, like),), ())
            dz, dc = values_at(lstm.dz, row * 4 * H, like), advance(state_dc, i * H)  # (4H,), (H,)
            gates_backward(H, gates, tanh_c, c_before, dr, peephole, lstm.peephole != 0, dz, dc)
        # z = x_t w_ih + h_{t-1} w_hh + b, back: dx_t = dz w_ih^T, dh_{t-1} = dz w_hh^T
        dz, dz_row = values_at(lstm.dz, first * 4 * H, like), thread_count * 4 * H  # (rows, 4H)
        dxs, dxs_row = values_at(lstm.dxs, first * C, like), thread_count * C  # (rows, C)
        step_product(lstm, thread_index, rows, X + P, 4 * H, dz, dz_row, lstm.w_hh, null, 0, state_dx, state_row)
        if X:
            for i in range(rows):
                copy(X, advance(state_dx, i * state_row), advance(dxs, i * dxs_row))
        elif lstm.w_ih.at:
            step_product(lstm, thread_index, rows, C, 4 * H, dz, dz_row, lstm.w_ih, null, 0, dxs, dxs_row)
    copy_states(lstm, thread_index, thread_count, P, state_dh, state_row, lstm.dh_0, True)
    copy_states(lstm, thread_index, thread_count, H, state_dc, H, lstm.dc_0, True)


@device_function
def peephole_gradient(lstm, thread_index, thread_count, like):
    """The thread's columns of the peepholes' gradients (3, H): the sums of dz_i c_{t-1}, dz_f c_{t-1} and dz_o c_t."""
    H, order, offsets = lstm.H, order_of(lstm), offsets_of(lstm)
    lo, hi = thread_range(thread_index, thread_count, H, 16)
    n = hi - lo
    # the sums of SUMMED_ROWS rows, and in float64 of all rows
    scratch = lstm.scratch + thread_index * SCRATCH * lstm.itemsize
    sums = pointer(scratch, like)  # (3, n)
    totals_at = scratch + (3 * n * lstm.itemsize + 7) // 8 * 8
    totals = data(carray(void_pointer(totals_at), 3 * n, np.float64))  # (3, n)
    clear(3 * n, totals)
    clear(3 * n, sums)
    for t in range(lstm.steps):
        step_before = t + 1 if lstm.reverse else t - 1
        rows_before = step_sequences(offsets, lstm.steps, step_before)
        for p in range(offsets[t + 1] - offsets[t]):
            row = offsets[t] + p
            c_before = values_at(lstm.c, (offsets[step_before] + p) * H + lo, like)  # (n,)
            if p >= rows_before:
                c_before = values_at(lstm.c_0, order[p] * H + lo, like)
            dz, c = values_at(lstm.dz, row * 4 * H + lo, like), values_at(lstm.c, row * H + lo, like)  # (n,) each
            map_arrays(add_times, n, (sums, dz, c_before), (sums,), ())
            map_arrays(add_times, n, (advance(sums, n), advance(dz, H), c_before), (advance(sums, n),), ())
            map_arrays(add_times, n, (advance(sums, 2 * n), advance(dz, 3 * H), c), (advance(sums, 2 * n),), ())
            if (row + 1) % SUMMED_ROWS == 0:
                map_arrays(add, 3 * n, (totals, sums), (totals,), ())
                clear(3 * n, sums)
    map_arrays(add, 3 * n, (totals, sums), (totals,), ())
    total = carray(totals, 3 * n)
    for k in range(3):
        gradient = carray(values_at(lstm.dpeephole, k * H + lo, like), n)
        for j in range(n):
            gradient[j] = total[k * n + j] + (gradient[j] if lstm.accumulate else 0)


@kernel(LSTM)
def weights_part(thread_index, thread_count, record, like):
    """The thread's columns of the gradients of all weights."""
    lstm = carray(record, 1)[0]
    C, H, P, ones = lstm.C, lstm.H, lstm.P, lstm.ones
    columns, row_bytes = C + P + ones, 4 * H * lstm.itemsize
    inputs, dz = pointer(lstm.inputs, like), pointer(lstm.dz, like)  # (R, C + P + ones), (R, 4H)
    dw_ih, dw_hh, db = pointer(lstm.dw_ih, like), pointer(lstm.dw_hh, like), pointer(lstm.db, like)
    # dw_ih, dw_hh and db (C + P + ones, 4H) = inputs^T dz, in one product where they lie one after another
    if lstm.dw_hh == lstm.dw_ih + C * row_bytes and (not ones or lstm.db == lstm.dw_hh + P * row_bytes):
        weight_gradient(lstm, thread_index, thread_count, columns, 4 * H, inputs, columns, dz, 4 * H, dw_ih, 4 * H)
    else:
        weight_gradient(lstm, thread_index, thread_count, C, 4 * H, inputs, columns, dz, 4 * H, dw_ih, 4 * H)
        weight_gradient(
            lstm, thread_index, thread_count, P, 4 * H, advance(inputs, C), columns, dz, 4 * H, dw_hh, 4 * H
        )
        weight_gradient(
            lstm, thread_index, thread_count, ones, 4 * H, advance(inputs, C + P), columns, dz, 4 * H, db, 4 * H
        )
    # dw_proj (H, P) = r^T dh
    if lstm.dw_proj:
        r, dh_whole = pointer(lstm.r, like), pointer(lstm.dh_whole, like)  # (R, H), (R, P)
        weight_gradient(lstm, thread_index, thread_count, H, P, r, H, dh_whole, P, pointer(lstm.dw_proj, like), P)
    if lstm.dpeephole:
        peephole_gradient(lstm, thread_index, thread_count, like)


@device_function
def scratch_sizes(n, C, H, P, projects):
    """Sizes of the scratch that forward and backward share: all threads' states; w_hh, w_ih and w_proj as products read them."""
    # the last panel may have more columns than w
    panels = 4 * H * (C + P) + 64 * max(4 * H, C + P)
    return n * (C + P + 2 * H), panels, 4 * H * C, (H * P + 64 * max(H, P)) if projects else 0


@device_function
def describe_cells(lstm, peephole, h_0, c_0, c, tanh_c):
    """Fill in the sizes and arrays that forward and backward share, and no other op has."""
    lstm.H, lstm.P, lstm.c_0, lstm.peephole = c_0.shape[1], h_0.shape[1], address(c_0), address_or_null(peephole)
    lstm.c, lstm.tanh_c = address_or_null(c), address_or_null(tanh_c)


@driver_function
def describe_weights(lstm, launcher, thread_count, kernels, transposed, with_x, w_ih, w_hh, projects, w_proj, scratch):
    """The weights, or their transposes, as products in time will read them, and the scratch: the address of its rest, and the mode.

    In panels w_ih lies over w_hh and X is C, if x has a part in the products in time; else X is 0.
    """
    C, H, P, size = lstm.C, lstm.H, lstm.P, lstm.itemsize
    states_size, w_hh_size, w_ih_size, w_proj_size = scratch_sizes(lstm.n, C, H, P, projects)
    w_hh_scratch = describe_scratch(lstm, thread_count, kernels, scratch, states_size)
    w_ih_scratch = w_hh_scratch + w_hh_size * size
    w_proj_scratch = w_ih_scratch + w_ih_size * size
    rest = w_proj_scratch + w_proj_size * size
    if lstm.steps > FEW_STEPS and lstm.n > FEW_ROWS * thread_count:
        lstm.X = C if with_x else 0
        lstm.w_hh.at, depth = w_hh_scratch, 4 * H if transposed else lstm.X + P
        if lstm.X:
            fill_panels(launcher, thread_count, kernels, transposed, w_ih, C, 4 * H, w_hh_scratch, depth, 0)
        fill_panels(launcher, thread_count, kernels, transposed, w_hh, P, 4 * H, w_hh_scratch, depth, lstm.X)
        if projects:
            lstm.w_proj.at, depth = w_proj_scratch, P if transposed else H
            fill_panels(launcher, thread_count, kernels, transposed, w_proj, H, P, w_proj_scratch, depth, 0)
        return rest, IN_PANELS
    mode = IN_PLACE if lstm.steps <= FEW_STEPS else IN_ROWS
    describe_matrix(lstm.w_hh, mode, transposed, w_hh, P, 4 * H, w_hh_scratch)
    if mode == IN_PLACE and with_x:
        describe_matrix(lstm.w_ih, mode, transposed, w_ih, C, 4 * H, w_ih_scratch)
    if projects:
        describe_matrix(lstm.w_proj, mode, transposed, w_proj, H, P, w_proj_scratch)
    return rest, mode


@driver
def _forward(
    launcher, thread_count, kernels, projects, xs, w_ih, w_hh, b, peephole, w_proj, h_0, c_0, order, offsets, reverse,
    gates, c, tanh_c, h, h_n, c_n, scratch,
):  # fmt: skip
    record = local_zeros(1, LSTM)
    lstm = record[0]
    describe_sequences(lstm, xs, h_0, order, offsets, reverse, gates, h)
    describe_cells(lstm, peephole, h_0, c_0, c, tanh_c)
    lstm.b, lstm.h_n, lstm.c_n = address_or_null(b), address(h_n), address(c_n)
    lstm.cells, mode = describe_weights(
        lstm, launcher, thread_count, kernels, False, True, w_ih, w_hh, projects, w_proj, scratch
    )
    if mode == IN_ROWS:
        launch_product(launcher, thread_count, kernels, False, w_ih, lstm, lstm.xs, lstm.xs_row, lstm.b, lstm.gates)
    # a sequence is one thread's
    run_kernel(launcher, kernels[FORWARD_PART], max(1, min(thread_count, lstm.n)), record, ())


@driver
def _backward(
    launcher, thread_count, kernels, projects, has_dh, dh, dh_n, dc_n, xs, w_ih, w_hh, peephole, w_proj, h_0, c_0, order, offsets,
    reverse, gates, c, tanh_c, h, dz, dxs, dw_ih, dw_hh, db, dpeephole, dw_proj, dh_0, dc_0, squares, accumulate, scratch,
):  # fmt: skip
    record = local_zeros(1, LSTM)
    lstm, wants_dx = record[0], dxs.size > 0
    describe_sequences(lstm, xs, h_0, order, offsets, reverse, gates, h)
    describe_cells(lstm, peephole, h_0, c_0, c, tanh_c)
    lstm.dh, lstm.dh_row = address(dh) if has_dh else 0, array_matrix(dh).row
    lstm.dh_n, lstm.dc_n, lstm.squares = address_or_null(dh_n), address_or_null(dc_n), address_or_null(squares)
    lstm.dz, lstm.dxs, lstm.dh_0, lstm.dc_0 = address(dz), address(dxs), address(dh_0), address(dc_0)
    lstm.dw_ih, lstm.dw_hh, lstm.db, lstm.ones = address(dw_ih), address(dw_hh), address_or_null(db), min(1, db.size)
    lstm.dpeephole, lstm.dw_proj, lstm.accumulate = address_or_null(dpeephole), address_or_null(dw_proj), accumulate
    lstm.inputs, mode = describe_weights(
        lstm, launcher, thread_count, kernels, True, wants_dx, w_ih, w_hh, projects, w_proj, scratch
    )
    lstm.r = lstm.inputs + lstm.rows * (lstm.C + lstm.P + 1) * lstm.itemsize
    lstm.dh_whole = lstm.r + lstm.rows * lstm.H * lstm.itemsize
    run_kernel(launcher, kernels[BACKWARD_PART], max(1, min(thread_count, lstm.n)), record, ())
    if mode == IN_ROWS and wants_dx:
        launch_product(launcher, thread_count, kernels, True, w_ih, lstm, lstm.dz, 4 * lstm.H, 0, lstm.dxs)
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(gemm_part, pack_part, lstm_forward_part, lstm_backward_part, weights_part)
# vectors and matrices for None: drivers know arrays of one type only. An empty slice has its array's address and strides, and one type
# whatever these are
_NONE = {char: (np.empty(0, char), np.empty((0, 0), char)) for char in "fd"}


def lstm_forward(xs, weights, start, batch, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    w_ih, w_hh, b, peephole, w_proj = weights
    gates, c, tanh_c, h = saved
    dtype, (rows, C), (n, H), P, projects = xs.dtype, xs.shape, start.c.shape, len(w_hh), w_proj is not None
    vector, matrix = _NONE[dtype.char]
    run(
        8 * rows * H * (C + P), _forward, _KERNELS[dtype.char], projects, xs[:0], w_ih[:0], w_hh[:0], vector if b is None else b,
        matrix if peephole is None else peephole, w_proj if projects else matrix, *start, *batch,
        gates, matrix if c is None else c, matrix if c is None else tanh_c, h[:0], *end,
        scratch=(dtype, sum(scratch_sizes.py_func(n, C, H, P, projects)), SCRATCH + 2 * H),
    )  # fmt: skip


def lstm_backward(upstream, xs, weights, start, batch, saved, gradients, accumulate):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    dh, dh_n, dc_n = upstream
    w_ih, w_hh, _, peephole, w_proj = weights
    gates, c, tanh_c, h = saved
    dz, dxs, (dw_ih, dw_hh, db, dpeephole, dw_proj), dstart, squares = gradients
    dtype, (rows, C), (n, H), P, projects = xs.dtype, xs.shape, start.c.shape, len(w_hh), w_proj is not None
    vector, matrix = _NONE[dtype.char]
    shared = sum(scratch_sizes.py_func(n, C, H, P, projects)) + rows * (C + P + 1 + (H + P) * projects)
    run(
        16 * rows * H * (C + P), _backward, _KERNELS[dtype.char], projects, dh is not None,
        matrix if dh is None else dh[:0], matrix if dh_n is None else dh_n, matrix if dc_n is None else dc_n,
        xs[:0], w_ih[:0], w_hh[:0], matrix if peephole is None else peephole, w_proj if projects else matrix, *start, *batch,
        gates, c, tanh_c, h[:0], dz, matrix if dxs is None else dxs, dw_ih, dw_hh, vector if db is None else db,
        matrix if peephole is None else dpeephole, dw_proj if projects else matrix, *dstart,
        _NONE["d"][0] if squares is None else squares, accumulate, scratch=(dtype, shared, SCRATCH),
    )  # fmt: skip
