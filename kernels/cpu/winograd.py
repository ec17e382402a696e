"""Winograd convolution F(4 x 4, 3 x 3): 3 x 3 kernels of stride 1, a quarter of the multiplications (Winograd 1980; Lavin & Gray 2015).

    y = A^T [(G w G^T) (B^T x B)] A     x: 6 x 6 pixels of the image, w: a 3 x 3 kernel, y: a tile of 4 x 4 pixels of the output

The product of the two 6 x 6 matrices is taken point by point. For each of the 36 points it is a matrix product over all tiles and
channels. dx is the same with w rotated by 180 degrees. dw sums, for each point, products over all tiles, and transforms the sums by G.

The transforms evaluate polynomials at 0, +-1/sqrt(2), +-sqrt(2) and infinity. Their rounding errors are about those of the sums
themselves; with 0, +-1, +-2 they are three times as large. The values of a tile depend on the pixels of that tile alone.

An infinity in x would turn the whole tile into NaN. So tiles of y with a value that is not finite are flagged, and conv.py computes them
again, without transforms; it does the same with a dw that is not finite.
"""

import numpy as np
from numba import carray

from .activation import activate, forward_address
from .engine.compile import Addresses, device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    lanes,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .engine.vector_math import fma
from .gemm import clear, pack_b, panel_tiles, tiles

TILE, SIDE, POINTS = 4, 6, 36
# tiles that go through the products at a time and fit with them into the second-level cache; those of a weight's gradient
TILES, DEEP_TILES = 24, 48
# tiles whose products are summed in one chain, about
LONG = 8192
# values of a kernel that are transformed at a time
CHUNK = 512
# fewer channels or outputs are not worth the transforms
CHANNELS = 8
ROOT, HALF_ROOT, QUARTER_ROOT, TWO_ROOTS = 2**0.5, 0.5**0.5, 0.125**0.5, 8**0.5
TWO_THIRDS, THIRD, SIXTH, ROOT_THIRD, ROOT_SIXTH = 2 / 3, 1 / 3, 1 / 6, 2**0.5 / 3, 2**0.5 / 6
# a convolution of x (N, H, W, C) to z (N, rows, columns, K), with the kernel's corner for its first pixel at -top, -left of x; for dx, x
# is dz and w is rotated by 180 degrees, `flip`. Its fields: high, wide: tiles of an output; lines: N high of tiles; u (36, C, K): w
# through G; panels: u in panel_size values a point; sums (2, 36, C, K): the points of dw; flags (N, high * wide), uint8: tiles with a
# value that is not finite; scratch: scratch_size values a thread; w, b, residual, z, y, dz, dw and parameter: as in conv2d_forward
# and conv2d_backward, null for None
WINOGRAD = np.dtype(
    [(name, "i8") for name in "N H W C K rows columns top left high wide lines flip activate".split()]
    + [(name, "i8") for name in "x w u panels panel_size b residual z y dz dw sums flags scratch scratch_size".split()]
    + [("parameter", "f8")]
)
KERNEL_PART, PANELS_PART, FORWARD_PART, SUMS_PART, WEIGHTS_PART = range(5)


@inline_function
def input_transform(a, b, c, d, e, f):
    """B^T, on six values."""
    even, odd = fma(real(-2, a), c, e), fma(real(HALF_ROOT, a), d, real(-ROOT, a) * b)
    half_even, half_odd = fma(real(-0.5, a), c, e), fma(real(ROOT, a), d, real(-HALF_ROOT, a) * b)
    first, last = fma(real(-2.5, a), c, a + e), fma(real(-2.5, a), d, b + f)
    return first, even + odd, even - odd, half_even + half_odd, half_even - half_odd, last


@inline_function
def kernel_transform(a, b, c):
    """G, on three values."""
    even, odd = fma(real(-TWO_THIRDS, a), a, real(-THIRD, a) * c), real(-ROOT_THIRD, a) * b
    far_even, far_odd = fma(real(SIXTH, a), a, real(THIRD, a) * c), real(ROOT_SIXTH, a) * b
    return a, even + odd, even - odd, far_even + far_odd, far_even - far_odd, c


@inline_function
def output_transform(a, b, c, d, e, f):
    """A^T, on six values."""
    even, odd, far_even, far_odd = b + c, b - c, d + e, d - e
    return (
        a + even + far_even,
        fma(real(ROOT, a), far_odd, real(HALF_ROOT, a) * odd),
        fma(real(2, a), far_even, real(0.5, a) * even),
        fma(real(TWO_ROOTS, a), far_odd, fma(real(QUARTER_ROOT, a), odd, f)),
    )


