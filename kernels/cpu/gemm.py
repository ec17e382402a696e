"""Matrix product C = start + A @ B, with any strides of A and B: packing and cache blocking around engine/microkernel.py.

Operands that stay in cache are read in place; larger ones are packed into panels. K is cut into blocks, and every block after the first
adds to C. So the sum of an element has one order, whatever is packed or blocked. The columns of C must be contiguous; where they are not,
`matmul` computes C^T = B^T @ A^T.

`matmul` is the op. Other kernels call gemm_part by its address, or use `panel_tiles`, for a B that they have packed, and `tiles`.
"""

from typing import NamedTuple

import numpy as np

from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import (
    address,
    advance,
    carray,
    copy,
    lanes,
    local,
    pointer,
    prefetch,
    run_kernel,
    vector_bits,
)
from .engine.matrix import MATRIX, array_matrix, matrix_of, null_matrix, rows_apart, set_field, submatrix, transposed
from .engine.microkernel import ROWS, VECTORS, WIDE, microkernel, provide_microkernel, transpose
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays

VECTOR_BYTES = vector_bits() // 8
# a block of B stays in the second-level cache, which gives it back as fast as it is used, and leaves room there for what else the
# core's neighbour uses; depths of the block, usual and largest. What a tile costs before and after its sums is paid once a block
B_BYTES, DEEP, K_MOST = 208 * 1024, 384, 1024
# values that one copy moves of a row of A^T, a whole number of vectors: ROWS of them count
ROWS_COPIED = 8
# bytes that values apart from each other may spread over; columns that make up for copying A: see reads_well and copies_a
SPREAD_IN_CACHE, COLUMNS = 16 * 1024, 512
A_SCRATCH, B_SCRATCH = 80 * ROWS * DEEP, B_BYTES // 4
# terms that are summed in one chain where there may be a million of them
LONG = 8192
# the largest piece of C that is turned
TURNED_ROWS, TURNED_COLUMNS = 256, 960
TURNED_AT, TURNED_SIZE = A_SCRATCH + B_SCRATCH, TURNED_ROWS * TURNED_COLUMNS
SCRATCH = TURNED_AT + TURNED_SIZE


@inline_function
def copy_strided(n, source, step, target):
    """target[i] = source[i * step] for i < n."""
    to = carray(target, n)
    for i in range(n):
        to[i] = carray(advance(source, i * step), 1)[0]


@inline_function
def clear(n, target):
    """target[i] = 0 for i < n."""
    to = carray(target, n)
    for i in range(n):
        to[i] = 0


@inline_function
def tile_rows(left):
    """Rows of the next tile. The last two share theirs evenly: a tile of a row or two would wait for its own additions."""
    return (left + 1) // 2 if ROWS < left < 2 * ROWS else min(ROWS, left)


@device_function
def pack_b(kc, nc, b, panels, depth):
    """Panels of VECTORS vectors' columns, each (depth, width) contiguous, of which kc rows are written, and no columns past the last."""
    n = lanes(panels)
    width = VECTORS * n
    if b.col == 1:
        # row by row, not panel by panel: each page of B is met once
        for k in range(kc):
            row, place = submatrix(b, k, 0).at, advance(panels, k * width)
            for j in range(0, nc - width + 1, width):
                copy(VECTORS * n, advance(row, j), advance(place, j * depth))
            j = nc - nc % width
            copy(nc - j, advance(row, j), advance(place, j * depth))
        return
    for j in range(0, nc, width):
        columns = min(width, nc - j)
        panel, block = advance(panels, j * depth), submatrix(b, 0, j)
        done = 0
        if b.row == 1 and columns == width:
            done = kc - kc % n
            for k in range(0, done, n):
                for v in range(0, width, n):
                    transpose(submatrix(block, k, v).at, b.col, advance(panel, k * width + v), width)
        for k in range(done, kc):
            copy_strided(columns, submatrix(block, k, 0).at, b.col, advance(panel, k * width))


