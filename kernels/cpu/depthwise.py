"""Depthwise convolution of images (N, H, W, C): one kernel per channel, groups = C = K. Formulas: kernels/reference/conv.py.

    z[n, i, j, c] = sum over taps (a, b) of x[n, i sh + a dh - top, j sw + b dw - left, c] w[a, b, c] + b[c]

Layout: vectors run along the channels. A tap outside the image adds nothing, even where w is not finite, as in PyTorch.

Square kernels of SIZES with stride 1 or 2 and without dilation: a thread takes a tile of the image at a time, some lines of which one
vector of channels fits into the first-level cache, and computes it vector by vector and row by row (depthwise_row.py). Where C is no
multiple of a vector, the last two overlap. There is a kernel for each size and stride, which is compiled at its first use.

Forward: residual and activation follow while the tile is in the second-level cache. Images that come from memory are prefetched.
dx: with stride 1 the forward kernel, with the last tap first. With stride 2 each column of dz is added to the pixels that it reaches.
dw: registers hold the sums over a tile, which are then added to sums in memory. So no float32 sum is one long chain. Where there are few
channels, the lines are divided into slices, whose sums are added in the end; how many depends on the shape, not on the threads.

All other kernels, and fewer channels than a vector has: pixel by pixel, and dw tap by tap.
A thread has lines of the output, or slices and channels of dw.
"""

import numpy as np

from .activation import activate, forward_address
from .depthwise_row import (
    add_slices,
    convolve_row,
    kernel_rows,
    pack_taps,
    pixel,
    pixel_products,
    row_products,
)
from .engine.compile import Choice, device_function, driver, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    call,
    carray,
    lanes,
    local,
    local_zeros,
    pointer,
    run_kernel,
    vector_bits,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import clear

# a convolution of x (N, H, W, C) to rows x columns pixels of each image; x is dz where dx is made. Its fields: size, step, top, left and
# dilation: of the kernel; function: address of a kernel for one vector of channels; transposed: whether dx is made, by taps_reaching;
# reverse: whether it is made by the forward kernel, with the last tap first; tile: lines of the output that are computed at a time;
# slices: of the lines, each with sums of its own (slices, vectors, taps, width); w, b, residual, z, y, dz, dw and parameter: as in
# conv2d_forward and conv2d_backward, null for None
DEPTHWISE = np.dtype(
    [(name, "i8") for name in "N H W C rows columns size_h size_w step_h step_w top left dilation_h dilation_w".split()]
    + [(name, "i8") for name in "function transposed reverse tile slices sums itemsize".split()]
    + [(name, "i8") for name in "x w b residual z y activate dz dw".split()]
    + [("parameter", "f8")]
)
# a tile, for a kernel of one vector of channels. Its fields: x: the image (H, W, C), x_row from row to row; z: lines (lines, columns, C)
# of the output, or of dz; bounds (lines, 3), int64: of each line what taps_inside returns; taps: room for pack_taps; sums: of the
# vector; x_ahead, z_ahead: how many values ahead x and z are prefetched, z_ahead 0 where they are not; the others as above
TILE = np.dtype(
    [(name, "i8") for name in "C W columns left reverse x x_row w b z bounds taps sums x_ahead z_ahead".split()]
)
SIZES = 3, 5, 7
# of a tile at most: lines; pixels of x and z, one vector of channels of which fits into the first-level cache; values of x and z, which
# fit into the second-level cache
LINES, PIXELS, VALUES = 16, 400, 98_304
# values of x and z in all from which on they come from memory, and are prefetched
FAR = 1 << 22
# channels that leave work for all threads without slices, and pixels of a slice at least
SLICE_CHANNELS, SLICE_PIXELS = 512, 256
# values of a vector at most; bytes of a cache line; values of bounds and of taps
WIDTH, LINE = 16, 64
BOUNDS, TAPS = 3 * LINES, (max(SIZES) ** 2 + 1) * WIDTH + LINE