@inline_function
def output_transform_bias(a, b, c, d, e, f, bias, check):
    """output_transform, with the bias; `check` stays 0 as long as all is finite."""
    first, second, third, fourth = output_transform(a, b, c, d, e, f)
    first, second, third, fourth = first + bias, second + bias, third + bias, fourth + bias
    return first, second, third, fourth, fma(first + second + (third + fourth), real(0, a), check)


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
def pointers3(first, step):
    """Pointers `step` values apart."""
    return first, advance(first, step), advance(first, 2 * step)


@device_function
def pointers4(first, step):
    return first, advance(first, step), advance(first, 2 * step), advance(first, 3 * step)


@device_function
def pointers6(first, step):
    return pointers3(first, step) + pointers3(advance(first, 3 * step), step)


@device_function
def image_row(pixels, height, row, size, zeros):
    """A row of an image of so many values a row, or zeros above and below it."""
    return advance(pixels, row * size) if 0 <= row < height else zeros


@device_function
def image_rows(pixels, height, row, size, zeros):
    lines = image_row(pixels, height, row, size, zeros), image_row(pixels, height, row + 1, size, zeros)
    return (*lines, image_row(pixels, height, row + 2, size, zeros))


@device_function
def thread_scratch(conv, thread_index, like):
    """The thread's part of the scratch (scratch_size,)."""
    return advance(pointer(conv.scratch, like), thread_index * conv.scratch_size)


@device_function
def line_size(conv):
    """Values of a row of the image that a line of tiles reads, with its padding."""
    return (TILE * conv.wide + 2) * conv.C


@device_function
def image_columns(conv, line, lines, zeros, like):
    """lines (6, line_size) = B^T x: the line's six rows of x, transformed from above to below, between zeros."""
    image, i = line // conv.high, line % conv.high
    x = advance(pointer(conv.x, like), image * conv.H * conv.W * conv.C)  # (H, W, C)
    row, size, n = TILE * i - conv.top, conv.W * conv.C, line_size(conv)
    rows = image_rows(x, conv.H, row, size, zeros) + image_rows(x, conv.H, row + 3, size, zeros)
    left = conv.left * conv.C
    values = min(size, n - left)
    for r in range(SIDE):
        row_values = advance(lines, r * n)  # (line_size,)
        clear(left, row_values)
        clear(n - left - values, advance(row_values, left + values))
    map_arrays(input_transform, values, rows, pointers6(advance(lines, left), n), ())


@device_function
def image_points(lo, hi, conv, lines, channel, channels, tile, n, v):
    """v (hi - lo rows of 6 points, n tiles, channels) = (B^T x) B: the lines' columns, as tiles from the tile-th on."""
    size = line_size(conv)
    for i in range(lo, hi):
        for j in range(conv.wide):
            pixels = pointers6(advance(lines, i * size + TILE * j * conv.C + channel), conv.C)
            points = advance(v, ((i - lo) * SIDE * n + tile + j) * channels)  # (6, channels), n * channels apart
            map_arrays(input_transform, channels, pixels, pointers6(points, n * channels), ())


@kernel(WINOGRAD)
def winograd_kernel_part(thread_index, thread_count, record, like):
    """G w G^T: the thread's values of u (36, C, K), or (36, K, C) as w's where it is rotated for dx."""
    conv = carray(record, 1)[0]
    size = conv.C * conv.K
    lo, hi = thread_range(thread_index, thread_count, size, CHUNK)
    scratch = thread_scratch(conv, thread_index, like)  # (6, 3, CHUNK)
    w, u = pointer(conv.w, like), pointer(conv.u, like)  # (9, C, K) and (36, C, K)
    for at in range(lo, hi, CHUNK):
        n = min(CHUNK, hi - at)
        # G w, by columns of taps
        for j in range(3):
            first, step = (8 - j, -3) if conv.flip else (j, 3)
            taps = pointers3(advance(w, first * size + at), step * size)
            map_arrays(kernel_transform, n, taps, pointers6(advance(scratch, j * CHUNK), 3 * CHUNK), ())
        # (G w) G^T, by rows
        for i in range(SIDE):
            taps = pointers3(advance(scratch, 3 * i * CHUNK), CHUNK)
            map_arrays(kernel_transform, n, taps, pointers6(advance(u, SIDE * i * size + at), size), ())


