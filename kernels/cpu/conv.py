"""Convolution of images (N, H, W, C) as a matrix product (im2row); formulas: kernels/reference/conv.py.

    z (N H' W', K) = im2row(x) (N H' W', kh kw C) @ w (kh kw C, K)

Forward: im2row copies a few rows of that matrix, patches of x, at a time into scratch, which stays in the second-level cache; w is packed
into panels once a call. Bias, residual and activation follow while z is in cache. A 1 x 1 kernel of stride 1 reads x in place.
depthwise.py computes convolutions with one kernel per channel. winograd.py computes those of 3 x 3 and stride 1, where that pays; tiles
that it flags as not finite are recomputed here.

dx is a convolution of dz with the kernel rotated by 180 degrees. With a stride, the pixels of dx form stride x stride phases. A phase uses
only the taps of w that reach it, so nothing is multiplied with the zeros between the pixels of dz. Where a phase has few channels, which
would leave vectors nearly empty, one convolution computes all phases as channels of one pixel, and pixel_shuffle copies them to their
pixels (Shi et al. 2016).

dw is a sum over all pixels in their order, taken in blocks of LONG pixels. A thread has rows of dw, so the bits do not depend on threads.
"""

import numpy as np

from .. import types
from . import depthwise, winograd
from .activation import activate, activation_backward, forward_address
from .dense import column_sums
from .engine.compile import Addresses, device_function, driver, driver_function, kernel, or_empty
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
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
# values of patches beside which panels still fit into the second-level cache; pixels that a weight's gradient takes at a time
PATCHES, DEPTH = 27_648, 192
# channels that all phases of an input's gradient have at most to be computed as one pixel: they fit into the vectors of a tile
PHASE_CHANNELS = 16
# pixels whose products are summed in one chain: whole steps of DEPTH
LONG = 43 * DEPTH
# rows of a weight's gradient that are computed at a time, and values from one patch to the next then: not a power of two, of which the
# first-level cache has few places
TAPS, TAPS_ROW = 384, 400
# a convolution of x (N, H, W, C) in groups of channels to K channels of rows x columns pixels; x is dz where dx is made. Its fields:
# runs (n_runs, 3), int64: taps side by side in a row of x, by row and column of the first, seen from the pixel, and their number;
# step_h, step_w: pixels of x from one of the output to the next; out_image, out_row, out_pixel: values between those of the output;
# panels: w in panel_size values a group; patches: patches_size values a thread; in_place: whether the patches are x itself;
# flags (N, tiles), uint8, of winograd.py, or null; phases_h, phases_w: phases that are computed as one pixel of K channels, or 0, and
# image_h, image_w, image_c: the image that pixel_shuffle writes; activate: address of a kernel of activation.py; b, residual, z, y, dz,
# dw, db and parameter: as in conv2d_forward and conv2d_backward, null for None
CONV = np.dtype(
    [
        (name, "i8")
        for name in "N H W C groups runs n_runs step_h step_w rows columns K out_image out_row out_pixel".split()
    ]
    + [
        (name, "i8")
        for name in "x panels panel_size b residual z y activate patches patches_size in_place flags".split()
    ]
    + [(name, "i8") for name in "phases_h phases_w image_h image_w image_c".split()]
    + [(name, "i8") for name in "dz dw db itemsize".split()]
    + [("parameter", "f8")]
)
FORWARD_PART, FLAGGED_PART, WEIGHTS_PART = range(3)


@device_function
def taps_of(conv):
    """Values of a patch, of one group's channels."""
    runs, n = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), 0
    for r in range(conv.n_runs):
        n += runs[r, 2]
    return n * (conv.C // conv.groups)


@device_function
def im2row(conv, group, first, n, lo, hi, patches, patch_size, like):
    """patches (n, patch_size): the columns lo..hi of the patches of n pixels of the output, from the first on."""
    runs, channels = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), conv.C // conv.groups
    k = 0
    while k < n:
        # pixels of one row of the output
        p = first + k
        j0 = p % conv.columns
        pixels, line = min(n - k, conv.columns - j0), p // conv.columns
        image, i = line // conv.rows, line % conv.rows
        at = 0
        for r in range(conv.n_runs):
            h, length = i * conv.step_h + runs[r, 0], runs[r, 2] * channels
            # the columns of this run, from its first
            begin, end = max(lo - at, 0), min(hi - at, length)
            if begin < end:
                inside = 0 <= h < conv.H
                # (W, C), from the group's first channel on
                x = advance(pointer(conv.x, like), (image * conv.H + h) * conv.W * conv.C + group * channels)
                for j in range(pixels):
                    # where the run begins in this row of the image
                    left = ((j0 + j) * conv.step_w + runs[r, 1]) * channels
                    patch = advance(patches, (k + j) * patch_size + at + begin - lo)  # (end - begin,)
                    x_begin = min(end, max(begin, -left)) if inside else end
                    x_end = max(x_begin, min(end, conv.W * channels - left))
                    clear(x_begin - begin, patch)
                    # with groups a run is of one tap, since the next pixel's channels of this group lie C further
                    copy(x_end - x_begin, advance(x, left * conv.groups + x_begin), advance(patch, x_begin - begin))
                    clear(end - x_end, advance(patch, x_end - begin))
            at += length
        k += pixels


