"""Convolutions by a 3 x 3 kernel of stride 1 with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2015).

An output tile of 4 x 4 pixels is what its 6 x 6 pixels of the image give in 36 products, each of which is a matrix product over all tiles
and channels: y = A^T [(G w G^T) (B^T x B)] A. The transforms are polynomials' values at 0, +-1/sqrt(2), +-sqrt(2) and infinity, whose
rounding errors are about those of the sums themselves (with 0, +-1, +-2 they are three times as large). A tile's outcome depends on
the tile alone.

An infinity would reach all of its tile, and there become NaN: tiles with a value that is not finite are flagged, and made again by
kernels/cpu/conv.py. So are the values of a weight's gradient.
"""

import numpy as np
from numba import carray

from .activation import activate
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
# tiles that go through the products at a time, with what is in the second-level cache then; of a weight's gradient
TILES, DEEP_TILES = 24, 48
# tiles whose products are summed in one chain, about
LONG = 8192
# values that are transformed at a time where nothing else says so
CHUNK = 512
# fewer channels or outputs are not worth the transforms
CHANNELS = 8
ROOT, HALF_ROOT, QUARTER_ROOT, TWO_ROOTS = 2**0.5, 0.5**0.5, 0.125**0.5, 8**0.5
TWO_THIRDS, THIRD, SIXTH, ROOT_THIRD, ROOT_SIXTH = 2 / 3, 1 / 3, 1 / 6, 2**0.5 / 3, 2**0.5 / 6

WINOGRAD = np.dtype(
    [(name, "i8") for name in "N H W C K rows columns top left high wide lines turned code".split()]
    + [(name, "i8") for name in "x w u panels panel_size b residual z y dz dw sums flags room room_size".split()]
    + [("parameter", "f8")]
)
KERNEL_PART, PANELS_PART, FORWARD_PART, SUMS_PART, GRADIENT_PART = range(5)


@inline_function
def of_image(a, b, c, d, e, f):
    """B^T, on six values."""
    even, odd = fma(real(-2, a), c, e), fma(real(HALF_ROOT, a), d, real(-ROOT, a) * b)
    half_even, half_odd = fma(real(-0.5, a), c, e), fma(real(ROOT, a), d, real(-HALF_ROOT, a) * b)
    first, last = fma(real(-2.5, a), c, a + e), fma(real(-2.5, a), d, b + f)
    return first, even + odd, even - odd, half_even + half_odd, half_even - half_odd, last


@inline_function
def of_kernel(a, b, c):
    """G, on three values."""
    even, odd = fma(real(-TWO_THIRDS, a), a, real(-THIRD, a) * c), real(-ROOT_THIRD, a) * b
    far_even, far_odd = fma(real(SIXTH, a), a, real(THIRD, a) * c), real(ROOT_SIXTH, a) * b
    return a, even + odd, even - odd, far_even + far_odd, far_even - far_odd, c


@inline_function
def to_outputs(a, b, c, d, e, f):
    """A^T, on six values."""
    even, odd, far_even, far_odd = b + c, b - c, d + e, d - e
    return (
        a + even + far_even,
        fma(real(ROOT, a), far_odd, real(HALF_ROOT, a) * odd),
        fma(real(2, a), far_even, real(0.5, a) * even),
        fma(real(TWO_ROOTS, a), far_odd, fma(real(QUARTER_ROOT, a), odd, f)),
    )


@inline_function
def to_pixels(a, b, c, d, e, f, bias, seen):
    """to_outputs, with the bias; `seen` stays 0 as long as all is finite."""
    first, second, third, fourth = to_outputs(a, b, c, d, e, f)
    first, second, third, fourth = first + bias, second + bias, third + bias, fourth + bias
    return first, second, third, fourth, fma(first + second + (third + fourth), real(0, a), seen)


@inline_function
def of_upstream(a, b, c, d):
    """A, on four values."""
    even, odd = fma(real(0.5, a), c, a), fma(real(QUARTER_ROOT, a), d, real(HALF_ROOT, a) * b)
    far_even, far_odd = fma(real(2, a), c, a), fma(real(TWO_ROOTS, a), d, real(ROOT, a) * b)
    return a, even + odd, even - odd, far_even + far_odd, far_even - far_odd, d