@kernel(WINOGRAD)
def winograd_panels_part(thread_index, thread_count, record, like):
    """The thread's points of u in panels, as the products read them; transposed where w is rotated for dx."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, POINTS, 1)
    for p in range(lo, hi):
        u = advance(pointer(conv.u, like), p * conv.C * conv.K)  # (C, K), or (K, C)
        panels = advance(pointer(conv.panels, like), p * conv.panel_size)  # (C, K) in panels
        row, column = (1, conv.C) if conv.flip else (conv.K, 1)
        pack_b(conv.C, conv.K, u, row, column, panels, conv.C)


@device_function
def is_nonfinite(n, values):
    """Whether one of n values is infinite or NaN."""
    array, total = carray(values, n), real(0, carray(values, 1)[0])
    for k in range(n):
        total += array[k] * real(0, total)
    return total != total


@device_function
def flag_tiles(conv, line, height, z, like):
    """Flag the line's tiles with a value that is not finite."""
    flags = carray(void_pointer(conv.flags + line * conv.wide), conv.wide, np.uint8)
    for j in range(conv.wide):
        width = min(TILE, conv.columns - TILE * j) * conv.K
        for r in range(height):
            if is_nonfinite(width, advance(z, (r * conv.columns + TILE * j) * conv.K)):
                flags[j] = 1


@device_function
def line_outputs(conv, line, tile, n, m, sums, zeros, like):
    """A^T m A: the line's pixels, from its tiles' products m (36, n, K); then bias, residual and activation."""
    image, i = line // conv.high, line % conv.high
    size = conv.wide * conv.K
    # A^T m, from above to below
    for j in range(SIDE):
        points = pointers6(advance(m, (j * n + tile) * conv.K), SIDE * n * conv.K)
        map_arrays(output_transform, size, points, pointers4(advance(sums, j * size), SIDE * size), ())
    checks = advance(sums, SIDE * TILE * size)  # (K,)
    outside, bias = advance(checks, conv.K), pointer(conv.b, like) if conv.b else zeros  # (3, K) and (K,)
    clear(conv.K, checks)
    at = (image * conv.rows + TILE * i) * conv.columns * conv.K
    z = advance(pointer(conv.z, like), at)  # (height, columns, K)
    height = min(TILE, conv.rows - TILE * i)
    # (A^T m) A, from left to right, and the bias
    for r in range(height):
        for j in range(conv.wide):
            points = pointers6(advance(sums, r * SIDE * size + j * conv.K), size)
            pixel = advance(z, (r * conv.columns + TILE * j) * conv.K)  # (4, K)
            left = conv.columns - TILE * j
            targets = (
                pixel,
                advance(pixel, conv.K) if left > 1 else outside,
                advance(pixel, 2 * conv.K) if left > 2 else advance(outside, conv.K),
                advance(pixel, 3 * conv.K) if left > 3 else advance(outside, 2 * conv.K),
                checks,
            )
            map_arrays(output_transform_bias, conv.K, (*points, bias, checks), targets, ())
    if is_nonfinite(conv.K, checks):
        flag_tiles(conv, line, height, z, like)
    # residual and activation
    if conv.y:
        y, values = advance(pointer(conv.y, like), at), height * conv.columns * conv.K
        if conv.residual:
            map_arrays(add, values, (z, advance(pointer(conv.residual, like), at)), (z,), ())
        activate(conv.activate, conv.parameter, height * conv.columns, conv.K, z, y)


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_part(thread_index, thread_count, record, like):
    """The thread's lines of tiles, a block at a time: forward, or of dx, which undoes it with w rotated."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.lines, 1)
    block = (TILES + conv.wide - 1) // conv.wide
    # zeros for a row that is none of the image's, or a bias; no start of sums
    zeros, null = thread_scratch(conv, thread_index, like), pointer(conv.N * 0, like)  # (W C or K,)
    lines = advance(zeros, max(conv.W * conv.C, conv.K))  # (6, line_size)
    sums = advance(lines, SIDE * line_size(conv))  # (4, 6, wide, K), and (5, K)
    v = advance(sums, (SIDE * TILE * conv.wide + TILE + 1) * conv.K)  # (36, n, C)
    m = advance(v, POINTS * block * conv.wide * conv.C)  # (36, n, K)
    clear(max(conv.W * conv.C, conv.K), zeros)
    for first in range(lo, hi, block):
        count = min(block, hi - first)
        n = count * conv.wide
        # B^T x B
        for line in range(count):
            image_columns(conv, first + line, lines, zeros, like)
            image_points(0, SIDE, conv, lines, 0, conv.C, line * conv.wide, n, v)
        # products with u
        for p in range(POINTS):
            a, c = advance(v, p * n * conv.C), advance(m, p * n * conv.K)  # (n, C) and (n, K)
            panels = advance(pointer(conv.panels, like), p * conv.panel_size)  # (C, K) in panels
            panel_tiles(n, conv.K, conv.C, a, conv.C, panels, null, 0, c, conv.K)
        # A^T m A, bias, residual and activation
        for line in range(count):
            line_outputs(conv, first + line, line * conv.wide, n, m, sums, zeros, like)


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


@device_function
def describe(conv, x, K, rows, columns, top, left, scratch, thread_count):
    """Fill in sizes and scratch."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.K, conv.rows, conv.columns, conv.top, conv.left = K, rows, columns, top, left
    conv.high, conv.wide = (rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE
    conv.lines, conv.x = conv.N * conv.high, address(x)
    conv.scratch, conv.scratch_size = address(scratch), scratch.size // thread_count


@driver
def _convolve(
    launcher, thread_count, kernels, x, w, b, top, left, flip, residual, function, parameter, z, y, flags, points_size, scratch
):  # fmt: skip
    record = local_zeros(1, WINOGRAD)
    conv = record[0]
    points = scratch[:points_size]
    describe(conv, x, z.shape[3], z.shape[1], z.shape[2], top, left, scratch[points_size:], thread_count)
    size = w[0, 0].size
    conv.w, conv.flip = address(w), flip
    conv.u, conv.panels = address(points), address(points[POINTS * size :])
    conv.panel_size = points.size // POINTS - size
    run_kernel(launcher, kernels[KERNEL_PART], thread_count, record, ())
    run_kernel(launcher, kernels[PANELS_PART], thread_count, record, ())
    conv.b, conv.residual, conv.flags = address_or_null(b), address_or_null(residual), address(flags)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address_or_null(y), function, parameter
    run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, ())


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, top, left, dw, sums_size, scratch):
    record = local_zeros(1, WINOGRAD)
    conv = record[0]
    describe(conv, x, dz.shape[3], dz.shape[1], dz.shape[2], top, left, scratch[sums_size:], thread_count)
    conv.dz, conv.dw, conv.sums = address(dz), address(dw), address(scratch)
    run_kernel(launcher, kernels[SUMS_PART], thread_count, record, ())
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(
    winograd_kernel_part, winograd_panels_part, winograd_part, winograd_sums_part, winograd_weights_part
)


