"""Convolution of images (N, H, W, C) as a matrix product (im2row); formulas: kernels/reference/conv.py.

    z (N H' W', K) = im2row(x) (N H' W', kh kw C) @ w (kh kw C, K)

Forward: im2row copies a few rows of that matrix at a time into scratch, which stays in the second-level cache; w is packed into panels once
a call. Bias, residual and activation follow while z is in cache. A 1 x 1 kernel of stride 1 reads x in place. depthwise.py computes
convolutions with one kernel per channel. winograd.py computes those of 3 x 3 and stride 1, where that pays; tiles that it flags as not
finite are recomputed here.

dx is a convolution of dz with the kernel turned by 180 degrees. With a stride, the pixels of dx form stride x stride phases. A phase uses
only the taps of w that reach it, so nothing is multiplied with the zeros between the pixels of dz. Where a phase has few channels, which
would leave vectors nearly empty, one convolution computes all phases as channels of one pixel, and col2im copies them into the image.

dw is a sum over all pixels in their order, taken in blocks of LONG pixels. A thread has rows of dw, so the bits do not depend on threads.
"""

import numpy as np
from numba import carray

from .. import types
from . import depthwise, winograd
from .activation import activate, activation_backward, forward_address
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
# a convolution of x (N, H, W, C) in groups of channels to K channels of rows x columns pixels; x is dz where dx is made. Its fields:
# runs (n_runs, 3), int64: taps side by side in a row of x, by row and column of the first, seen from the pixel, and their number;
# step_h, step_w: pixels of x from one of the output to the next; out_image, out_row, out_pixel: values between those of the output;
# panels: w in panel_size values a group; lowered: lowered_size values a thread; in_place: whether x is its own lowered matrix;
# flags (N, tiles), uint8, of winograd.py, or null; fold_h, fold_w: phases that are computed as one pixel of K channels, or 0, and the
# image that col2im writes; b, residual, z, y, dz, dw, db and parameter: as in conv2d_forward and conv2d_backward, null for
# None; activate: address of a kernel of activation.py
CONV = np.dtype(
    [
        (name, "i8")
        for name in "N H W C groups runs n_runs step_h step_w rows columns K out_image out_row out_pixel".split()
    ]
    + [
        (name, "i8")
        for name in "x panels panel_size b residual z y activate lowered lowered_size in_place flags".split()
    ]
    + [(name, "i8") for name in "fold_h fold_w fold_height fold_width fold_channels".split()]
    + [(name, "i8") for name in "dz dw db itemsize".split()]
    + [("parameter", "f8")]
)
FORWARD_PART, FLAGGED_PART, WEIGHTS_PART = range(3)


@device_function
def taps_of(conv):
    """Columns of the lowered matrix."""
    runs, n = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), 0
    for r in range(conv.n_runs):
        n += runs[r, 2]
    return n * (conv.C // conv.groups)


@device_function
def im2row(conv, group, first, n, lo, hi, rows, row, like):
    """rows (n, row): the columns lo..hi of the lowered matrix for n pixels of the output, from the first on."""
    # (n_runs, 3)
    runs, channels = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), conv.C // conv.groups
    done = 0
    while done < n:
        # pixels of one row of the output
        p = first + done
        j0 = p % conv.columns
        pixels, line = min(n - done, conv.columns - j0), p // conv.columns
        image, i = line // conv.rows, line % conv.rows
        at = 0
        for r in range(conv.n_runs):
            h, length = i * conv.step_h + runs[r, 0], runs[r, 2] * channels
            begin, end = max(lo, at), min(hi, at + length)
            if begin < end:
                inside = 0 <= h < conv.H
                # (W, C), from the group's first channel on
                source = advance(pointer(conv.x, like), (image * conv.H + h) * conv.W * conv.C + group * channels)
                for j in range(pixels):
                    # the run's part of this row of the image, in values from its left
                    left = ((j0 + j) * conv.step_w + runs[r, 1]) * channels
                    a, b = begin - at, end - at
                    to = advance(rows, (done + j) * row + begin - lo)
                    from_a = min(b, max(a, -left)) if inside else b
                    to_b = max(from_a, min(b, conv.W * channels - left))
                    clear(from_a - a, to)
                    # with groups a run is of one tap, since the next pixel's channels of this group lie C further
                    copy(to_b - from_a, advance(source, left * conv.groups + from_a), advance(to, from_a - a))
                    clear(b - to_b, advance(to, to_b - a))
            at += length
        done += pixels