@device_function
def aligned(place):
    """The first address from `place` on that begins a cache line."""
    return (place + LINE - 1) // LINE * LINE


@device_function
def taps_inside(i, step, dilation, pad, size, limit):
    """The taps of output i inside an axis of x: the first, their number, and where in x the first is."""
    first = max(0, -((i * step - pad) // dilation))
    count = max(0, min(size, (limit - 1 + pad - i * step) // dilation + 1) - first)
    return first, count, i * step + first * dilation - pad


@device_function
def taps_reaching(i, step, dilation, pad, size, limit):
    """The taps by which dz along an axis reaches pixel i: the first, their number, where in dz the first is, from tap to tap."""
    first, count, apart = 0, 0, 1
    for a in range(size):
        at = i + pad - a * dilation
        if at % step == 0 and 0 <= at // step < limit:
            first = a if count == 0 else first
            apart = a - first if count == 1 else apart
            count += 1
    return first, count, (i + pad - first * dilation) // step, apart


@device_function
def add_and_activate(conv, line, lines, z, like):
    """Residual and activation of some lines of the output, of which z has the products."""
    if conv.y:
        at, n = line * conv.columns * conv.C, lines * conv.columns * conv.C
        if conv.residual:
            map_arrays(add, n, (z, advance(pointer(conv.residual, like), at)), (z,), ())
        activate(conv.activate, conv.parameter, lines * conv.columns, conv.C, z, advance(pointer(conv.y, like), at))


def _rows_kernel(size, stride, transposed):
    """One vector of channels, from c on, of the n lines of a tile: forward; or if transposed of dx, which undoes it."""

    def rows(c, n, record, like):
        tile = carray(record, 1)[0]
        C, x_row, width = tile.C, tile.x_row, lanes(like)
        bounds = carray(void_pointer(tile.bounds), (LINES, 3), np.int64)
        taps, b = pointer(tile.taps, like), advance(pointer(tile.b, like), c) if tile.b else pointer(0, like)
        pack_taps(size, C, advance(pointer(tile.w, like), c), tile.reverse != 0, b, taps)
        for l in range(n):
            convolve_row(
                size, stride, transposed, bounds[l, 1], advance(pointer(tile.x, like), bounds[l, 2] * x_row + c),
                -x_row if transposed else x_row, tile.W, C, tile.left, tile.columns,
                advance(taps, bounds[l, 0] * size * width), advance(taps, size * size * width),
                advance(pointer(tile.z, like), l * tile.columns * C + c), tile.x_ahead, tile.z_ahead,
            )  # fmt: skip

    rows.__name__ = rows.__qualname__ = f"depthwise_{'transposed_' * transposed}{size}_stride_{stride}"
    return kernel(TILE)(rows)


@device_function
def lines_alike(bounds, l, n, g, group):
    """Of rows g to g + group of the kernel the first and the end of those that line l meets, and the next line that meets others."""
    first, end, m = max(g, bounds[l, 0]), min(g + group, bounds[l, 0] + bounds[l, 1]), l + 1
    while m < n and first == max(g, bounds[m, 0]) and end == min(g + group, bounds[m, 0] + bounds[m, 1]):
        m += 1
    return first, max(first, end), m


def _products_kernel(size, stride):
    """One vector of channels, from c on, of the sums of dw over the n lines of a tile, which undoes the products."""
    group = kernel_rows(size)

    def products(c, n, record, like):
        tile = carray(record, 1)[0]
        C, x_row = tile.C, tile.x_row
        bounds = carray(void_pointer(tile.bounds), (LINES, 3), np.int64)
        for g in range(0, size, group):
            l = 0
            while l < n:
                first, end, m = lines_alike(bounds, l, n, g, group)
                source = bounds[l, 2] + first - bounds[l, 0]
                row_products(
                    size, stride, end - first, m - l, advance(pointer(tile.x, like), source * x_row + c), x_row,
                    tile.W, C, tile.left, advance(pointer(tile.z, like), l * tile.columns * C + c), tile.columns,
                    advance(pointer(tile.sums, like), first * size * lanes(like)), tile.z_ahead,
                )  # fmt: skip
                l = m

    products.__name__ = products.__qualname__ = f"depthwise_weights_{size}_stride_{stride}"
    return kernel(TILE)(products)


@device_function
def fill_bounds(conv, i, n, bounds):
    """bounds (n, 3): the taps' rows of n lines, from i on, as taps_inside gives them."""
    for l in range(n):
        if conv.transposed:
            first, count, source, _ = taps_reaching(i + l, conv.step_h, 1, conv.top, conv.size_h, conv.H)
        else:
            first, count, source = taps_inside(i + l, conv.step_h, 1, conv.top, conv.size_h, conv.H)
        bounds[3 * l], bounds[3 * l + 1], bounds[3 * l + 2] = first, count, source


@device_function
def fill_tile(tile, conv, bounds):
    tile.C, tile.W, tile.x_row, tile.left, tile.columns = conv.C, conv.W, conv.W * conv.C, conv.left, conv.columns
    tile.w, tile.b, tile.reverse, tile.bounds = conv.w, conv.b, conv.reverse, address(bounds)


@device_function
def from_memory(conv):
    return conv.N * conv.C * (conv.H * conv.W + conv.rows * conv.columns) > FAR


@kernel(DEPTHWISE)
def depthwise_tiles(thread_index, thread_count, record, like):
    """The thread's lines of the output, a tile at a time: forward, or of dx, which undoes it."""
    conv = carray(record, 1)[0]
    C, width, row, image_size = conv.C, lanes(like), conv.columns * conv.C, conv.H * conv.W * conv.C
    tiles, bounds, taps = local(1, TILE), local(BOUNDS, np.int64), local(TAPS, like)
    tile = tiles[0]
    fill_tile(tile, conv, bounds)
    tile.taps = aligned(address(taps))
    # images that come from memory are prefetched a tile ahead
    tile.z_ahead = conv.tile * row if from_memory(conv) else 0
    tile.x_ahead = tile.x_row * ((conv.tile + 1) // conv.step_h if conv.transposed else conv.tile * conv.step_h)
    line, hi = thread_range(thread_index, thread_count, conv.N * conv.rows, 1)
    while line < hi:
        image, i = line // conv.rows, line % conv.rows
        n = min(conv.tile, hi - line, conv.rows - i)
        fill_bounds(conv, i, n, bounds)
        # products of taps, and bias
        tile.x = conv.x + image * image_size * conv.itemsize  # (H, W, C)
        tile.z = conv.z + line * row * conv.itemsize  # (n, columns, C)
        c = 0
        while c < C:
            c = min(c, C - width)
            call(conv.function, c, n, tiles)
            c += width
        add_and_activate(conv, line, n, pointer(tile.z, like), like)
        line += n


@kernel(DEPTHWISE)
def depthwise_pixels(thread_index, thread_count, record, like):
    """The thread's lines of the output, of any kernel: forward, or of dx, which undoes it."""
    conv = carray(record, 1)[0]
    C, b, w_row, x_row = conv.C, pointer(conv.b, like), conv.size_w * conv.C, conv.W * conv.C
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.rows, 1)
    for line in range(lo, hi):
        image, i = line // conv.rows, line % conv.rows
        z = advance(pointer(conv.z, like), line * conv.columns * C)  # (columns, C)
        h, h_apart, j_apart = conv.dilation_h, 1, 1
        if conv.transposed:
            a, rows, source, h_apart = taps_reaching(i, conv.step_h, conv.dilation_h, conv.top, conv.size_h, conv.H)
            h = -(h_apart * conv.dilation_h) // conv.step_h
        else:
            a, rows, source = taps_inside(i, conv.step_h, conv.dilation_h, conv.top, conv.size_h, conv.H)
        x = advance(pointer(conv.x, like), (image * conv.H + source) * x_row)  # (rows, W, C), h rows of dz or x apart
        w = advance(pointer(conv.w, like), a * w_row)  # (rows, size_w, C), h_apart rows apart
        # products of taps, and bias
        for j in range(conv.columns):
            v = conv.dilation_w
            if conv.transposed:
                s, columns, at, j_apart = taps_reaching(j, conv.step_w, conv.dilation_w, conv.left, conv.size_w, conv.W)
                v = -(j_apart * conv.dilation_w) // conv.step_w
            else:
                s, columns, at = taps_inside(j, conv.step_w, conv.dilation_w, conv.left, conv.size_w, conv.W)
            pixel(
                C, rows, columns, advance(x, at * C), h * x_row, v * C,
                advance(w, s * C), h_apart * w_row, j_apart * C, b, advance(z, j * C),
            )  # fmt: skip
        add_and_activate(conv, line, 1, z, like)


@kernel(DEPTHWISE)
def depthwise_weights(thread_index, thread_count, record, like):
    """The thread's slices and channels of the sums of dw (slices, vectors, taps, width), a tile at a time."""
    conv = carray(record, 1)[0]
    C, width, row, lines = conv.C, lanes(like), conv.columns * conv.C, conv.N * conv.rows
    vectors, sums_of_vector = (C + width - 1) // width, conv.size_h * conv.size_w * width
    tiles, bounds = local(1, TILE), local(BOUNDS, np.int64)
    tile = tiles[0]
    fill_tile(tile, conv, bounds)
    # images that come from memory are prefetched a cache line of channels ahead
    tile.z_ahead = LINE // conv.itemsize if from_memory(conv) else 0
    unit, hi = thread_range(thread_index, thread_count, conv.slices * vectors, 1)
    while unit < hi:
        part, v = unit // vectors, unit % vectors
        end = min(vectors, v + hi - unit)
        sums = conv.sums + unit * sums_of_vector * conv.itemsize  # (end - v, taps, width)
        clear((end - v) * sums_of_vector, pointer(sums, like))
        line, last = part * lines // conv.slices, (part + 1) * lines // conv.slices
        while line < last:
            image, i = line // conv.rows, line % conv.rows
            n = min(conv.tile, last - line, conv.rows - i)
            fill_bounds(conv, i, n, bounds)
            tile.x = conv.x + image * conv.H * tile.x_row * conv.itemsize  # (H, W, C)
            tile.z = conv.dz + line * row * conv.itemsize  # (n, columns, C)
            for u in range(v, end):
                tile.sums = sums + (u - v) * sums_of_vector * conv.itemsize
                call(conv.function, min(u * width, C - width), n, tiles)
            line += n
        unit += end - v


@kernel(DEPTHWISE)
def depthwise_add_slices(thread_index, thread_count, record, like):
    """The thread's channels of dw (taps, C): the sums of all slices."""
    conv = carray(record, 1)[0]
    C, width, taps = conv.C, lanes(like), conv.size_h * conv.size_w
    vectors = (C + width - 1) // width
    lo, hi = thread_range(thread_index, thread_count, vectors, 1)
    for v in range(lo, hi):
        sums = advance(pointer(conv.sums, like), v * taps * width)  # (taps, width), of the first slice
        dw = advance(pointer(conv.dw, like), min(v * width, C - width))  # (taps, C)
        add_slices(taps, conv.slices, vectors * taps * width, sums, C, dw)


@kernel(DEPTHWISE)
def depthwise_weights_pixels(thread_index, thread_count, record, like):
    """The thread's channels of dw (taps, C), of any kernel: row after row of the output, tap by tap."""
    conv = carray(record, 1)[0]
    C, x_row = conv.C, conv.W * conv.C
    lo, hi = thread_range(thread_index, thread_count, C, LINE // 4)
    dw = advance(pointer(conv.dw, like), lo)  # (size_h, size_w, hi - lo), C apart
    for t in range(conv.size_h * conv.size_w if lo < hi else 0):
        clear(hi - lo, advance(dw, t * C))
    for line in range(conv.N * conv.rows if lo < hi else 0):
        image, i = line // conv.rows, line % conv.rows
        dz = advance(pointer(conv.dz, like), line * conv.columns * C + lo)  # (columns, hi - lo), C apart
        a, rows, source = taps_inside(i, conv.step_h, conv.dilation_h, conv.top, conv.size_h, conv.H)
        for t in range(rows * conv.size_w):
            r, s = t // conv.size_w, t % conv.size_w
            at = s * conv.dilation_w - conv.left
            first = max(0, -(at // conv.step_w))
            pixels = (conv.W - 1 - at) // conv.step_w + 1 - first
            h = image * conv.H + source + r * conv.dilation_h
            x = advance(pointer(conv.x, like), h * x_row + (first * conv.step_w + at) * C + lo)
            pixel_products(
                hi - lo, min(conv.columns - first, pixels), x, conv.step_w * C, advance(dz, first * C), C,
                advance(dw, ((a + r) * conv.size_w + s) * C),
            )  # fmt: skip


@device_function
def describe(conv, x, rows, columns, size, stride, pads, dilation):
    """A kernel of this size over x (N, H, W, C), to so many rows and columns of the output."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.x, conv.rows, conv.columns, conv.itemsize = address(x), rows, columns, x.itemsize
    conv.size_h, conv.size_w = size
    conv.step_h, conv.step_w = stride
    conv.top, conv.left = pads[0], pads[1]
    conv.dilation_h, conv.dilation_w = dilation


@device_function
def choose_tile(conv, step):
    """The tile of a convolution whose next line is `step` rows of x further on, of which a line needs size_h."""
    each, before = step * conv.W + conv.columns, conv.size_h * conv.W
    tile = max(1, min(LINES, (PIXELS - before) // each, (VALUES // conv.C - before) // each))
    # of all tiles of an image the same number of lines, or one less
    tiles = (conv.rows + tile - 1) // tile
    conv.tile = (conv.rows + tiles - 1) // tiles


@driver
def _forward(launcher, thread_count, kernels, x, w, b, stride, pads, dilation, residual, activation, parameter, z, y):
    """kernels: addresses of a kernel for lines, and of the one that it calls."""
    record = local_zeros(1, DEPTHWISE)
    conv = record[0]
    describe(conv, x, z.shape[1], z.shape[2], w.shape[:2], stride, pads, dilation)
    choose_tile(conv, conv.step_h)
    conv.w, conv.b, conv.residual, conv.function = address(w), address_or_null(b), address_or_null(residual), kernels[1]
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address(y), activation, parameter
    run_kernel(launcher, kernels[0], thread_count, record, ())


@driver
def _input_gradient(launcher, thread_count, kernels, reverse, dz, w, stride, pads, dilation, dx):
    """reverse: whether the kernel is the forward one, which takes the taps from the last to the first."""
    record = local_zeros(1, DEPTHWISE)
    conv = record[0]
    describe(conv, dz, dx.shape[1], dx.shape[2], w.shape[:2], stride, pads, dilation)
    choose_tile(conv, 1)
    conv.reverse, conv.transposed = reverse, not reverse
    if reverse:
        conv.top, conv.left = conv.size_h - 1 - conv.top, conv.size_w - 1 - conv.left
    conv.w, conv.z, conv.function = address(w), address(dx), kernels[1]
    run_kernel(launcher, kernels[0], thread_count, record, ())


@driver
def _weight_gradient(launcher, thread_count, kernels, add_slices, x, dz, stride, pads, dilation, dw):
    """add_slices: address of that kernel, null where kernels[0] writes dw itself."""
    record = local_zeros(1, DEPTHWISE)
    conv = record[0]
    describe(conv, x, dz.shape[1], dz.shape[2], dw.shape[:2], stride, pads, dilation)
    choose_tile(conv, conv.step_h)
    pixels = conv.N * conv.rows * conv.columns
    conv.slices = max(1, min(SLICE_CHANNELS // conv.C, pixels // SLICE_PIXELS))
    # sums of whole vectors, from the beginning of a cache line on
    sums = np.empty(conv.slices * conv.size_h * conv.size_w * (conv.C + WIDTH) + LINE if add_slices else 0, x.dtype)
    conv.sums, conv.dz, conv.dw, conv.function = aligned(address(sums)), address(dz), address(dw), kernels[1]
    run_kernel(launcher, kernels[0], thread_count, record, (sums,))
    if add_slices:
        run_kernel(launcher, add_slices, thread_count, record, (sums,))


# (size, stride, whether transposed), or "weights": the kernels for one vector of channels
_INSTANCES = [(size, *mode) for size in SIZES for mode in ((1, 0), (2, 0), (2, 1), (1, "weights"), (2, "weights"))]
_PARTS = depthwise_tiles, depthwise_weights, depthwise_pixels, depthwise_weights_pixels, depthwise_add_slices
_part_address = Choice(*_PARTS)
_instance_address = Choice(*(
    _products_kernel(size, stride) if mode == "weights" else _rows_kernel(size, stride, mode)
    for size, stride, mode in _INSTANCES
))  # fmt: skip
# multiplications and additions that a pixel's channel of one tap costs as much as: it comes from memory
COST = 4


def applies(x, w):
    """Whether every channel of x has one kernel of its own in w (kh, kw, 1, C)."""
    return w.shape[2] == 1 and w.shape[3] == x.shape[3] > 1


def _addresses(w, geometry, mode):
    """Addresses of the kernel for lines, and of the one for a vector of channels; the latter is 0 where every pixel is for itself."""
    (height, width, _, C), (stride, _, dilation), char = w.shape, geometry, w.dtype.char
    weights, instance = mode == "weights", (height, stride[0], mode)
    square = height == width and stride[0] == stride[1] and dilation == (1, 1)
    if square and instance in _INSTANCES and C * w.itemsize * 8 >= vector_bits():
        return _part_address[char, int(weights)], _instance_address[char, _INSTANCES.index(instance)]
    return _part_address[char, 2 + weights], 0


def forward(x, w, b, geometry, residual, activation, saved):
    """conv2d_forward of conv.py, for depthwise kernels w (kh, kw, 1, C)."""
    run(
        COST * saved.z.size * len(w) * w.shape[1], _forward, _addresses(w, geometry, 0), x, w, *or_empty(x.dtype, 1, b), *geometry,
        *or_empty(x.dtype, 4, residual), forward_address[x.dtype.char, activation.code], activation.parameter, *saved,
    )  # fmt: skip


def input_gradient(dz, w, geometry, dx):
    """dx (N, H, W, C) from dz: undoes forward for its input."""
    addresses = _addresses(w, geometry, int(max(geometry.stride) > 1))
    reverse = addresses[1] != 0 and max(geometry.stride) == 1
    run(COST * dz.size * len(w) * w.shape[1], _input_gradient, addresses, reverse, dz, w, *geometry, dx)


def weight_gradient(x, dz, geometry, dw):
    """dw (kh, kw, 1, C) from dz: undoes forward for its weights."""
    addresses = _addresses(dw, geometry, "weights")
    add_slices = _part_address[x.dtype.char, 4] if addresses[1] else 0
    run(
        COST * dz.size * len(dw) * dw.shape[1], _weight_gradient, addresses, add_slices, x, dz, *geometry, dw
    )  # fmt: skip
