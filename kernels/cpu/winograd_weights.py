"""The gradient dw of a convolution by Winograd's algorithm: see winograd.py.

    dw = G^T [sum over tiles of (B^T x B) (A dz A^T)] G

For each of the 36 points the sum is a matrix product over all tiles, in their order. A thread has some of the points, so the bits do not
depend on the threads. The sums of all points are four times as large as dw, so they are made a panel of channels and outputs at a time,
which stays in the caches.

For 5 x 5 its rounding errors are three times those of the sums themselves.
"""

import math

from .engine.compile import Addresses, device_function, driver, inline_function, kernel
from .engine.intrinsics import address, advance, carray, lanes, local_zeros, pointer, real, run_kernel
from .engine.matrix import null_matrix, rows_apart, transposed
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .engine.vector_math import fma
from .gemm import Panels, clear, tiles, tiles_in_place
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
    TWO_ROOTS,
    TWO_THIRDS,
    WINOGRAD,
    applies,
    count_tiles,
    describe,
    image_columns,
    image_points,
    image_rows,
    line_size,
    pointers3,
    pointers4,
    pointers5,
    pointers6,
    thread_scratch,
)  # fmt: skip

# tiles that go through the products at a time; at least so many pay for the transforms of dw
DEEP_TILES, MANY_TILES = 48, 16
# tiles whose products are summed in one chain, about
LONG = 8192
# bytes of a panel's sums, about
SUMS_BYTES = 3 << 20
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


@inline_function
def upstream_transform2(a, b):
    """A, on two values."""
    odd, far_odd = real(HALF_ROOT, a) * b, real(ROOT, a) * b
    return a, a + odd, a - odd, a + far_odd, a - far_odd, b


@inline_function
def gradient_transform5(a, b, c, d, e, f):
    """G^T, on six values, of five taps."""
    even, odd, far_even, far_odd = b + c, c - b, d + e, d - e
    return (
        fma(real(-TWO_THIRDS, a), even, fma(real(SIXTH, a), far_even, a)),
        fma(real(ROOT_THIRD, a), odd, real(ROOT_SIXTH, a) * far_odd),
        real(THIRD, a) * (far_even - even),
        fma(real(ROOT_SIXTH, a), odd, real(ROOT_THIRD, a) * far_odd),
        fma(real(-SIXTH, a), even, fma(real(TWO_THIRDS, a), far_even, f)),
    )


@device_function
def transform_upstream(tile, n, values, targets):
    """A, on four arrays of n values, or for a tile of two on the first two of them."""
    if tile == 4:
        map_arrays(upstream_transform, n, values, targets, ())
    else:
        map_arrays(upstream_transform2, n, (values[0], values[1]), targets, ())


@device_function
def transform_points(taps, n, points, target, step):
    """G^T, on six arrays of n values, to 3 or 5 that are `step` apart."""
    if taps == 3:
        map_arrays(gradient_transform, n, points, pointers3(target, step), ())
    else:
        map_arrays(gradient_transform5, n, points, pointers5(target, step), ())


@device_function
def upstream_columns(conv, line, lines, zeros, like):
    """lines (6, tile wide, outputs) = A dz: the line's rows of dz, transformed from above to below, before zeros."""
    image, i = line // conv.high, line % conv.high
    dz = advance(pointer(conv.dz, like), image * conv.rows * conv.columns * conv.K + conv.output)  # (rows, columns, K)
    row, size = conv.tile * i, conv.columns * conv.K
    n, values = conv.tile * conv.wide * conv.outputs, conv.columns * conv.outputs
    first, (second, third, fourth) = advance(dz, row * size), image_rows(dz, conv.rows, row + 1, size, zeros)
    for r in range(SIDE):
        clear(n - values, advance(lines, r * n + values))
    run = values if conv.outputs == conv.K else conv.outputs
    for at in range(0, values, run):
        step = at // conv.outputs * conv.K
        pixels = advance(first, step), advance(second, step), advance(third, step), advance(fourth, step)
        transform_upstream(conv.tile, run, pixels, pointers6(advance(lines, at), n))


