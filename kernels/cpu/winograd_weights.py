"""The gradient dw of a convolution by Winograd's algorithm: see winograd.py.

    dw = G^T [sum over tiles of (B^T x B) (A dz A^T)] G

For each of the 36 points the sum is a matrix product over all tiles, in their order. A thread has some of the points, so the bits do not
depend on the threads.
"""

from .engine.compile import Addresses, device_function, driver, inline_function, kernel
from .engine.intrinsics import address, advance, carray, lanes, local_zeros, pointer, real, run_kernel
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .engine.vector_math import fma
from .gemm import clear, tiles
from .winograd import (
    CHUNK,
    HALF_ROOT,
    POINTS,
    QUARTER_ROOT,
    ROOT,
    ROOT_SIXTH,
    ROOT_THIRD,
    SIDE,
    SIXTH,
    THIRD,
    TILE,
    TWO_ROOTS,
    TWO_THIRDS,
    WINOGRAD,
    applies,
    describe,
    image_columns,
    image_points,
    image_rows,
    line_size,
    pointers3,
    pointers4,
    pointers6,
    thread_scratch,
)  # fmt: skip

# tiles that go through the products at a time; at least so many pay for the transforms of dw
DEEP_TILES, MANY_TILES = 48, 16
# tiles whose products are summed in one chain, about
LONG = 8192
SUMS_PART, WEIGHTS_PART = range(2)


@inline_function
def upstream_transform(a, b, c, d):
    """A, on four values."""
    even, odd = fma(real(0.5, a), c, a), fma(real(QUARTER_ROOT, a), d, real(HALF_ROOT, a) * b)
    far_even, far_odd = fma(real(2, a), c, a), fma(real(TWO_ROOTS, a), d, real(ROOT, a) * b)
    return a, even + odd, even - odd, far_even + far_odd, far_even - far_odd, d


@inline_function
def gradient_transform(a, b, c, d, e, f):
    """G^T, on six values."""
    even, odd, far_even, far_odd = b + c, c - b, d + e, d - e
    return (
        fma(real(-TWO_THIRDS, a), even, fma(real(SIXTH, a), far_even, a)),
        fma(real(ROOT_THIRD, a), odd, real(ROOT_SIXTH, a) * far_odd),
        fma(real(THIRD, a), far_even - even, f),
    )


@device_function
def upstream_columns(conv, line, lines, zeros, like):
    """lines (6, 4 wide, K) = A dz: the line's four rows of dz, transformed from above to below, before zeros."""
    image, i = line // conv.high, line % conv.high
    dz = advance(pointer(conv.dz, like), image * conv.rows * conv.columns * conv.K)  # (rows, columns, K)
    n, size, row = TILE * conv.wide * conv.K, conv.columns * conv.K, TILE * i
    rows = (advance(dz, row * size), *image_rows(dz, conv.rows, row + 1, size, zeros))
    for r in range(SIDE):
        clear(n - size, advance(lines, r * n + size))
    map_arrays(upstream_transform, size, rows, pointers6(lines, n), ())


@device_function
def upstream_points(lo, hi, conv, lines, tile, n, d):
    """d (hi - lo rows of 6 points, n tiles, K) = (A dz) A^T: the line's columns, as its tiles from the tile-th on."""
    size = TILE * conv.wide * conv.K
    for i in range(lo, hi):
        for j in range(conv.wide):
            pixels = pointers4(advance(lines, i * size + TILE * j * conv.K), conv.K)
            points = advance(d, ((i - lo) * SIDE * n + tile + j) * conv.K)  # (6, K), n * K apart
            map_arrays(upstream_transform, conv.K, pixels, pointers6(points, n * conv.K), ())


