"""C = start + A @ B for any strides of A and B: packing and cache blocking around the microkernel.

Operands are read where they lie as long as the cache holds them; larger ones are copied into panels first. K is cut into
blocks, and every block after the first starts from C, so an element's sum has one order whatever is packed or blocked.
C must have unit column stride; `matmul` turns the product around when it has not.
"""

import numpy as np
from numba import carray

from .jit import inlined, compiled, entry, kernel
from .parallel import get_num_threads, run, scratch, share
from .simd import ROWS, VECTORS, WIDE, address, advance, call, is_null, lanes, microkernel, pointer, provide_microkernel, transpose, vector_bits

VECTOR_BYTES = vector_bits() // 8
# a K block of a panel of B stays in the first-level cache, a block of A in the second, all panels of a block of B in the third
import os
K_BLOCK, ROW_BLOCK, COLUMN_BLOCK = int(os.environ.get('KB',320)), int(os.environ.get('RB',20)) * ROWS, int(os.environ.get('CB',1024))
A_ROW, A_COLUMN = K_BLOCK + 16, ROW_BLOCK + 8
A_SCRATCH = A_ROW * A_COLUMN
SCRATCH = A_SCRATCH + K_BLOCK * COLUMN_BLOCK
import os
E=lambda n,d: int(os.environ.get(n,d))
B_UNPACKED = E('BU',16*1024); A_UNPACKED=E('AU',64*1024); AT_UNPACKED=E('ATU',16*1024); N_A=E('NA',128); N_AT=E('NAT',32)


@inlined
def copy(n, source, step, target):
    """target[i] = source[i * step] for i < n; with constant n and step it vanishes into vector moves."""
    to, of = carray(target, n), carray(source, n)
    if step == 1:
        for i in range(n):
            to[i] = of[i]
    else:
        for i in range(n):
            to[i] = of[i * step]


@inlined
def tile_rows(left):
    """Rows of the next tile. The last two share theirs evenly: a tile of a row or two would wait for its own additions."""
    return (left + 1) // 2 if ROWS < left < 2 * ROWS else min(ROWS, left)


@compiled
def pack_b(kc, nc, b, b_row, b_col, panels):
    """Panels of VECTORS vectors' columns, each (kc, width) contiguous; columns past the last are not written."""
    n = lanes(b)
    width = VECTORS * n
    for j in range(0, nc, width):
        columns = min(width, nc - j)
        panel, block = advance(panels, j * kc), advance(b, j * b_col)
        done = 0
        if b_row == 1 and columns == width:
            done = kc - kc % n
            for k in range(0, done, n):
                for v in range(0, width, n):
                    transpose(advance(block, v * b_col + k), b_col, advance(panel, k * width + v), width)
        for k in range(done, kc):
            row, place = advance(block, k * b_row), advance(panel, k * width)
            if b_col == 1 and columns == width:
                copy(VECTORS * n, row, 1, place)
            else:
                copy(columns, row, b_col, place)


@compiled
def copy_lines(lines, length, source, line, step, target, target_line):
    """A block of A to where its lines' distance is no power of two, so that they do not fight for the same cache sets."""
    for i in range(lines):
        copy(length, advance(source, i * line), step, advance(target, i * target_line))