@inline_function
def to_kernel(a, b, c, d, e, f):
    """G^T, on six values."""
    even, odd, far_even, far_odd = b + c, c - b, d + e, d - e
    return (
        fma(real(-TWO_THIRDS, a), even, fma(real(SIXTH, a), far_even, a)),
        fma(real(ROOT_THIRD, a), odd, real(ROOT_SIXTH, a) * far_odd),
        fma(real(THIRD, a), far_even - even, f),
    )


@device_function
def six(first, step):
    """Pointers `step` values apart."""
    return (
        first,
        advance(first, step),
        advance(first, 2 * step),
        advance(first, 3 * step),
        advance(first, 4 * step),
        advance(first, 5 * step),
    )


@device_function
def line_of(pixels, height, row, size, none):
    """A row of an image of so many values a row, or zeros above and below it."""
    return advance(pixels, row * size) if 0 <= row < height else none


@kernel(WINOGRAD)
def winograd_kernel_part(part, parts, job, like):
    """u (36, *w.shape[2:]): the part's values of the transformed w, turned by half a circle for an input's gradient."""
    g = carray(job, 1)[0]
    size = g.C * g.K
    lo, hi = thread_range(part, parts, size, CHUNK)
    room = advance(pointer(g.room, like), part * g.room_size)
    for at in range(lo, hi, CHUNK):
        n = min(CHUNK, hi - at)
        for j in range(3):
            a, b, c = j, 3 + j, 6 + j
            if g.turned:
                a, b, c = 8 - a, 8 - b, 8 - c
            w = advance(pointer(g.w, like), at)
            taps = advance(w, a * size), advance(w, b * size), advance(w, c * size)
            map_arrays(of_kernel, n, taps, six(advance(room, j * CHUNK), 3 * CHUNK), ())
        for i in range(SIDE):
            taps = advance(room, 3 * i * CHUNK)
            taps = taps, advance(taps, CHUNK), advance(taps, 2 * CHUNK)
            map_arrays(of_kernel, n, taps, six(advance(pointer(g.u, like), SIDE * i * size + at), size), ())


@kernel(WINOGRAD)
def winograd_panels_part(part, parts, job, like):
    """The part's points of u, as the products take them; transposed for an input's gradient."""
    g = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, POINTS, 1)
    for p in range(lo, hi):
        u, panels = advance(pointer(g.u, like), p * g.C * g.K), advance(pointer(g.panels, like), p * g.panel_size)
        row, column = (1, g.C) if g.turned else (g.K, 1)
        pack_b(g.C, g.K, u, row, column, panels, g.C)


@device_function
def padded(g):
    """Values of a line of tiles' pixels of the image."""
    return (TILE * g.wide + 2) * g.C


@device_function
def image_columns(g, line, lines, none, like):
    """lines (6, padded): the line's six rows of x through B^T from above to below, between zeros."""
    image, i = line // g.high, line % g.high
    x, row, size, n = advance(pointer(g.x, like), image * g.H * g.W * g.C), TILE * i - g.top, g.W * g.C, padded(g)
    rows = (
        line_of(x, g.H, row, size, none),
        line_of(x, g.H, row + 1, size, none),
        line_of(x, g.H, row + 2, size, none),
        line_of(x, g.H, row + 3, size, none),
        line_of(x, g.H, row + 4, size, none),
        line_of(x, g.H, row + 5, size, none),
    )
    left = g.left * g.C
    values = min(size, n - left)
    for r in range(SIDE):
        to = advance(lines, r * n)
        clear(left, to)
        clear(n - left - values, advance(to, left + values))
    map_arrays(of_image, values, rows, six(advance(lines, left), n), ())


@device_function
def image_points(lo, hi, g, lines, channel, channels, tile, n, v):
    """v (hi - lo rows of 6 points, n tiles, channels): the lines' columns through B, as tiles from the tile-th on."""
    size = padded(g)
    for i in range(lo, hi):
        for j in range(g.wide):
            pixels = six(advance(lines, i * size + TILE * j * g.C + channel), g.C)
            points = advance(v, ((i - lo) * SIDE * n + tile + j) * channels)
            map_arrays(of_image, channels, pixels, six(points, n * channels), ())


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_part(part, parts, job, like):
    """The part's lines of tiles, a few at a time."""
    g = carray(job, 1)[0]
    lo, hi = thread_range(part, parts, g.lines, 1)
    most = (TILES + g.wide - 1) // g.wide
    room = advance(pointer(g.room, like), part * g.room_size)
    none, null = room, pointer(g.N * 0, like)
    lines = advance(none, max(g.W * g.C, g.K))
    sums = advance(lines, SIDE * padded(g))
    v = advance(sums, (SIDE * TILE * g.wide + TILE + 1) * g.K)
    m = advance(v, POINTS * most * g.wide * g.C)
    clear(max(g.W * g.C, g.K), none)
    for first in range(lo, hi, most):
        count = min(most, hi - first)
        n = count * g.wide
        for line in range(count):
            image_columns(g, first + line, lines, none, like)
            image_points(0, SIDE, g, lines, 0, g.C, line * g.wide, n, v)
        for p in range(POINTS):
            panels, to = advance(pointer(g.panels, like), p * g.panel_size), advance(m, p * n * g.K)
            panel_tiles(n, g.K, g.C, advance(v, p * n * g.C), g.C, panels, null, 0, to, g.K)
        for line in range(count):
            line_outputs(g, first + line, line * g.wide, n, m, sums, none, like)


