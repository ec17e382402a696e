"""LSTM over whole sequences, as in kernels/reference/lstm.py, which has the formulas and the layout of rows.

Sequences are independent of each other, forward and backward, so a thread takes its share of them through all steps with no barrier.
What has no order in time is done outside of that loop, as products over all steps at once: the input's part of z before it, the
gradients of the input and of the weights after it. Inside are the product with w_hh, from panels that are copied once a call, and
the gates, row by row while they are in cache.

Thread `part` of `parts` has the positions part, part + parts, ... in the order by length, so that each has long and short ones.
"""

import numpy as np
from numba import carray

from . import vmath
from .dense import column_sums
from .gemm import GEMM, few_rows, gemm_part, pack_b, panel_tiles, panels
from .jit import compiled, inlined, kernel
from .optim import squares
from .parallel import address_of, get_num_threads, launch, share
from .simd import (
    VECTORS,
    advance,
    each,
    is_null,
    lanes,
    pointer,
    provide_microkernel,
    real,
    void_pointer,
    zipped,
)

ROWS_COPY = np.dtype([(name, "i8") for name in "n steps columns order offsets x x_n x_t x_c rows".split()])
# w (K, N) in panels; at most FEW rows read it as it lies, wide tiles at a time
PACK = np.dtype([(name, "i8") for name in "K N w w_row w_col panels plain".split()])
LSTM = np.dtype(
    [(name, "i8") for name in "n steps H P order offsets reverse plain peephole w_hh w_proj h_0 c_0".split()]
    + [(name, "i8") for name in "gates c tanh_c h h_n c_n work".split()]
    + [(name, "i8") for name in "dh dh_n dc_n dz h_before r total dpeephole dh_0 dc_0 squares".split()]
)
FEW = 3


@compiled
def offsets_of(job):
    return carray(void_pointer(job.offsets), job.steps + 1, np.int64)


@kernel(ROWS_COPY)
def gather_part(part, parts, job, like):
    """The part's steps of x, which has any strides, to rows."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = share(part, parts, g.steps, 1)
    for t in range(lo, hi):
        for p in range(offsets[t + 1] - offsets[t]):
            of = advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t)
            to = carray(advance(pointer(g.rows, like), (offsets[t] + p) * g.columns), g.columns)
            if g.x_c == 1:
                values = carray(of, g.columns)
                for j in range(g.columns):
                    to[j] = values[j]
            else:
                for j in range(g.columns):
                    to[j] = carray(advance(of, j * g.x_c), 1)[0]


@kernel(ROWS_COPY)
def scatter_part(part, parts, job, like):
    """The part's steps from rows to x, which is contiguous, and 0 past the sequences' ends."""
    g = carray(job, 1)[0]
    offsets, order = offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    lo, hi = share(part, parts, g.steps, 1)
    for t in range(lo, hi):
        n = offsets[t + 1] - offsets[t]
        for p in range(g.n):
            to = carray(advance(pointer(g.x, like), order[p] * g.x_n + t * g.x_t), g.columns)
            if p < n:
                of = carray(advance(pointer(g.rows, like), (offsets[t] + p) * g.columns), g.columns)
                for j in range(g.columns):
                    to[j] = of[j]
            else:
                for j in range(g.columns):
                    to[j] = 0


def gather_rows(x, order, offsets, rows):
    """rows (R, C) = the steps of the sequences x (N, T, C)."""
    _copy_rows(gather_part, x, order, offsets, rows)


def scatter_rows(rows, order, offsets, x):
    """x (N, T, C) = the sequences of which rows (R, C) has the steps, 0 past their ends."""
    _copy_rows(scatter_part, x, order, offsets, rows)


def _copy_rows(part, x, order, offsets, rows):
    n, steps, columns = x.shape
    strides = [stride // x.itemsize for stride in x.strides]
    addresses = address_of(order), address_of(offsets), address_of(x.reshape(-1)[:0]) if x.size == 0 else x.ctypes.data
    job = np.array([(n, steps, columns, *addresses, *strides, address_of(rows.reshape(-1)))], ROWS_COPY)
    # a copied value costs about as much as this many multiplications and additions
    launch(part, x.dtype, job, 16 * rows.size)


@kernel(PACK, needs=provide_microkernel)
def pack_part(part, parts, job, like):
    """The part's columns of w as panels, or as rows where few rows meet it."""
    g = carray(job, 1)[0]
    w, to, width = pointer(g.w, like), pointer(g.panels, like), VECTORS * lanes(like)
    lo, hi = share(part, parts, g.N, width)
    if not g.plain:
        pack_b(g.K, hi - lo, advance(w, lo * g.w_col), g.w_row, g.w_col, advance(to, lo * g.K))
        return
    for k in range(g.K):
        row = carray(advance(to, k * g.N + lo), hi - lo)
        for j in range(hi - lo):
            row[j] = carray(advance(w, k * g.w_row + (lo + j) * g.w_col), 1)[0]