@device_function
def upstream_points(lo, hi, conv, lines, tile, n, row, d):
    """d (hi - lo rows of 6 points, n tiles, row) = (A dz) A^T: the line's columns, as its tiles from the tile-th on."""
    size = conv.tile * conv.wide * conv.outputs
    for i in range(lo, hi):
        for j in range(conv.wide):
            pixels = pointers4(advance(lines, i * size + conv.tile * j * conv.outputs), conv.outputs)
            points = advance(d, ((i - lo) * SIDE * n + tile + j) * row)  # (6, row), n * row apart
            transform_upstream(conv.tile, conv.outputs, pixels, pointers6(points, n * row))


@device_function
def chain_lines(block, wide):
    """Lines of tiles that are summed in one chain, a multiple of block."""
    return max(LONG // (block * wide), 1) * block


@device_function
def padded(n):
    """n, rounded up to an odd number of cache lines of float32: rows 2 KiB apart would share few of a cache's sets."""
    return (n + 15) // 16 * 16 | 16


@device_function
def add_block_sums(conv, lo, hi, channel, channels, scratch, like):
    """Sums over all tiles, for the rows lo..hi of points and so many of the panel's channels."""
    block = (DEEP_TILES + conv.wide - 1) // conv.wide
    zeros, size = scratch, max(conv.W * conv.C, conv.columns * conv.K)  # zeros (size,)
    lines = advance(zeros, size)  # (6, line_size), then (6, tile wide, outputs)
    v_row, d_row = padded(channels), padded(conv.outputs)
    most = SIDE * max(line_size(conv), conv.tile * conv.wide * conv.outputs)
    v = advance(lines, most)  # (6 rows of points, n, v_row)
    d = advance(v, POINTS * block * conv.wide * v_row)  # (6 rows of points, n, d_row)
    width = VECTORS * lanes(like)
    # later chains are summed behind the first one's sums, and added to them
    chain = chain_lines(block, conv.wide)
    point_size = padded(conv.channels * conv.outputs)
    clear(size, zeros)
    for first in range(0, conv.lines, block):
        count = min(block, conv.lines - first)
        n = count * conv.wide
        # B^T x B and A dz A^T
        for line in range(count):
            image_columns(conv, first + line, lines, zeros, like)
            image_points(lo, hi, conv, lines, channel, channels, line * conv.wide, n, v_row, v)
            upstream_columns(conv, first + line, lines, zeros, like)
            upstream_points(lo, hi, conv, lines, line * conv.wide, n, d_row, d)
        # products, added up
        for p in range((hi - lo) * SIDE):
            a = rows_apart(advance(v, p * n * v_row), v_row)  # (n, channels)
            b = Panels(advance(d, p * n * d_row), d_row, width)  # (n, outputs)
            at = (SIDE * lo + p) * point_size + channel * conv.outputs
            sums = advance(pointer(conv.sums, like), at)  # (channels, outputs)
            c = sums if first < chain else advance(sums, POINTS * point_size)
            start = null_matrix(like) if first % chain == 0 else rows_apart(c, conv.outputs)
            tiles(channels, conv.outputs, n, tiles_in_place(transposed(a)), b, start, rows_apart(c, conv.outputs))
            if first >= chain and ((first + block) % chain == 0 or first + block >= conv.lines):
                map_arrays(add, channels * conv.outputs, (sums, c), (sums,), ())


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_sums_part(thread_index, thread_count, record, like):
    """The thread's points of the panel's sums (36, channels, outputs): over all tiles in their order.

    More than six threads share the channels too.
    """
    conv = carray(record, 1)[0]
    blocks = (thread_count + SIDE - 1) // SIDE
    begin, end = thread_range(thread_index, thread_count, SIDE * blocks, 1)
    for block in range(begin // SIDE, (end + SIDE - 1) // SIDE):
        lo, hi = max(begin - block * SIDE, 0), min(end - block * SIDE, SIDE)
        channel, last = thread_range(block, blocks, conv.channels, ROWS)
        if channel < last:
            add_block_sums(conv, lo, hi, channel, last - channel, thread_scratch(conv, thread_index, like), like)


@kernel(WINOGRAD)
def winograd_weights_part(thread_index, thread_count, record, like):
    """G^T sums G: the thread's channels of the panel's values of dw (taps, taps, C, K), which undoes the transform of the kernel."""
    conv = carray(record, 1)[0]
    size, taps = padded(conv.channels * conv.outputs), conv.taps
    # channels that are one run of values, both in the sums and in dw
    rows = max(CHUNK // conv.K, 1) if conv.outputs == conv.K else 1
    lo, hi = thread_range(thread_index, thread_count, conv.channels, rows)
    scratch = thread_scratch(conv, thread_index, like)  # (taps, 6, CHUNK)
    for channel in range(lo, hi, rows):
        sums = advance(pointer(conv.sums, like), channel * conv.outputs)  # (36, channels, outputs)
        dw = advance(pointer(conv.dw, like), (conv.channel + channel) * conv.K + conv.output)  # (taps taps, C, K)
        values = min(rows, hi - channel) * conv.outputs
        for at in range(0, values, CHUNK):
            n = min(CHUNK, values - at)
            # G^T sums, by columns of points
            for j in range(SIDE):
                points = pointers6(advance(sums, j * size + at), SIDE * size)
                transform_points(taps, n, points, advance(scratch, j * CHUNK), SIDE * CHUNK)
            # (G^T sums) G, by rows
            for i in range(taps):
                points = pointers6(advance(scratch, i * SIDE * CHUNK), CHUNK)
                transform_points(taps, n, points, advance(dw, taps * i * conv.C * conv.K + at), conv.C * conv.K)


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, top, left, dw, channels, outputs, sums_size, scratch):
    record = local_zeros(1, WINOGRAD)
    conv = record[0]
    describe(conv, x, len(dw), dz.shape[3], dz.shape[1], dz.shape[2], top, left, scratch[sums_size:], thread_count)
    conv.dz, conv.dw, conv.sums = address(dz), address(dw), address(scratch)
    for output in range(0, conv.K, outputs):
        for channel in range(0, conv.C, channels):
            conv.channel, conv.channels = channel, min(channels, conv.C - channel)
            conv.output, conv.outputs = output, min(outputs, conv.K - output)
            run_kernel(launcher, kernels[SUMS_PART], thread_count, record, ())
            run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(winograd_sums_part, winograd_weights_part)


def pays(x, w, geometry, dz):
    """Whether Winograd's algorithm applies to dw, and pays, which for dw the batch may decide."""
    if not applies(w, geometry, x.shape[3] // w.shape[2], dz):
        return False
    high, wide, _ = count_tiles.py_func(*dz.shape[1:3], len(w))
    return len(x) * high * wide >= MANY_TILES


def weight_gradient(x, dz, pads, dw):
    """Write dw (taps, taps, C, K) of x and dz, as in conv2d_backward; where one is not finite, others may be wrong."""
    dtype, taps = x.dtype, len(dw)
    _, _, width, C = x.shape
    _, rows, columns, K = dz.shape
    high, wide, tile = count_tiles.py_func(rows, columns, taps)
    # a panel's channels and outputs
    parts = math.ceil(math.sqrt(POINTS * C * K * dtype.itemsize / SUMS_BYTES))
    channels, outputs = share(C, parts, ROWS), share(K, parts, CHUNK // 8)
    block = (DEEP_TILES + wide - 1) // wide
    pixels = max(width * C, columns * K) + SIDE * max((tile * wide + taps - 1) * channels, tile * wide * outputs)
    scratch_size = max(
        SIDE * taps * CHUNK, pixels + POINTS * block * wide * (padded.py_func(channels) + padded.py_func(outputs))
    )
    # twice where there is more than one chain: see add_block_sums
    sums = POINTS * padded.py_func(channels * outputs) * (1 + (len(x) * high > chain_lines.py_func(block, wide)))
    run(
        2 * dz.size * taps * taps * C, _weight_gradient, _KERNELS[dtype.char], x, dz, *pads[:2], dw, channels, outputs, sums,
        scratch=(dtype, sums, scratch_size),
    )  # fmt: skip


def share(n, parts, unit):
    """The size of a part of n, where each but the last is a multiple of unit."""
    return min((-(-n // parts) + unit - 1) // unit * unit, n)
