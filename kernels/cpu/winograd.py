"""Winograd convolution F(4 x 4, 3 x 3) and F(2 x 2, 5 x 5): kernels of stride 1 by 0.25 and 0.36 of the multiplications (Winograd 1980;
Lavin & Gray 2015).

    y = A^T [(G w G^T) (B^T x B)] A     x: 6 x 6 pixels of the image, w: a kernel, y: a tile of 4 x 4 or 2 x 2 pixels of the output

The product of the two 6 x 6 matrices is taken point by point. For each of the 36 points it is a matrix product over all tiles and
channels. dx is the same with w rotated by 180 degrees; for dw see winograd_weights.py.

Where tiles are many, all of w goes through G into panels first, and a thread takes some tiles at a time through all three steps. Where they
are few, w has far more values than they: then a thread has some outputs, and makes the panels of these a block at a time, in cache. The
order of the sums is the same.

The transforms evaluate polynomials at 0, +-1/sqrt(2), +-sqrt(2) and infinity. Their rounding errors are about those of the sums
themselves; with 0, +-1, +-2 they are three times as large. They are the same points for both kernels, and so the same B: where A and G
differ, `tile` and `taps` decide. The values of a tile depend on the pixels of that tile alone.

An infinity in x would turn the whole tile into NaN. So tiles of y with a value that is not finite are flagged, and conv.py computes them
again, without transforms; it does the same with a dw that is not finite.
"""

import numpy as np

from .activation import activate, forward_address
from .engine.compile import Addresses, device_function, driver, inline_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
    lanes,
    local_zeros,
    pointer,
    prefetch,
    real,
    run_kernel,
    void_pointer,
)
from .engine.matrix import Matrix, null_matrix, rows_apart
from .engine.microkernel import VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .engine.vector_math import fma
from .gemm import B_BYTES, Panels, clear, pack_b, panel_tiles, tiles, tiles_in_place

# pixels of x that a tile is computed from, in a row; those of a tile and the taps of a kernel are SIDE + 1
SIDE, POINTS = 6, 36
# sizes of kernels, and the tiles of an image that each needs at least: 5 x 5 taps are many to take through G
FEWEST_TILES = {3: 0, 5: 36}
# tiles that go through the products at a time and fit with them into the second-level cache
TILES = 24
# values of a kernel that are transformed at a time
CHUNK = 256
# with so many times fewer values of tiles than of the kernel, a thread makes the panels that it multiplies with; their room
FEW, POINTS_ROOM = 2, B_BYTES // 4 + POINTS * (CHUNK + 16)
# fewer channels or outputs are not worth the transforms
CHANNELS = 8
ROOT, HALF_ROOT, QUARTER_ROOT, TWO_ROOTS = 2**0.5, 0.5**0.5, 0.125**0.5, 8**0.5
TWO_THIRDS, THIRD, SIXTH, ROOT_THIRD, ROOT_SIXTH = 2 / 3, 1 / 3, 1 / 6, 2**0.5 / 3, 2**0.5 / 6
# a convolution of x (N, H, W, C) to z (N, rows, columns, K), with the kernel's corner for its first pixel at -top, -left of x; for dx, x
# is dz and w is rotated by 180 degrees, `flip`. Its fields: tile: pixels of a tile in a row; taps: those of w in a row; high, wide: tiles
# of an output; lines: N high of tiles; panels: w through G, panel_size values a point; sums (2, 36, channels, outputs): the points of dw,
# for so many channels and outputs from `channel` and `output` on; flags (N, high * wide), uint8: tiles with a value that is not finite;
# scratch: scratch_size values a thread; w, b, residual, z, y, dz, dw and parameter: as in conv2d_forward and conv2d_backward, null for
# None; v and m: all tiles' points before and after the products, where tiles are few
WINOGRAD = np.dtype(
    [(name, "i8") for name in "N H W C K rows columns top left tile taps high wide lines flip activate".split()]
    + [(name, "i8") for name in "channel channels output outputs".split()]
    + [(name, "i8") for name in "x w panels panel_size b residual z y dz dw sums v m flags".split()]
    + [(name, "i8") for name in "scratch scratch_size itemsize".split()]
    + [("parameter", "f8")]
)
PANELS_PART, FORWARD_PART, POINTS_PART, PRODUCTS_PART, OUTPUTS_PART = range(5)


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
def kernel_transform5(a, b, c, d, e):
    """G, on five values."""
    even = fma(real(-TWO_THIRDS, a), a, fma(real(-THIRD, a), c, real(-SIXTH, a) * e))
    odd = fma(real(-ROOT_THIRD, a), b, real(-ROOT_SIXTH, a) * d)
    far_even = fma(real(SIXTH, a), a, fma(real(THIRD, a), c, real(TWO_THIRDS, a) * e))
    far_odd = fma(real(ROOT_SIXTH, a), b, real(ROOT_THIRD, a) * d)
    return a, even + odd, even - odd, far_even + far_odd, far_even - far_odd, e


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
def output_transform2(a, b, c, d, e, f):
    """A^T, on six values, for a tile of two."""
    even, odd, far_even, far_odd = b + c, b - c, d + e, d - e
    return a + even + far_even, fma(real(ROOT, a), far_odd, fma(real(HALF_ROOT, a), odd, f))


