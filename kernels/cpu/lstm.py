"""LSTM over whole sequences, as in kernels/reference/lstm.py, which has the formulas and the layout of rows.

Sequences are independent of each other, forward and backward, so a thread takes its share of them through all steps with no barrier.
What has no order in time is done outside of that loop, as products over all steps at once: the input's part of z before it, the
gradients of the input and of the weights after it. Inside are the product with w_hh, from panels that are copied once a call, and
the gates, row by row while they are in cache.

Thread `part` of `parts` has the positions part, part + parts, ... in the order by length, so that each has long and short ones.
"""

from itertools import accumulate

import numpy as np
from numba import carray
from numpy.lib.stride_tricks import as_strided

from . import vmath
from .dense import column_sums
from .gemm import GEMM, SCRATCH, copy_strided, describe, gemm_part, pack_b, panel_tiles, panels
from .jit import compiled, inlined, kernel
from .optim import squares
from .parallel import Scratch, address_of, get_num_threads, launch, share
from .simd import (
    VECTORS,
    address_at,
    advance,
    call,
    copy,
    data,
    each,
    keep,
    lanes,
    pointer,
    provide_microkernel,
    real,
    void_pointer,
    zipped,
)

ROWS_COPY = np.dtype([(name, "i8") for name in "n steps columns order offsets x x_n x_t x_c rows row".split()])
PACK = np.dtype([(name, "i8") for name in "K N w w_row w_col panels".split()])
LSTM = np.dtype(
    [(name, "i8") for name in "n steps H P order offsets reverse peephole h_0 c_0 gemm scratch itemsize".split()]
    + [(name, "i8") for name in "w_hh w_hh_row w_hh_col w_proj w_proj_row w_proj_col".split()]
    + [(name, "i8") for name in "gates c tanh_c h h_row h_n c_n work".split()]
    + [(name, "i8") for name in "C ones xs xs_row dh dh_row dh_n dc_n dz inputs r total dh_0 dc_0 squares".split()]
)
# sequences a thread, and steps, for which w is read as it lies: copying it into panels would not pay
FEW_ROWS, FEW_STEPS = 3, 4
# a copied value costs about as much as this many multiplications and additions
COPY = 16


@compiled
def offsets_of(job):
    return carray(void_pointer(job.offsets), job.steps + 1, np.int64)


@inlined
def clear(n, target):
    to = carray(target, n)
    for j in range(n):
        to[j] = 0


@kernel(ROWS_COPY)
def gather_part(part, parts, job, like):
    """The part's steps of x, which has any strides, to rows."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = share(part, parts, g.steps, 1)
    for t in range(lo, hi):
        for p in range(offsets[t + 1] - offsets[t]):
            of = advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t)
            copy_strided(g.columns, of, g.x_c, advance(pointer(g.rows, like), (offsets[t] + p) * g.row))


@kernel(ROWS_COPY)
def scatter_part(part, parts, job, like):
    """The part's steps from rows to x, which is contiguous, and 0 past the sequences' ends."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = share(part, parts, g.steps, 1)
    for t in range(lo, hi):
        n = offsets[t + 1] - offsets[t]
        for p in range(g.n):
            to = advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t)
            if p < n:
                copy(g.columns, advance(pointer(g.rows, like), (offsets[t] + p) * g.row), to)
            else:
                clear(g.columns, to)