def applies(w, geometry, groups, z):
    """Whether Winograd's convolution applies to z, and pays: enough channels, and few pixels of tiles beyond z's edges."""
    (stride, pads, dilation), (_, rows, columns, _) = geometry, z.shape
    whole = (rows + TILE - 1) // TILE * ((columns + TILE - 1) // TILE) * TILE * TILE
    return (
        w.shape[:2] == (3, 3)
        and (*stride, *dilation, groups) == (1, 1, 1, 1, 1)
        and min(pads) >= 0
        and min(w.shape[2:]) >= CHANNELS
        and whole <= 2 * rows * columns
    )


def convolve(x, w, b, pads, flip, residual, activation, saved):
    """Write saved: z, and y unless it is None, as in conv2d_forward; with flip x is dz, and z is dx. Returns flags (N, tiles), 1 where a
    value is not finite.
    """
    z, y = saved
    dtype, size = x.dtype, w[0, 0].size
    n, _, width, channels = x.shape
    rows, columns, K = z.shape[1:]
    high, wide = (rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE
    # the last panel has more columns than w
    points = POINTS * (2 * size + 64 * channels)
    tiles = (TILES + wide - 1) // wide * wide
    pixels = max(width * channels, K) + SIDE * (TILE * wide + 2) * channels + (SIDE * TILE * wide + TILE + 1) * K
    scratch_size = max(18 * CHUNK, pixels + POINTS * tiles * (channels + K))
    flags = np.zeros((n, high * wide), np.uint8)
    run(
        2 * z.size * 9 * channels, _convolve, _KERNELS[dtype.char], x, w, *or_empty(dtype, 1, b), *pads[:2], flip,
        *or_empty(dtype, 4, residual), forward_address[dtype.char, activation.code], activation.parameter,
        z, *or_empty(dtype, 4, y), flags, points, scratch=(dtype, points, scratch_size),
    )  # fmt: skip
    return flags


def replace_tiles(flags, z, values):
    """Copy the flagged tiles from values to z (N, rows, columns, K)."""
    n, rows, columns, _ = z.shape
    tiles = flags.reshape(n, (rows + TILE - 1) // TILE, -1).astype(bool)
    pixels = tiles.repeat(TILE, axis=1).repeat(TILE, axis=2)[:, :rows, :columns]
    z[pixels] = values[pixels]


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