@compiled
def product(rows, N, K, a, a_row, w, plain, start, c, c_row):
    """c (rows, N) = start + a (rows, K) @ w (K, N), which lies in panels or rows; start is c, or null for zero."""
    if not plain:
        panel_tiles(rows, N, K, a, a_row, w, start, c, c_row)
        return
    unit, start_row = min(rows, 1), c_row
    start_col = unit
    if is_null(start):
        start_row = start_col = 0
    for i in range(0, rows, FEW):
        m, a_i, start_i = min(rows - i, FEW), advance(a, i * a_row), advance(start, i * start_row)
        few_rows(m, N, K, a_i, a_row, unit, w, N, start_i, start_row, start_col, advance(c, i * c_row), c_row)


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
def gates_slopes(i, f, g, o, tanh_c, before, dr, dz_o_peephole, dc):
    one = real(1, i)
    dc = dc + dr * o * (one - tanh_c * tanh_c) + dz_o_peephole
    return dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g), dc * f


@inlined
def gates_slopes_plain(i, f, g, o, tanh_c, before, dr, dc):
    """dz of all four gates, and dc of the step before."""
    one = real(1, i)
    dc = dc + dr * o * (one - tanh_c * tanh_c)
    return (
        dc * g * i * (one - i), dc * before * f * (one - f), dc * i * (one - g * g), dr * tanh_c * o * (one - o), dc * f,
    )  # fmt: skip


@inlined
def output_slope(o, tanh_c, dr):
    return (dr * tanh_c * o * (real(1, o) - o),)


@inlined
def add_two(dc, p_i, dz_i, p_f, dz_f):
    return (dc + (p_i * dz_i + p_f * dz_f),)


@compiled
def under_way(part, parts, n):
    """How many of the first n positions are the part's."""
    return (n - part + parts - 1) // parts


