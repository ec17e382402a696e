"""Convolution of images (N, H, W, C), as in kernels/reference/conv.py, as products of matrices.

The pixels under the kernel at one place of the output are a row of a matrix of which w (kh kw C, K) is the other factor. Rows of that
matrix are made for a few pixels at a time, in the second-level cache, from panels of w that stay there; a kernel of 1 x 1 reads
the image itself. Where every channel has a kernel of its own, depthwise.py makes it.

The input's gradient is such a convolution too, of dz with the turned kernel. With a stride its pixels fall into stride x stride
phases, each of which meets taps of its own, so that nothing is multiplied with zeros between the pixels of dz. Phases of few
channels, which would leave vectors empty, are made as one pixel of all their channels, and folded into the image. A weight's gradient is
a sum over all pixels in their order, whatever the thread that has it, a chain for each LONG of them.
"""

import numpy as np
from numba import carray

from .. import types
from . import depthwise, winograd
from .activation import activate, activation_backward
from .dense import column_sums
from .engine.compile import Addresses, device_function, driver, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    copy,
    data,
    lanes,
    local_zeros,
    pointer,
    run_kernel,
    void_pointer,
)
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import clear, pack_b, panel_tiles, tiles
from .winograd import TILE

IDENTITY = types.ACTIVATIONS["identity"]
# values of lowered pixels that leave room for panels in the second-level cache; pixels that a weight's gradient takes at a time
LOWERED, DEPTH = 27_648, 192
# channels that all phases of an input's gradient have at most to be folded, which fit into the vectors of a tile
FOLDED = 16
# pixels whose products are summed in one chain: whole steps of DEPTH
LONG = 43 * DEPTH
# rows of a weight's gradient that are done at a time, and values from one lowered pixel to the next then: not a power of two, of which
# the first-level cache has few places
TAPS, TAPS_ROW = 384, 400
# runs (n_runs, 3): taps that lie side by side in the image: the place of the first, seen from the pixel, and how many; out_*:
# values from one image, row and pixel of the output to the next
CONV = np.dtype(
    [
        (name, "i8")
        for name in "N H W C groups runs n_runs step_h step_w rows columns K out_image out_row out_pixel".split()
    ]
    + [(name, "i8") for name in "x panels panel_size b residual z y code lowered lowered_size in_place flags".split()]
    + [(name, "i8") for name in "fold_h fold_w fold_height fold_width fold_channels".split()]
    + [(name, "i8") for name in "dz dw db itemsize".split()]
    + [("parameter", "f8")]
)
FORWARD_PART, FLAGGED_PART, WEIGHTS_PART = range(3)