def gather_rows(x, order, offsets, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    _copy_rows(gather_part, x, order, offsets, rows)


def scatter_rows(rows, order, offsets, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    _copy_rows(scatter_part, x, order, offsets, rows)


def _copy_rows(part, x, order, offsets, rows):
    n, steps, columns = x.shape
    addresses = _address(order), _address(offsets), _address(x)
    job = np.array([(n, steps, columns, *addresses, *_strides(x), _address(rows), _row(rows))], ROWS_COPY)
    launch(part, x.dtype, job, COPY * rows.size)


@kernel(PACK, needs=provide_microkernel)
def pack_part(part, parts, job, like):
    """The part's columns of w as panels."""
    g = carray(job, 1)[0]
    lo, hi = share(part, parts, g.N, VECTORS * lanes(like))
    w, to = advance(pointer(g.w, like), lo * g.w_col), advance(pointer(g.panels, like), lo * g.K)
    pack_b(g.K, hi - lo, w, g.w_row, g.w_col, to)


@compiled
def product(g, part, rows, N, K, a, a_row, w, w_row, w_col, start, c, c_row):
    """c (rows, N) = start + a (rows, K) @ w (K, N), which lies in panels where it has no strides; start is c, or null for zero."""
    if rows == 0:
        return
    if not w_row:
        panel_tiles(rows, N, K, a, a_row, pointer(w, a), start, c, c_row)
        return
    job = np.empty(1, GEMM)
    scratch = g.scratch + part * SCRATCH * g.itemsize
    describe(
        job, rows, N, K, address_at(a), a_row, min(rows, 1), w, w_row, w_col, address_at(start), c_row, address_at(c), c_row,
        scratch,
    )  # fmt: skip
    call(g.gemm, 0, 1, job)


@inlined
def cell(i, f, g, before):
    """c_t, twice: it is kept, and the state."""
    c = f * before + i * g
    return c, c


@inlined
def times(a, b):
    return (a * b,)


@inlined
def add_times(a, p, b):
    return (a + p * b,)


@inlined
def add(a, b):
    return (a + b,)


@inlined
def gates_slopes(i, f, g, o, tanh_c, before, dr, dc):
    """dz of all four gates, and dc of the step before."""
    one = real(1, i)
    dc = dc + dr * o * (one - tanh_c * tanh_c)
    return (
        dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g), dr * tanh_c * o * (one - o), dc * f,
    )  # fmt: skip


@inlined
def gates_slopes_peeping(i, f, g, o, tanh_c, before, dr, dc, p_i, p_f, p_o):
    one = real(1, i)
    dz_o = dr * tanh_c * o * (one - o)
    dc = dc + dr * o * (one - tanh_c * tanh_c) + p_o * dz_o
    dz_i, dz_f, dz_g = dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g)
    return dz_i, dz_f, dz_g, dz_o, dc * f + (p_i * dz_i + p_f * dz_f)


@compiled
def under_way(part, parts, n):
    """How many of the first n positions are the part's."""
    return (n - part + parts - 1) // parts


@kernel(LSTM, needs=provide_microkernel)
def lstm_forward_part(part, parts, job, like):
    """The part's sequences through all steps; gates hold the input's part of z."""
    g = carray(job, 1)[0]
    H, P, offsets, order = g.H, g.P, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine, none = under_way(part, parts, g.n), pointer(g.n * 0, like)
    # (mine, P), (mine, H) and (mine, H)
    state_h = advance(pointer(g.work, like), (2 * H + P) * sum_before(part, parts, g.n))
    state_c = advance(state_h, mine * P)
    r = advance(state_c, mine * H)
    # a row each of c and tanh c where they are not kept
    rows_of_c = np.empty_like(carray(r, 2 * H))
    spare = data(rows_of_c)
    read_states(part, parts, order, P, g.h_0, state_h)
    read_states(part, parts, order, H, g.c_0, state_c)
    for s in range(g.steps):
        t = g.steps - 1 - s if g.reverse else s
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        z, h = advance(pointer(g.gates, like), first * 4 * H), advance(pointer(g.h, like), first * g.h_row)
        z_row, h_row = parts * 4 * H, parts * g.h_row
        product(g, part, rows, 4 * H, P, state_h, P, g.w_hh, g.w_hh_row, g.w_hh_col, z, z, z_row)
        for i in range(rows):
            z_i, before = advance(z, i * z_row), advance(state_c, i * H)
            c, tanh_c = spare, advance(spare, H)
            if g.c:
                at = (first + i * parts) * H
                c, tanh_c = advance(pointer(g.c, like), at), advance(pointer(g.tanh_c, like), at)
            out = advance(r, i * H) if g.w_proj else advance(h, i * h_row)
            gates_forward(H, z_i, pointer(g.peephole, like), g.peephole != 0, before, c, tanh_c, out)
        if g.w_proj:
            product(g, part, rows, P, H, r, H, g.w_proj, g.w_proj_row, g.w_proj_col, none, h, h_row)
        for i in range(rows):
            copy(P, advance(h, i * h_row), advance(state_h, i * P))
    write_states(part, parts, order, P, state_h, g.h_n)
    write_states(part, parts, order, H, state_c, g.c_n)
    keep(rows_of_c)


