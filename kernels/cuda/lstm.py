"""LSTM over whole sequences; formulas and layout of rows: kernels/reference/lstm.py.

A time step is one GEMM over all sequences, with w_hh, and one launch with a thread for each hidden unit of each sequence. Forward that
launch computes gates, cell and output; backward it computes dz, from the upstream gradient and that of the step after. With a projection a
step has one more GEMM and one more launch. What has no order in time is a GEMM over all steps: x w_ih before the loop, dx and the
gradients of the weights after it.

The number of sequences of a step is read by kernels alone, so the host needs no lengths, as in packing.py. With unequal lengths, GEMMs
therefore multiply rows of all N sequences; the results of sequences that have ended are not read. Backward, such a GEMM reads step_dz, a
copy of one step's dz (N, 4H). If all sequences are full, which the shapes show, it reads the rows of the step in dz itself.
"""

import math

from numba import cuda

from ..reference.packing import steps
from ..types import PackedBatch
from .activation import sigmoid
from .engine import device
from .engine.device import (
    BLOCK,
    Integer,
    Integers,
    Real,
    Values,
    blocks,
    device_function,
    grid_start,
    grid_stride,
    kernel,
    launch,
)
from .engine.reductions import add_down, row_limit, sum_rows, tile_column, tile_row, tile_width, tiles
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

# further options of a launch: peepholes; c to keep; the output itself, not of a projection; a copy of one step to write; dL/dr, of a
# projection
PEEPHOLE, KEEP, OUTPUT, STEP_COPY, PROJECTED = (FURTHER << bit for bit in range(5))


@kernel
def lstm_cells(
    dtype: Real, t: Integer, hidden: Integer, h_row: Integer, options: Integer, offsets: Integers,
    z: Values, b: Values, peephole: Values, gates: Values, state_c: Values, c: Values, tanh_c: Values, r: Values, h: Values,
):  # fmt: skip
    """The gates from x w_ih, in their place, and z = h w_hh (N, 4H). The new state_c and r = o tanh c (N, H)."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, step_at, c_before = (row + p) * 4 * hidden + j, p * 4 * hidden + j, state_c[i]
        z_i, z_f = gates[at], gates[at + hidden]
        z_g, z_o = gates[at + 2 * hidden], gates[at + 3 * hidden]
        if options & BIAS:
            z_i += b[j]
            z_f += b[hidden + j]
            z_g += b[2 * hidden + j]
            z_o += b[3 * hidden + j]
        z_i += z[step_at]
        z_f += z[step_at + hidden]
        z_g += z[step_at + 2 * hidden]
        z_o += z[step_at + 3 * hidden]
        if options & PEEPHOLE:
            z_i += peephole[j] * c_before
            z_f += peephole[hidden + j] * c_before
        in_gate, forget, g = sigmoid(z_i), sigmoid(z_f), math.tanh(z_g)
        cell = forget * c_before + in_gate * g
        if options & PEEPHOLE:
            z_o += peephole[2 * hidden + j] * cell
        o, tanh = sigmoid(z_o), math.tanh(cell)
        gates[at], gates[at + hidden] = in_gate, forget
        gates[at + 2 * hidden], gates[at + 3 * hidden] = g, o
        state_c[i], r[i] = cell, o * tanh
        if options & KEEP:
            c[row * hidden + i], tanh_c[row * hidden + i] = cell, tanh
        if options & OUTPUT:
            h[(row + p) * h_row + j] = o * tanh


@kernel
def lstm_outputs(
    dtype: Real, t: Integer, columns: Integer, h_row: Integer, offsets: Integers, projected: Values, state_h: Values, h: Values
):  # fmt: skip
    """Copy the projected output (N, P) of the sequences that have step t to state_h and h."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * columns, grid_stride()):
        p = i // columns
        value = projected[i]
        state_h[i], h[(row + p) * h_row + i - p * columns] = value, value