@device_function
def taps_of(g):
    """Columns of the lowered matrix."""
    runs, n = carray(void_pointer(g.runs), (g.n_runs, 3), np.int64), 0
    for r in range(g.n_runs):
        n += runs[r, 2]
    return n * (g.C // g.groups)


@device_function
def im2row(g, group, first, n, lo, hi, rows, row, like):
    """rows (n, row): the columns lo..hi of the lowered matrix for n pixels of the output, from the first on."""
    runs, channels = carray(void_pointer(g.runs), (g.n_runs, 3), np.int64), g.C // g.groups
    done = 0
    while done < n:
        # pixels of one row of the output
        p = first + done
        j0 = p % g.columns
        pixels, line = min(n - done, g.columns - j0), p // g.columns
        image, i = line // g.rows, line % g.rows
        at = 0
        for r in range(g.n_runs):
            h, length = i * g.step_h + runs[r, 0], runs[r, 2] * channels
            begin, end = max(lo, at), min(hi, at + length)
            if begin < end:
                inside = 0 <= h < g.H
                source = advance(pointer(g.x, like), (image * g.H + h) * g.W * g.C + group * channels)
                for j in range(pixels):
                    # the run's part of this row of the image, in values from its left
                    left = ((j0 + j) * g.step_w + runs[r, 1]) * channels
                    a, b = begin - at, end - at
                    to = advance(rows, (done + j) * row + begin - lo)
                    from_a = min(b, max(a, -left)) if inside else b
                    to_b = max(from_a, min(b, g.W * channels - left))
                    clear(from_a - a, to)
                    # with groups a run is of one tap, since the next pixel's channels of this group lie C further
                    copy(to_b - from_a, advance(source, left * g.groups + from_a), advance(to, from_a - a))
                    clear(b - to_b, advance(to, to_b - a))
            at += length
        done += pixels


@device_function
def col2im(g, line, column, n, z, like):
    """n pixels z of all phases, of a line from a column on, to where each phase has them in the image."""
    image, i = line // g.rows, line % g.rows * g.fold_h
    j, width = column * g.fold_w, g.fold_w * g.fold_channels
    for r in range(min(g.fold_h, g.fold_height - i)):
        to = ((image * g.fold_height + i + r) * g.fold_width + j) * g.fold_channels
        left = (g.fold_width - j) * g.fold_channels
        for k in range(n):
            of = advance(z, k * g.K + r * width)
            copy(min(width, left - k * width), of, advance(pointer(g.z, like), to + k * width))


@device_function
def convolve(g, p, n, taps, lowered, like):
    """n pixels of the output, p the first; of one row of it where rows are apart."""
    outputs, line = g.K // g.groups, p // g.columns
    at = line // g.rows * g.out_image + line % g.rows * g.out_row + p % g.columns * g.out_pixel
    for group in range(g.groups):
        a, a_row = lowered, taps
        if g.in_place:
            a, a_row = advance(pointer(g.x, like), p * g.C), g.C
        else:
            im2row(g, group, p, n, 0, taps, lowered, taps, like)
        panels, b = advance(pointer(g.panels, like), group * g.panel_size), pointer(g.b, like)
        if g.b:
            b = advance(b, group * outputs)
        z = advance(pointer(g.z, like), at + group * outputs)
        if g.fold_h:
            z = advance(lowered, n * taps)
        panel_tiles(n, outputs, taps, a, a_row, panels, b, 0, z, g.out_pixel)
        if g.fold_h:
            col2im(g, line, p % g.columns, n, z, like)
    if g.y:
        z, y = advance(pointer(g.z, like), at), advance(pointer(g.y, like), at)
        if g.residual:
            map_arrays(add, n * g.K, (z, advance(pointer(g.residual, like), at)), (z,), ())
        activate(g.code, g.parameter, n, g.K, z, y)


@kernel(CONV, needs=provide_microkernel)
def conv_part(part, parts, job, like):
    """The part's pixels of the output, a few at a time."""
    g = carray(job, 1)[0]
    taps, pixels = taps_of(g), g.N * g.rows * g.columns
    in_line = g.out_row == g.columns * g.out_pixel and g.out_image == g.rows * g.out_row
    lo, hi = thread_range(part, parts, pixels, ROWS) if in_line else thread_range(part, parts, pixels, g.columns)
    most = max(ROWS, LOWERED // max(taps, 1) // ROWS * ROWS)
    lowered = advance(pointer(g.lowered, like), part * g.lowered_size)
    p = lo
    while p < hi:
        n = min(most, hi - p)
        if not in_line:
            n = min(n, g.columns - p % g.columns)
        convolve(g, p, n, taps, lowered, like)
        p += n


@kernel(CONV, needs=provide_microkernel)
def conv_flagged_part(part, parts, job, like):
    """Of the part's tiles those that are flagged: see winograd.py."""
    g = carray(job, 1)[0]
    high, wide = (g.rows + TILE - 1) // TILE, (g.columns + TILE - 1) // TILE
    flags = carray(void_pointer(g.flags), g.N * high * wide, np.uint8)
    lowered = advance(pointer(g.lowered, like), part * g.lowered_size)
    lo, hi = thread_range(part, parts, len(flags), 1)
    for tile in range(lo, hi):
        if flags[tile]:
            line, j = tile // wide, tile % wide * TILE
            image, i = line // high, line % high * TILE
            for row in range(i, min(i + TILE, g.rows)):
                p = (image * g.rows + row) * g.columns + j
                convolve(g, p, min(TILE, g.columns - j), taps_of(g), lowered, like)


@kernel(CONV, needs=provide_microkernel)
def conv_weights_part(part, parts, job, like):
    """The part's rows of dw (kh kw C, K), over all pixels, and its columns of db."""
    g = carray(job, 1)[0]
    taps, outputs, pixels, width = taps_of(g), g.K // g.groups, g.N * g.rows * g.columns, VECTORS * lanes(like)
    if g.db:
        lo, hi = thread_range(part, parts, g.K, 16)
        room = g.lowered + part * g.lowered_size * g.itemsize
        column_sums(pixels, g.K, lo, hi, pointer(g.dz, like), pointer(g.db, like), room)
    lo, hi = thread_range(part, parts, taps, ROWS)
    if lo == hi or not g.dw:
        return
    lowered = advance(pointer(g.lowered, like), part * g.lowered_size)
    panels, none = advance(lowered, DEPTH * TAPS_ROW), pointer(g.N * 0, like)
    sums = advance(panels, DEPTH * (outputs + 64))
    for first in range(lo, hi, TAPS):
        m = min(TAPS, hi - first)
        for group in range(g.groups):
            dw = advance(pointer(g.dw, like), first * g.K + group * outputs)
            for i in range(0 if pixels else m):
                clear(outputs, advance(dw, i * g.K))
            for p in range(0, pixels, DEPTH):
                n = min(DEPTH, pixels - p)
                # a kernel of 1 x 1 too: its pixels may lie a power of two apart
                im2row(g, group, p, n, first, first + m, lowered, TAPS_ROW, like)
                pack_b(n, outputs, advance(pointer(g.dz, like), p * g.K + group * outputs), g.K, 1, panels, n)
                to, to_row = (dw, g.K) if p < LONG else (sums, outputs)
                start, start_row, start_col = (none, 0, 0) if p % LONG == 0 else (to, to_row, 1)
                tiles(
                    m,
                    outputs,
                    n,
                    lowered,
                    1,
                    TAPS_ROW,
                    1,
                    0,
                    panels,
                    width,
                    n * width,
                    start,
                    start_row,
                    start_col,
                    to,
                    to_row,
                )
                if p >= LONG and (p % LONG == LONG - DEPTH or p + n == pixels):
                    for i in range(m):
                        row = advance(dw, i * g.K)
                        map_arrays(add, outputs, (row, advance(sums, i * outputs)), (row,), ())


@device_function
def describe(g, x, groups, K, rows, columns, lowered, parts):
    g.N, g.H, g.W, g.C = x.shape
    g.groups, g.K, g.rows, g.columns, g.x = groups, K, rows, columns, address(x)
    g.lowered, g.lowered_size, g.itemsize = address(lowered), lowered.size // parts, lowered.itemsize


@device_function
def describe_taps(g, kh, kw, stride, pads, dilation, runs):
    """The taps of every pixel of the output, a row of the kernel in one run where its pixels lie side by side."""
    joined = g.groups == 1 and dilation[1] == 1
    g.step_h, g.step_w, g.runs, g.n_runs = stride[0], stride[1], address(runs), kh if joined else kh * kw
    for i in range(kh):
        for j in range(1 if joined else kw):
            run = runs[i if joined else i * kw + j]
            run[0], run[1], run[2] = i * dilation[0] - pads[0], j * dilation[1] - pads[1], kw if joined else 1
    g.in_place = is_product(kh, kw, g.groups, stride, pads)


@device_function
def is_product(kh, kw, groups, stride, pads):
    """Whether the convolution is the product of the pixels, as they lie, and w."""
    return kh * kw * groups == 1 and max(stride) == 1 and max(pads) == 0


@driver
def _forward(
    launcher, parts, kernels, x, w, b, stride, pads, dilation, residual, code, parameter, z, y, flags, panels_size, room
):  # fmt: skip
    kh, kw, channels, K = w.shape
    groups = x.shape[3] // channels
    outputs, taps = K // groups, kh * kw * channels
    panels, lowered, runs = room[:panels_size], room[panels_size:], np.empty((kh * kw, 3), np.int64)
    job = local_zeros(1, CONV)
    g = job[0]
    describe(g, x, groups, K, z.shape[1], z.shape[2], lowered, parts)
    describe_taps(g, kh, kw, stride, pads, dilation, runs)
    g.panels, g.panel_size = address(panels), panels.size // groups
    for group in range(groups):
        of, to = advance(data(w), group * outputs), advance(data(panels), group * g.panel_size)
        pack_b(taps, outputs, of, K, 1, to, taps)
    g.out_image, g.out_row, g.out_pixel = g.rows * g.columns * K, g.columns * K, K
    g.b, g.residual = address_or_null(b), address_or_null(residual)
    g.z, g.y, g.code, g.parameter, g.flags = address(z), address(y), code, parameter, address_or_null(flags)
    run_kernel(launcher, kernels[FLAGGED_PART if g.flags else FORWARD_PART], parts, job, (runs,))


@driver
def _weights(launcher, parts, kernels, x, dz, stride, pads, dilation, dw, wants_dw, db, room):
    kh, kw, channels, K = dw.shape
    job, runs = local_zeros(1, CONV), np.empty((kh * kw, 3), np.int64)
    g = job[0]
    describe(g, x, x.shape[3] // channels, K, dz.shape[1], dz.shape[2], room, parts)
    describe_taps(g, kh, kw, stride, pads, dilation, runs)
    g.dz, g.dw, g.db = address(dz), address(dw) if wants_dw else 0, address_or_null(db)
    run_kernel(launcher, kernels[WEIGHTS_PART], parts, job, (runs,))


@device_function
def met(phase, pad, size, step, dilation, taps):
    """The taps, last first, that pixels phase, phase + step, ... of the image have met, and where the first output is that met them."""
    n = 0
    for tap in range(size - 1, -1, -1):
        if (phase + pad - tap * dilation) % step == 0:
            taps[n, 0], taps[n, 1] = tap, (phase + pad - tap * dilation) // step
            n += 1
    return n


@device_function
def pack_whole(rows, columns, w, panels):
    """An array w (rows, columns), contiguous, into panels."""
    pack_b(rows, columns, data(w), columns, 1, data(panels), rows)


@device_function
def describe_folded(g, dz, w, stride, pads, dx, lowered, runs, panels, parts):
    """One convolution of dz with all phases' kernels side by side, each on the rows and columns of dz that any of them meets."""
    kh, kw, C, K = w.shape
    rows_met, columns_met = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    top, left = -(kh - 1 - pads[0]) // stride[0], -(kw - 1 - pads[1]) // stride[1]
    high, wide = (stride[0] - 1 + pads[0]) // stride[0] - top + 1, (stride[1] - 1 + pads[1]) // stride[1] - left + 1
    columns = stride[0] * stride[1] * C
    side_by_side = np.zeros((high, wide, K, columns), w.dtype)
    for i in range(stride[0]):
        for j in range(stride[1]):
            at = (i * stride[1] + j) * C
            for a in range(met(i, pads[0], kh, stride[0], 1, rows_met)):
                for b in range(met(j, pads[1], kw, stride[1], 1, columns_met)):
                    tap = w[rows_met[a, 0], columns_met[b, 0]]
                    to = side_by_side[rows_met[a, 1] - top, columns_met[b, 1] - left]
                    for k in range(K):
                        for c in range(C):
                            to[k, at + c] = tap[c, k]
    pack_whole(high * wide * K, columns, side_by_side, panels)
    rows, pixels = (dx.shape[1] + stride[0] - 1) // stride[0], (dx.shape[2] + stride[1] - 1) // stride[1]
    describe(g, dz, 1, columns, rows, pixels, lowered, parts)
    g.step_h = g.step_w = 1
    g.runs, g.n_runs, g.panels, g.out_pixel, g.z = address(runs), high, address(panels), columns, address(dx)
    for a in range(high):
        runs[a, 0], runs[a, 1], runs[a, 2] = top + a, left, wide
    g.fold_h, g.fold_w, g.fold_height, g.fold_width, g.fold_channels = *stride, dx.shape[1], dx.shape[2], C


@driver
def _inputs(launcher, parts, kernels, dz, w, stride, pads, dilation, dx, flags, folds, panels_size, room):
    kh, kw, channels, K = w.shape
    C = dx.shape[3]
    groups = C // channels
    outputs, width = K // groups, VECTORS * lanes(data(w))
    rows_met, columns_met = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    panels, lowered, runs = room[:panels_size], room[panels_size:], np.empty((kh * kw, 3), np.int64)
    job = local_zeros(1, CONV)
    g = job[0]
    if folds:
        describe_folded(g, dz, w, stride, pads, dx, lowered, runs, panels, parts)
        run_kernel(launcher, kernels[FORWARD_PART], parts, job, (runs,))
        return
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            m = met(i, pads[0], kh, stride[0], dilation[0], rows_met)
            n = met(j, pads[1], kw, stride[1], dilation[1], columns_met)
            rows = (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            describe(g, dz, groups, C, rows, columns, lowered, parts)
            joined = groups == 1 and n > 0 and columns_met[n - 1, 1] - columns_met[0, 1] == n - 1
            g.step_h = g.step_w = 1
            g.runs, g.n_runs = address(runs), m if joined else m * n
            g.panels, g.panel_size = address(panels), panels.size // groups
            for a in range(m):
                for b in range(n):
                    if not joined or b == 0:
                        run = runs[a if joined else a * n + b]
                        run[0], run[1], run[2] = rows_met[a, 1], columns_met[b, 1], n if joined else 1
                    tap = rows_met[a, 0] * kw + columns_met[b, 0]
                    for group in range(groups):
                        of = advance(data(w), tap * channels * K + group * outputs)
                        to = advance(data(panels), group * g.panel_size + (a * n + b) * outputs * width)
                        pack_b(outputs, channels, of, 1, K, to, m * n * outputs)
            g.in_place = is_product(kh, kw, groups, stride, pads)
            g.out_image, g.out_row, g.out_pixel = dx.size // max(g.N, 1), stride[0] * dx.shape[2] * C, stride[1] * C
            g.z, g.flags = address(dx) + (i * dx.shape[2] + j) * C * dx.itemsize, address_or_null(flags)
            run_kernel(launcher, kernels[FLAGGED_PART if g.flags else FORWARD_PART], parts, job, (runs,))


_KERNELS = Addresses(conv_part, conv_flagged_part, conv_weights_part)
# of an output all of which is to be made
NO_FLAGS = np.empty((0, 0), np.uint8)


def _room_sizes(x, w):
    """Values for panels of w either way round, and for lowered pixels of each thread."""
    kh, kw, channels, K = w.shape
    groups, outputs = x.shape[3] // channels, K // (x.shape[3] // channels)
    # the last panel may have room for columns that w has not
    size = kh * kw * (channels * (outputs + 64) + outputs * (channels + 64))
    taps = kh * kw * max(channels, outputs)
    return groups * size, max(2 * (LOWERED + ROWS * taps), DEPTH * (TAPS_ROW + outputs + 64) + TAPS * outputs)


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """saved: z, which is y where the activation does not need it, and y (N, H', W', K); b (K,) and residual may be None."""
    if depthwise.suits(x, w):
        depthwise.forward(x, w, b, geometry, residual, activation, saved)
        return
    z, flags = saved.z, NO_FLAGS
    if winograd.suits(w, geometry, x.shape[3] // w.shape[2], z):
        flags = winograd.convolve(x, w, b, geometry.pads, False, residual, activation, saved)
        if not flags.any():
            return
    panels, lowered = _room_sizes(x, w)
    run(
        2 * z.size * w[..., 0].size, _forward, _KERNELS[x.dtype.char], x, w, *or_empty(x.dtype, 1, b), *geometry,
        *or_empty(x.dtype, 4, residual), *activation, *saved, flags, panels, scratch=(x.dtype, panels, lowered),
    )  # fmt: skip


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """gradients, which are overwritten: dz (N, H', W', K), which is dresidual, dx, dw and db (K,), each of which but dz may be None."""
    dz, dx, dw, db = gradients
    activation_backward(dy, *saved, dz, activation)
    (stride, pads, dilation), groups = geometry, x.shape[3] // w.shape[2]
    operations, kernels = 2 * dz.size * w[..., 0].size, _KERNELS[x.dtype.char]
    channelwise = depthwise.suits(x, w)
    if channelwise and dw is not None:
        depthwise.weights(x, dz, geometry, dw)
    wants_dw = dw is not None and not channelwise
    if wants_dw and x.size and winograd.suits(w, geometry, groups, dz):
        winograd.weights(x, dz, pads, dw)
        wants_dw = not np.isfinite(dw).all()
    if wants_dw or db is not None:
        arrays = w if dw is None else dw, wants_dw, *or_empty(x.dtype, 1, db)
        run(operations, _weights, kernels, x, dz, *geometry, *arrays, scratch=(x.dtype, 0, _room_sizes(x, w)[1]))
    if channelwise and dx is not None:
        depthwise.inputs(dz, w, geometry, dx)
    elif dx is not None:
        flags, turned = NO_FLAGS, types.Geometry(stride, tuple(2 - pad for pad in pads), dilation)
        if winograd.suits(w, turned, groups, dx):
            flags = winograd.convolve(dz, w, None, turned.pads, True, None, IDENTITY, types.LayerSaved(dx, None))
            if not flags.any():
                return
        panels, lowered = _room_sizes(x, w)
        room = x.dtype, panels, lowered
        folds = (
            groups == max(dilation) == 1 < max(stride)
            and stride[0] * stride[1] * dx.shape[3] <= FOLDED <= w[..., 0, :].size
        )
        run(operations, _inputs, kernels, dz, w, *geometry, dx, flags, folds, panels, scratch=room)
        if folds and not np.isfinite(dx).all():
            # an infinity has met zeros in the place of taps that a phase has not
            run(operations, _inputs, kernels, dz, w, *geometry, dx, flags, False, panels, scratch=room)
