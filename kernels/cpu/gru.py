"""GRU over whole sequences; formulas and layout of rows: kernels/reference/gru.py.

Passes: x w_ih is one product over all steps. Then a thread takes its sequences through all time steps, forward or backward, without a
barrier, as in lstm.py. A step is two products, one with the columns of w_hh that belong to r and z, one with those of n; then the gates,
row by row while they are in cache. After the steps dx is one product over all steps, and one launch computes the gradients of the weights.

w_hh is packed into panels once a call, or read in place where there are few steps or sequences: recurrence.py.
"""

import numpy as np

from .engine import vector_math
from .engine.compile import Addresses, device_function, driver, driver_function, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
    copy,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.matrix import MATRIX, array_matrix
from .engine.microkernel import provide_microkernel
from .engine.thread_pool import run
from .engine.vector_loops import add, add_times, map_arrays, map_values, squares, times
from .gemm import SCRATCH, gemm_part
from .packing import offsets_of, order_of
from .recurrence import (
    BACKWARD_PART,
    FEW_ROWS,
    FEW_STEPS,
    FORWARD_PART,
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
GRU = np.dtype(
    # N, T, R; C and H; ones: 1 if there is a bias
    [(name, "i8") for name in "n steps rows C H ones itemsize reverse reset_after accumulate order offsets".split()]
    # of each thread gemm_part's panels (SCRATCH,); all threads' states
    + [(name, "i8") for name in "gemm scratch states".split()]
    # w_hh's columns of r and z and those of n, as the products in time read them
    + [(name, MATRIX) for name in "w_rz w_n".split()]
    # a forward's arrays, as reference/gru.py has them
    + [(name, "i8") for name in "xs xs_row b_hn h_0 gates reset h h_row h_n".split()]
    # a backward's
    + [(name, "i8") for name in "dh dh_row dh_n dz dh_0 squares dw_ih dw_hh db db_hn".split()]
    # what it leaves for the weights' gradients: inputs (R, H + 1) = h_{t-1}, 1; with reset_after dq (R, H)
    + [(name, "i8") for name in "inputs dq".split()]
)


@device_function
def thread_states(gru, thread_index, thread_count, like):
    """Scratch of the thread's n sequences: the states (n, H), and products for them (n, H)."""
    sequences = thread_sequences(thread_index, thread_count, gru.n)
    before = sequences_before(thread_index, thread_count, gru.n)
    state = values_at(gru.states, 2 * gru.H * before, like)
    return state, advance(state, sequences * gru.H)


@inline_function
def next_state(n, z, h_before):
    """h_t, twice: for the array h and for the state."""
    h = n + z * (h_before - n)
    return h, h


@inline_function
def gradients_reset_after(r, z, n, q, h_before, dh):
    """dz of all three gates, dq, and what dh_{t-1} has of h_t directly."""
    one = real(1, r)
    dz_n = dh * (one - z) * (one - n * n)
    return dz_n * q * r * (one - r), dh * (h_before - n) * z * (one - z), dz_n, dz_n * r, dh * z


@inline_function
def gradients_of_z_and_n(z, n, h_before, dh):
    """Without reset_after: dz of z and n, and what dh_{t-1} has of h_t directly."""
    one = real(1, z)
    return dh * (h_before - n) * z * (one - z), dh * (one - z) * (one - n * n), dh * z


@inline_function
def gradients_of_r(r, h_before, ds, dh):
    """Without reset_after: dz of r, and dh_{t-1} with what it has of s = r h_{t-1}."""
    return ds * h_before * r * (real(1, r) - r), dh + ds * r


@kernel(GRU, needs=provide_microkernel)
def gru_forward_part(thread_index, thread_count, record, like):
    """The thread's sequences through all steps, forward, from x w_ih + b in the place of the gates."""
    gru = carray(record, 1)[0]
    H, offsets, b_hn = gru.H, offsets_of(gru), pointer(gru.b_hn, like)  # (H,)
    state, _ = thread_states(gru, thread_index, thread_count, like)
    copy_states(gru, thread_index, thread_count, H, state, H, gru.h_0, False)
    for step in range(gru.steps):
        t = gru.steps - 1 - step if gru.reverse else step
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, gru.steps, t))
        first = offsets[t] + thread_index
        # the step's rows are thread_count rows apart
        gates, gates_row = values_at(gru.gates, first * 3 * H, like), thread_count * 3 * H  # (rows, 3H)
        reset, reset_row = values_at(gru.reset, first * H, like), thread_count * H  # (rows, H)
        new = advance(gates, 2 * H)  # (rows, H)
        step_product(gru, thread_index, rows, 2 * H, H, state, H, gru.w_rz, gates, gates_row, gates, gates_row)
        # q = h_{t-1} w_hn + b_hn, or after the gate r: s = r h_{t-1}, and its product with w_hn
        if gru.reset_after:
            step_product(gru, thread_index, rows, H, H, state, H, gru.w_n, b_hn, 0, reset, reset_row)
        for i in range(rows):
            r, q = advance(gates, i * gates_row), advance(reset, i * reset_row)  # (H,) each
            map_values(vector_math.sigmoid, 2 * H, r, r, ())
            if gru.reset_after:
                a_n = advance(new, i * gates_row)  # (H,)
                map_arrays(add_times, H, (a_n, r, q), (a_n,), ())
            else:
                map_arrays(times, H, (r, advance(state, i * H)), (q,), ())
        if not gru.reset_after:
            step_product(gru, thread_index, rows, H, H, reset, reset_row, gru.w_n, new, gates_row, new, gates_row)
        for i in range(rows):
            n, z = advance(new, i * gates_row), advance(gates, i * gates_row + H)  # (H,) each
            h, h_before = values_at(gru.h, (first + i * thread_count) * gru.h_row, like), advance(state, i * H)  # (H,)
            map_values(vector_math.tanh, H, n, n, ())
            map_arrays(next_state, H, (n, z, h_before), (h, h_before), ())
    copy_states(gru, thread_index, thread_count, H, state, H, gru.h_n, True)