@kernel
def lstm_upstream(
    dtype: Real, t: Integer, steps: Integer, step_after: Integer, columns: Integer, dh_row: Integer, options: Integer,
    order: Integers, offsets: Integers, dh: Values, dh_after: Values, dh_n: Values, whole: Values, step_dh: Values,
):  # fmt: skip
    """The whole dL/dh_t (R, P), for a projection, and its copy step_dh (N, P)."""
    row = offsets[t]
    for i in range(grid_start(), (offsets[t + 1] - row) * columns, grid_stride()):
        p = i // columns
        j = i - p * columns
        value = whole_gradient(
            dtype, t, steps, step_after, p, j, columns, dh_row, options, order, offsets, dh, dh_after, dh_n
        )
        whole[row * columns + i] = value
        if options & STEP_COPY:
            step_dh[i] = value


@kernel
def lstm_gradients(
    dtype: Real, t: Integer, steps: Integer, step_after: Integer, hidden: Integer, dh_row: Integer, options: Integer,
    order: Integers, offsets: Integers, dh: Values, dh_after: Values, dh_n: Values, gates: Values, tanh_c: Values, c: Values,
    c_0: Values, peephole: Values, state_dc: Values, dz: Values, step_dz: Values, whole: Values, r: Values,
):  # fmt: skip
    """dz (R, 4H), which may be gates, its copy step_dz (N, 4H), and state_dc (N, H) of the step before: undoes lstm_cells.

    dh_after is dL/dh_t of the step after (N, H), or with a projection dL/dr (N, H); then r (R, H) = o tanh c is written.
    """
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, step_at, cell_at = (row + p) * 4 * hidden + j, p * 4 * hidden + j, row * hidden + i
        in_gate, forget, g, o = gates[at], gates[at + hidden], gates[at + 2 * hidden], gates[at + 3 * hidden]
        tanh = tanh_c[cell_at]
        c_before = value_before(offsets, steps, 2 * t - step_after, p, j, hidden, hidden, c, order, c_0)
        if options & PROJECTED:
            dr = dh_after[i]
            r[cell_at] = o * tanh
        else:
            dr = whole_gradient(
                dtype, t, steps, step_after, p, j, hidden, dh_row, options, order, offsets, dh, dh_after, dh_n
            )
            if options & WHOLE:
                whole[cell_at] = dr
        dz_o = dr * tanh * o * (one - o)
        dc = state_dc[i] + dr * o * (one - tanh * tanh)
        if options & PEEPHOLE:
            dc += peephole[2 * hidden + j] * dz_o
        dz_i, dz_f = dc * g * in_gate * (one - in_gate), dc * c_before * forget * (one - forget)
        dz_g = dc * in_gate * (one - g * g)
        dc *= forget
        if options & PEEPHOLE:
            dc += peephole[j] * dz_i + peephole[hidden + j] * dz_f
        state_dc[i] = dc
        dz[at], dz[at + hidden], dz[at + 2 * hidden], dz[at + 3 * hidden] = dz_i, dz_f, dz_g, dz_o
        if options & STEP_COPY:
            step_dz[step_at], step_dz[step_at + hidden] = dz_i, dz_f
            step_dz[step_at + 2 * hidden], step_dz[step_at + 3 * hidden] = dz_g, dz_o


@device_function
def write_sum(shared, value, width, partials, at, inside):
    """Write the sum over a tile's rows to partials, for columns inside of the matrix."""
    total = add_down(shared, value, width)
    if cuda.threadIdx.x < width and inside:
        partials[at] = total


