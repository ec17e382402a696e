"""Matrix product C = start + A @ B, with any strides of A and B: packing and cache blocking around engine/microkernel.py.

Operands that stay in cache are read in place; larger ones are packed into panels. K is cut into blocks, and every block after the first
adds to C. So the sum of an element has one order, whatever is packed or blocked. The columns of C must be contiguous; where they are not,
`matmul` computes C^T = B^T @ A^T.

`matmul` is the op. Other kernels call gemm_part by its address, or use `panel_tiles`, for a B that they have packed, and `tiles`.
"""

import numpy as np

from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import (
    address,
    advance,
    carray,
    copy,
    is_null,
    lanes,
    local,
    pointer,
    prefetch,
    run_kernel,
    vector_bits,
)
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
def pack_b(kc, nc, b, b_row, b_col, panels, depth):
    """Panels of VECTORS vectors' columns, each (depth, width) contiguous, of which kc rows are written, and no columns past the last."""
    n = lanes(b)
    width = VECTORS * n
    if b_col == 1:
        # row by row, not panel by panel: each page of B is met once
        for k in range(kc):
            row, place = advance(b, k * b_row), advance(panels, k * width)
            for j in range(0, nc - width + 1, width):
                copy(VECTORS * n, advance(row, j), advance(place, j * depth))
            j = nc - nc % width
            copy(nc - j, advance(row, j), advance(place, j * depth))
        return
    for j in range(0, nc, width):
        columns = min(width, nc - j)
        panel, block = advance(panels, j * depth), advance(b, j * b_col)
        done = 0
        if b_row == 1 and columns == width:
            done = kc - kc % n
            for k in range(0, done, n):
                for v in range(0, width, n):
                    transpose(advance(block, v * b_col + k), b_col, advance(panel, k * width + v), width)
        for k in range(done, kc):
            copy_strided(columns, advance(block, k * b_row), b_col, advance(panel, k * width))