@kernel(GRU, needs=provide_microkernel)
def gru_backward_part(thread_index, thread_count, record, like):
    """The thread's sequences back through all steps of the forward, to dz; the weights are their transposes."""
    gru = carray(record, 1)[0]
    H, order, offsets, null = gru.H, order_of(gru), offsets_of(gru), pointer(gru.n * 0, like)
    state_dh, state_ds = thread_states(gru, thread_index, thread_count, like)
    copy_states(gru, thread_index, thread_count, H, state_dh, H, gru.dh_n, False)
    for step in range(gru.steps):
        t = step if gru.reverse else gru.steps - 1 - step
        step_before = t + 1 if gru.reverse else t - 1
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, gru.steps, t))
        rows_before = thread_sequences(thread_index, thread_count, step_sequences(offsets, gru.steps, step_before))
        first = offsets[t] + thread_index
        dz, dz_row = values_at(gru.dz, first * 3 * H, like), thread_count * 3 * H  # (rows, 3H)
        # the whole dL/dh_t, and through the gates: dz, dq, and the part of dh_{t-1} that passes no product
        for i in range(rows):
            row, sequence = first + i * thread_count, order[thread_index + i * thread_count]
            dh = advance(state_dh, i * H)  # (H,)
            if gru.dh:
                map_arrays(add, H, (dh, values_at(gru.dh, row * gru.dh_row, like)), (dh,), ())
            if gru.squares:
                carray(void_pointer(gru.squares), row + 1, np.float64)[row] = squares(dh, H)
            h_before = values_at(gru.h_0, sequence * H, like)  # (H,)
            if i < rows_before:
                row_before = offsets[step_before] + thread_index + i * thread_count
                h_before = values_at(gru.h, row_before * gru.h_row, like)
            inputs = values_at(gru.inputs, row * (H + 1), like)  # (H + 1,)
            copy(H, h_before, inputs)
            carray(advance(inputs, H), 1)[0] = 1
            r = values_at(gru.gates, row * 3 * H, like)  # (H,), as all that follow
            z, n = advance(r, H), advance(r, 2 * H)
            dz_r = advance(dz, i * dz_row)
            dz_z, dz_n = advance(dz_r, H), advance(dz_r, 2 * H)
            if gru.reset_after:
                q, dq = values_at(gru.reset, row * H, like), values_at(gru.dq, row * H, like)
                sources, targets = (r, z, n, q, h_before, dh), (dz_r, dz_z, dz_n, dq, dh)
                map_arrays(gradients_reset_after, H, sources, targets, ())
            else:
                map_arrays(gradients_of_z_and_n, H, (z, n, h_before, dh), (dz_z, dz_n, dh), ())
        # the products of dh_{t-1} add up alone: chains of small terms that begin with dh z would round to it at each of them
        start = null
        if gru.reset_after:
            # dq w_hn^T
            dq, dq_row = values_at(gru.dq, first * H, like), thread_count * H  # (rows, H)
            step_product(gru, thread_index, rows, H, H, dq, dq_row, gru.w_n, null, 0, state_ds, H)
            start = state_ds
        else:
            # ds = dz_n w_hn^T, and through s = r h_{t-1}
            step_product(gru, thread_index, rows, H, H, advance(dz, 2 * H), dz_row, gru.w_n, null, 0, state_ds, H)
            for i in range(rows):
                row = first + i * thread_count
                r, dz_r = values_at(gru.gates, row * 3 * H, like), advance(dz, i * dz_row)  # (H,) each
                ds, dh = advance(state_ds, i * H), advance(state_dh, i * H)  # (H,) each
                h_before = values_at(gru.inputs, row * (H + 1), like)  # (H,)
                map_arrays(gradients_of_r, H, (r, h_before, ds, dh), (dz_r, dh), ())
        # dh_{t-1} += dz_r w_hr^T + dz_z w_hz^T, and dq w_hn^T
        step_product(gru, thread_index, rows, H, 2 * H, dz, dz_row, gru.w_rz, start, H, state_ds, H)
        for i in range(rows):
            dh, products = advance(state_dh, i * H), advance(state_ds, i * H)  # (H,) each
            map_arrays(add, H, (dh, products), (dh,), ())
    copy_states(gru, thread_index, thread_count, H, state_dh, H, gru.dh_0, True)