@kernel(LSTM, needs=provide_microkernel)
def forward_part(part, parts, job, like):
    """The part's sequences through all steps; gates hold the input's part of z."""
    g = carray(job, 1)[0]
    H, P, offsets, order = g.H, g.P, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine = under_way(part, parts, g.n)
    # (mine, P), (mine, H) and (mine, H), and a row each of c and tanh c where they are not kept
    state_h = advance(pointer(g.work, like), (2 * H + P) * sum_before(part, parts, g.n) + 2 * H * part)
    state_c = advance(state_h, mine * P)
    r = advance(state_c, mine * H)
    spare = advance(r, mine * H)
    for i in range(mine):
        copy_row(P, advance(pointer(g.h_0, like), order[part + i * parts] * P), advance(state_h, i * P))
        copy_row(H, advance(pointer(g.c_0, like), order[part + i * parts] * H), advance(state_c, i * H))
    for s in range(g.steps):
        t = g.steps - 1 - s if g.reverse else s
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        z, h = advance(pointer(g.gates, like), first * 4 * H), advance(pointer(g.h, like), first * P)
        z_row, h_row = parts * 4 * H, parts * P
        product(rows, 4 * H, P, state_h, P, pointer(g.w_hh, like), g.plain, z, z, z_row)
        for i in range(rows):
            z_i, before = advance(z, i * z_row), advance(state_c, i * H)
            c, tanh_c = spare, advance(spare, H)
            if g.c:
                at = (first + i * parts) * H
                c, tanh_c = advance(pointer(g.c, like), at), advance(pointer(g.tanh_c, like), at)
            out = advance(r, i * H) if g.w_proj else advance(h, i * h_row)
            gates_forward(H, z_i, pointer(g.peephole, like), g.peephole != 0, before, c, tanh_c, out)
        if g.w_proj:
            none = pointer(g.w_proj * 0, like)
            product(rows, P, H, r, H, pointer(g.w_proj, like), g.plain, none, h, h_row)
        for i in range(rows):
            copy_row(P, advance(h, i * h_row), advance(state_h, i * P))
    for i in range(mine):
        copy_row(P, advance(state_h, i * P), advance(pointer(g.h_n, like), order[part + i * parts] * P))
        copy_row(H, advance(state_c, i * H), advance(pointer(g.c_n, like), order[part + i * parts] * H))