@device_function
def col2im(conv, line, column, n, z, like):
    """Copy n pixels z (n, K), each with the channels of all phases, to the pixels of these phases in the image."""
    image, i = line // conv.rows, line % conv.rows * conv.fold_h
    j, width = column * conv.fold_w, conv.fold_w * conv.fold_channels
    for r in range(min(conv.fold_h, conv.fold_height - i)):
        to = ((image * conv.fold_height + i + r) * conv.fold_width + j) * conv.fold_channels
        left = (conv.fold_width - j) * conv.fold_channels
        for k in range(n):
            of = advance(z, k * conv.K + r * width)  # (fold_w, fold_channels)
            copy(min(width, left - k * width), of, advance(pointer(conv.z, like), to + k * width))


@device_function
def convolve(conv, p, n, taps, lowered, like):
    """n pixels of the output from p on; of one row, if rows are not contiguous. lowered: scratch for n rows of `taps` values and n of K."""
    outputs, line = conv.K // conv.groups, p // conv.columns
    at = line // conv.rows * conv.out_image + line % conv.rows * conv.out_row + p % conv.columns * conv.out_pixel
    for group in range(conv.groups):
        # im2row
        a, a_row = lowered, taps  # (n, taps)
        if conv.in_place:
            a, a_row = advance(pointer(conv.x, like), p * conv.C), conv.C  # (n, C)
        else:
            im2row(conv, group, p, n, 0, taps, lowered, taps, like)
        # product and bias
        panels, b = advance(pointer(conv.panels, like), group * conv.panel_size), pointer(conv.b, like)
        if conv.b:
            b = advance(b, group * outputs)  # (K / groups,)
        z = advance(pointer(conv.z, like), at + group * outputs)  # (n, K / groups), out_pixel apart
        if conv.fold_h:
            z = advance(lowered, n * taps)  # (n, K)
        panel_tiles(n, outputs, taps, a, a_row, panels, b, 0, z, conv.out_pixel)
        if conv.fold_h:
            col2im(conv, line, p % conv.columns, n, z, like)
    # residual and activation
    if conv.y:
        z, y = advance(pointer(conv.z, like), at), advance(pointer(conv.y, like), at)  # (n, K)
        if conv.residual:
            map_arrays(add, n * conv.K, (z, advance(pointer(conv.residual, like), at)), (z,), ())
        activate(conv.activate, conv.parameter, n, conv.K, z, y)