@device_function
def line_outputs(g, line, tile, n, m, sums, none, like):
    """The line's pixels, from its tiles' products m (36, n, K), and what follows a convolution."""
    image, i = line // g.high, line % g.high
    size = g.wide * g.K
    for j in range(SIDE):
        points, to = advance(m, (j * n + tile) * g.K), advance(sums, j * size)
        targets = (
            to,
            advance(to, SIDE * size),
            advance(to, 2 * SIDE * size),
            advance(to, 3 * SIDE * size),
        )
        map_arrays(to_outputs, size, six(points, SIDE * n * g.K), targets, ())
    seen = advance(sums, SIDE * TILE * size)
    beyond, bias = advance(seen, g.K), pointer(g.b, like) if g.b else none
    clear(g.K, seen)
    at = (image * g.rows + TILE * i) * g.columns * g.K
    z = advance(pointer(g.z, like), at)
    height = min(TILE, g.rows - TILE * i)
    for r in range(height):
        for j in range(g.wide):
            from_six = six(advance(sums, r * SIDE * size + j * g.K), size)
            pixel = advance(z, (r * g.columns + TILE * j) * g.K)
            left = g.columns - TILE * j
            targets = (
                pixel,
                advance(pixel, g.K) if left > 1 else beyond,
                advance(pixel, 2 * g.K) if left > 2 else advance(beyond, g.K),
                advance(pixel, 3 * g.K) if left > 3 else advance(beyond, 2 * g.K),
                seen,
            )
            map_arrays(to_pixels, g.K, (*from_six, bias, seen), targets, ())
    if not_finite(g.K, seen):
        flag(g, line, height, z, like)
    if g.y:
        y, values = advance(pointer(g.y, like), at), height * g.columns * g.K
        if g.residual:
            map_arrays(add, values, (z, advance(pointer(g.residual, like), at)), (z,), ())
        activate(g.code, g.parameter, height * g.columns, g.K, z, y)


@device_function
def not_finite(n, values):
    found, total = carray(values, n), real(0, carray(values, 1)[0])
    for k in range(n):
        total += found[k] * real(0, total)
    return total != total


@device_function
def flag(g, line, height, z, like):
    """Flag the line's tiles that have a value which is not finite."""
    flags = carray(void_pointer(g.flags + line * g.wide), g.wide, np.uint8)
    for j in range(g.wide):
        width = min(TILE, g.columns - TILE * j) * g.K
        for r in range(height):
            if not_finite(width, advance(z, (r * g.columns + TILE * j) * g.K)):
                flags[j] = 1


@device_function
def upstream_columns(g, line, lines, none, like):
    """lines (6, 4 wide, K): the line's four rows of dz, through A from above to below, before zeros."""
    image, i = line // g.high, line % g.high
    dz = advance(pointer(g.dz, like), image * g.rows * g.columns * g.K)
    n, size, row = TILE * g.wide * g.K, g.columns * g.K, TILE * i
    rows = (
        advance(dz, row * size),
        line_of(dz, g.rows, row + 1, size, none),
        line_of(dz, g.rows, row + 2, size, none),
        line_of(dz, g.rows, row + 3, size, none),
    )
    for r in range(SIDE):
        clear(n - size, advance(lines, r * n + size))
    map_arrays(of_upstream, size, rows, six(lines, n), ())


