"""GRU over whole sequences; formulas and layout of rows: kernels/reference/gru.py.

As in lstm.py a time step is GEMMs over all sequences and launches with a thread for each hidden unit of each sequence, and what has no
order in time is a GEMM over all steps. With reset_after a step is one GEMM, with w_hh, and one launch; without, r is between two products:
two GEMMs, with w_rz, the columns of w_hh of r and z, and with w_hn, and two launches.

The number of sequences of a step is read by kernels alone. GEMMs multiply rows of all N sequences, from copies of one step's rows; the
results of sequences that have ended are not read.
"""

import math

from ..reference.packing import steps
from ..types import PackedBatch
from .activation import sigmoid
from .engine import device
from .engine.device import (
    Integer,
    Integers,
    Real,
    Values,
    blocks,
    grid_start,
    grid_stride,
    kernel,
    launch,
)
from .engine.reductions import sum_rows
from .packing import device_packing
from .recurrence import (
    BIAS,
    END,
    FURTHER,
    UPSTREAM,
    WHOLE,
    accumulated,
    row_squares,
    row_stride,
    start_or_before,
    value_before,
    whole_gradient,
)

# a further option of a launch: a bias of n's part of h
INNER_BIAS = FURTHER


@kernel
def gru_cells(
    dtype: Real, t: Integer, hidden: Integer, h_row: Integer, options: Integer, offsets: Integers,
    z: Values, b: Values, b_hn: Values, gates: Values, reset: Values, state: Values, h: Values,
):  # fmt: skip
    """With reset_after: the gates from x w_ih, in their place, and z = h w_hh (N, 3H). The new state (N, H)."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, step_at = (row + p) * 3 * hidden + j, p * 3 * hidden + j
        z_r, z_z, z_n, q = gates[at], gates[at + hidden], gates[at + 2 * hidden], z[step_at + 2 * hidden]
        if options & BIAS:
            z_r += b[j]
            z_z += b[hidden + j]
            z_n += b[2 * hidden + j]
        if options & INNER_BIAS:
            q += b_hn[j]
        r, update = sigmoid(z_r + z[step_at]), sigmoid(z_z + z[step_at + hidden])
        n = math.tanh(z_n + r * q)
        gates[at], gates[at + hidden], gates[at + 2 * hidden] = r, update, n
        value = n + update * (state[i] - n)
        reset[row * hidden + i], state[i], h[(row + p) * h_row + j] = q, value, value


@kernel
def gru_gates(
    dtype: Real, t: Integer, hidden: Integer, options: Integer, offsets: Integers,
    z: Values, b: Values, gates: Values, reset: Values, state: Values, step_reset: Values,
):  # fmt: skip
    """Without reset_after: r and z from x w_ih, in their place, and z = h w_rz (N, 2H); r h, and its copy step_reset (N, H)."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, step_at = (row + p) * 3 * hidden + j, p * 2 * hidden + j
        z_r, z_z = gates[at], gates[at + hidden]
        if options & BIAS:
            z_r += b[j]
            z_z += b[hidden + j]
            gates[at + 2 * hidden] += b[2 * hidden + j]
        r = sigmoid(z_r + z[step_at])
        gates[at], gates[at + hidden] = r, sigmoid(z_z + z[step_at + hidden])
        reset[row * hidden + i], step_reset[i] = r * state[i], r * state[i]