@device_function
def pack_a(mc, kc, a, a_row, a_col, panels):
    """A panel a tile, one after another, each (kc, ROWS): for every k the values of the tile's rows side by side.

    Whole vectors are written in the order of k; the rest of a vector beyond ROWS is overwritten by the next one.
    """
    n = lanes(a)
    whole = max(0, mc // ROWS - 1) if mc % ROWS else mc // ROWS
    done = 0
    if a_row == 1:
        for k in range(kc):
            column, place = advance(a, k * a_col), advance(panels, k * ROWS)
            wide = min(whole, max(0, mc - ROWS_COPIED) // ROWS + 1) if k < kc - 1 and mc >= ROWS_COPIED else 0
            for t in range(wide):
                copy(ROWS_COPIED, advance(column, t * ROWS), advance(place, t * kc * ROWS))
            for t in range(wide, whole):
                copy(ROWS, advance(column, t * ROWS), advance(place, t * kc * ROWS))
        done = whole
    elif a_col == 1:
        read = max(n, ROWS)
        while done < whole and done * ROWS + read <= mc:
            rows, panel = advance(a, done * ROWS * a_row), advance(panels, done * kc * ROWS)
            for k in range(0, kc - n + 1, n):
                for r in range(0, ROWS, n):
                    first = max(0, min(r, ROWS - n))
                    transpose(advance(rows, first * a_row + k), a_row, advance(panel, k * ROWS + first), ROWS)
            for k in range(kc - kc % n, kc):
                copy_strided(ROWS, advance(rows, k), a_row, advance(panel, k * ROWS))
            done += 1
    i, t = done * ROWS, done
    while i < mc:
        rows = tile_rows(mc - i)
        for k in range(kc):
            copy_strided(rows, advance(a, i * a_row + k * a_col), a_row, advance(panels, (t * kc + k) * ROWS))
        i, t = i + rows, t + 1


@inline_function
def is_odd(columns, lanes):
    """Whether three rows of so many columns are a tile, which panels would leave half empty."""
    return columns == WIDE[3] * lanes and WIDE[3] % VECTORS != 0


@device_function
def tiles(mc, nc, kc, a, a_row, a_col, a_tile, a_panel, b, b_row, b_panel, start, start_row, start_col, c, c_row):
    """One block of C, a row of tiles after another: a tile of A stays in the first-level cache and B streams past it.

    The tile of A from row i, the t-th, lies at i * a_tile + t * a_panel, the t-th panel of B at t * b_panel. Columns that would half fill
    a panel are one wider tile of fewer rows, where A and B are read as they lie.
    """
    width = VECTORS * lanes(c)
    i = t = 0
    if is_odd(nc, lanes(c)) and b_panel == width and a_panel == 0:
        while i + 3 <= mc:
            start_i, c_i = advance(start, i * start_row), advance(c, i * c_row)
            microkernel(3, nc, kc, advance(a, i * a_tile), a_row, a_col, b, b_row, start_i, start_row, c_i, c_row)
            i += 3
    while i < mc:
        rows, a_t = tile_rows(mc - i), advance(a, i * a_tile + t * a_panel)
        for j in range(0, nc, width):
            b_j, c_ij = advance(b, j // width * b_panel), advance(c, i * c_row + j)
            start_ij = advance(start, i * start_row + j * start_col)
            if start_col and start_row:
                for r in range(rows):
                    prefetch(advance(start_ij, r * start_row + width))
            microkernel(rows, min(width, nc - j), kc, a_t, a_row, a_col, b_j, b_row, start_ij, start_row, c_ij, c_row)
        i, t = i + rows, t + 1


@device_function
def few_rows(M, N, K, a, a_row, a_col, b, b_row, start, start_row, start_col, c, c_row):
    """At most three rows: wider tiles, over B where it lies."""
    wide, width = lanes(c) * WIDE[M], VECTORS * lanes(c)
    j = 0
    while j < N:
        columns = wide if N - j >= wide else min(width, N - j)
        b_j, start_j = advance(b, j), advance(start, j * start_col)
        microkernel(M, columns, K, a, a_row, a_col, b_j, b_row, start_j, start_row, advance(c, j), c_row)
        j += columns


@device_function
def panel_tiles(mc, nc, K, a, a_row, panels, start, start_row, c, c_row):
    """C = start + A @ B for B in panels over all of K, block by block as above. A null start is zero, start_row 0 a bias."""
    width, start_col, itemsize = VECTORS * lanes(c), 1, VECTOR_BYTES // lanes(c)
    if is_null(start):
        start_row = start_col = 0
    k_blocks = max(1, (K + DEEP - 1) // DEEP)
    k_block = max(1, (K + k_blocks - 1) // k_blocks)
    n_block = max(1, B_BYTES // (k_block * itemsize * width)) * width
    for k0 in range(0, max(K, 1), k_block):
        kc = min(k_block, K - k0)
        if k0 > 0:
            start, start_row, start_col = c, c_row, 1
        for j in range(0, nc, n_block):
            b_j, start_j = advance(panels, j * K + k0 * width), advance(start, j * start_col)
            tiles(
                mc, min(n_block, nc - j), kc, advance(a, k0), a_row, 1, a_row, 0, b_j, width, width * K, start_j, start_row, start_col,
                advance(c, j), c_row,
            )  # fmt: skip


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


@device_function
def blocked(M, N, K, a, a_row, a_col, b, b_row, b_col, start, start_row, c, c_row, panels):
    """C[M, N] = start + A[M, K] @ B[K, N]; start null is zero, start_row 0 a bias, start = c accumulates; panels: SCRATCH values."""
    start_col = 1
    if is_null(start):
        start_row = start_col = 0  # it stays null under the tiles' offsets
    width = VECTORS * lanes(c)
    itemsize = VECTOR_BYTES // lanes(c)
    depth = min(K_MOST, max(DEEP, B_BYTES // ((N + width - 1) // width * width * itemsize)))
    k_blocks = max(1, (K + depth - 1) // depth)
    k_block = max(1, (K + k_blocks - 1) // k_blocks)
    n_block = max(1, B_BYTES // (k_block * itemsize * width)) * width
    b_in_place = b_col == 1 and (M < 4 * ROWS or (k_blocks == 1 and reads_well(K, b_row, itemsize)))
    if b_in_place and M <= 3:
        few_rows(M, N, K, a, a_row, a_col, b, b_row, start, start_row, start_col, c, c_row)
        return
    a_copied = copies_a(N, k_block, a_row, a_col, itemsize)
    row_block = A_SCRATCH // k_block // ROWS * ROWS if a_copied else M
    for i0 in range(0, M, row_block):
        mc = min(row_block, M - i0)
        for k0 in range(0, max(K, 1), k_block):
            kc = min(k_block, K - k0)
            a_k = advance(a, i0 * a_row + k0 * a_col)
            a_step, a_next, a_tile, a_panel = a_row, a_col, a_row, 0
            if a_copied:
                pack_a(mc, kc, a_k, a_row, a_col, panels)
                a_k, a_step, a_next, a_tile, a_panel = panels, 1, ROWS, 0, kc * ROWS
            for j0 in range(0, N, n_block):
                nc = min(n_block, N - j0)
                b_k, b_step, b_panel = advance(b, k0 * b_row + j0 * b_col), b_row, width
                if not b_in_place:
                    pack_b(kc, nc, b_k, b_row, b_col, advance(panels, A_SCRATCH), kc)
                    b_k, b_step, b_panel = advance(panels, A_SCRATCH), width, width * kc
                c_k = advance(c, i0 * c_row + j0)
                start_k, s_row, s_col = advance(start, i0 * start_row + j0 * start_col), start_row, start_col
                if k0 > 0:
                    start_k, s_row, s_col = c_k, c_row, 1
                tiles(
                    mc, nc, kc, a_k, a_step, a_next, a_tile, a_panel, b_k, b_step, b_panel,
                    start_k, s_row, s_col, c_k, c_row,
                )  # fmt: skip


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


# start: 0 is zero, and with start_row 0 a bias; start = c accumulates; sums: 1 where K is a batch's rows, which may be many
GEMM = np.dtype(
    [(name, "i8") for name in "M N K a a_row a_col b b_row b_col start start_row c c_row panels sums".split()]
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
    if 8 * idle <= n_panels and (product.a_col == 1 or product.N >= product.M):
        rows, columns = (0, product.M), thread_range(thread_index, thread_count, product.N, width)
    M, N = rows[1] - rows[0], columns[1] - columns[0]
    if M == 0 or N == 0:
        return
    a, a_row, a_col = advance(pointer(product.a, like), rows[0] * product.a_row), product.a_row, product.a_col
    b, b_row, b_col = advance(pointer(product.b, like), columns[0] * product.b_col), product.b_row, product.b_col
    c, c_row, panels = (
        advance(pointer(product.c, like), rows[0] * product.c_row + columns[0]),
        product.c_row,
        pointer(product.panels, like),
    )
    start, panels, none = (
        pointer(product.start, like),
        advance(panels, thread_index * SCRATCH),
        pointer(0 * product.K, like),
    )
    if product.start:
        start = advance(start, rows[0] * product.start_row + columns[0])
    # pieces of C, and how many terms are summed in one chain: of a long sum the pieces fit into `turned`, where later chains go
    turned, piece_rows, piece_columns, terms = advance(panels, TURNED_AT), M, N, max(product.K, 1)
    turns = b_row == 1 and b_col != 1 and product.start == 0 and 2 * M <= N and M <= TURNED_ROWS
    if product.sums and product.K > LONG:
        turns, terms, piece_columns = False, LONG, min(N, TURNED_SIZE // ROWS)
        piece_rows = TURNED_SIZE // piece_columns
    elif turns:
        M, N, a, a_row, a_col, b, b_row, b_col = N, M, b, b_col, b_row, a, a_col, a_row
        piece_rows, piece_columns = TURNED_COLUMNS, N
    for j in range(0, N, piece_columns):
        n, b_j = min(piece_columns, N - j), advance(b, j * b_col)
        for i in range(0, M, piece_rows):
            m, a_i, at = min(piece_rows, M - i), advance(a, i * a_row), i * c_row + j
            start_k, start_row = advance(start, i * product.start_row + j) if product.start else none, product.start_row
            for k in range(0, max(product.K, 1), terms):
                target, target_row = advance(c, at), c_row
                if turns or k > 0:
                    target, target_row = turned, n
                if k > 0:
                    start_k, start_row = none, 0
                depth, a_k, b_k = min(terms, product.K - k), advance(a_i, k * a_col), advance(b_j, k * b_row)
                blocked(
                    m, n, depth, a_k, a_row, a_col, b_k, b_row, b_col, start_k, start_row, target, target_row, panels
                )
                if k > 0:
                    add_rows(m, n, turned, advance(c, at), c_row)
            if turns:
                transpose_rows(m, n, turned, n, advance(c, i), c_row)


@device_function
def describe(record, M, N, K, a, a_row, a_col, b, b_row, b_col, start, start_row, c, c_row, panels):
    """Fill a GEMM record."""
    product = record[0]
    product.M, product.N, product.K = M, N, K
    product.a, product.a_row, product.a_col = a, a_row, a_col
    product.b, product.b_row, product.b_col = b, b_row, b_col
    product.start, product.start_row = start, start_row
    product.c, product.c_row, product.panels, product.sums = c, c_row, panels, 0


@driver
def _matmul(launcher, thread_count, function, a, b, out, accumulate, scratch):
    record, size, panels = local(1, GEMM), out.itemsize, address(scratch)
    a_row, a_col, b_row, b_col = a.strides[0] // size, a.strides[1] // size, b.strides[0] // size, b.strides[1] // size
    c_row, start = out.strides[0] // size, address(out) if accumulate else 0
    if out.strides[1] == size or out.shape[1] == 1:
        describe(
            record, out.shape[0], out.shape[1], a.shape[1], address(a), a_row, a_col, address(b), b_row, b_col,
            start, c_row, address(out), c_row, panels,
        )  # fmt: skip
    else:
        # C^T = B^T @ A^T
        c_row = out.strides[1] // size
        describe(
            record, out.shape[1], out.shape[0], a.shape[1], address(b), b_col, b_row, address(a), a_col, a_row,
            start, c_row, address(out), c_row, panels,
        )  # fmt: skip
    run_kernel(launcher, function, thread_count, record, ())


def matmul(a, b, out, accumulate=False):
    """out (M, N) = a (M, K) @ b (K, N), added to out if `accumulate`. Any strides, but one stride of out must be 1 value."""
    dtype = out.dtype
    run(
        2 * out.size * a.shape[1], _matmul, gemm_part.address(dtype), a, b, out, accumulate, scratch=(dtype, 0, SCRATCH)
    )
