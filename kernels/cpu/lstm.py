"""LSTM over whole sequences, as in kernels/reference/lstm.py, which has the formulas and the layout of rows.

Sequences are independent of each other, forward and backward, so a thread takes its share of them through all steps with no barrier.
What has no order in time is done outside of that loop, as products over all steps at once: the input's part of z before it, the
gradients of the input and of the weights after it. Inside are the product with w_hh, from panels that are copied once a call, and
the gates, row by row while they are in cache.

Thread `part` of `parts` has the positions part, part + parts, ... in the order by length, so that each has long and short ones.
"""

import numpy as np
from numba import carray

from .dense import SUMMED_ROWS
from .engine import vector_math
from .engine.compile import Addresses, device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_at,
    address_or_null,
    advance,
    call,
    copy,
    data,
    lanes,
    local,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.microkernel import VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, add_times, map_arrays, map_values, squares, times
from .gemm import GEMM, SCRATCH, clear, describe, gemm_part, pack_b, panel_tiles, transpose_rows
from .packing import offsets_of

PACK = np.dtype([(name, "i8") for name in "depth K start N w w_row w_col panels".split()])
LSTM = np.dtype(
    [
        (name, "i8")
        for name in "n steps C H P order offsets reverse xs xs_row peephole h_0 c_0 gemm scratch itemsize".split()
    ]
    + [(name, "i8") for name in "w_ih w_ih_row w_ih_col w_hh w_hh_row w_hh_col w_proj w_proj_row w_proj_col".split()]
    + [(name, "i8") for name in "X b gates c tanh_c h h_row h_n c_n work spare".split()]
    + [(name, "i8") for name in "ones dh dh_row dh_n dc_n dz dxs inputs r total dh_0 dc_0 squares".split()]
)
# sequences a thread, and steps, for which w is read as it lies: copying it into panels would not pay
FEW_ROWS, FEW_STEPS = 3, 4
# how products in time read their weights: copied into panels; as they lie, for few steps; or, for few sequences a thread, as they lie or
# turned, with x's part as one product for all steps. And the places of kernels among _KERNELS
IN_PANELS, IN_PLACE, IN_ROWS = range(3)
GEMM_PART, PACK_PART, FORWARD_PART, BACKWARD_PART, WEIGHTS_PART = range(5)


@kernel(PACK, needs=provide_microkernel)
def pack_part(part, parts, job, like):
    """The part's columns of w (K, N) into panels of this depth, where they are the columns from `start` on."""
    g = carray(job, 1)[0]
    width = VECTORS * lanes(like)
    lo, hi = thread_range(part, parts, g.N, width)
    w, at = advance(pointer(g.w, like), lo * g.w_col), g.start + lo
    # they may begin in the middle of a panel, behind another w's
    rest = min(hi - lo, -at % width)
    to = advance(pointer(g.panels, like), (at - at % width) * g.depth + at % width)
    pack_b(g.K, rest, w, g.w_row, g.w_col, to, g.depth)
    to = advance(pointer(g.panels, like), (at + rest) * g.depth)
    pack_b(g.K, hi - lo - rest, advance(w, rest * g.w_col), g.w_row, g.w_col, to, g.depth)


@device_function
def product(g, part, rows, N, K, a, a_row, w, w_row, w_col, start, start_row, c, c_row):
    """c (rows, N) = start + a (rows, K) @ w (K, N), which lies in panels where it has no strides; a null start is zero, start_row 0
    a bias.
    """
    if rows == 0:
        return
    if not w_row:
        panel_tiles(rows, N, K, a, a_row, pointer(w, a), start, start_row, c, c_row)
        return
    job = local(1, GEMM)
    scratch = g.scratch + part * SCRATCH * g.itemsize
    describe(
        job, rows, N, K, address_at(a), a_row, min(rows, 1), w, w_row, w_col, address_at(start), start_row, address_at(c), c_row,
        scratch,
    )  # fmt: skip
    call(g.gemm, 0, 1, job)