@device_function
def add_block_sums(conv, lo, hi, channel, channels, scratch, like):
    """Sums over all tiles, for the rows lo..hi of points and so many channels."""
    block = (DEEP_TILES + conv.wide - 1) // conv.wide
    zeros, size = scratch, max(conv.W * conv.C, conv.columns * conv.K)  # zeros (size,)
    lines = advance(zeros, size)  # (6, line_size), then (6, 4 wide, K)
    v = advance(lines, SIDE * max(line_size(conv), TILE * conv.wide * conv.K))  # (6 rows of points, n, channels)
    d = advance(v, POINTS * block * conv.wide * conv.C)  # (6 rows of points, n, K)
    null, width = pointer(conv.N * 0, like), VECTORS * lanes(like)
    # lines that are summed in one chain, a multiple of block; later chains are summed behind the first one's sums, and added to them
    chain = max(LONG // (block * conv.wide), 1) * block
    clear(size, zeros)
    for first in range(0, conv.lines, block):
        count = min(block, conv.lines - first)
        n = count * conv.wide
        # B^T x B and A dz A^T
        for line in range(count):
            image_columns(conv, first + line, lines, zeros, like)
            image_points(lo, hi, conv, lines, channel, channels, line * conv.wide, n, v)
            upstream_columns(conv, first + line, lines, zeros, like)
            upstream_points(lo, hi, conv, lines, line * conv.wide, n, d)
        # products, added up
        for p in range((hi - lo) * SIDE):
            a, b = advance(v, p * n * channels), advance(d, p * n * conv.K)  # (n, channels) and (n, K)
            sums = advance(pointer(conv.sums, like), ((SIDE * lo + p) * conv.C + channel) * conv.K)  # (channels, K)
            c = sums if first < chain else advance(sums, POINTS * conv.C * conv.K)
            start, start_row, start_col = (null, 0, 0) if first % chain == 0 else (c, conv.K, 1)
            tiles(channels, conv.K, n, a, 1, channels, 1, 0, b, conv.K, width, start, start_row, start_col, c, conv.K)
            if first >= chain and ((first + block) % chain == 0 or first + block >= conv.lines):
                map_arrays(add, channels * conv.K, (sums, c), (sums,), ())


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_sums_part(thread_index, thread_count, record, like):
    """The thread's points of sums (36, C, K), which undoes the products: over all tiles in their order.

    More than six threads share the channels too.
    """
    conv = carray(record, 1)[0]
    blocks = (thread_count + SIDE - 1) // SIDE
    begin, end = thread_range(thread_index, thread_count, SIDE * blocks, 1)
    for block in range(begin // SIDE, (end + SIDE - 1) // SIDE):
        lo, hi = max(begin - block * SIDE, 0), min(end - block * SIDE, SIDE)
        channel, last = thread_range(block, blocks, conv.C, ROWS)
        if channel < last:
            add_block_sums(conv, lo, hi, channel, last - channel, thread_scratch(conv, thread_index, like), like)


@kernel(WINOGRAD)
def winograd_weights_part(thread_index, thread_count, record, like):
    """G^T sums G: the thread's values of dw (3, 3, C, K), which undoes the transform of the kernel."""
    conv = carray(record, 1)[0]
    size = conv.C * conv.K
    lo, hi = thread_range(thread_index, thread_count, size, CHUNK)
    scratch = thread_scratch(conv, thread_index, like)  # (3, 6, CHUNK)
    sums, dw = pointer(conv.sums, like), pointer(conv.dw, like)  # (36, C, K) and (9, C, K)
    for at in range(lo, hi, CHUNK):
        n = min(CHUNK, hi - at)
        # G^T sums, by columns of points
        for j in range(SIDE):
            points = pointers6(advance(sums, j * size + at), SIDE * size)
            map_arrays(gradient_transform, n, points, pointers3(advance(scratch, j * CHUNK), SIDE * CHUNK), ())
        # (G^T sums) G, by rows
        for i in range(3):
            points = pointers6(advance(scratch, i * SIDE * CHUNK), CHUNK)
            map_arrays(gradient_transform, n, points, pointers3(advance(dw, 3 * i * size + at), size), ())


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, top, left, dw, sums_size, scratch):
    record = local_zeros(1, WINOGRAD)
    conv = record[0]
    describe(conv, x, dz.shape[3], dz.shape[1], dz.shape[2], top, left, scratch[sums_size:], thread_count)
    conv.dz, conv.dw, conv.sums = address(dz), address(dw), address(scratch)
    run_kernel(launcher, kernels[SUMS_PART], thread_count, record, ())
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(winograd_sums_part, winograd_weights_part)


def pays(x, w, geometry, dz):
    """Whether Winograd's algorithm applies to dw, and pays, which for dw the batch may decide."""
    _, rows, columns, _ = dz.shape
    tiles = len(x) * ((rows + TILE - 1) // TILE) * ((columns + TILE - 1) // TILE)
    return tiles >= MANY_TILES and applies(w, geometry, x.shape[3] // w.shape[2], dz)


def weight_gradient(x, dz, pads, dw):
    """Write dw (3, 3, C, K) of x and dz, as in conv2d_backward; where one is not finite, others may be wrong."""
    dtype = x.dtype
    _, _, width, channels = x.shape
    columns, K = dz.shape[2:]
    wide = (columns + TILE - 1) // TILE
    tiles = (DEEP_TILES + wide - 1) // wide * wide
    pixels = max(width * channels, columns * K) + SIDE * max((TILE * wide + 2) * channels, TILE * wide * K)
    scratch_size = max(18 * CHUNK, pixels + POINTS * tiles * (channels + K))
    # twice: see add_block_sums
    sums = 2 * POINTS * channels * K
    run(
        2 * dz.size * 9 * channels, _weight_gradient, _KERNELS[dtype.char], x, dz, *pads[:2], dw, sums,
        scratch=(dtype, sums, scratch_size),
    )  # fmt: skip