@kernel
def gru_outputs(
    dtype: Real, t: Integer, hidden: Integer, h_row: Integer, offsets: Integers,
    z_n: Values, gates: Values, state: Values, h: Values,
):  # fmt: skip
    """Without reset_after: n from x w_ih + b, in its place, and z_n = r h w_hn (N, H). The new state (N, H)."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at = (row + p) * 3 * hidden + j
        n = math.tanh(gates[at + 2 * hidden] + z_n[i])
        gates[at + 2 * hidden] = n
        value = n + gates[at + hidden] * (state[i] - n)
        state[i], h[(row + p) * h_row + j] = value, value


@kernel
def gru_gradients(
    dtype: Real, t: Integer, steps: Integer, step_after: Integer, hidden: Integer, h_row: Integer, dh_row: Integer, options: Integer,
    order: Integers, offsets: Integers, dh: Values, direct: Values, dh_after: Values, dh_n: Values, gates: Values, reset: Values,
    h: Values, h_0: Values, dz: Values, du: Values, step_du: Values, whole: Values,
):  # fmt: skip
    """With reset_after: dz (R, 3H), which may be gates; du (R, 3H) = dz_r, dz_z, dq, and its copy step_du (N, 3H); and direct (N, H), the
    part of dL/dh_{t-1} that passes no product. Undoes gru_cells.
    """
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, step_at = (row + p) * 3 * hidden + j, p * 3 * hidden + j
        r, z, n = gates[at], gates[at + hidden], gates[at + 2 * hidden]
        h_before = value_before(offsets, steps, 2 * t - step_after, p, j, hidden, h_row, h, order, h_0)
        # what the step after has directly is 0 where there is none
        dh_t = direct[i] + whole_gradient(
            dtype, t, steps, step_after, p, j, hidden, dh_row, options, order, offsets, dh, dh_after, dh_n
        )
        if options & WHOLE:
            whole[row * hidden + i] = dh_t
        dz_n, dz_z = dh_t * (one - z) * (one - n * n), dh_t * (h_before - n) * z * (one - z)
        dz_r, dq = dz_n * reset[row * hidden + i] * r * (one - r), dz_n * r
        direct[i] = dh_t * z
        dz[at], dz[at + hidden], dz[at + 2 * hidden] = dz_r, dz_z, dz_n
        du[at], du[at + hidden], du[at + 2 * hidden] = dz_r, dz_z, dq
        step_du[step_at], step_du[step_at + hidden], step_du[step_at + 2 * hidden] = dz_r, dz_z, dq


@kernel
def gru_output_gradients(
    dtype: Real, t: Integer, steps: Integer, step_after: Integer, hidden: Integer, h_row: Integer, dh_row: Integer, options: Integer,
    order: Integers, offsets: Integers, dh: Values, direct: Values, dh_after: Values, dh_n: Values, gates: Values, h: Values,
    h_0: Values, dz: Values, step_dn: Values, step_du: Values, whole: Values,
):  # fmt: skip
    """Without reset_after: dz of z and n, copies of them in step_du (N, 2H) and step_dn (N, H), and direct (N, H). Undoes gru_outputs."""
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at = (row + p) * 3 * hidden + j
        z, n = gates[at + hidden], gates[at + 2 * hidden]
        h_before = value_before(offsets, steps, 2 * t - step_after, p, j, hidden, h_row, h, order, h_0)
        # what the step after has directly is 0 where there is none
        dh_t = direct[i] + whole_gradient(
            dtype, t, steps, step_after, p, j, hidden, dh_row, options, order, offsets, dh, dh_after, dh_n
        )
        if options & WHOLE:
            whole[row * hidden + i] = dh_t
        dz_n, dz_z = dh_t * (one - z) * (one - n * n), dh_t * (h_before - n) * z * (one - z)
        direct[i] = dh_t * z
        dz[at + hidden], dz[at + 2 * hidden] = dz_z, dz_n
        step_dn[i], step_du[p * 2 * hidden + hidden + j] = dz_n, dz_z


@kernel
def gru_reset_gradients(
    dtype: Real, t: Integer, steps: Integer, step_before: Integer, hidden: Integer, h_row: Integer, order: Integers, offsets: Integers,
    ds: Values, gates: Values, h: Values, h_0: Values, dz: Values, direct: Values, step_du: Values,
):  # fmt: skip
    """Without reset_after: dz of r from ds = dL/d(r h) (N, H), its copy in step_du (N, 2H), and what direct has of it. Undoes gru_gates."""
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at = (row + p) * 3 * hidden + j
        r = gates[at]
        h_before = value_before(offsets, steps, step_before, p, j, hidden, h_row, h, order, h_0)
        dz_r = ds[i] * h_before * r * (one - r)
        direct[i] += ds[i] * r
        dz[at], step_du[p * 2 * hidden + j] = dz_r, dz_r


def split_columns(matrix):
    """The columns of a matrix (., 3H) of r and z, and those of n, each contiguous."""
    begin = 2 * (matrix.shape[1] // 3)
    return device.xp.ascontiguousarray(matrix[:, :begin]), device.xp.ascontiguousarray(matrix[:, begin:])


def gru_forward(xs, weights, h_0, batch, saved, h_n, *, reset_after):
    """Write h and the arrays for backward to `saved`, and the state after each sequence's last step to h_n."""
    xp, matmul, dtype, (n, hidden) = device.xp, device.xp.matmul, xs.dtype, h_0.shape
    w_ih, w_hh, b, b_hn = weights
    gates, reset, h = saved
    order, offsets = device_packing(batch)
    state, grid, options = h_0[order], blocks(n * hidden), BIAS * (b is not None) + INNER_BIAS * (b_hn is not None)
    matmul(xs, w_ih, out=gates)
    if reset_after:
        z = xp.empty((n, 3 * hidden), dtype)
        for t in steps(batch):
            matmul(state, w_hh, out=z)
            arrays = offsets, z, b, b_hn, gates, reset, state, h
            launch(gru_cells, dtype, grid, t, hidden, row_stride(h), options, *arrays)
    else:
        w_rz, w_hn = split_columns(w_hh)
        z, z_n, step_reset = (
            xp.empty((n, 2 * hidden), dtype),
            xp.empty((n, hidden), dtype),
            xp.zeros((n, hidden), dtype),
        )
        for t in steps(batch):
            matmul(state, w_rz, out=z)
            launch(gru_gates, dtype, grid, t, hidden, options, offsets, z, b, gates, reset, state, step_reset)
            matmul(step_reset, w_hn, out=z_n)
            launch(gru_outputs, dtype, grid, t, hidden, row_stride(h), offsets, z_n, gates, state, h)
    h_n[order] = state