@compiled
def sum_before(part, parts, n):
    """Positions of the parts before this one."""
    return part * (n // parts) + min(part, n % parts)


@compiled
def copy_row(n, source, target):
    of, to = carray(source, n), carray(target, n)
    for j in range(n):
        to[j] = of[j]


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
def backward_part(part, parts, job, like):
    """The part's sequences back through all steps, to dz; w_hh and w_proj are the panels of their transposes."""
    g = carray(job, 1)[0]
    H, P, offsets, order = g.H, g.P, offsets_of(g), carray(void_pointer(g.order), g.n, np.int64)
    mine = under_way(part, parts, g.n)
    none = pointer(g.n * 0, like)
    # (mine, P), (mine, H), (mine, H)
    state_dh = advance(pointer(g.work, like), (2 * H + P) * sum_before(part, parts, g.n))
    state_dc = advance(state_dh, mine * P)
    dr = advance(state_dc, mine * H)
    for i in range(mine):
        n = order[part + i * parts]
        start_row(P, g.dh_n, n, advance(state_dh, i * P), like)
        start_row(H, g.dc_n, n, advance(state_dc, i * H), like)
    for s in range(g.steps):
        t = s if g.reverse else g.steps - 1 - s
        other = t + 1 if g.reverse else t - 1
        rows, first = under_way(part, parts, offsets[t + 1] - offsets[t]), offsets[t] + part
        earlier = under_way(part, parts, offsets[other + 1] - offsets[other]) if 0 <= other < g.steps else 0
        for i in range(rows):
            row, dh = first + i * parts, advance(state_dh, i * P)
            if g.dh:
                zipped(add, P, (dh, advance(pointer(g.dh, like), row * P)), (dh,))
            if g.squares:
                carray(void_pointer(g.squares), row + 1, np.float64)[row] = squares(dh, P)
            if g.w_proj:
                copy_row(P, dh, advance(pointer(g.total, like), row * P))
        if g.w_proj:
            product(rows, H, P, state_dh, P, pointer(g.w_proj, like), g.plain, none, dr, H)
        for i in range(rows):
            row, n = first + i * parts, order[part + i * parts]
            h_before, c_before = advance(pointer(g.h_0, like), n * P), advance(pointer(g.c_0, like), n * H)
            if i < earlier:
                at = offsets[other] + part + i * parts
                h_before, c_before = advance(pointer(g.h, like), at * P), advance(pointer(g.c, like), at * H)
            copy_row(P, h_before, advance(pointer(g.h_before, like), row * P))
            gates, tanh_c = advance(pointer(g.gates, like), row * 4 * H), advance(pointer(g.tanh_c, like), row * H)
            dz, dc = advance(pointer(g.dz, like), row * 4 * H), advance(state_dc, i * H)
            dr_i = advance(dr, i * H) if g.w_proj else advance(state_dh, i * P)
            gates_backward(H, gates, tanh_c, c_before, dr_i, pointer(g.peephole, like), g.peephole != 0, dz, dc)
            if g.w_proj:
                r = advance(pointer(g.r, like), row * H)
                zipped(times, H, (advance(gates, 3 * H), tanh_c), (r,))
        dz = advance(pointer(g.dz, like), first * 4 * H)
        product(rows, P, 4 * H, dz, parts * 4 * H, pointer(g.w_hh, like), g.plain, none, state_dh, P)
    for i in range(mine):
        n = order[part + i * parts]
        copy_row(P, advance(state_dh, i * P), advance(pointer(g.dh_0, like), n * P))
        copy_row(H, advance(state_dc, i * H), advance(pointer(g.dc_0, like), n * H))


@compiled
def start_row(count, source, n, target, like):
    """Row n of an upstream gradient, or zeros."""
    if source:
        copy_row(count, advance(pointer(source, like), n * count), target)
        return
    to = carray(target, count)
    for j in range(count):
        to[j] = 0


@compiled
def gates_backward(H, gates, tanh_c, c_before, dr, peephole, peeps, dz, dc):
    """One row's dr and dc to its dz, and dc of the step before, in place."""
    i, f, g, o = gates, advance(gates, H), advance(gates, 2 * H), advance(gates, 3 * H)
    dz_i, dz_f, dz_g, dz_o = dz, advance(dz, H), advance(dz, 2 * H), advance(dz, 3 * H)
    if not peeps:
        sources = i, f, g, o, tanh_c, c_before, dr, dc
        zipped(gates_slopes_plain, H, sources, (dz_i, dz_f, dz_g, dz_o, dc))
        return
    zipped(output_slope, H, (o, tanh_c, dr), (dz_o,))
    # dz_g is room for p_o dz_o
    zipped(times, H, (advance(peephole, 2 * H), dz_o), (dz_g,))
    zipped(gates_slopes, H, (i, f, g, o, tanh_c, c_before, dr, dz_g, dc), (dz_i, dz_f, dz_g, dc))
    zipped(add_two, H, (dc, peephole, dz_i, advance(peephole, H), dz_f), (dc,))


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
        to = carray(advance(sums, k * H), n)
        for j in range(n):
            to[j] = 0
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
    return 0 if array is None else address_of(array.reshape(-1))


def _strides(array):
    return [stride // array.itemsize for stride in array.strides]


def _multiply(a, b, start, out):
    """out (M, N) = start (N,) or 0 + a (M, K) @ b (K, N)."""
    shape = *out.shape, a.shape[1]
    addresses = a.ctypes.data, *_strides(a), b.ctypes.data, *_strides(b), _address(start), 0, out.ctypes.data
    job = np.array([(*shape, *addresses, _strides(out)[0], panels(out.dtype))], GEMM)
    launch(gemm_part, out.dtype, job, 2 * out.size * a.shape[1])


def _packed(w, plain):
    """w (K, N) as the products in time read it."""
    if plain and w.flags.c_contiguous:
        return w
    K, N = w.shape
    # past the last panel's columns it is not read
    to = np.empty(K * (N + 64), w.dtype)
    job = np.array([(K, N, w.ctypes.data, *_strides(w), _address(to), plain)], PACK)
    launch(pack_part, w.dtype, job, 16 * w.size)
    return to


def _in_time(part, dtype, fields, operations):
    job = np.zeros(1, LSTM)
    for name, value in fields.items():
        job[0][name] = value
    # a single sequence has nothing to share
    launch(part, dtype, job, operations if fields["n"] > 1 else 0)


def lstm_forward(
    xs, w_ih, w_hh, b, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h, h_n, c_n
):  # fmt: skip
    """gates (R, 4H) = i, f, g, o; c and tanh_c (R, H), or both None: not kept; h (R, P); h_n and c_n are written."""
    (n, P), H, dtype = h_0.shape, c_0.shape[1], xs.dtype
    plain = n <= FEW * get_num_threads()
    b, peephole, h_0, c_0 = (None if a is None else np.ascontiguousarray(a) for a in (b, peephole, h_0, c_0))
    _multiply(xs, w_ih, b, gates)
    hh, proj = _packed(w_hh, plain), None if w_proj is None else _packed(w_proj, plain)
    work = np.empty(n * (2 * H + P) + 2 * H * get_num_threads(), dtype)
    fields = {
        "n": n, "steps": len(offsets) - 1, "H": H, "P": P, "order": _address(order), "offsets": _address(offsets),
        "reverse": reverse, "plain": plain, "peephole": _address(peephole), "w_hh": _address(hh), "w_proj": _address(proj),
        "h_0": _address(h_0), "c_0": _address(c_0), "gates": _address(gates), "c": _address(c), "tanh_c": _address(tanh_c),
        "h": _address(h), "h_n": _address(h_n), "c_n": _address(c_n), "work": _address(work),
    }  # fmt: skip
    _in_time(forward_part, dtype, fields, 2 * len(xs) * P * 4 * H)


def lstm_backward(
    dh, dh_n, dc_n, xs, w_ih, w_hh, peephole, w_proj, h_0, c_0, order, offsets, reverse, gates, c, tanh_c, h,
    dz, dxs, dw_ih, dw_hh, db, dpeephole, dw_proj, dh_0, dc_0, squares,
):  # fmt: skip
    """From dh (R, P), dh_n (N, P) and dc_n (N, H), each of which may be None, to all gradients, which are overwritten.

    dz (R, 4H) is room; dxs (R, C) and squares (R,) may be None; db, dpeephole and dw_proj are None where the forward had none.
    """
    (n, P), H, dtype, rows = h_0.shape, c_0.shape[1], xs.dtype, len(xs)
    plain = n <= FEW * get_num_threads()
    peephole, h_0, c_0, dh_n, dc_n = (
        None if a is None else np.ascontiguousarray(a) for a in (peephole, h_0, c_0, dh_n, dc_n)
    )
    hh, proj = _packed(w_hh.T, plain), None if w_proj is None else _packed(w_proj.T, plain)
    work = np.empty(n * (2 * H + P), dtype)
    h_before = np.empty((rows, P), dtype)
    r, total = (None, None) if w_proj is None else (np.empty((rows, H), dtype), np.empty((rows, P), dtype))
    fields = {
        "n": n, "steps": len(offsets) - 1, "H": H, "P": P, "order": _address(order), "offsets": _address(offsets),
        "reverse": reverse, "plain": plain, "peephole": _address(peephole), "w_hh": _address(hh), "w_proj": _address(proj),
        "h_0": _address(h_0), "c_0": _address(c_0), "gates": _address(gates), "c": _address(c), "tanh_c": _address(tanh_c),
        "h": _address(h), "work": _address(work), "dh": _address(dh), "dh_n": _address(dh_n), "dc_n": _address(dc_n),
        "dz": _address(dz), "h_before": _address(h_before), "r": _address(r), "total": _address(total),
        "dh_0": _address(dh_0), "dc_0": _address(dc_0), "squares": _address(squares),
    }  # fmt: skip
    _in_time(backward_part, dtype, fields, 2 * rows * P * 4 * H)
    if dxs is not None:
        _multiply(dz, w_ih.T, None, dxs)
    _multiply(xs.T, dz, None, dw_ih)
    _multiply(h_before.T, dz, None, dw_hh)
    if dw_proj is not None:
        _multiply(r.T, total, None, dw_proj)
    sums = rows, H, n, len(offsets) - 1, _address(order), _address(offsets), reverse
    job = np.array([(*sums, *map(_address, (dz, c, c_0, db, dpeephole)))], SUMS)
    launch(sums_part, dtype, job, 8 * dz.size)