@inline_function
def cell(i, f, g, before):
    """c_t, twice: it is kept, and the state."""
    c = f * before + i * g
    return c, c


@inline_function
def gates_slopes(i, f, g, o, tanh_c, before, dr, dc):
    """dz of all four gates, and dc of the step before."""
    one = real(1, i)
    dc = dc + dr * o * (one - tanh_c * tanh_c)
    return (
        dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g), dr * tanh_c * o * (one - o), dc * f,
    )  # fmt: skip


@inline_function
def gates_slopes_peeping(i, f, g, o, tanh_c, before, dr, dc, p_i, p_f, p_o):
    one = real(1, i)
    dz_o = dr * tanh_c * o * (one - o)
    dc = dc + dr * o * (one - tanh_c * tanh_c) + p_o * dz_o
    dz_i, dz_f, dz_g = dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g)
    return dz_i, dz_f, dz_g, dz_o, dc * f + (p_i * dz_i + p_f * dz_f)


@device_function
def under_way(part, parts, n):
    """How many of the first n positions are the part's."""
    return (n - part + parts - 1) // parts


@kernel(LSTM, needs=provide_microkernel)
def lstm_forward_part(part, parts, job, like):
    """The part's sequences through all steps."""
    g = carray(job, 1)[0]
    H, P, X, offsets, order = g.H, g.P, g.X, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine, none = under_way(part, parts, g.n), pointer(g.n * 0, like)
    # x and h side by side (mine, X + P), (mine, H) and (mine, H)
    state_x = advance(pointer(g.work, like), (X + P + 2 * H) * sum_before(part, parts, g.n))
    state_h, state_row = advance(state_x, X), X + P
    state_c = advance(state_x, mine * state_row)
    r = advance(state_c, mine * H)
    # a row each of c and tanh c where they are not kept
    spare = advance(pointer(g.spare, like), part * 2 * H)
    read_states(part, parts, order, P, g.h_0, state_h, state_row)
    read_states(part, parts, order, H, g.c_0, state_c, H)
    for s in range(g.steps):
        t = g.steps - 1 - s if g.reverse else s
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        z, h = advance(pointer(g.gates, like), first * 4 * H), advance(pointer(g.h, like), first * g.h_row)
        z_row, h_row, xs_row = parts * 4 * H, parts * g.h_row, parts * g.xs_row
        start, start_row, xs = z, z_row, advance(pointer(g.xs, like), first * g.xs_row)
        if X:
            start, start_row = pointer(g.b, like), 0
            for i in range(rows):
                copy(X, advance(xs, i * xs_row), advance(state_x, i * state_row))
        elif g.w_ih:
            b = pointer(g.b, like)
            product(g, part, rows, 4 * H, g.C, xs, xs_row, g.w_ih, g.w_ih_row, g.w_ih_col, b, 0, z, z_row)
        product(
            g, part, rows, 4 * H, X + P, state_x, state_row, g.w_hh, g.w_hh_row, g.w_hh_col, start, start_row, z, z_row
        )
        for i in range(rows):
            z_i, before = advance(z, i * z_row), advance(state_c, i * H)
            c, tanh_c = spare, advance(spare, H)
            if g.c:
                at = (first + i * parts) * H
                c, tanh_c = advance(pointer(g.c, like), at), advance(pointer(g.tanh_c, like), at)
            out = advance(r, i * H) if g.w_proj else advance(h, i * h_row)
            gates_forward(H, z_i, pointer(g.peephole, like), g.peephole != 0, before, c, tanh_c, out)
        if g.w_proj:
            product(g, part, rows, P, H, r, H, g.w_proj, g.w_proj_row, g.w_proj_col, none, 0, h, h_row)
        for i in range(rows):
            copy(P, advance(h, i * h_row), advance(state_h, i * state_row))
    write_states(part, parts, order, P, state_h, state_row, g.h_n)
    write_states(part, parts, order, H, state_c, H, g.c_n)