@device_function
def upstream_points(lo, hi, g, lines, tile, n, d):
    """d (hi - lo rows of 6 points, n tiles, K): A^T of the line's columns, as its tiles from the tile-th on."""
    size = TILE * g.wide * g.K
    for i in range(lo, hi):
        for j in range(g.wide):
            pixel = advance(lines, i * size + TILE * j * g.K)
            pixels = pixel, advance(pixel, g.K), advance(pixel, 2 * g.K), advance(pixel, 3 * g.K)
            points = advance(d, ((i - lo) * SIDE * n + tile + j) * g.K)
            map_arrays(of_upstream, g.K, pixels, six(points, n * g.K), ())


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_sums_part(part, parts, job, like):
    """sums (36, C, K): the products of the part's points, over all tiles in their order. More than six parts share the channels too."""
    g = carray(job, 1)[0]
    blocks = (parts + SIDE - 1) // SIDE
    begin, end = thread_range(part, parts, SIDE * blocks, 1)
    for block in range(begin // SIDE, (end + SIDE - 1) // SIDE):
        lo, hi = max(begin - block * SIDE, 0), min(end - block * SIDE, SIDE)
        channel, behind = thread_range(block, blocks, g.C, ROWS)
        if channel < behind:
            sums_of(g, lo, hi, channel, behind - channel, advance(pointer(g.room, like), part * g.room_size), like)


@device_function
def sums_of(g, lo, hi, channel, channels, room, like):
    """The sums of the rows lo..hi of points and of so many channels."""
    most = (DEEP_TILES + g.wide - 1) // g.wide
    none, size = room, max(g.W * g.C, g.columns * g.K)
    lines = advance(none, size)
    v = advance(lines, SIDE * max(padded(g), TILE * g.wide * g.K))
    d = advance(v, POINTS * most * g.wide * g.C)
    null, width = pointer(g.N * 0, like), VECTORS * lanes(like)
    # whole steps of the loop; the sums of the first so many lines, and those of the next, which are added to them, in as much room again
    long = max(LONG // (most * g.wide), 1) * most
    clear(size, none)
    for first in range(0, g.lines, most):
        count = min(most, g.lines - first)
        n = count * g.wide
        for line in range(count):
            image_columns(g, first + line, lines, none, like)
            image_points(lo, hi, g, lines, channel, channels, line * g.wide, n, v)
            upstream_columns(g, first + line, lines, none, like)
            upstream_points(lo, hi, g, lines, line * g.wide, n, d)
        for p in range((hi - lo) * SIDE):
            a, b = advance(v, p * n * channels), advance(d, p * n * g.K)
            sums = advance(pointer(g.sums, like), ((SIDE * lo + p) * g.C + channel) * g.K)
            to = sums if first < long else advance(sums, POINTS * g.C * g.K)
            start, start_row, start_col = (null, 0, 0) if first % long == 0 else (to, g.K, 1)
            tiles(channels, g.K, n, a, 1, channels, 1, 0, b, g.K, width, start, start_row, start_col, to, g.K)
            if first >= long and ((first + most) % long == 0 or first + most >= g.lines):
                map_arrays(add, channels * g.K, (sums, to), (sums,), ())


@kernel(WINOGRAD)
def winograd_gradient_part(part, parts, job, like):
    """The part's values of dw (3, 3, C, K), from the sums."""
    g = carray(job, 1)[0]
    size = g.C * g.K
    lo, hi = thread_range(part, parts, size, CHUNK)
    room = advance(pointer(g.room, like), part * g.room_size)
    for at in range(lo, hi, CHUNK):
        n = min(CHUNK, hi - at)
        for j in range(SIDE):
            points, to = advance(pointer(g.sums, like), j * size + at), advance(room, j * CHUNK)
            targets = to, advance(to, SIDE * CHUNK), advance(to, 2 * SIDE * CHUNK)
            map_arrays(to_kernel, n, six(points, SIDE * size), targets, ())
        for i in range(3):
            dw = advance(pointer(g.dw, like), 3 * i * size + at)
            targets = dw, advance(dw, size), advance(dw, 2 * size)
            map_arrays(to_kernel, n, six(advance(room, i * SIDE * CHUNK), CHUNK), targets, ())


@device_function
def describe(g, x, K, rows, columns, top, left, room, parts):
    g.N, g.H, g.W, g.C = x.shape
    g.K, g.rows, g.columns, g.top, g.left = K, rows, columns, top, left
    g.high, g.wide = (rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE
    g.lines, g.x, g.room, g.room_size = g.N * g.high, address(x), address(room), room.size // parts


@driver
def _convolve(
    launcher, parts, kernels, x, w, b, top, left, turned, residual, code, parameter, z, y, flags, points_size, room
):  # fmt: skip
    job = local_zeros(1, WINOGRAD)
    g = job[0]
    points = room[:points_size]
    describe(g, x, z.shape[3], z.shape[1], z.shape[2], top, left, room[points_size:], parts)
    size = w[0, 0].size
    g.w, g.turned = address(w), turned
    g.u, g.panels, g.panel_size = address(points), address(points[POINTS * size :]), points.size // POINTS - size
    run_kernel(launcher, kernels[KERNEL_PART], parts, job, ())
    run_kernel(launcher, kernels[PANELS_PART], parts, job, ())
    g.b, g.residual, g.flags = address_or_null(b), address_or_null(residual), address(flags)
    g.z, g.y, g.code, g.parameter = address(z), address_or_null(y), code, parameter
    run_kernel(launcher, kernels[FORWARD_PART], parts, job, ())


@driver
def _weights(launcher, parts, kernels, x, dz, top, left, dw, sums_size, room):
    job = local_zeros(1, WINOGRAD)
    g = job[0]
    describe(g, x, dz.shape[3], dz.shape[1], dz.shape[2], top, left, room[sums_size:], parts)
    g.dz, g.dw, g.sums = address(dz), address(dw), address(room)
    run_kernel(launcher, kernels[SUMS_PART], parts, job, ())
    run_kernel(launcher, kernels[GRADIENT_PART], parts, job, ())


_KERNELS = Addresses(
    winograd_kernel_part, winograd_panels_part, winograd_part, winograd_sums_part, winograd_gradient_part
)


def suits(w, geometry, groups, z):
    """Whether z is made this way: where tiles beyond its edges and transforms pay."""
    (stride, pads, dilation), (_, rows, columns, _) = geometry, z.shape
    whole = (rows + TILE - 1) // TILE * ((columns + TILE - 1) // TILE) * TILE * TILE
    return (
        w.shape[:2] == (3, 3)
        and (*stride, *dilation, groups) == (1, 1, 1, 1, 1)
        and min(pads) >= 0
        and min(w.shape[2:]) >= CHANNELS
        and whole <= 2 * rows * columns
    )


def convolve(x, w, b, pads, turned, residual, activation, saved):
    """Flags (N, tiles), 1 where a value came out that is not finite. saved: z, and y unless it is None, as in conv2d_forward; with w
    turned, z is the gradient of an input and x of an output.
    """
    z, y = saved
    dtype, size = x.dtype, w[0, 0].size
    n, _, width, channels = x.shape
    rows, columns, K = z.shape[1:]
    high, wide = (rows + TILE - 1) // TILE, (columns + TILE - 1) // TILE
    # the last panel may have room for columns that w has not
    points = POINTS * (2 * size + 64 * channels)
    tiles = (TILES + wide - 1) // wide * wide
    pixels = max(width * channels, K) + SIDE * (TILE * wide + 2) * channels + (SIDE * TILE * wide + TILE + 1) * K
    room = max(18 * CHUNK, pixels + POINTS * tiles * (channels + K))
    flags = np.zeros((n, high * wide), np.uint8)
    run(
        2 * z.size * 9 * channels, _convolve, _KERNELS[dtype.char], x, w, *or_empty(dtype, 1, b), *pads[:2], turned,
        *or_empty(dtype, 4, residual), *activation, z, *or_empty(dtype, 4, y), flags, points, scratch=(dtype, points, room),
    )  # fmt: skip
    return flags


def weights(x, dz, pads, dw):
    """dw (3, 3, C, K) of x and dz as in conv2d_backward, in which a value that is not finite is not to be trusted."""
    dtype = x.dtype
    _, _, width, channels = x.shape
    columns, K = dz.shape[2:]
    wide = (columns + TILE - 1) // TILE
    tiles = (DEEP_TILES + wide - 1) // wide * wide
    pixels = max(width * channels, columns * K) + SIDE * max((TILE * wide + 2) * channels, TILE * wide * K)
    room = max(18 * CHUNK, pixels + POINTS * tiles * (channels + K))
    # twice: see sums_of
    sums = 2 * POINTS * channels * K
    run(
        2 * dz.size * 9 * channels, _weights, _KERNELS[dtype.char], x, dz, *pads[:2], dw, sums,
        scratch=(dtype, sums, room),
    )  # fmt: skip