@inline_function
def output_transform2_bias(a, b, c, d, e, f, bias, check):
    """output_transform_bias, for a tile of two."""
    first, second = output_transform2(a, b, c, d, e, f)
    first, second = first + bias, second + bias
    return first, second, fma(first + second, real(0, a), check)


@device_function
def pointers2(first, step):
    """Pointers `step` values apart."""
    return first, advance(first, step)


@device_function
def pointers3(first, step):
    return first, advance(first, step), advance(first, 2 * step)


@device_function
def pointers4(first, step):
    return first, advance(first, step), advance(first, 2 * step), advance(first, 3 * step)


@device_function
def pointers5(first, step):
    return pointers2(first, step) + pointers3(advance(first, 2 * step), step)


@device_function
def pointers6(first, step):
    return pointers3(first, step) + pointers3(advance(first, 3 * step), step)


@device_function
def advance6(pointers, n):
    """Six pointers, each n values further."""
    a, b, c, d, e, f = pointers
    return advance(a, n), advance(b, n), advance(c, n), advance(d, n), advance(e, n), advance(f, n)


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
    """Values of a row of the image that a line of tiles reads, with its padding, in the panel's channels."""
    return (conv.tile * conv.wide + conv.taps - 1) * conv.channels


@device_function
def image_columns(conv, line, lines, zeros, like):
    """lines (6, line_size) = B^T x: the line's six rows of x, transformed from above to below, between zeros."""
    image, i = line // conv.high, line % conv.high
    x = advance(pointer(conv.x, like), image * conv.H * conv.W * conv.C + conv.channel)  # (H, W, C)
    row, size, n = conv.tile * i - conv.top, conv.W * conv.C, line_size(conv)
    rows = image_rows(x, conv.H, row, size, zeros) + image_rows(x, conv.H, row + 3, size, zeros)
    left = conv.left * conv.channels
    values = min(conv.W * conv.channels, n - left)
    for r in range(SIDE):
        row_values = advance(lines, r * n)  # (line_size,)
        clear(left, row_values)
        clear(n - left - values, advance(row_values, left + values))
    run = values if conv.channels == conv.C else conv.channels
    for at in range(0, values, run):
        pixels = advance6(rows, at // conv.channels * conv.C)
        map_arrays(input_transform, run, pixels, pointers6(advance(lines, left + at), n), ())


@device_function
def image_points(lo, hi, conv, lines, channel, channels, tile, n, row, v):
    """v (hi - lo rows of 6 points, n tiles, row) = (B^T x) B: the lines' columns, as tiles from the tile-th on.

    channel, channels: those of the lines' that are used.
    """
    size = line_size(conv)
    for i in range(lo, hi):
        for j in range(conv.wide):
            pixels = pointers6(advance(lines, i * size + conv.tile * j * conv.channels + channel), conv.channels)
            points = advance(v, ((i - lo) * SIDE * n + tile + j) * row)  # (6, row), n * row apart
            map_arrays(input_transform, channels, pixels, pointers6(points, n * row), ())


@device_function
def transform_taps(taps, n, values, step, targets):
    """G, on 3 or 5 arrays of n values, `step` apart."""
    if taps == 3:
        map_arrays(kernel_transform, n, pointers3(values, step), targets, ())
    else:
        map_arrays(kernel_transform5, n, pointers5(values, step), targets, ())


@device_function
def taps_size(taps):
    """Values of scratch that kernel_points needs."""
    return taps * (taps + SIDE) * CHUNK


@device_function
def kernel_points(conv, k, kc, j, nc, scratch, points, step, like):
    """points (36, kc, a panel's width), `step` apart: G w G^T of kc channels from the k-th on and nc outputs from the j-th on.

    scratch: taps_size values.
    """
    width, taps = VECTORS * lanes(like), conv.taps
    size, middle = (
        conv.C * conv.K,
        advance(scratch, taps * taps * CHUNK),
    )  # of taps (taps, taps, CHUNK) and (6, taps, CHUNK)
    row, column = (1, conv.C) if conv.flip else (conv.K, 1)
    for first in range(0, kc, CHUNK // width):
        m = min(CHUNK // width, kc - first)
        for tap in range(taps * taps):
            place = taps * taps - 1 - tap if conv.flip else tap
            w = advance(pointer(conv.w, like), place * size + (k + first) * row + j * column)
            if column == 1:
                # of the next rows, which lie far from each other
                for r in range(m, 2 * m):
                    prefetch(advance(w, r * row))
            pack_b(m, nc, Matrix(w, row, column), advance(scratch, tap * CHUNK), m)
        # G w, by columns of taps
        for c in range(taps):
            targets = pointers6(advance(middle, c * CHUNK), taps * CHUNK)
            transform_taps(taps, m * width, advance(scratch, c * CHUNK), taps * CHUNK, targets)
        # (G w) G^T, by rows
        for i in range(SIDE):
            targets = pointers6(advance(points, SIDE * i * step + first * width), step)
            transform_taps(taps, m * width, advance(middle, taps * i * CHUNK), CHUNK, targets)


@kernel(WINOGRAD)
def winograd_panels_part(thread_index, thread_count, record, like):
    """The thread's panels of G w G^T (36, C, K), or some channels of them."""
    conv = carray(record, 1)[0]
    width = VECTORS * lanes(like)
    rows = CHUNK // width
    blocks = (conv.C + rows - 1) // rows
    lo, hi = thread_range(thread_index, thread_count, (conv.K + width - 1) // width * blocks, 1)
    scratch = thread_scratch(conv, thread_index, like)
    for at in range(lo, hi):
        j, k = at // blocks * width, at % blocks * rows
        points = advance(pointer(conv.panels, like), j * conv.C + k * width)
        kernel_points(conv, k, min(rows, conv.C - k), j, min(width, conv.K - j), scratch, points, conv.panel_size, like)


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
        width = min(conv.tile, conv.columns - conv.tile * j) * conv.K
        for r in range(height):
            if is_nonfinite(width, advance(z, (r * conv.columns + conv.tile * j) * conv.K)):
                flags[j] = 1


@device_function
def line_outputs(conv, line, tile, n, m, sums, zeros, like):
    """A^T m A: the line's pixels, from its tiles' products m (36, n, K); then bias, residual and activation."""
    image, i = line // conv.high, line % conv.high
    size = conv.wide * conv.K
    # A^T m, from above to below
    for j in range(SIDE):
        points, target = pointers6(advance(m, (j * n + tile) * conv.K), SIDE * n * conv.K), advance(sums, j * size)
        if conv.tile == 4:
            map_arrays(output_transform, size, points, pointers4(target, SIDE * size), ())
        else:
            map_arrays(output_transform2, size, points, pointers2(target, SIDE * size), ())
    checks = advance(sums, SIDE * conv.tile * size)  # (K,)
    outside, bias = advance(checks, conv.K), pointer(conv.b, like) if conv.b else zeros  # (tile - 1, K) and (K,)
    clear(conv.K, checks)
    at = (image * conv.rows + conv.tile * i) * conv.columns * conv.K
    z = advance(pointer(conv.z, like), at)  # (height, columns, K)
    height = min(conv.tile, conv.rows - conv.tile * i)
    # (A^T m) A, from left to right, and the bias
    for r in range(height):
        for j in range(conv.wide):
            sources = (*pointers6(advance(sums, r * SIDE * size + j * conv.K), size), bias, checks)
            pixel = advance(z, (r * conv.columns + conv.tile * j) * conv.K)  # (tile, K)
            left = conv.columns - conv.tile * j
            second = advance(pixel, conv.K) if left > 1 else outside
            if conv.tile == 4:
                third = advance(pixel, 2 * conv.K) if left > 2 else advance(outside, conv.K)
                fourth = advance(pixel, 3 * conv.K) if left > 3 else advance(outside, 2 * conv.K)
                map_arrays(output_transform_bias, conv.K, sources, (pixel, second, third, fourth, checks), ())
            else:
                map_arrays(output_transform2_bias, conv.K, sources, (pixel, second, checks), ())
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
    # zeros for a row that is none of the image's, or a bias
    zeros = thread_scratch(conv, thread_index, like)  # (W C or K,)
    lines = advance(zeros, max(conv.W * conv.C, conv.K))  # (6, line_size)
    sums = advance(lines, SIDE * line_size(conv))  # (tile, 6, wide, K), and (tile, K)
    v = advance(sums, (SIDE * conv.wide + 1) * conv.tile * conv.K)  # (36, n, C)
    m = advance(v, POINTS * block * conv.wide * conv.C)  # (36, n, K)
    clear(max(conv.W * conv.C, conv.K), zeros)
    for first in range(lo, hi, block):
        count = min(block, hi - first)
        n = count * conv.wide
        # B^T x B
        for line in range(count):
            image_columns(conv, first + line, lines, zeros, like)
            image_points(0, SIDE, conv, lines, 0, conv.C, line * conv.wide, n, conv.C, v)
        # products with u
        for p in range(POINTS):
            a = rows_apart(advance(v, p * n * conv.C), conv.C)  # (n, C)
            c = rows_apart(advance(m, p * n * conv.K), conv.K)  # (n, K)
            panels = advance(pointer(conv.panels, like), p * conv.panel_size)  # (C, K) in panels
            panel_tiles(n, conv.K, conv.C, a, panels, null_matrix(like), c)
        # A^T m A, bias, residual and activation
        for line in range(count):
            line_outputs(conv, first + line, line * conv.wide, n, m, sums, zeros, like)


@kernel(WINOGRAD)
def winograd_points_part(thread_index, thread_count, record, like):
    """B^T x B of the thread's lines of tiles, for all products: v (36, tiles, C)."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.lines, 1)
    zeros = thread_scratch(conv, thread_index, like)  # (W C,)
    lines = advance(zeros, conv.W * conv.C)  # (6, line_size)
    clear(conv.W * conv.C, zeros)
    for line in range(lo, hi):
        image_columns(conv, line, lines, zeros, like)
        tiles_n = conv.lines * conv.wide
        image_points(0, SIDE, conv, lines, 0, conv.C, line * conv.wide, tiles_n, conv.C, pointer(conv.v, like))


@kernel(WINOGRAD, needs=provide_microkernel)
def winograd_products_part(thread_index, thread_count, record, like):
    """The thread's outputs of all products, m (36, tiles, K). It makes its panels of G w G^T a block at a time."""
    conv = carray(record, 1)[0]
    width = VECTORS * lanes(like)
    lo, hi = thread_range(thread_index, thread_count, conv.K, width)
    n, depth = conv.lines * conv.wide, block_channels(conv, width)
    scratch = thread_scratch(conv, thread_index, like)  # (taps_size,)
    panels, step = advance(scratch, taps_size(conv.taps)), depth * width + 16  # (36, depth, width), step apart
    for j in range(lo, hi, width):
        nc = min(width, hi - j)
        for k in range(0, conv.C, depth):
            kc = min(depth, conv.C - k)
            kernel_points(conv, k, kc, j, nc, scratch, panels, step, like)
            for p in range(POINTS):
                a = rows_apart(advance(pointer(conv.v, like), p * n * conv.C + k), conv.C)  # (n, kc)
                c = rows_apart(advance(pointer(conv.m, like), p * n * conv.K + j), conv.K)  # (n, nc)
                b = Panels(advance(panels, p * step), width, 0)
                tiles(n, nc, kc, tiles_in_place(a), b, c if k > 0 else null_matrix(like), c)


@kernel(WINOGRAD)
def winograd_outputs_part(thread_index, thread_count, record, like):
    """A^T m A, bias, residual and activation of the thread's lines of tiles."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.lines, 1)
    zeros = thread_scratch(conv, thread_index, like)  # (K,)
    sums = advance(zeros, conv.K)  # (tile, 6, wide, K), and (tile, K)
    clear(conv.K, zeros)
    for line in range(lo, hi):
        line_outputs(conv, line, line * conv.wide, conv.lines * conv.wide, pointer(conv.m, like), sums, zeros, like)


@device_function
def block_channels(conv, width):
    """Channels whose panels of 36 points fit into the second-level cache, whole chunks of kernel_points."""
    rows = CHUNK // width
    return max(1, B_BYTES // (POINTS * width * conv.itemsize * rows)) * rows


@device_function
def count_tiles(rows, columns, taps):
    """Tiles of an output above each other and beside each other, and a tile's side."""
    tile = SIDE + 1 - taps
    return (rows + tile - 1) // tile, (columns + tile - 1) // tile, tile


@device_function
def describe(conv, x, taps, K, rows, columns, top, left, scratch, thread_count):
    """Fill in sizes and scratch."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.K, conv.rows, conv.columns, conv.top, conv.left = K, rows, columns, top, left
    conv.taps = taps
    conv.high, conv.wide, conv.tile = count_tiles(rows, columns, taps)
    conv.lines, conv.x = conv.N * conv.high, address(x)
    conv.channel, conv.channels, conv.output, conv.outputs = 0, conv.C, 0, K
    conv.scratch, conv.scratch_size, conv.itemsize = address(scratch), scratch.size // thread_count, x.itemsize


@driver
def _convolve(
    launcher, thread_count, kernels, x, w, b, top, left, flip, residual, function, parameter, z, y, flags, few_tiles, points_size, scratch
):  # fmt: skip
    record = local_zeros(1, WINOGRAD)
    conv = record[0]
    points = scratch[:points_size]
    describe(conv, x, len(w), z.shape[3], z.shape[1], z.shape[2], top, left, scratch[points_size:], thread_count)
    conv.w, conv.flip = address(w), flip
    conv.b, conv.residual, conv.flags = address_or_null(b), address_or_null(residual), address(flags)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address_or_null(y), function, parameter
    if few_tiles:
        conv.v, conv.m = address(points), address(points[POINTS * conv.lines * conv.wide * conv.C :])
        for part in range(POINTS_PART, OUTPUTS_PART + 1):
            run_kernel(launcher, kernels[part], thread_count, record, (points,))
    else:
        conv.panels, conv.panel_size = address(points), points.size // POINTS
        run_kernel(launcher, kernels[PANELS_PART], thread_count, record, (points,))
        run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, (points,))


_KERNELS = Addresses(
    winograd_panels_part, winograd_part, winograd_points_part, winograd_products_part, winograd_outputs_part
)


def applies(w, geometry, groups, z):
    """Whether Winograd's convolution applies to z, and pays: enough channels and tiles, and few pixels of tiles beyond z's edges.

    The batch does not decide: an image has the same bits alone.
    """
    (stride, pads, dilation), (_, rows, columns, _), (taps, width) = geometry, z.shape, w.shape[:2]
    if taps != width or taps not in FEWEST_TILES:
        return False
    high, wide, tile = count_tiles.py_func(rows, columns, taps)
    return (
        (*stride, *dilation, groups) == (1, 1, 1, 1, 1)
        and min(pads) >= 0
        and min(w.shape[2:]) >= CHANNELS
        and high * wide * tile**2 <= 2 * rows * columns
        and high * wide >= FEWEST_TILES[taps]
    )


def convolve(x, w, b, pads, flip, residual, activation, saved):
    """Write saved: z, and y unless it is None, as in conv2d_forward; with flip x is dz, and z is dx. Returns flags (N, tiles), 1 where a
    value is not finite.
    """
    z, y = saved
    dtype, taps, size = x.dtype, len(w), w[0, 0].size
    n, _, width, channels = x.shape
    rows, columns, K = z.shape[1:]
    high, wide, tile = count_tiles.py_func(rows, columns, taps)
    n_tiles, tiles_at_once = n * high * wide, (TILES + wide - 1) // wide * wide
    few_tiles = n_tiles * (channels + K) * FEW < size
    pixels = max(width * channels, K) + SIDE * (tile * wide + taps - 1) * channels + (SIDE * wide + 1) * tile * K
    if few_tiles:
        points, each = POINTS * n_tiles * (channels + K), max(pixels, taps_size.py_func(taps) + POINTS_ROOM)
    else:
        # the last panel has more columns than w
        points, each = (
            POINTS * (size + 64 * channels),
            max(taps_size.py_func(taps), pixels + POINTS * tiles_at_once * (channels + K)),
        )
    flags = np.zeros((n, high * wide), np.uint8)
    run(
        2 * z.size * w[..., 0].size, _convolve, _KERNELS[dtype.char], x, w, *or_empty(dtype, 1, b), *pads[:2], flip,
        *or_empty(dtype, 4, residual), forward_address[dtype.char, activation.code], activation.parameter,
        z, *or_empty(dtype, 4, y), flags, few_tiles, points, scratch=(dtype, points, each),
    )  # fmt: skip
    return flags


def replace_tiles(flags, taps, z, values):
    """Copy the flagged tiles from values to z (N, rows, columns, K)."""
    n, rows, columns, _ = z.shape
    high, wide, tile = count_tiles.py_func(rows, columns, taps)
    pixels = flags.reshape(n, high, wide).astype(bool).repeat(tile, axis=1).repeat(tile, axis=2)[:, :rows, :columns]
    z[pixels] = values[pixels]