@device_function
def sum_before(part, parts, n):
    """Positions of the parts before this one."""
    return part * (n // parts) + min(part, n % parts)


@device_function
def read_states(part, parts, order, columns, source, states, states_row):
    """The rows of the part's sequences, in its order; zeros where there is no source."""
    for i in range(under_way(part, parts, len(order))):
        row = advance(states, i * states_row)
        if source:
            copy(columns, advance(pointer(source, states), order[part + i * parts] * columns), row)
        else:
            clear(columns, row)


@device_function
def write_states(part, parts, order, columns, states, states_row, target):
    for i in range(under_way(part, parts, len(order))):
        row = advance(pointer(target, states), order[part + i * parts] * columns)
        copy(columns, advance(states, i * states_row), row)


@device_function
def gates_forward(H, z, peephole, peeps, state_c, c, tanh_c, h):
    """One row's z to its gates, in place, and its c, tanh c and o tanh c."""
    i, f, g, o = z, advance(z, H), advance(z, 2 * H), advance(z, 3 * H)
    if peeps:
        map_arrays(add_times, H, (i, peephole, state_c), (i,), ())
        map_arrays(add_times, H, (f, advance(peephole, H), state_c), (f,), ())
    map_values(vector_math.sigmoid, 2 * H, i, i, ())
    map_values(vector_math.tanh, H, g, g, ())
    map_arrays(cell, H, (i, f, g, state_c), (c, state_c), ())
    if peeps:
        map_arrays(add_times, H, (o, advance(peephole, 2 * H), c), (o,), ())
    map_values(vector_math.sigmoid, H, o, o, ())
    map_values(vector_math.tanh, H, c, tanh_c, ())
    map_arrays(times, H, (o, tanh_c), (h,), ())


@kernel(LSTM, needs=provide_microkernel)
def lstm_backward_part(part, parts, job, like):
    """The part's sequences back through all steps, to dz; w_hh and w_proj are their transposes."""
    g = carray(job, 1)[0]
    H, P, X, offsets, order = g.H, g.P, g.X, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine, none = under_way(part, parts, g.n), pointer(g.n * 0, like)
    # dx and dh side by side (mine, X + P), (mine, H), (mine, H)
    state_dx = advance(pointer(g.work, like), (X + P + 2 * H) * sum_before(part, parts, g.n))
    state_dh, state_row = advance(state_dx, X), X + P
    state_dc = advance(state_dx, mine * state_row)
    dr = advance(state_dc, mine * H)
    read_states(part, parts, order, P, g.dh_n, state_dh, state_row)
    read_states(part, parts, order, H, g.dc_n, state_dc, H)
    for s in range(g.steps):
        t = s if g.reverse else g.steps - 1 - s
        other = t + 1 if g.reverse else t - 1
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        earlier = under_way(part, parts, offsets[other + 1] - offsets[other]) if 0 <= other < g.steps else 0
        for i in range(rows):
            row, dh = first + i * parts, advance(state_dh, i * state_row)
            if g.dh:
                map_arrays(add, P, (dh, advance(pointer(g.dh, like), row * g.dh_row)), (dh,), ())
            if g.squares:
                carray(void_pointer(g.squares), row + 1, np.float64)[row] = squares(dh, P)
            if g.w_proj:
                copy(P, dh, advance(pointer(g.total, like), row * P))
        if g.w_proj:
            product(g, part, rows, H, P, state_dh, state_row, g.w_proj, g.w_proj_row, g.w_proj_col, none, 0, dr, H)
        for i in range(rows):
            row, n = first + i * parts, order[part + i * parts]
            h_before, c_before = advance(pointer(g.h_0, like), n * P), advance(pointer(g.c_0, like), n * H)
            if i < earlier:
                at = offsets[other] + part + i * parts
                h_before, c_before = advance(pointer(g.h, like), at * g.h_row), advance(pointer(g.c, like), at * H)
            inputs = advance(pointer(g.inputs, like), row * (g.C + P + g.ones))
            copy(g.C, advance(pointer(g.xs, like), row * g.xs_row), inputs)
            copy(P, h_before, advance(inputs, g.C))
            if g.ones:
                carray(advance(inputs, g.C + P), 1)[0] = 1
            gates, tanh_c = advance(pointer(g.gates, like), row * 4 * H), advance(pointer(g.tanh_c, like), row * H)
            dz, dc = advance(pointer(g.dz, like), row * 4 * H), advance(state_dc, i * H)
            dr_i = advance(dr, i * H) if g.w_proj else advance(state_dh, i * state_row)
            if g.w_proj:
                r = advance(pointer(g.r, like), row * H)
                map_arrays(times, H, (advance(gates, 3 * H), tanh_c), (r,), ())
            gates_backward(H, gates, tanh_c, c_before, dr_i, pointer(g.peephole, like), g.peephole != 0, dz, dc)
        dz, dz_row = advance(pointer(g.dz, like), first * 4 * H), parts * 4 * H
        dxs, dxs_row = advance(pointer(g.dxs, like), first * g.C), parts * g.C
        product(g, part, rows, X + P, 4 * H, dz, dz_row, g.w_hh, g.w_hh_row, g.w_hh_col, none, 0, state_dx, state_row)
        if X:
            for i in range(rows):
                copy(X, advance(state_dx, i * state_row), advance(dxs, i * dxs_row))
        elif g.w_ih:
            product(g, part, rows, g.C, 4 * H, dz, dz_row, g.w_ih, g.w_ih_row, g.w_ih_col, none, 0, dxs, dxs_row)
    write_states(part, parts, order, P, state_dh, state_row, g.dh_0)
    write_states(part, parts, order, H, state_dc, H, g.dc_0)


@device_function
def gates_backward(H, gates, tanh_c, c_before, dr, peephole, peeps, dz, dc):
    """One row's dr and dc to its dz, and dc of the step before, in place."""
    i, f, g, o = gates, advance(gates, H), advance(gates, 2 * H), advance(gates, 3 * H)
    dz_i, dz_f, dz_g, dz_o = dz, advance(dz, H), advance(dz, 2 * H), advance(dz, 3 * H)
    sources, targets = (i, f, g, o, tanh_c, c_before, dr, dc), (dz_i, dz_f, dz_g, dz_o, dc)
    if peeps:
        peepholes = peephole, advance(peephole, H), advance(peephole, 2 * H)
        map_arrays(gates_slopes_peeping, H, sources + peepholes, targets, ())
    else:
        map_arrays(gates_slopes, H, sources, targets, ())


GRADIENTS = np.dtype(
    [(name, "i8") for name in "rows C H P ones n steps order offsets reverse inputs dz dw_ih dw_hh db".split()]
    + [(name, "i8") for name in "c c_0 dpeephole r total dw_proj accumulate gemm scratch itemsize".split()]
)


@kernel(GRADIENTS)
def weights_part(part, parts, job, like):
    """The part's columns of the gradients of all weights."""
    g = carray(job, 1)[0]
    C, H, P = g.C, g.H, g.P
    columns, row = C + P + g.ones, 4 * H * g.itemsize
    inputs, dz = pointer(g.inputs, like), pointer(g.dz, like)
    if g.dw_hh == g.dw_ih + C * row and (not g.ones or g.db == g.dw_hh + P * row):
        summed(g, part, parts, columns, 4 * H, inputs, columns, dz, pointer(g.dw_ih, like))
    else:
        summed(g, part, parts, C, 4 * H, inputs, columns, dz, pointer(g.dw_ih, like))
        summed(g, part, parts, P, 4 * H, advance(inputs, C), columns, dz, pointer(g.dw_hh, like))
        summed(g, part, parts, g.ones, 4 * H, advance(inputs, C + P), columns, dz, pointer(g.db, like))
    if g.dw_proj:
        summed(g, part, parts, H, P, pointer(g.r, like), H, pointer(g.total, like), pointer(g.dw_proj, like))
    if not g.dpeephole:
        return
    lo, hi = thread_range(part, parts, H, 16)
    n, offsets, order = hi - lo, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    # sums (3, n) of a block of rows, and of all blocks in float64
    sums = pointer(g.scratch + part * SCRATCH * g.itemsize, like)
    wide = g.scratch + part * SCRATCH * g.itemsize + (3 * n * g.itemsize + 7) // 8 * 8
    totals, done = data(carray(void_pointer(wide), 3 * n, np.float64)), 0
    clear(3 * n, totals)
    clear(3 * n, sums)
    for t in range(g.steps):
        other = t + 1 if g.reverse else t - 1
        earlier = offsets[other + 1] - offsets[other] if 0 <= other < g.steps else 0
        for p in range(offsets[t + 1] - offsets[t]):
            row = offsets[t] + p
            before = advance(pointer(g.c, like), (offsets[other] + p) * H + lo)
            if p >= earlier:
                before = advance(pointer(g.c_0, like), order[p] * H + lo)
            dz, c = advance(pointer(g.dz, like), row * 4 * H + lo), advance(pointer(g.c, like), row * H + lo)
            map_arrays(add_times, n, (sums, dz, before), (sums,), ())
            map_arrays(add_times, n, (advance(sums, n), advance(dz, H), before), (advance(sums, n),), ())
            map_arrays(add_times, n, (advance(sums, 2 * n), advance(dz, 3 * H), c), (advance(sums, 2 * n),), ())
            done += 1
            if done % SUMMED_ROWS == 0:
                map_arrays(add, 3 * n, (totals, sums), (totals,), ())
                clear(3 * n, sums)
    map_arrays(add, 3 * n, (totals, sums), (totals,), ())
    of = carray(totals, 3 * n)
    for k in range(3):
        to = carray(advance(pointer(g.dpeephole, like), k * H + lo), n)
        for j in range(n):
            to[j] = of[k * n + j] + (to[j] if g.accumulate else 0)


@device_function
def summed(g, part, parts, M, N, a, a_row, b, dw):
    """The part's columns of dw (M, N) = a (rows, M)^T @ b (rows, N), added to what dw holds if the gradients accumulate."""
    lo, hi = thread_range(part, parts, N, VECTORS * lanes(a))
    if hi == lo or M == 0:
        return
    job, c = local(1, GEMM), address_at(advance(dw, lo))
    start, scratch = c if g.accumulate else 0, g.scratch + part * SCRATCH * g.itemsize
    describe(
        job, M, hi - lo, g.rows, address_at(a), 1, a_row, address_at(advance(b, lo)), N, 1, start, N, c, N, scratch
    )
    job[0].sums = 1
    call(g.gemm, 0, 1, job)


@device_function
def row_stride(array):
    return array.strides[0] // array.itemsize


@device_function
def describe_steps(
    g, launcher, parts, kernels, panels, mode, turned, x_in_time, w_ih, w_hh, sizes, projects, w_proj, rooms
):
    """What both ways through time have in common but arrays: sizes C, H and P, room, and the weights, transposed if turned, as they will
    be read.

    In panels, w_ih lies over w_hh and X is C, if x has a part in the products in time; else X is 0.
    """
    g.C, g.H, g.P = sizes
    g.X = g.C if mode == IN_PANELS and x_in_time else 0
    g.gemm, g.scratch, g.itemsize, g.work = kernels[GEMM_PART], panels, w_hh.itemsize, address(rooms[0])
    if mode == IN_PANELS:
        g.w_hh, depth, shape = address(rooms[1]), 4 * g.H if turned else g.X + g.P, (g.P, 4 * g.H)
        if g.X:
            fill(launcher, parts, kernels, turned, w_ih, (g.X, 4 * g.H), g.w_hh, depth, 0)
        fill(launcher, parts, kernels, turned, w_hh, shape, g.w_hh, depth, g.X)
    else:
        g.w_hh, g.w_hh_row, g.w_hh_col = readable(mode, turned, w_hh, (g.P, 4 * g.H), rooms[1])
    if mode == IN_PLACE and x_in_time:
        g.w_ih, g.w_ih_row, g.w_ih_col = readable(mode, turned, w_ih, (g.C, 4 * g.H), rooms[2])
    if projects and mode == IN_PANELS:
        g.w_proj = address(rooms[3])
        fill(launcher, parts, kernels, turned, w_proj, (g.H, g.P), g.w_proj, g.P if turned else g.H, 0)
    elif projects:
        g.w_proj, g.w_proj_row, g.w_proj_col = readable(mode, turned, w_proj, (g.H, g.P), rooms[3])


@device_function
def describe_arrays(g, xs, peephole, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h):
    """The arrays that both ways through time have in common."""
    g.n, g.order = len(order), address(order)
    g.steps, g.offsets, g.reverse = len(offsets) - 1, address(offsets), reverse
    g.xs, g.xs_row, g.peephole = address(xs), row_stride(xs), address_or_null(peephole)
    g.h_0, g.c_0, g.h, g.h_row = address(h_0), address(c_0), address(h), row_stride(h)
    g.gates, g.c, g.tanh_c = address(gates), address_or_null(c), address_or_null(tanh_c)


@device_function
def strides_of(w, turned):
    """Of w, or its transpose if turned: from row to row and from column to column."""
    row, column = w.strides[0] // w.itemsize, w.strides[1] // w.itemsize
    return (column, row) if turned else (row, column)


@device_function
def fill(launcher, parts, kernels, turned, w, shape, panels, depth, start):
    """w of this shape, or its transpose if turned, into panels, behind `start` rows of another w, columns if turned."""
    job = local(1, PACK)
    g = job[0]
    g.w, g.depth, g.panels, g.start = address(w), depth, panels, start
    g.w_row, g.w_col = strides_of(w, turned)
    g.K, g.N = (shape[1], shape[0]) if turned else shape
    if not turned:
        g.start, g.panels = 0, panels + start * VECTORS * lanes(data(w)) * w.itemsize
    run_kernel(launcher, kernels[PACK_PART], parts, job, ())


@device_function
def readable(mode, turned, w, shape, room):
    """w of this shape, or its transpose if turned, for products that read it as it lies: address and strides."""
    row, column = strides_of(w, turned)
    rows, columns = (shape[1], shape[0]) if turned else shape
    if column == 1 or (turned and mode == IN_PLACE):
        return address(w), row, column
    transpose_rows(columns, rows, data(w), column, data(room), columns)
    return address(room), columns, 1


@device_function
def multiply(launcher, function, parts, panels, M, N, K, a, a_row, b, b_row, b_col, start, c):
    """c (M, N) = start (N,) + a (M, K) @ b (K, N), by addresses."""
    job = local(1, GEMM)
    describe(job, M, N, K, a, a_row, 1, b, b_row, b_col, start, 0, c, N, panels)
    run_kernel(launcher, function, parts, job, ())


@driver
def _forward(
    launcher, parts, kernels, projects, xs, w_ih, w_hh, b, peephole, w_proj, h_0, c_0, order, offsets, reverse,
    gates, c, tanh_c, h, h_n, c_n, room_sizes, room,
):  # fmt: skip
    job = local_zeros(1, LSTM)
    g = job[0]
    sizes = xs.shape[1], c_0.shape[1], h_0.shape[1]
    mode, panels, spare = mode_of(len(offsets) - 1, len(order), parts), address(room), room[parts * SCRATCH :]
    g.spare, rooms = address(spare), cut(spare[parts * 2 * sizes[1] :], room_sizes)
    describe_steps(g, launcher, parts, kernels, panels, mode, False, True, w_ih, w_hh, sizes, projects, w_proj, rooms)
    describe_arrays(g, xs, peephole, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h)
    g.b, g.h_n, g.c_n = address_or_null(b), address(h_n), address(c_n)
    if mode == IN_ROWS:
        multiply(
            launcher, kernels[GEMM_PART], parts, panels, offsets[-1], 4 * g.H, g.C, g.xs, g.xs_row, address(w_ih),
            *strides_of(w_ih, False), g.b, g.gates,
        )  # fmt: skip
    in_time(launcher, kernels[FORWARD_PART], parts, g.n, job)


@device_function
def mode_of(steps, n, parts):
    """How the products in time read their weights."""
    if steps <= FEW_STEPS:
        return IN_PLACE
    return IN_ROWS if n <= FEW_ROWS * parts else IN_PANELS


@device_function
def cut(room, sizes):
    """Four arrays of these sizes from the beginning of room: see _room_sizes."""
    first, second, third = sizes[0], sizes[0] + sizes[1], sizes[0] + sizes[1] + sizes[2]
    return room[:first], room[first:second], room[second:third], room[third : third + sizes[3]]


@device_function
def in_time(launcher, function, parts, n, job):
    """Run a part of the above. A single sequence has nothing to share."""
    if n == 1:
        call(function, 0, 1, job)
    else:
        run_kernel(launcher, function, parts, job, ())


@driver
def _backward(
    launcher, parts, kernels, projects, has_dh, dh, dh_n, dc_n, xs, w_ih, w_hh, peephole, w_proj, h_0, c_0, order, offsets,
    reverse, gates, c, tanh_c, h, dz, dxs, dw_ih, dw_hh, db, dpeephole, dw_proj, dh_0, dc_0, squares, accumulate, room_sizes, room,
):  # fmt: skip
    job = local_zeros(1, LSTM)
    g, rows = job[0], offsets[-1]
    wants_dx, sizes = dxs.size > 0, (xs.shape[1], c_0.shape[1], h_0.shape[1])
    mode, panels, rest = mode_of(len(offsets) - 1, len(order), parts), address(room), room[parts * SCRATCH :]
    rooms, rest = cut(rest, room_sizes), rest[room_sizes[0] + room_sizes[1] + room_sizes[2] + room_sizes[3] :]
    r = rest[rows * (sizes[0] + sizes[2] + 1) :]
    inputs, total = rest, r[rows * sizes[1] if projects else 0 :]
    describe_steps(
        g, launcher, parts, kernels, panels, mode, True, wants_dx, w_ih, w_hh, sizes, projects, w_proj, rooms
    )
    describe_arrays(g, xs, peephole, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h)
    g.dh, g.dh_row = address(dh) if has_dh else 0, row_stride(dh)
    g.dh_n, g.dc_n = address_or_null(dh_n), address_or_null(dc_n)
    g.dz, g.dxs = address(dz), address(dxs)
    g.dh_0, g.dc_0, g.squares = address(dh_0), address(dc_0), address_or_null(squares)
    g.inputs, g.r, g.total, g.ones = address(inputs), address(r), address(total), min(1, db.size)
    in_time(launcher, kernels[BACKWARD_PART], parts, g.n, job)
    if mode == IN_ROWS and wants_dx:
        multiply(
            launcher, kernels[GEMM_PART], parts, panels, rows, g.C, 4 * g.H, g.dz, 4 * g.H, address(w_ih), *strides_of(w_ih, True),
            0, g.dxs,
        )  # fmt: skip
    sums_job = local_zeros(1, GRADIENTS)
    s = sums_job[0]
    s.rows, s.C, s.H, s.P, s.ones, s.inputs, s.dz = rows, g.C, g.H, g.P, g.ones, g.inputs, g.dz
    s.dw_ih, s.dw_hh, s.db = address(dw_ih), address(dw_hh), address_or_null(db)
    s.n, s.steps, s.order, s.offsets, s.reverse = g.n, g.steps, g.order, g.offsets, reverse
    s.c, s.c_0, s.dpeephole = g.c, g.c_0, address_or_null(dpeephole)
    s.r, s.total, s.dw_proj, s.accumulate = g.r, g.total, address_or_null(dw_proj), accumulate
    s.gemm, s.scratch, s.itemsize = g.gemm, g.scratch, g.itemsize
    run_kernel(launcher, kernels[WEIGHTS_PART], parts, sums_job, ())


_KERNELS = Addresses(gemm_part, pack_part, lstm_forward_part, lstm_backward_part, weights_part)


def _room_sizes(w_ih, w_hh, w_proj, n, H):
    """Values of the rooms that describe_steps takes: for all sequences' states, and for w_hh, w_ih and w_proj as they will be read."""
    rows, projected = len(w_ih) + len(w_hh), 0 if w_proj is None else w_proj.size + 64 * max(w_proj.shape)
    # the last panel may have room for columns that w has not
    panels = 4 * H * rows + 64 * max(4 * H, rows)
    return n * (rows + 2 * H), panels, w_ih.size, projected


def lstm_forward(
    xs, w_ih, w_hh, b, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h, h_n, c_n
):  # fmt: skip
    """gates (R, 4H) = i, f, g, o; c and tanh_c (R, H), or both None: not kept; h (R, P); h_n and c_n are written."""
    dtype, (n, H), (C, columns) = xs.dtype, c_0.shape, w_ih.shape
    sizes = _room_sizes(w_ih, w_hh, w_proj, n, H)
    run(
        2 * len(xs) * columns * (C + len(w_hh)), _forward, _KERNELS[dtype.char], w_proj is not None,
        xs[:0], w_ih[:0], w_hh[:0], *or_empty(dtype, 1, b), *or_empty(dtype, 2, peephole, w_proj), h_0, c_0, order, offsets, reverse, gates,
        *or_empty(dtype, 2, c, tanh_c), h[:0], h_n, c_n, sizes, scratch=(dtype, sum(sizes), SCRATCH + 2 * H),
    )  # fmt: skip


def lstm_backward(
    dh, dh_n, dc_n, xs, w_ih, w_hh, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h,
    dz, dxs, dw_ih, dw_hh, db, dpeephole, dw_proj, dh_0, dc_0, squares, accumulate,
):  # fmt: skip
    """From dh (R, P), dh_n (N, P) and dc_n (N, H), each of which may be None, to all gradients.

    dz (R, 4H) is room, and may be gates. The gradients of the weights, dw_ih to dw_proj, None where the forward had none, are added to
    what they hold if `accumulate`, and overwritten if not. dxs (R, C) and squares (R,), the squared norm of each step's whole dL/dh_t,
    may be None.
    """
    dtype, (n, P), H, (rows, C) = xs.dtype, h_0.shape, c_0.shape[1], xs.shape
    sizes = _room_sizes(w_ih, w_hh, w_proj, n, H)
    shared = sum(sizes) + rows * (C + P + 1 + (0 if w_proj is None else H + P))
    run(
        4 * rows * 4 * H * (C + P), _backward, _KERNELS[dtype.char], w_proj is not None, dh is not None,
        *or_empty(dtype, 2, None if dh is None else dh[:0], dh_n, dc_n), xs[:0], w_ih[:0], w_hh[:0],
        *or_empty(dtype, 2, peephole, w_proj), h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h[:0], dz,
        *or_empty(dtype, 2, dxs), dw_ih, dw_hh, *or_empty(dtype, 1, db), *or_empty(dtype, 2, dpeephole, dw_proj),
        dh_0, dc_0, *or_empty(np.dtype(np.float64), 1, squares), accumulate, sizes, scratch=(dtype, shared, SCRATCH),
    )  # fmt: skip