@kernel(GRU)
def weights_part(thread_index, thread_count, record, like):
    """The thread's columns of the gradients of all weights."""
    gru = carray(record, 1)[0]
    C, H, column = gru.C, gru.H, gru.H + 1
    xs, h_before, dz = (
        pointer(gru.xs, like),
        pointer(gru.inputs, like),
        pointer(gru.dz, like),
    )  # (R, C), (R, H), (R, 3H)
    ones, dw_hh = advance(h_before, H), pointer(gru.dw_hh, like)  # (R, 1), (H, 3H)
    # dw_ih = x^T dz, db = 1^T dz, and of r and z dw_hh = h_{t-1}^T dz
    weight_gradient(
        gru, thread_index, thread_count, C, 3 * H, xs, gru.xs_row, dz, 3 * H, pointer(gru.dw_ih, like), 3 * H
    )
    weight_gradient(
        gru, thread_index, thread_count, gru.ones, 3 * H, ones, column, dz, 3 * H, pointer(gru.db, like), 3 * H
    )
    weight_gradient(gru, thread_index, thread_count, H, 2 * H, h_before, column, dz, 3 * H, dw_hh, 3 * H)
    # of n dw_hh = h_{t-1}^T dq, db_hn = 1^T dq; or dw_hh = s^T dz_n
    dw_hn = advance(dw_hh, 2 * H)  # (H, H)
    if gru.reset_after:
        dq = pointer(gru.dq, like)  # (R, H)
        weight_gradient(gru, thread_index, thread_count, H, H, h_before, column, dq, H, dw_hn, 3 * H)
        if gru.db_hn:
            weight_gradient(gru, thread_index, thread_count, 1, H, ones, column, dq, H, pointer(gru.db_hn, like), H)
    else:
        s, dz_n = pointer(gru.reset, like), advance(dz, 2 * H)  # (R, H) each
        weight_gradient(gru, thread_index, thread_count, H, H, s, H, dz_n, 3 * H, dw_hn, 3 * H)


@device_function
def scratch_sizes(n, H):
    """Sizes of the scratch that forward and backward share: all threads' states; w_hh's two parts as products read them."""
    # the last panel may have more columns than w
    return 2 * n * H, 2 * H * H + 64 * 2 * H, H * H + 64 * H


@driver_function
def describe_weights(gru, launcher, thread_count, kernels, transposed, w_rz, w_n, scratch):
    """The weights, or their transposes, as products in time will read them, and the scratch: the address of its rest."""
    H, size = gru.H, gru.itemsize
    states_size, w_rz_size, w_n_size = scratch_sizes(gru.n, H)
    w_rz_scratch = describe_scratch(gru, thread_count, kernels, scratch, states_size)
    w_n_scratch = w_rz_scratch + w_rz_size * size
    if gru.steps > FEW_STEPS and gru.n > FEW_ROWS * thread_count:
        gru.w_rz.at, gru.w_n.at = w_rz_scratch, w_n_scratch
        depth = 2 * H if transposed else H
        fill_panels(launcher, thread_count, kernels, transposed, w_rz, H, 2 * H, w_rz_scratch, depth, 0)
        fill_panels(launcher, thread_count, kernels, transposed, w_n, H, H, w_n_scratch, H, 0)
    else:
        mode = IN_PLACE if gru.steps <= FEW_STEPS else IN_ROWS
        describe_matrix(gru.w_rz, mode, transposed, w_rz, H, 2 * H, w_rz_scratch)
        describe_matrix(gru.w_n, mode, transposed, w_n, H, H, w_n_scratch)
    return w_n_scratch + w_n_size * size