@kernel
def sum_gradients(
    dtype: Real, rows: Integer, hidden: Integer, width: Integer, options: Integer,
    dz: Values, c_before: Values, c: Values, bias_partials: Values, peephole_partials: Values,
):  # fmt: skip
    """The sums of a block's rows for the bias (blocks, 4H) and the peepholes (blocks, 3H)."""
    shared = cuda.shared.array(BLOCK, dtype)
    column = tile_column(width)
    inside = column < hidden
    b_i = b_f = b_g = b_o = p_i = p_f = p_o = dtype(0)
    for row in range(tile_row(width), row_limit(width, rows) if inside else 0, BLOCK // width):
        at, cell_at = row * 4 * hidden + column, row * hidden + column
        dz_i, dz_f, dz_o = dz[at], dz[at + hidden], dz[at + 3 * hidden]
        b_i, b_f, b_o = b_i + dz_i, b_f + dz_f, b_o + dz_o
        if options & BIAS:
            b_g += dz[at + 2 * hidden]
        if options & PEEPHOLE:
            c_start = c_before[cell_at]
            p_i, p_f, p_o = p_i + dz_i * c_start, p_f + dz_f * c_start, p_o + dz_o * c[cell_at]
    if options & BIAS:
        at = cuda.blockIdx.x * 4 * hidden + column
        write_sum(shared, b_i, width, bias_partials, at, inside)
        write_sum(shared, b_f, width, bias_partials, at + hidden, inside)
        write_sum(shared, b_g, width, bias_partials, at + 2 * hidden, inside)
        write_sum(shared, b_o, width, bias_partials, at + 3 * hidden, inside)
    if options & PEEPHOLE:
        at = cuda.blockIdx.x * 3 * hidden + column
        write_sum(shared, p_i, width, peephole_partials, at, inside)
        write_sum(shared, p_f, width, peephole_partials, at + hidden, inside)
        write_sum(shared, p_o, width, peephole_partials, at + 2 * hidden, inside)


def lstm_forward(xs, weights, start, batch, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    xp, matmul, dtype = device.xp, device.xp.matmul, xs.dtype
    w_ih, w_hh, b, peephole, w_proj = weights
    gates, c, tanh_c, h = saved
    (n, hidden), columns = start.c.shape, start.h.shape[1]
    order, offsets = device_packing(batch)
    state_h, state_c, z = start.h[order], start.c[order], xp.empty((n, 4 * hidden), dtype)
    projects = w_proj is not None
    r = xp.empty((n, hidden), dtype) if projects else state_h
    projected = xp.empty((n, columns), dtype) if projects else None
    options = (
        BIAS * (b is not None) + PEEPHOLE * (peephole is not None) + KEEP * (c is not None) + OUTPUT * (not projects)
    )
    matmul(xs, w_ih, out=gates)
    for t in steps(batch):
        matmul(state_h, w_hh, out=z)
        arrays = offsets, z, b, peephole, gates, state_c, c, tanh_c, r, h
        launch(lstm_cells, dtype, blocks(n * hidden), t, hidden, row_stride(h), options, *arrays)
        if projects:
            matmul(r, w_proj, out=projected)
            launch(lstm_outputs, dtype, blocks(n * columns), t, columns, row_stride(h), offsets, projected, state_h, h)
    end.h[order], end.c[order] = state_h, state_c


def lstm_backward(upstream, xs, weights, start, batch, saved, gradients, accumulate):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    xp, matmul, dtype, (rows, columns) = device.xp, device.xp.matmul, xs.dtype, saved.h.shape
    dz, dxs, (dw_ih, dw_hh, db, dpeephole, dw_proj), _, squares = gradients
    hidden, has_peephole, projects = start.c.shape[1], weights.peephole is not None, weights.w_proj is not None
    batch = PackedBatch(*device_packing(batch), batch.reverse)
    whole = xp.empty((rows, columns), dtype) if projects or squares is not None else None
    r = xp.empty((rows, hidden), dtype) if projects else None
    differentiate_steps(upstream, weights, start, batch, saved, gradients, whole, r)
    if dxs is not None:
        matmul(dz, weights.w_ih.T, out=dxs)
    h_before = start_or_before(saved.h, start.h, batch)
    c_before = start_or_before(saved.c, start.c, batch) if has_peephole else None
    sums = gradient_sums(dz, c_before, saved.c, db is not None)
    products = [(dw_ih, xs, dz), (dw_hh, h_before, dz), (dw_proj, r, whole)]
    for gradient, a, slopes in products[: 2 + projects]:
        with accumulated(gradient, accumulate) as out:
            matmul(a.T, slopes, out=out)
    for gradient, partials in zip((db, dpeephole), sums, strict=True):
        if gradient is not None:
            with accumulated(gradient, accumulate) as out:
                sum_rows(partials, out.reshape(-1))
    if squares is not None:
        row_squares(whole, squares)


def differentiate_steps(upstream, weights, start, batch, saved, gradients, whole, r):
    """dz and the gradients of the start, through all steps; with a projection whole (R, P) = dL/dh and r (R, H) too, else whole may be
    None.
    """
    (dh, dh_n, dc_n), (_, w_hh, _, peephole, w_proj), (order, offsets, reverse) = upstream, weights, batch
    (gates, c, tanh_c, _), dz, dtype = saved, gradients.dz, gradients.dz.dtype
    xp, matmul = device.xp, device.xp.matmul
    (n, hidden), columns, step_count = start.c.shape, len(w_hh), len(offsets) - 1
    full, projects, direction = len(dz) == n * step_count, w_proj is not None, -1 if reverse else 1
    dh_after, state_dc = xp.empty((n, columns), dtype), xp.zeros_like(start.c) if dc_n is None else dc_n[order]
    dr = xp.empty((n, hidden), dtype) if projects else dh_after
    step_dz = None if full else xp.empty((n, 4 * hidden), dtype)
    step_dh = xp.empty((n, columns), dtype) if projects and not full else None
    step_options = UPSTREAM * (dh is not None) + END * (dh_n is not None) + STEP_COPY * (not full)
    options = step_options + PEEPHOLE * (peephole is not None) + WHOLE * (whole is not None) + PROJECTED * projects
    dh_row = 0 if dh is None else row_stride(dh)
    for t in reversed(steps(batch)):
        step, place = slice(t * n, (t + 1) * n), (t, step_count, t + direction)
        if projects:
            arrays = order, offsets, dh, dh_after, dh_n, whole, step_dh
            launch(lstm_upstream, dtype, blocks(n * columns), *place, columns, dh_row, step_options, *arrays)
            matmul(whole[step] if full else step_dh, w_proj.T, out=dr)
        arrays = order, offsets, dh, dr, dh_n, gates, tanh_c, c, start.c, peephole, state_dc, dz, step_dz, whole, r
        launch(lstm_gradients, dtype, blocks(n * hidden), *place, hidden, dh_row, options, *arrays)
        matmul(dz[step] if full else step_dz, w_hh.T, out=dh_after)
    # step_dz keeps the last dz of a sequence that has ended, so its row of dh_after comes out as it was; a sequence without steps has
    # no such row, and none has where there are no steps: offsets[0] is 0
    has_steps = xp.arange(n)[:, None] < offsets[min(step_count, 1)]
    gradients.start.h[order] = xp.where(has_steps, dh_after, 0 if dh_n is None else dh_n[order])
    gradients.start.c[order] = state_dc


def gradient_sums(dz, c_before, c, biased):
    """Sums by block for the bias (blocks, 4H) and the peepholes (blocks, 3H), each None if it is not needed."""
    rows, hidden = len(dz), dz.shape[1] // 4
    grid, has_peephole = tiles(rows, hidden), c_before is not None
    partials = [
        device.xp.empty((grid[0], gates * hidden), dz.dtype) if is_needed else None
        for gates, is_needed in ((4, biased), (3, has_peephole))
    ]
    if biased or has_peephole:
        options = BIAS * biased + PEEPHOLE * has_peephole
        launch(sum_gradients, dz.dtype, grid, rows, hidden, tile_width(hidden), options, dz, c_before, c, *partials)
    return partials