@device_function
def pack_a(mc, kc, a, panels):
    """A panel a tile, one after another, each (kc, ROWS): for every k the values of the tile's rows side by side.

    Whole vectors are written in the order of k; the rest of a vector beyond ROWS is overwritten by the next one.
    """
    n = lanes(panels)
    whole = max(0, mc // ROWS - 1) if mc % ROWS else mc // ROWS
    done = 0
    if a.row == 1:
        for k in range(kc):
            column, place = submatrix(a, 0, k).at, advance(panels, k * ROWS)
            wide = min(whole, max(0, mc - ROWS_COPIED) // ROWS + 1) if k < kc - 1 and mc >= ROWS_COPIED else 0
            for t in range(wide):
                copy(ROWS_COPIED, advance(column, t * ROWS), advance(place, t * kc * ROWS))
            for t in range(wide, whole):
                copy(ROWS, advance(column, t * ROWS), advance(place, t * kc * ROWS))
        done = whole
    elif a.col == 1:
        read = max(n, ROWS)
        while done < whole and done * ROWS + read <= mc:
            rows, panel = submatrix(a, done * ROWS, 0), advance(panels, done * kc * ROWS)
            for k in range(0, kc - n + 1, n):
                for r in range(0, ROWS, n):
                    first = max(0, min(r, ROWS - n))
                    transpose(submatrix(rows, first, k).at, a.row, advance(panel, k * ROWS + first), ROWS)
            for k in range(kc - kc % n, kc):
                copy_strided(ROWS, submatrix(rows, 0, k).at, a.row, advance(panel, k * ROWS))
            done += 1
    i, t = done * ROWS, done
    while i < mc:
        rows = tile_rows(mc - i)
        for k in range(kc):
            copy_strided(rows, submatrix(a, i, k).at, a.row, advance(panels, (t * kc + k) * ROWS))
        i, t = i + rows, t + 1


@inline_function
def is_odd(columns, lanes):
    """Whether three rows of so many columns are a tile, which panels would leave half empty."""
    return columns == WIDE[3] * lanes and WIDE[3] % VECTORS != 0


class Tiles(NamedTuple):
    """The tiles of A in memory. In the tile from row i, the t-th, which lies at i * tile + t * panel from `at`, values lie row and col
    apart: tile is row and panel 0 where A is read as it lies, tile is 0 and panel a panel's size where it is in panels.
    """

    at: int
    row: int
    col: int
    tile: int
    panel: int


class Panels(NamedTuple):
    """The panels of VECTORS vectors' columns of B in memory: `panel` values from one to the next, in each of which rows lie `row` apart."""

    at: int
    row: int
    panel: int


@inline_function
def tiles_in_place(a):
    """The tiles of a matrix that is read as it lies."""
    return Tiles(a.at, a.row, a.col, a.row, 0)


@device_function
def tiles(mc, nc, kc, a, b, start, c):
    """One block of C = start + A @ B, a row of tiles after another: a tile of A stays in the first-level cache and B streams past it.

    a: Tiles; b: Panels; start and c: matrices of contiguous rows. Columns that would half fill a panel are one wider tile of fewer rows,
    where A and B are read as they lie.
    """
    width = VECTORS * lanes(c.at)
    i = t = 0
    if is_odd(nc, lanes(c.at)) and b.panel == width and a.panel == 0:
        while i + 3 <= mc:
            a_i, start_i, c_i = advance(a.at, i * a.tile), submatrix(start, i, 0), submatrix(c, i, 0)
            microkernel(3, nc, kc, a_i, a.row, a.col, b.at, b.row, start_i.at, start.row, c_i.at, c.row)
            i += 3
    while i < mc:
        rows, a_t = tile_rows(mc - i), advance(a.at, i * a.tile + t * a.panel)
        for j in range(0, nc, width):
            b_j, start_ij, c_ij = advance(b.at, j // width * b.panel), submatrix(start, i, j), submatrix(c, i, j)
            if start.col and start.row:
                for r in range(rows):
                    prefetch(submatrix(start_ij, r, width).at)
            columns = min(width, nc - j)
            microkernel(rows, columns, kc, a_t, a.row, a.col, b_j, b.row, start_ij.at, start.row, c_ij.at, c.row)
        i, t = i + rows, t + 1


@device_function
def few_rows(M, N, K, a, b, start, c):
    """At most three rows: wider tiles, over B where it lies."""
    wide, width = lanes(c.at) * WIDE[M], VECTORS * lanes(c.at)
    j = 0
    while j < N:
        columns = wide if N - j >= wide else min(width, N - j)
        b_j, start_j, c_j = submatrix(b, 0, j), submatrix(start, 0, j), submatrix(c, 0, j)
        microkernel(M, columns, K, a.at, a.row, a.col, b_j.at, b.row, start_j.at, start.row, c_j.at, c.row)
        j += columns


@device_function
def panel_tiles(mc, nc, K, a, panels, start, c):
    """C = start + A @ B for B in panels over all of K, block by block as above. A start of row 0 is a bias."""
    width, itemsize = VECTORS * lanes(c.at), VECTOR_BYTES // lanes(c.at)
    k_blocks = max(1, (K + DEEP - 1) // DEEP)
    k_block = max(1, (K + k_blocks - 1) // k_blocks)
    n_block = max(1, B_BYTES // (k_block * itemsize * width)) * width
    for k0 in range(0, max(K, 1), k_block):
        kc = min(k_block, K - k0)
        if k0 > 0:
            start = c
        for j in range(0, nc, n_block):
            b = Panels(advance(panels, j * K + k0 * width), width, width * K)
            a_k, start_j, c_j = tiles_in_place(submatrix(a, 0, k0)), submatrix(start, 0, j), submatrix(c, 0, j)
            tiles(mc, min(n_block, nc - j), kc, a_k, b, start_j, c_j)


@inline_function
def reads_well(length, stride, itemsize):
    """Whether so many values a stride apart share the first-level cache: its sets repeat every 4 KiB, and 64 bytes are one line."""
    step = abs(stride) * itemsize
    return length * max(64, step & -step) <= SPREAD_IN_CACHE


@inline_function
def copies_a(N, k_block, a_row, a_col, itemsize):
    """Whether A is packed into panels: if it is transposed, and its columns are too far apart for shared cache lines to stay in cache; or
    if its rows are multiples of 2 KiB apart, which map to few sets of the first-level cache, and N is large enough to pay for the copy.
    """
    if a_col == 1:
        return N >= COLUMNS and a_row * itemsize % 2048 == 0
    return not reads_well(k_block, a_col, itemsize)


@inline_function
def panel_depth(kc):
    """The depth of panels of kc rows. It is odd: panels 4 KiB or a multiple apart would share few sets of the first-level cache."""
    return kc | 1


@device_function
def blocked(M, N, K, a, b, start, c, panels):
    """C[M, N] = start + A[M, K] @ B[K, N], matrices; a start of row 0 is a bias, start = c accumulates; panels: SCRATCH values."""
    width = VECTORS * lanes(c.at)
    itemsize = VECTOR_BYTES // lanes(c.at)
    depth = min(K_MOST, max(DEEP, B_BYTES // ((N + width - 1) // width * width * itemsize)))
    k_blocks = max(1, (K + depth - 1) // depth)
    k_block = max(1, (K + k_blocks - 1) // k_blocks)
    n_block = max(1, B_BYTES // (panel_depth(k_block) * itemsize * width)) * width
    b_in_place = b.col == 1 and (M < 4 * ROWS or (k_blocks == 1 and reads_well(K, b.row, itemsize)))
    if b_in_place and M <= 3:
        few_rows(M, N, K, a, b, start, c)
        return
    a_copied = copies_a(N, k_block, a.row, a.col, itemsize)
    row_block = A_SCRATCH // k_block // ROWS * ROWS if a_copied else M
    for i0 in range(0, M, row_block):
        mc = min(row_block, M - i0)
        for k0 in range(0, max(K, 1), k_block):
            kc = min(k_block, K - k0)
            a_k = tiles_in_place(submatrix(a, i0, k0))
            if a_copied:
                pack_a(mc, kc, submatrix(a, i0, k0), panels)
                a_k = Tiles(panels, 1, ROWS, 0, kc * ROWS)
            for j0 in range(0, N, n_block):
                nc = min(n_block, N - j0)
                b_k = Panels(submatrix(b, k0, j0).at, b.row, width)
                if not b_in_place:
                    pack_b(kc, nc, submatrix(b, k0, j0), advance(panels, A_SCRATCH), panel_depth(kc))
                    b_k = Panels(advance(panels, A_SCRATCH), width, width * panel_depth(kc))
                tiles(mc, nc, kc, a_k, b_k, submatrix(c if k0 > 0 else start, i0, j0), submatrix(c, i0, j0))


@device_function
def transpose_rows(rows, columns, source, source_row, target, target_row):
    """target = source^T, for source (rows, columns)."""
    n = lanes(source)
    whole_rows, whole_columns = rows - rows % n, columns - columns % n
    for j in range(0, whole_columns, n):
        for i in range(0, whole_rows, n):
            transpose(advance(source, i * source_row + j), source_row, advance(target, j * target_row + i), target_row)
    for j in range(columns):
        done = whole_rows if j < whole_columns else 0
        copy_strided(
            rows - done, advance(source, done * source_row + j), source_row, advance(target, j * target_row + done)
        )


@device_function
def add_rows(rows, columns, source, target, target_row):
    """target += source, for source (rows, columns) contiguous."""
    for i in range(rows):
        row = advance(target, i * target_row)
        map_arrays(add, columns, (row, advance(source, i * columns)), (row,), ())


# start: none is zero, row 0 a bias; start = c accumulates; sums: 1 where K is a batch's rows, which may be many
GEMM = np.dtype(
    [(name, "i8") for name in "M N K panels sums".split()] + [(name, MATRIX) for name in "a b start c".split()]
)


@kernel(GEMM, needs=provide_microkernel)
def gemm_part(thread_index, thread_count, record, like):
    """The thread's share of the columns of C, or of its rows where A has to be copied and there are more of them, or where whole panels
    of columns do not come out even. Where A is read as it lies, only B is copied, and each thread copies what it needs.

    Where few rows meet a large B that lies transposed, as in dx = dz @ w^T, copying B would cost most: C^T = B^T @ A^T reads it as it
    lies, and only C^T is transposed, a piece at a time.
    """
    product = carray(record, 1)[0]
    width = VECTORS * lanes(like)
    rows, columns = thread_range(thread_index, thread_count, product.M, ROWS), (0, product.N)
    n_panels = (product.N + width - 1) // width
    idle = (thread_count - n_panels % thread_count) % thread_count
    if 8 * idle <= n_panels and (product.a.col == 1 or product.N >= product.M):
        rows, columns = (0, product.M), thread_range(thread_index, thread_count, product.N, width)
    M, N = rows[1] - rows[0], columns[1] - columns[0]
    if M == 0 or N == 0:
        return
    a, b = submatrix(matrix_of(product.a, like), rows[0], 0), submatrix(matrix_of(product.b, like), 0, columns[0])
    start, c = matrix_of(product.start, like), submatrix(matrix_of(product.c, like), rows[0], columns[0])
    start = submatrix(start, rows[0], columns[0])
    panels = advance(pointer(product.panels, like), thread_index * SCRATCH)
    # pieces of C, and how many terms are summed in one chain: of a long sum the pieces fit into `turned`, where later chains go
    turned, piece_rows, piece_columns, terms = advance(panels, TURNED_AT), M, N, max(product.K, 1)
    turns = b.row == 1 and b.col != 1 and product.start.at == 0 and 2 * M <= N and M <= TURNED_ROWS
    if product.sums and product.K > LONG:
        turns, terms, piece_columns = False, LONG, min(N, TURNED_SIZE // ROWS)
        piece_rows = TURNED_SIZE // piece_columns
    elif turns:
        M, N, a, b = N, M, transposed(b), transposed(a)
        piece_rows, piece_columns = TURNED_COLUMNS, N
    for j in range(0, N, piece_columns):
        n = min(piece_columns, N - j)
        for i in range(0, M, piece_rows):
            m, c_ij = min(piece_rows, M - i), submatrix(c, i, j)
            for k in range(0, max(product.K, 1), terms):
                target = rows_apart(turned, n) if turns or k > 0 else c_ij
                start_k = null_matrix(like) if k > 0 else submatrix(start, i, j)
                depth = min(terms, product.K - k)
                blocked(m, n, depth, submatrix(a, i, k), submatrix(b, k, j), start_k, target, panels)
                if k > 0:
                    add_rows(m, n, turned, c_ij.at, c.row)
            if turns:
                transpose_rows(m, n, turned, n, submatrix(c, 0, i).at, c.row)


@device_function
def describe(record, sizes, a, b, start, c, panels):
    """Fill a GEMM record; sizes: M, N and K; a, b, start and c: matrices with addresses."""
    product = record[0]
    product.M, product.N, product.K = sizes
    product.panels, product.sums = panels, 0
    set_field(product.a, a)
    set_field(product.b, b)
    set_field(product.start, start)
    set_field(product.c, c)


@driver
def _matmul(launcher, thread_count, function, a, b, out, accumulate, scratch):
    record, M, N, K = local(1, GEMM), out.shape[0], out.shape[1], a.shape[1]
    a_matrix, b_matrix, c = array_matrix(a), array_matrix(b), array_matrix(out)
    if c.col != 1 and N != 1:
        # C^T = B^T @ A^T
        M, N, a_matrix, b_matrix, c = N, M, transposed(b_matrix), transposed(a_matrix), transposed(c)
    start = rows_apart(c.at if accumulate else 0, c.row)
    describe(record, (M, N, K), a_matrix, b_matrix, start, rows_apart(c.at, c.row), address(scratch))
    run_kernel(launcher, function, thread_count, record, ())


def matmul(a, b, out, accumulate=False):
    """out (M, N) = a (M, K) @ b (K, N), added to out if `accumulate`. Any strides, but one stride of out must be 1 value."""
    dtype = out.dtype
    run(
        2 * out.size * a.shape[1], _matmul, gemm_part.address(dtype), a, b, out, accumulate, scratch=(dtype, 0, SCRATCH)
    )