@compiled
def sum_before(part, parts, n):
    """Positions of the parts before this one."""
    return part * (n // parts) + min(part, n % parts)


@compiled
def read_states(part, parts, order, columns, source, states):
    """The rows of the part's sequences, in its order; zeros where there is no source."""
    for i in range(under_way(part, parts, len(order))):
        row = advance(states, i * columns)
        if source:
            copy(columns, advance(pointer(source, states), order[part + i * parts] * columns), row)
        else:
            clear(columns, row)


@compiled
def write_states(part, parts, order, columns, states, target):
    for i in range(under_way(part, parts, len(order))):
        row = advance(pointer(target, states), order[part + i * parts] * columns)
        copy(columns, advance(states, i * columns), row)


@compiled
def gates_forward(H, z, peephole, peeps, state_c, c, tanh_c, h):
    """One row's z to its gates, in place, and its c, tanh c and o tanh c."""
    i, f, g, o = z, advance(z, H), advance(z, 2 * H), advance(z, 3 * H)
    if peeps:
        zipped(add_times, H, (i, peephole, state_c), (i,))
        zipped(add_times, H, (f, advance(peephole, H), state_c), (f,))
    each(vmath.sigmoid, 2 * H, i, i, ())
    each(vmath.tanh, H, g, g, ())
    zipped(cell, H, (i, f, g, state_c), (c, state_c))
    if peeps:
        zipped(add_times, H, (o, advance(peephole, 2 * H), c), (o,))
    each(vmath.sigmoid, H, o, o, ())
    each(vmath.tanh, H, c, tanh_c, ())
    zipped(times, H, (o, tanh_c), (h,))


@kernel(LSTM, needs=provide_microkernel)
def lstm_backward_part(part, parts, job, like):
    """The part's sequences back through all steps, to dz; w_hh and w_proj are their transposes."""
    g = carray(job, 1)[0]
    H, P, offsets, order = g.H, g.P, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine, none = under_way(part, parts, g.n), pointer(g.n * 0, like)
    # (mine, P), (mine, H), (mine, H)
    state_dh = advance(pointer(g.work, like), (2 * H + P) * sum_before(part, parts, g.n))
    state_dc = advance(state_dh, mine * P)
    dr = advance(state_dc, mine * H)
    read_states(part, parts, order, P, g.dh_n, state_dh)
    read_states(part, parts, order, H, g.dc_n, state_dc)
    for s in range(g.steps):
        t = s if g.reverse else g.steps - 1 - s
        other = t + 1 if g.reverse else t - 1
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        earlier = under_way(part, parts, offsets[other + 1] - offsets[other]) if 0 <= other < g.steps else 0
        for i in range(rows):
            row, dh = first + i * parts, advance(state_dh, i * P)
            if g.dh:
                zipped(add, P, (dh, advance(pointer(g.dh, like), row * g.dh_row)), (dh,))
            if g.squares:
                carray(void_pointer(g.squares), row + 1, np.float64)[row] = squares(dh, P)
            if g.w_proj:
                copy(P, dh, advance(pointer(g.total, like), row * P))
        if g.w_proj:
            product(g, part, rows, H, P, state_dh, P, g.w_proj, g.w_proj_row, g.w_proj_col, none, dr, H)
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
            dr_i = advance(dr, i * H) if g.w_proj else advance(state_dh, i * P)
            if g.w_proj:
                r = advance(pointer(g.r, like), row * H)
                zipped(times, H, (advance(gates, 3 * H), tanh_c), (r,))
            gates_backward(H, gates, tanh_c, c_before, dr_i, pointer(g.peephole, like), g.peephole != 0, dz, dc)
        dz = advance(pointer(g.dz, like), first * 4 * H)
        product(g, part, rows, P, 4 * H, dz, parts * 4 * H, g.w_hh, g.w_hh_row, g.w_hh_col, none, state_dh, P)
    write_states(part, parts, order, P, state_dh, g.dh_0)
    write_states(part, parts, order, H, state_dc, g.dc_0)


@compiled
def gates_backward(H, gates, tanh_c, c_before, dr, peephole, peeps, dz, dc):
    """One row's dr and dc to its dz, and dc of the step before, in place."""
    i, f, g, o = gates, advance(gates, H), advance(gates, 2 * H), advance(gates, 3 * H)
    dz_i, dz_f, dz_g, dz_o = dz, advance(dz, H), advance(dz, 2 * H), advance(dz, 3 * H)
    sources, targets = (i, f, g, o, tanh_c, c_before, dr, dc), (dz_i, dz_f, dz_g, dz_o, dc)
    if peeps:
        peepholes = peephole, advance(peephole, H), advance(peephole, 2 * H)
        zipped(gates_slopes_peeping, H, sources + peepholes, targets)
    else:
        zipped(gates_slopes, H, sources, targets)


SUMS = np.dtype([(name, "i8") for name in "rows H n steps order offsets reverse dz c c_0 db dpeephole".split()])


@kernel(SUMS)
def sums_part(part, parts, job, like):
    """The part's columns of db, and of the peepholes' gradients, row after row."""
    g = carray(job, 1)[0]
    H = g.H
    if g.db:
        lo, hi = share(part, parts, 4 * H, 16)
        column_sums(g.rows, 4 * H, lo, hi, pointer(g.dz, like), pointer(g.db, like))
    if not g.dpeephole:
        return
    lo, hi = share(part, parts, H, 16)
    n, offsets, order = hi - lo, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    sums = advance(pointer(g.dpeephole, like), lo)
    for k in range(3):
        clear(n, advance(sums, k * H))
    for t in range(g.steps):
        other = t + 1 if g.reverse else t - 1
        earlier = offsets[other + 1] - offsets[other] if 0 <= other < g.steps else 0
        for p in range(offsets[t + 1] - offsets[t]):
            row = offsets[t] + p
            before = advance(pointer(g.c, like), (offsets[other] + p) * H + lo)
            if p >= earlier:
                before = advance(pointer(g.c_0, like), order[p] * H + lo)
            dz, c = advance(pointer(g.dz, like), row * 4 * H + lo), advance(pointer(g.c, like), row * H + lo)
            zipped(add_times, n, (sums, dz, before), (sums,))
            zipped(add_times, n, (advance(sums, H), advance(dz, H), before), (advance(sums, H),))
            zipped(add_times, n, (advance(sums, 2 * H), advance(dz, 3 * H), c), (advance(sums, 2 * H),))


def _address(array):
    return 0 if array is None else address_of(array)


def _strides(array):
    return [stride // array.itemsize for stride in array.strides]


def _multiply(a, b, start, out):
    """out (M, N) = start (N,) or 0 + a (M, K) @ b (K, N)."""
    shape = *out.shape, a.shape[1]
    addresses = _address(a), *_strides(a), _address(b), *_strides(b), _address(start), 0, _address(out)
    job = np.array([(*shape, *addresses, _row(out), panels(out.dtype))], GEMM)
    launch(gemm_part, out.dtype, job, 2 * out.size * a.shape[1])


def _row(array):
    return 0 if array is None else _strides(array)[0]


_scratch = Scratch()


def _rooms(dtype, *sizes):
    """Flat arrays of these sizes, one after another in this Python thread's scratch."""
    ends = list(accumulate(sizes))
    room = _scratch(dtype, ends[-1])[0]
    return [room[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _sizes_in_time(w_hh, w_proj, n, H, steps):
    """What _in_time has use for: states, and panels of both weights, where copying them there pays."""
    P, copies = len(w_hh), steps > FEW_STEPS and n > FEW_ROWS * get_num_threads()
    # the last panel may have room for columns that w has not
    panels = [0 if w is None or not copies else w.size + 64 * max(w.shape) for w in (w_hh, w_proj)]
    # of each sequence its states and a row of o tanh c
    return n * (2 * H + P), *panels


def _readable(w, room, steps):
    """w (K, N) for the products in time, and its strides, which are 0 where it is in panels."""
    if not room.size:
        w = w if steps <= FEW_STEPS else np.ascontiguousarray(w)
        return w, *_strides(w)
    job = np.array([(*w.shape, _address(w), *_strides(w), _address(room))], PACK)
    launch(pack_part, w.dtype, job, COPY * w.size)
    return room, 0, 0


def _in_time(part, w_hh, w_proj, rooms, operations, h_0, c_0, offsets, **fields):
    """Run a part of the above; a field is an array or a number."""
    dtype, (n, P), H, steps = h_0.dtype, h_0.shape, c_0.shape[1], len(offsets) - 1
    work, hh_room, proj_room = rooms
    fields |= {"n": n, "steps": steps, "H": H, "P": P, "offsets": offsets, "h_0": h_0, "c_0": c_0, "work": work}
    fields |= {"gemm": gemm_part.address(dtype), "scratch": panels(dtype), "itemsize": dtype.itemsize}
    fields["w_hh"], fields["w_hh_row"], fields["w_hh_col"] = _readable(w_hh, hh_room, steps)
    if w_proj is not None:
        fields["w_proj"], fields["w_proj_row"], fields["w_proj_col"] = _readable(w_proj, proj_room, steps)
    values = [fields.get(name, 0) for name in LSTM.names]
    job = np.array([value if isinstance(value, int) else _address(value) for value in values])
    # a single sequence has nothing to share
    launch(part, dtype, job, operations if n > 1 else 0)


def lstm_forward(
    xs, w_ih, w_hh, b, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h, h_n, c_n
):  # fmt: skip
    """gates (R, 4H) = i, f, g, o; c and tanh_c (R, H), or both None: not kept; h (R, P); h_n and c_n are written."""
    b, peephole, h_0, c_0 = (None if a is None else np.ascontiguousarray(a) for a in (b, peephole, h_0, c_0))
    _multiply(xs, w_ih, b, gates)
    rooms = _rooms(xs.dtype, *_sizes_in_time(w_hh, w_proj, *c_0.shape, len(offsets) - 1))
    _in_time(
        lstm_forward_part, w_hh, w_proj, rooms, 2 * w_hh.size * len(xs), h_0, c_0, offsets, order=order, reverse=reverse,
        peephole=peephole, gates=gates, c=c, tanh_c=tanh_c, h=h, h_row=_row(h), h_n=h_n, c_n=c_n,
    )  # fmt: skip


def lstm_backward(
    dh, dh_n, dc_n, xs, w_ih, w_hh, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h,
    dz, dxs, dw_ih, dw_hh, db, dpeephole, dw_proj, dh_0, dc_0, squares,
):  # fmt: skip
    """From dh (R, P), dh_n (N, P) and dc_n (N, H), each of which may be None, to all gradients, which are overwritten.

    dz (R, 4H) is room, and may be gates; dxs (R, C) and squares (R,) may be None; db, dpeephole and dw_proj are None where the
    forward had none.
    """
    (n, P), H, dtype, (rows, C) = h_0.shape, c_0.shape[1], xs.dtype, xs.shape
    peephole, h_0, c_0, dh_n, dc_n = (
        None if a is None else np.ascontiguousarray(a) for a in (peephole, h_0, c_0, dh_n, dc_n)
    )
    w_hh_t, w_proj_t, projected = w_hh.T, None if w_proj is None else w_proj.T, 0 if w_proj is None else rows
    # every step's x, h before it and 1, side by side: one product makes the gradients of w_ih, w_hh and b, where these lie so too
    ones = int(_follows(dw_ih, dw_hh) and db is not None and _follows(dw_hh, db))
    columns = C + P + ones
    sizes = _sizes_in_time(w_hh, w_proj, n, H, len(offsets) - 1)
    *rooms, inputs, r, total = _rooms(dtype, *sizes, rows * columns, projected * H, projected * P)
    inputs = inputs.reshape(rows, columns)
    _in_time(
        lstm_backward_part, w_hh_t, w_proj_t, rooms, 2 * w_hh.size * rows, h_0, c_0, offsets, order=order, reverse=reverse,
        peephole=peephole, gates=gates, c=c, tanh_c=tanh_c, h=h, h_row=_row(h), C=C, ones=ones, xs=xs, xs_row=_row(xs),
        inputs=inputs, dh=dh, dh_row=_row(dh), dh_n=dh_n, dc_n=dc_n, dz=dz, r=r, total=total, dh_0=dh_0, dc_0=dc_0,
        squares=squares,
    )  # fmt: skip
    if dxs is not None:
        _multiply(dz, w_ih.T, None, dxs)
    if _follows(dw_ih, dw_hh):
        _multiply(inputs.T, dz, None, as_strided(dw_ih, (columns, 4 * H)))
    else:
        _multiply(inputs[:, :C].T, dz, None, dw_ih)
        _multiply(inputs[:, C:].T, dz, None, dw_hh)
    if w_proj is not None:
        _multiply(r.reshape(rows, H).T, total.reshape(rows, P), None, dw_proj)
    if dpeephole is not None or (db is not None and not ones):
        sums = rows, H, n, len(offsets) - 1, _address(order), _address(offsets), reverse
        arrays = dz, c, c_0, None if ones else db, dpeephole
        job = np.array([(*sums, *map(_address, arrays))], SUMS)
        launch(sums_part, dtype, job, 8 * dz.size)


def _follows(first, second):
    """Whether one array begins where another ends."""
    return first.flags.c_contiguous and second.flags.c_contiguous and _address(first) + first.nbytes == _address(second)