@kernel(CONV, needs=provide_microkernel)
def conv_part(thread_index, thread_count, record, like):
    """The thread's pixels of the output, a few at a time: forward, or of dx, which undoes im2row."""
    conv = carray(record, 1)[0]
    taps, pixels = taps_of(conv), conv.N * conv.rows * conv.columns
    in_line = conv.out_row == conv.columns * conv.out_pixel and conv.out_image == conv.rows * conv.out_row
    lo, hi = thread_range(thread_index, thread_count, pixels, ROWS if in_line else conv.columns)
    most = max(ROWS, LOWERED // max(taps, 1) // ROWS * ROWS)
    lowered = advance(pointer(conv.lowered, like), thread_index * conv.lowered_size)  # (lowered_size,)
    p = lo
    while p < hi:
        n = min(most, hi - p)
        if not in_line:
            n = min(n, conv.columns - p % conv.columns)
        convolve(conv, p, n, taps, lowered, like)
        p += n


@kernel(CONV, needs=provide_microkernel)
def conv_flagged_part(thread_index, thread_count, record, like):
    """Compute the flagged ones of the thread's tiles again: see winograd.py."""
    conv = carray(record, 1)[0]
    high, wide = (conv.rows + TILE - 1) // TILE, (conv.columns + TILE - 1) // TILE
    flags = carray(void_pointer(conv.flags), conv.N * high * wide, np.uint8)
    lowered = advance(pointer(conv.lowered, like), thread_index * conv.lowered_size)
    lo, hi = thread_range(thread_index, thread_count, len(flags), 1)
    for tile in range(lo, hi):
        if flags[tile]:
            line, j = tile // wide, tile % wide * TILE
            image, i = line // high, line % high * TILE
            for row in range(i, min(i + TILE, conv.rows)):
                p = (image * conv.rows + row) * conv.columns + j
                convolve(conv, p, min(TILE, conv.columns - j), taps_of(conv), lowered, like)


@kernel(CONV, needs=provide_microkernel)
def conv_weights_part(thread_index, thread_count, record, like):
    """The thread's rows of dw (kh kw C, K), over all pixels, and its columns of db."""
    conv = carray(record, 1)[0]
    taps, outputs = taps_of(conv), conv.K // conv.groups
    pixels, width = conv.N * conv.rows * conv.columns, VECTORS * lanes(like)
    # db, which undoes the bias
    if conv.db:
        lo, hi = thread_range(thread_index, thread_count, conv.K, 16)
        room = conv.lowered + thread_index * conv.lowered_size * conv.itemsize
        column_sums(pixels, conv.K, lo, hi, pointer(conv.dz, like), pointer(conv.db, like), room)
    lo, hi = thread_range(thread_index, thread_count, taps, ROWS)
    if lo == hi or not conv.dw:
        return
    # dw, which undoes the product
    lowered = advance(pointer(conv.lowered, like), thread_index * conv.lowered_size)  # (DEPTH, TAPS_ROW)
    panels, none = advance(lowered, DEPTH * TAPS_ROW), pointer(conv.N * 0, like)  # dz in panels (DEPTH, K / groups)
    sums = advance(panels, DEPTH * (outputs + 64))  # (TAPS, K / groups)
    for first in range(lo, hi, TAPS):
        m = min(TAPS, hi - first)
        for group in range(conv.groups):
            dw = advance(pointer(conv.dw, like), first * conv.K + group * outputs)  # (m, K / groups), K apart
            for i in range(0 if pixels else m):
                clear(outputs, advance(dw, i * conv.K))
            for p in range(0, pixels, DEPTH):
                n = min(DEPTH, pixels - p)
                # a kernel of 1 x 1 too: its pixels may lie a power of two apart
                im2row(conv, group, p, n, first, first + m, lowered, TAPS_ROW, like)
                dz = advance(pointer(conv.dz, like), p * conv.K + group * outputs)  # (n, K / groups), K apart
                pack_b(n, outputs, dz, conv.K, 1, panels, n)
                to, to_row = (dw, conv.K) if p < LONG else (sums, outputs)
                start, start_row, start_col = (none, 0, 0) if p % LONG == 0 else (to, to_row, 1)
                tiles(
                    m, outputs, n, lowered, 1, TAPS_ROW, 1, 0, panels, width, n * width, start, start_row, start_col, to, to_row
                )  # fmt: skip
                if p >= LONG and (p % LONG == LONG - DEPTH or p + n == pixels):
                    for i in range(m):
                        row = advance(dw, i * conv.K)
                        map_arrays(add, outputs, (row, advance(sums, i * outputs)), (row,), ())


@device_function
def describe(conv, x, groups, K, rows, columns, lowered, thread_count):
    """Fill in sizes and scratch."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.groups, conv.K, conv.rows, conv.columns, conv.x = groups, K, rows, columns, address(x)
    conv.lowered, conv.lowered_size, conv.itemsize = address(lowered), lowered.size // thread_count, lowered.itemsize


@device_function
def describe_taps(conv, kh, kw, stride, pads, dilation, runs):
    """The taps of every pixel of the output, a row of the kernel in one run where its pixels lie side by side."""
    joined = conv.groups == 1 and dilation[1] == 1
    conv.step_h, conv.step_w, conv.runs, conv.n_runs = stride[0], stride[1], address(runs), kh if joined else kh * kw
    for i in range(kh):
        for j in range(1 if joined else kw):
            run = runs[i if joined else i * kw + j]
            run[0], run[1], run[2] = i * dilation[0] - pads[0], j * dilation[1] - pads[1], kw if joined else 1
    conv.in_place = is_product(kh, kw, conv.groups, stride, pads)


@device_function
def is_product(kh, kw, groups, stride, pads):
    """Whether the convolution is the product of the pixels, as they lie, and w."""
    return kh * kw * groups == 1 and max(stride) == 1 and max(pads) == 0


@driver
def _forward(
    launcher, thread_count, kernels, x, w, b, stride, pads, dilation, residual, function, parameter, z, y, flags, panels_size, room
):  # fmt: skip
    kh, kw, channels, K = w.shape
    groups = x.shape[3] // channels
    outputs, taps = K // groups, kh * kw * channels
    panels, lowered, runs = room[:panels_size], room[panels_size:], np.empty((kh * kw, 3), np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    describe(conv, x, groups, K, z.shape[1], z.shape[2], lowered, thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.panels, conv.panel_size = address(panels), panels.size // groups
    for group in range(groups):
        of, to = advance(data(w), group * outputs), advance(data(panels), group * conv.panel_size)
        pack_b(taps, outputs, of, K, 1, to, taps)
    conv.out_image, conv.out_row, conv.out_pixel = conv.rows * conv.columns * K, conv.columns * K, K
    conv.b, conv.residual = address_or_null(b), address_or_null(residual)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address(y), function, parameter
    conv.flags = address_or_null(flags)
    run_kernel(launcher, kernels[FLAGGED_PART if conv.flags else FORWARD_PART], thread_count, record, (runs,))


@driver
def _weights(launcher, thread_count, kernels, x, dz, stride, pads, dilation, dw, wants_dw, db, room):
    kh, kw, channels, K = dw.shape
    record, runs = local_zeros(1, CONV), np.empty((kh * kw, 3), np.int64)
    conv = record[0]
    describe(conv, x, x.shape[3] // channels, K, dz.shape[1], dz.shape[2], room, thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.dz, conv.dw, conv.db = address(dz), address(dw) if wants_dw else 0, address_or_null(db)
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, (runs,))


@device_function
def taps_met(phase, pad, size, step, dilation, taps):
    """How many taps reach the pixels phase, phase + step, ... of the image; taps (size, 2): each, last first, and its first output."""
    n = 0
    for tap in range(size - 1, -1, -1):
        if (phase + pad - tap * dilation) % step == 0:
            taps[n, 0], taps[n, 1] = tap, (phase + pad - tap * dilation) // step
            n += 1
    return n


@device_function
def pack_whole(depth, columns, w, panels):
    """Contiguous w (depth, columns) into panels. As an argument w stays alive, which its pointer alone would not ensure."""
    pack_b(depth, columns, data(w), columns, 1, data(panels), depth)


@device_function
def describe_folded(conv, dz, w, stride, pads, dx, lowered, runs, panels, thread_count):
    """One convolution of dz with the kernels of all phases side by side, over all rows and columns of dz that any phase uses."""
    kh, kw, C, K = w.shape
    rows_met, columns_met = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    top, left = -(kh - 1 - pads[0]) // stride[0], -(kw - 1 - pads[1]) // stride[1]
    high, wide = (stride[0] - 1 + pads[0]) // stride[0] - top + 1, (stride[1] - 1 + pads[1]) // stride[1] - left + 1
    columns = stride[0] * stride[1] * C
    side_by_side = np.zeros((high, wide, K, columns), w.dtype)
    for i in range(stride[0]):
        for j in range(stride[1]):
            at = (i * stride[1] + j) * C
            for a in range(taps_met(i, pads[0], kh, stride[0], 1, rows_met)):
                for b in range(taps_met(j, pads[1], kw, stride[1], 1, columns_met)):
                    tap = w[rows_met[a, 0], columns_met[b, 0]]
                    to = side_by_side[rows_met[a, 1] - top, columns_met[b, 1] - left]
                    for k in range(K):
                        for c in range(C):
                            to[k, at + c] = tap[c, k]
    pack_whole(high * wide * K, columns, side_by_side, panels)
    rows, pixels = (dx.shape[1] + stride[0] - 1) // stride[0], (dx.shape[2] + stride[1] - 1) // stride[1]
    describe(conv, dz, 1, columns, rows, pixels, lowered, thread_count)
    conv.step_h = conv.step_w = 1
    conv.runs, conv.n_runs, conv.panels = address(runs), high, address(panels)
    conv.out_pixel, conv.z = columns, address(dx)
    for a in range(high):
        runs[a, 0], runs[a, 1], runs[a, 2] = top + a, left, wide
    conv.fold_h, conv.fold_w = stride
    conv.fold_height, conv.fold_width, conv.fold_channels = dx.shape[1], dx.shape[2], C


@driver
def _inputs(launcher, thread_count, kernels, dz, w, stride, pads, dilation, dx, flags, folds, panels_size, room):
    kh, kw, channels, K = w.shape
    C = dx.shape[3]
    groups = C // channels
    outputs, width = K // groups, VECTORS * lanes(data(w))
    rows_met, columns_met = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    panels, lowered, runs = room[:panels_size], room[panels_size:], np.empty((kh * kw, 3), np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    if folds:
        describe_folded(conv, dz, w, stride, pads, dx, lowered, runs, panels, thread_count)
        run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, (runs,))
        return
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            m = taps_met(i, pads[0], kh, stride[0], dilation[0], rows_met)
            n = taps_met(j, pads[1], kw, stride[1], dilation[1], columns_met)
            rows = (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            describe(conv, dz, groups, C, rows, columns, lowered, thread_count)
            joined = groups == 1 and n > 0 and columns_met[n - 1, 1] - columns_met[0, 1] == n - 1
            conv.step_h = conv.step_w = 1
            conv.runs, conv.n_runs = address(runs), m if joined else m * n
            conv.panels, conv.panel_size = address(panels), panels.size // groups
            for a in range(m):
                for b in range(n):
                    if not joined or b == 0:
                        run = runs[a if joined else a * n + b]
                        run[0], run[1], run[2] = rows_met[a, 1], columns_met[b, 1], n if joined else 1
                    tap = rows_met[a, 0] * kw + columns_met[b, 0]
                    for group in range(groups):
                        of = advance(data(w), tap * channels * K + group * outputs)
                        to = advance(data(panels), group * conv.panel_size + (a * n + b) * outputs * width)
                        pack_b(outputs, channels, of, 1, K, to, m * n * outputs)
            conv.in_place = is_product(kh, kw, groups, stride, pads)
            conv.out_image, conv.out_pixel = dx.size // max(conv.N, 1), stride[1] * C
            conv.out_row = stride[0] * dx.shape[2] * C
            conv.z, conv.flags = address(dx) + (i * dx.shape[2] + j) * C * dx.itemsize, address_or_null(flags)
            run_kernel(launcher, kernels[FLAGGED_PART if conv.flags else FORWARD_PART], thread_count, record, (runs,))


_KERNELS = Addresses(conv_part, conv_flagged_part, conv_weights_part)
# an output without flagged tiles: conv_part computes all of it
NO_FLAGS = np.empty((0, 0), np.uint8)


def _room_sizes(x, w):
    """Values of scratch for panels of w or its transpose, and for each thread's im2row."""
    kh, kw, channels, K = w.shape
    groups, outputs = x.shape[3] // channels, K // (x.shape[3] // channels)
    # the last panel may have room for columns that w has not
    size = kh * kw * (channels * (outputs + 64) + outputs * (channels + 64))
    taps = kh * kw * max(channels, outputs)
    return groups * size, max(2 * (LOWERED + ROWS * taps), DEPTH * (TAPS_ROW + outputs + 64) + TAPS * outputs)


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
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
        *or_empty(x.dtype, 4, residual), forward_address[x.dtype.char, activation.code], activation.parameter,
        *saved, flags, panels, scratch=(x.dtype, panels, lowered),
    )  # fmt: skip


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), which is dresidual, dx, dw and db (K,), each of which but dz may be None."""
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