@device_function
def pixel_shuffle(conv, line, column, n, z, like):
    """Copy n pixels z (n, K), each with the channels of all phases, to the pixels of these phases in the image."""
    image, i = line // conv.rows, line % conv.rows * conv.phases_h
    j, width = column * conv.phases_w, conv.phases_w * conv.image_c
    rest = (conv.image_w - j) * conv.image_c
    for r in range(min(conv.phases_h, conv.image_h - i)):
        row = ((image * conv.image_h + i + r) * conv.image_w + j) * conv.image_c
        for k in range(n):
            pixels = advance(z, k * conv.K + r * width)  # (phases_w, image_c)
            copy(min(width, rest - k * width), pixels, advance(pointer(conv.z, like), row + k * width))


@device_function
def convolve(conv, p, n, taps, patches, like):
    """n pixels of the output from p on; of one row, if rows are not contiguous. patches: scratch for n of `taps` values and n of K."""
    outputs, line = conv.K // conv.groups, p // conv.columns
    at = line // conv.rows * conv.out_image + line % conv.rows * conv.out_row + p % conv.columns * conv.out_pixel
    for group in range(conv.groups):
        # im2row
        a, a_row = patches, taps  # (n, taps)
        if conv.in_place:
            a, a_row = advance(pointer(conv.x, like), p * conv.C), conv.C  # (n, C)
        else:
            im2row(conv, group, p, n, 0, taps, patches, taps, like)
        # product and bias
        panels, b = advance(pointer(conv.panels, like), group * conv.panel_size), pointer(conv.b, like)
        if conv.b:
            b = advance(b, group * outputs)  # (K / groups,)
        z = advance(pointer(conv.z, like), at + group * outputs)  # (n, K / groups), out_pixel apart
        if conv.phases_h:
            z = advance(patches, n * taps)  # (n, K)
        panel_tiles(n, outputs, taps, a, a_row, panels, b, 0, z, conv.out_pixel)
        if conv.phases_h:
            pixel_shuffle(conv, line, p % conv.columns, n, z, like)
    # residual and activation
    if conv.y:
        z, y = advance(pointer(conv.z, like), at), advance(pointer(conv.y, like), at)  # (n, K)
        if conv.residual:
            map_arrays(add, n * conv.K, (z, advance(pointer(conv.residual, like), at)), (z,), ())
        activate(conv.activate, conv.parameter, n, conv.K, z, y)