@compiled
def tiles(mc, nc, kc, a, a_row, a_col, b, b_row, b_panel, start, start_row, start_col, c, c_row):
    """One block of C. Panels of B's columns lie b_panel apart."""
    width = VECTORS * lanes(c)
    for j in range(0, nc, width):
        b_j = advance(b, j // width * b_panel)
        i = 0
        while i < mc:
            rows = tile_rows(mc - i)
            microkernel(
                rows, min(width, nc - j), kc, advance(a, i * a_row), a_row, a_col, b_j, b_row,
                advance(start, i * start_row + j * start_col), start_row, advance(c, i * c_row + j), c_row,
            )  # fmt: skip
            i += rows


@compiled
def few_rows(M, N, K, a, a_row, a_col, b, b_row, start, start_row, start_col, c, c_row):
    """At most three rows: wider tiles, over B where it lies."""
    width = lanes(c) * WIDE[M]
    whole = N - N % width
    for j in range(0, whole, width):
        microkernel(
            M, width, K, a, a_row, a_col, advance(b, j), b_row, advance(start, j * start_col), start_row, advance(c, j), c_row
        )
    panel = VECTORS * lanes(c)
    tiles(
        M, N - whole, K, a, a_row, a_col, advance(b, whole), b_row, panel,
        advance(start, whole * start_col), start_row, start_col, advance(c, whole), c_row,
    )  # fmt: skip


@compiled
def gemm(M, N, K, a, a_row, a_col, b, b_row, b_col, start, start_row, c, c_row, panels):
    """C[M, N] = start + A[M, K] @ B[K, N] on this thread; start null is zero, start_row 0 a bias, start = c accumulates.

    panels: SCRATCH values of this thread's own.
    """
    if M == 0 or N == 0:
        return
    start_col = 1
    if is_null(start):
        start_row = start_col = 0  # it stays null under the tiles' offsets
    width = VECTORS * lanes(c)
    itemsize = VECTOR_BYTES // lanes(c)
    b_in_place = b_col == 1 and (K * b_row * itemsize <= B_UNPACKED or M < 4 * ROWS)
    if b_in_place and M <= 3:
        few_rows(M, N, K, a, a_row, a_col, b, b_row, start, start_row, start_col, c, c_row)
        return
    if a_col == 1:
        a_in_place = M * a_row * itemsize <= A_UNPACKED or N < N_A
    else:
        a_in_place = K * a_col * itemsize <= AT_UNPACKED or N < N_AT
    k_blocks = max(1, (K + K_BLOCK - 1) // K_BLOCK)
    k_block = max(1, (K + k_blocks - 1) // k_blocks)
    for j0 in range(0, N, COLUMN_BLOCK):
        nc = min(COLUMN_BLOCK, N - j0)
        for k0 in range(0, max(K, 1), k_block):
            kc = min(k_block, K - k0)
            b_k = advance(b, k0 * b_row + j0 * b_col)
            b_step, b_panel = b_row, width
            if not b_in_place:
                b_block = advance(panels, A_SCRATCH)
                pack_b(kc, nc, b_k, b_row, b_col, b_block)
                b_k, b_step, b_panel = b_block, width, width * kc
            for i0 in range(0, M, ROW_BLOCK):
                mc = min(ROW_BLOCK, M - i0)
                a_k = advance(a, i0 * a_row + k0 * a_col)
                a_step, a_next = a_row, a_col
                if not a_in_place:
                    if a_col == 1:
                        copy_lines(mc, kc, a_k, a_row, 1, panels, A_ROW)
                        a_step, a_next = A_ROW, 1
                    else:
                        copy_lines(kc, mc, a_k, a_col, a_row, panels, A_COLUMN)
                        a_step, a_next = 1, A_COLUMN
                    a_k = panels
                c_i = advance(c, i0 * c_row + j0)
                if k0 == 0:
                    first = advance(start, i0 * start_row + j0 * start_col)
                    tiles(mc, nc, kc, a_k, a_step, a_next, b_k, b_step, b_panel, first, start_row, start_col, c_i, c_row)
                else:
                    tiles(mc, nc, kc, a_k, a_step, a_next, b_k, b_step, b_panel, c_i, c_row, 1, c_i, c_row)


GEMM = np.dtype([(name, "i8") for name in "M N K a a_row a_col b b_row b_col start start_row c c_row panels".split()])


@kernel(GEMM, needs=provide_microkernel)
def gemm_part(part, parts, job, like):
    """The part's share of the rows of C, or of its columns where there are more of them; start 0 is zero."""
    g = carray(job, 1)[0]
    rows, columns = share(part, parts, g.M, ROWS), (0, g.N)
    if g.N > g.M:
        rows, columns = (0, g.M), share(part, parts, g.N, VECTORS * lanes(like))
    start = pointer(g.start, like)
    if g.start:
        start = advance(start, rows[0] * g.start_row + columns[0])
    gemm(
        rows[1] - rows[0], columns[1] - columns[0], g.K,
        advance(pointer(g.a, like), rows[0] * g.a_row), g.a_row, g.a_col,
        advance(pointer(g.b, like), columns[0] * g.b_col), g.b_row, g.b_col,
        start, g.start_row, advance(pointer(g.c, like), rows[0] * g.c_row + columns[0]), g.c_row,
        advance(pointer(g.panels, like), part * SCRATCH),
    )  # fmt: skip


@compiled
def describe(job, M, N, K, a, a_row, a_col, b, b_row, b_col, start, start_row, c, c_row, panels):
    """Fill a GEMM record."""
    g = job[0]
    g.M, g.N, g.K = M, N, K
    g.a, g.a_row, g.a_col = a, a_row, a_col
    g.b, g.b_row, g.b_col = b, b_row, b_col
    g.start, g.start_row = start, start_row
    g.c, g.c_row, g.panels = c, c_row, panels


@entry
def _matmul(launcher, parts, function, a, b, out, accumulate, panels):
    job, size = np.empty(1, GEMM), out.itemsize
    describe(
        job, out.shape[0], out.shape[1], a.shape[1],
        address(a), a.strides[0] // size, a.strides[1] // size, address(b), b.strides[0] // size, b.strides[1] // size,
        address(out) if accumulate else 0, out.strides[0] // size, address(out), out.strides[0] // size, address(panels),
    )  # fmt: skip
    call(launcher, function, parts, address(job))


def matmul(a, b, out, accumulate=False):
    """out (M, N) = a (M, K) @ b (K, N), added to what out holds if `accumulate`. Any strides, but out must have a unit one."""
    if out.strides[1] != out.itemsize and out.shape[1] > 1:
        a, b, out = b.T, a.T, out.T
    panels = scratch(out.dtype, SCRATCH * get_num_threads())
    run(2 * out.size * a.shape[1], _matmul, gemm_part.address(out.dtype), a, b, out, accumulate, panels)