def gru_backward(upstream, xs, weights, h_0, batch, saved, gradients, accumulate, *, reset_after):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    xp, matmul, dtype, hidden = device.xp, device.xp.matmul, xs.dtype, h_0.shape[1]
    dz, dxs, (dw_ih, dw_hh, db, db_hn), dh_0, squares = gradients
    batch = PackedBatch(*device_packing(batch), batch.reverse)
    whole = xp.empty(saved.h.shape, dtype) if squares is not None else None
    du = differentiate_steps(upstream, weights.w_hh, h_0, batch, saved, dz, dh_0, whole=whole, reset_after=reset_after)
    if dxs is not None:
        matmul(dz, weights.w_ih.T, out=dxs)
    h_before = start_or_before(saved.h, h_0, batch)
    with accumulated(dw_ih, accumulate) as out:
        matmul(xs.T, dz, out=out)
    with accumulated(dw_hh, accumulate) as out:
        if reset_after:
            matmul(h_before.T, du, out=out)
        else:
            dz_rz, dz_n = split_columns(dz)
            out[:, : 2 * hidden], out[:, 2 * hidden :] = matmul(h_before.T, dz_rz), matmul(saved.reset.T, dz_n)
    if db is not None:
        with accumulated(db, accumulate) as out:
            sum_rows(dz, out)
    if db_hn is not None:
        with accumulated(db_hn, accumulate) as out:
            sums = xp.empty(3 * hidden, dtype)
            sum_rows(du, sums)
            out[...] = sums[2 * hidden :]
    if squares is not None:
        row_squares(whole, squares)


def differentiate_steps(upstream, w_hh, h_0, batch, saved, dz, dh_0, *, whole, reset_after):
    """dz and dh_0, through all steps, and whole (R, H) = dL/dh unless it is None; with reset_after returns du (R, 3H) = dz_r, dz_z, dq."""
    (dh, dh_n), (order, offsets, reverse), (gates, reset, h), dtype = upstream, batch, saved, dz.dtype
    xp, matmul = device.xp, device.xp.matmul
    (n, hidden), step_count, direction = h_0.shape, len(offsets) - 1, -1 if reverse else 1
    direct, dh_after, du = xp.zeros((n, hidden), dtype), xp.zeros((n, hidden), dtype), None
    options = UPSTREAM * (dh is not None) + END * (dh_n is not None) + WHOLE * (whole is not None)
    strides, grid = (row_stride(h), 0 if dh is None else row_stride(dh)), blocks(n * hidden)
    ends = order, offsets, dh, direct, dh_after, dh_n
    if reset_after:
        du, step_du = xp.empty(dz.shape, dtype), xp.zeros((n, 3 * hidden), dtype)
        for t in reversed(steps(batch)):
            place = t, step_count, t + direction, hidden, *strides, options
            launch(gru_gradients, dtype, grid, *place, *ends, gates, reset, h, h_0, dz, du, step_du, whole)
            matmul(step_du, w_hh.T, out=dh_after)
    else:
        w_rz, w_hn = split_columns(w_hh)
        step_du, step_dn, ds = (xp.zeros((n, k * hidden), dtype) for k in (2, 1, 1))
        for t in reversed(steps(batch)):
            place = t, step_count, t + direction, hidden, *strides, options
            launch(gru_output_gradients, dtype, grid, *place, *ends, gates, h, h_0, dz, step_dn, step_du, whole)
            matmul(step_dn, w_hn.T, out=ds)
            arrays = order, offsets, ds, gates, h, h_0, dz, direct, step_du
            launch(gru_reset_gradients, dtype, grid, t, step_count, t - direction, hidden, strides[0], *arrays)
            matmul(step_du, w_rz.T, out=dh_after)
    # step_du keeps the last dz of a sequence that has ended, so its row of dh_after comes out as it was; a sequence without steps has
    # no such row, and none has where there are no steps: offsets[0] is 0
    has_steps = xp.arange(n)[:, None] < offsets[min(step_count, 1)]
    dh_0[order] = xp.where(has_steps, direct + dh_after, 0 if dh_n is None else dh_n[order])
    return du