@driver
def _forward(
    launcher, thread_count, kernels, reset_after, xs, w_ih, w_rz, w_n, b, b_hn, h_0, order, offsets, reverse, gates, reset, h, h_n, scratch
):  # fmt: skip
    record = local_zeros(1, GRU)
    gru = record[0]
    describe_sequences(gru, xs, h_0, order, offsets, reverse, gates, h)
    gru.H, gru.reset, gru.reset_after = h_0.shape[1], address(reset), reset_after
    describe_weights(gru, launcher, thread_count, kernels, False, w_rz, w_n, scratch)
    gru.b_hn, gru.h_n = address_or_null(b_hn), address(h_n)
    launch_product(launcher, thread_count, kernels, False, w_ih, gru, gru.xs, gru.xs_row, address_or_null(b), gru.gates)
    # a sequence is one thread's
    run_kernel(launcher, kernels[FORWARD_PART], max(1, min(thread_count, gru.n)), record, ())


@driver
def _backward(
    launcher, thread_count, kernels, reset_after, has_dh, dh, dh_n, xs, w_ih, w_rz, w_n, h_0, order, offsets, reverse, gates, reset, h,
    dz, dxs, dw_ih, dw_hh, db, db_hn, dh_0, squares, accumulate, scratch,
):  # fmt: skip
    record = local_zeros(1, GRU)
    gru = record[0]
    describe_sequences(gru, xs, h_0, order, offsets, reverse, gates, h)
    gru.H, gru.reset, gru.reset_after = h_0.shape[1], address(reset), reset_after
    gru.inputs = describe_weights(gru, launcher, thread_count, kernels, True, w_rz, w_n, scratch)
    gru.dq = gru.inputs + gru.rows * (gru.H + 1) * gru.itemsize
    gru.dh, gru.dh_row, gru.dh_n = address(dh) if has_dh else 0, array_matrix(dh).row, address_or_null(dh_n)
    gru.accumulate, gru.squares = accumulate, address_or_null(squares)
    gru.dz, gru.dh_0, gru.dw_ih, gru.dw_hh = address(dz), address(dh_0), address(dw_ih), address(dw_hh)
    gru.db, gru.ones, gru.db_hn = address_or_null(db), min(1, db.size), address_or_null(db_hn)
    run_kernel(launcher, kernels[BACKWARD_PART], max(1, min(thread_count, gru.n)), record, ())
    if dxs.size > 0:
        launch_product(launcher, thread_count, kernels, True, w_ih, gru, gru.dz, 3 * gru.H, 0, address(dxs))
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(gemm_part, pack_part, gru_forward_part, gru_backward_part, weights_part)
# vectors and matrices for None: drivers know arrays of one type only. An empty slice has its array's address and strides, and one type
# whatever these are
_NONE = {char: (np.empty(0, char), np.empty((0, 0), char)) for char in "fd"}


def gru_forward(xs, weights, h_0, batch, saved, h_n, *, reset_after):
    """Write h and the arrays for backward to `saved`, and the state after each sequence's last step to h_n."""
    w_ih, w_hh, b, b_hn = weights
    gates, reset, h = saved
    dtype, (rows, C), (n, H) = xs.dtype, xs.shape, h_0.shape
    vector, _ = _NONE[dtype.char]
    run(
        6 * rows * H * (C + H), _forward, _KERNELS[dtype.char], reset_after, xs[:0], w_ih[:0], w_hh[:0, : 2 * H], w_hh[:0, 2 * H :],
        vector if b is None else b, vector if b_hn is None else b_hn, h_0, *batch, gates, reset, h[:0], h_n,
        scratch=(dtype, sum(scratch_sizes.py_func(n, H)), SCRATCH),
    )  # fmt: skip


def gru_backward(upstream, xs, weights, h_0, batch, saved, gradients, accumulate, *, reset_after):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    dh, dh_n = upstream
    w_ih, w_hh = weights[:2]
    gates, reset, h = saved
    dz, dxs, (dw_ih, dw_hh, db, db_hn), dh_0, squares = gradients
    dtype, (rows, C), (n, H) = xs.dtype, xs.shape, h_0.shape
    vector, matrix = _NONE[dtype.char]
    run(
        12 * rows * H * (C + H), _backward, _KERNELS[dtype.char], reset_after, dh is not None, matrix if dh is None else dh[:0],
        matrix if dh_n is None else dh_n, xs[:0], w_ih[:0], w_hh[:0, : 2 * H], w_hh[:0, 2 * H :], h_0, *batch, gates, reset, h[:0],
        dz, matrix if dxs is None else dxs, dw_ih, dw_hh, vector if db is None else db, vector if db_hn is None else db_hn, dh_0,
        _NONE["d"][0] if squares is None else squares, accumulate,
        scratch=(dtype, sum(scratch_sizes.py_func(n, H)) + rows * (2 * H + 1), SCRATCH),
    )  # fmt: skip