@kernel(CONV, needs=provide_microkernel)
def conv_part(thread_index, thread_count, record, like):
    """The thread's pixels of the output, a block at a time: forward, or of dx, which undoes im2row and product."""
    conv = carray(record, 1)[0]
    taps, pixels = taps_of(conv), conv.N * conv.rows * conv.columns
    in_line = conv.out_row == conv.columns * conv.out_pixel and conv.out_image == conv.rows * conv.out_row
    lo, hi = thread_range(thread_index, thread_count, pixels, ROWS if in_line else conv.columns)
    block = max(ROWS, PATCHES // max(taps, 1) // ROWS * ROWS)
    patches = advance(pointer(conv.patches, like), thread_index * conv.patches_size)  # (patches_size,)
    p = lo
    while p < hi:
        n = min(block, hi - p)
        if not in_line:
            n = min(n, conv.columns - p % conv.columns)
        convolve(conv, p, n, taps, patches, like)
        p += n


@kernel(CONV, needs=provide_microkernel)
def conv_flagged_part(thread_index, thread_count, record, like):
    """Recompute the flagged ones of the thread's tiles: see winograd.py."""
    conv = carray(record, 1)[0]
    high, wide = (conv.rows + TILE - 1) // TILE, (conv.columns + TILE - 1) // TILE
    flags = carray(void_pointer(conv.flags), conv.N * high * wide, np.uint8)
    patches = advance(pointer(conv.patches, like), thread_index * conv.patches_size)  # (patches_size,)
    lo, hi = thread_range(thread_index, thread_count, len(flags), 1)
    for tile in range(lo, hi):
        if flags[tile]:
            line, j = tile // wide, tile % wide * TILE
            image, i = line // high, line % high * TILE
            for row in range(i, min(i + TILE, conv.rows)):
                p = (image * conv.rows + row) * conv.columns + j
                convolve(conv, p, min(TILE, conv.columns - j), taps_of(conv), patches, like)


@kernel(CONV, needs=provide_microkernel)
def conv_weights_part(thread_index, thread_count, record, like):
    """The thread's rows of dw (kh kw C, K), over all pixels, and its columns of db."""
    conv = carray(record, 1)[0]
    taps, outputs = taps_of(conv), conv.K // conv.groups
    pixels, width = conv.N * conv.rows * conv.columns, VECTORS * lanes(like)
    # db = sums of dz: undoes the bias
    if conv.db:
        lo, hi = thread_range(thread_index, thread_count, conv.K, 16)
        scratch = conv.patches + thread_index * conv.patches_size * conv.itemsize
        column_sums(pixels, conv.K, lo, hi, pointer(conv.dz, like), pointer(conv.db, like), scratch)
    lo, hi = thread_range(thread_index, thread_count, taps, ROWS)
    if lo == hi or not conv.dw:
        return
    # dw = patches^T dz: undoes the product
    patches = advance(pointer(conv.patches, like), thread_index * conv.patches_size)  # (DEPTH, TAPS_ROW)
    panels, null = advance(patches, DEPTH * TAPS_ROW), pointer(conv.N * 0, like)  # dz in panels (DEPTH, K / groups)
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
                im2row(conv, group, p, n, first, first + m, patches, TAPS_ROW, like)
                dz = advance(pointer(conv.dz, like), p * conv.K + group * outputs)  # (n, K / groups), K apart
                pack_b(n, outputs, dz, conv.K, 1, panels, n)
                c, c_row = (dw, conv.K) if p < LONG else (sums, outputs)  # (m, K / groups)
                start, start_row, start_col = (null, 0, 0) if p % LONG == 0 else (c, c_row, 1)
                tiles(
                    m, outputs, n, patches, 1, TAPS_ROW, 1, 0, panels, width, n * width, start, start_row, start_col, c, c_row
                )  # fmt: skip
                if p >= LONG and (p % LONG == LONG - DEPTH or p + n == pixels):
                    for i in range(m):
                        row = advance(dw, i * conv.K)  # (K / groups,)
                        map_arrays(add, outputs, (row, advance(sums, i * outputs)), (row,), ())


@device_function
def describe(conv, x, groups, K, rows, columns, patches, thread_count):
    """Fill in sizes and scratch."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.groups, conv.K, conv.rows, conv.columns, conv.x = groups, K, rows, columns, address(x)
    conv.patches, conv.patches_size, conv.itemsize = address(patches), patches.size // thread_count, patches.itemsize


@device_function
def describe_taps(conv, kh, kw, stride, pads, dilation, runs):
    """The taps of every pixel of the output, a row of the kernel in one run where its pixels lie side by side."""
    one_run = conv.groups == 1 and dilation[1] == 1
    conv.step_h, conv.step_w, conv.runs, conv.n_runs = stride[0], stride[1], address(runs), kh if one_run else kh * kw
    for i in range(kh):
        for j in range(1 if one_run else kw):
            run = runs[i if one_run else i * kw + j]
            run[0], run[1], run[2] = i * dilation[0] - pads[0], j * dilation[1] - pads[1], kw if one_run else 1
    conv.in_place = is_product(kh, kw, conv.groups, stride, pads)


@device_function
def is_product(kh, kw, groups, stride, pads):
    """Whether the convolution is the product of the pixels, as they lie, and w."""
    return kh * kw * groups == 1 and max(stride) == 1 and max(pads) == 0


@driver
def _forward(
    launcher, thread_count, kernels, x, w, b, stride, pads, dilation, residual, function, parameter, z, y, flags, panels_size, scratch
):  # fmt: skip
    kh, kw, channels, K = w.shape
    groups = x.shape[3] // channels
    outputs, taps = K // groups, kh * kw * channels
    panels, patches, runs = scratch[:panels_size], scratch[panels_size:], np.empty((kh * kw, 3), np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    describe(conv, x, groups, K, z.shape[1], z.shape[2], patches, thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.panels, conv.panel_size = address(panels), panels.size // groups
    for group in range(groups):
        group_w = advance(data(w), group * outputs)  # (taps, K / groups), K apart
        pack_b(taps, outputs, group_w, K, 1, advance(data(panels), group * conv.panel_size), taps)
    conv.out_image, conv.out_row, conv.out_pixel = conv.rows * conv.columns * K, conv.columns * K, K
    conv.b, conv.residual = address_or_null(b), address_or_null(residual)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address(y), function, parameter
    conv.flags = address_or_null(flags)
    run_kernel(launcher, kernels[FLAGGED_PART if conv.flags else FORWARD_PART], thread_count, record, (runs,))


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, stride, pads, dilation, dw, wants_dw, db, scratch):
    kh, kw, channels, K = dw.shape
    record, runs = local_zeros(1, CONV), np.empty((kh * kw, 3), np.int64)
    conv = record[0]
    describe(conv, x, x.shape[3] // channels, K, dz.shape[1], dz.shape[2], scratch, thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.dz, conv.dw, conv.db = address(dz), address(dw) if wants_dw else 0, address_or_null(db)
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, (runs,))


@device_function
def phase_taps(phase, pad, size, step, dilation, taps):
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


@driver_function
def describe_joint_phases(conv, dz, w, stride, pads, dx, patches, runs, panels, thread_count):
    """One convolution of dz with the kernels of all phases side by side, over all rows and columns of dz that any phase reads."""
    kh, kw, C, K = w.shape
    row_taps, column_taps = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    top, left = -(kh - 1 - pads[0]) // stride[0], -(kw - 1 - pads[1]) // stride[1]
    high, wide = (stride[0] - 1 + pads[0]) // stride[0] - top + 1, (stride[1] - 1 + pads[1]) // stride[1] - left + 1
    columns = stride[0] * stride[1] * C
    joint_w = np.zeros((high, wide, K, columns), w.dtype)
    for i in range(stride[0]):
        for j in range(stride[1]):
            at = (i * stride[1] + j) * C
            for a in range(phase_taps(i, pads[0], kh, stride[0], 1, row_taps)):
                for b in range(phase_taps(j, pads[1], kw, stride[1], 1, column_taps)):
                    tap = w[row_taps[a, 0], column_taps[b, 0]]
                    joint_tap = joint_w[row_taps[a, 1] - top, column_taps[b, 1] - left]
                    for k in range(K):
                        for c in range(C):
                            joint_tap[k, at + c] = tap[c, k]
    pack_whole(high * wide * K, columns, joint_w, panels)
    rows, pixels = (dx.shape[1] + stride[0] - 1) // stride[0], (dx.shape[2] + stride[1] - 1) // stride[1]
    describe(conv, dz, 1, columns, rows, pixels, patches, thread_count)
    conv.step_h = conv.step_w = 1
    conv.runs, conv.n_runs, conv.panels = address(runs), high, address(panels)
    conv.out_pixel, conv.z = columns, address(dx)
    for a in range(high):
        runs[a, 0], runs[a, 1], runs[a, 2] = top + a, left, wide
    conv.phases_h, conv.phases_w = stride
    conv.image_h, conv.image_w, conv.image_c = dx.shape[1], dx.shape[2], C


@driver
def _input_gradient(
    launcher, thread_count, kernels, dz, w, stride, pads, dilation, dx, flags, joint_phases, panels_size, scratch
):
    kh, kw, channels, K = w.shape
    C = dx.shape[3]
    groups = C // channels
    outputs, width = K // groups, VECTORS * lanes(data(w))
    row_taps, column_taps = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    panels, patches, runs = scratch[:panels_size], scratch[panels_size:], np.empty((kh * kw, 3), np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    if joint_phases:
        describe_joint_phases(conv, dz, w, stride, pads, dx, patches, runs, panels, thread_count)
        run_kernel(launcher, kernels[FORWARD_PART], thread_count, record, (runs,))
        return
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            m = phase_taps(i, pads[0], kh, stride[0], dilation[0], row_taps)
            n = phase_taps(j, pads[1], kw, stride[1], dilation[1], column_taps)
            rows = (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            describe(conv, dz, groups, C, rows, columns, patches, thread_count)
            one_run = groups == 1 and n > 0 and column_taps[n - 1, 1] - column_taps[0, 1] == n - 1
            conv.step_h = conv.step_w = 1
            conv.runs, conv.n_runs = address(runs), m if one_run else m * n
            conv.panels, conv.panel_size = address(panels), panels.size // groups
            for a in range(m):
                for b in range(n):
                    if not one_run or b == 0:
                        run = runs[a if one_run else a * n + b]
                        run[0], run[1], run[2] = row_taps[a, 1], column_taps[b, 1], n if one_run else 1
                    tap = row_taps[a, 0] * kw + column_taps[b, 0]
                    for group in range(groups):
                        group_w = advance(data(w), tap * channels * K + group * outputs)  # (C / groups, K / groups)
                        panel = advance(data(panels), group * conv.panel_size + (a * n + b) * outputs * width)
                        pack_b(outputs, channels, group_w, 1, K, panel, m * n * outputs)
            conv.in_place = is_product(kh, kw, groups, stride, pads)
            conv.out_image, conv.out_pixel = dx.size // max(conv.N, 1), stride[1] * C
            conv.out_row = stride[0] * dx.shape[2] * C
            conv.z, conv.flags = address(dx) + (i * dx.shape[2] + j) * C * dx.itemsize, address_or_null(flags)
            run_kernel(launcher, kernels[FLAGGED_PART if conv.flags else FORWARD_PART], thread_count, record, (runs,))


_KERNELS = Addresses(conv_part, conv_flagged_part, conv_weights_part)
# an output without flagged tiles: conv_part computes all of it
NO_FLAGS = np.empty((0, 0), np.uint8)


def _scratch_sizes(x, w):
    """Values of scratch for panels of w or its transpose, and for each thread's patches."""
    kh, kw, channels, K = w.shape
    groups, outputs = x.shape[3] // channels, K // (x.shape[3] // channels)
    # the last panel may have room for columns that w has not
    size = kh * kw * (channels * (outputs + 64) + outputs * (channels + 64))
    taps = kh * kw * max(channels, outputs)
    return groups * size, max(2 * (PATCHES + ROWS * taps), DEPTH * (TAPS_ROW + outputs + 64) + TAPS * outputs)


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
    if depthwise.applies(x, w):
        depthwise.forward(x, w, b, geometry, residual, activation, saved)
        return
    z, flags = saved.z, NO_FLAGS
    if winograd.applies(w, geometry, x.shape[3] // w.shape[2], z):
        flags = winograd.convolve(x, w, b, geometry.pads, False, residual, activation, saved)
        if not flags.any():
            return
    panels, patches = _scratch_sizes(x, w)
    run(
        2 * z.size * w[..., 0].size, _forward, _KERNELS[x.dtype.char], x, w, *or_empty(x.dtype, 1, b), *geometry,
        *or_empty(x.dtype, 4, residual), forward_address[x.dtype.char, activation.code], activation.parameter,
        *saved, flags, panels, scratch=(x.dtype, panels, patches),
    )  # fmt: skip


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), which is dresidual, dx, dw and db (K,), each of which but dz may be None."""
    dz, dx, dw, db = gradients
    activation_backward(dy, *saved, dz, activation)
    (stride, pads, dilation), groups = geometry, x.shape[3] // w.shape[2]
    operations, kernels = 2 * dz.size * w[..., 0].size, _KERNELS[x.dtype.char]
    channelwise = depthwise.applies(x, w)
    if channelwise and dw is not None:
        depthwise.weight_gradient(x, dz, geometry, dw)
    wants_dw = dw is not None and not channelwise
    if wants_dw and x.size and winograd.applies(w, geometry, groups, dz):
        winograd.weight_gradient(x, dz, pads, dw)
        wants_dw = not np.isfinite(dw).all()
    if wants_dw or db is not None:
        arrays = w if dw is None else dw, wants_dw, *or_empty(x.dtype, 1, db)
        sizes = x.dtype, 0, _scratch_sizes(x, w)[1]
        run(operations, _weight_gradient, kernels, x, dz, *geometry, *arrays, scratch=sizes)
    if channelwise and dx is not None:
        depthwise.input_gradient(dz, w, geometry, dx)
    elif dx is not None:
        flags, flipped = NO_FLAGS, types.Geometry(stride, tuple(2 - pad for pad in pads), dilation)
        if winograd.applies(w, flipped, groups, dx):
            flags = winograd.convolve(dz, w, None, flipped.pads, True, None, IDENTITY, types.LayerSaved(dx, None))
            if not flags.any():
                return
        panels, patches = _scratch_sizes(x, w)
        sizes = x.dtype, panels, patches
        joint_phases = (
            groups == max(dilation) == 1 < max(stride)
            and stride[0] * stride[1] * dx.shape[3] <= PHASE_CHANNELS <= w[..., 0, :].size
        )
        run(operations, _input_gradient, kernels, dz, w, *geometry, dx, flags, joint_phases, panels, scratch=sizes)
        if joint_phases and not np.isfinite(dx).all():
            # an infinity was multiplied with the zeros that stand for taps which a phase has not
            run(operations, _input_gradient, kernels, dz, w, *geometry, dx, flags, False, panels, scratch=sizes)
