"""Convolution of images (N, H, W, C) as a matrix product (im2row); formulas: kernels/reference/conv.py.

    z (N H' W', K) = im2row(x) (N H' W', kh kw C) @ w (kh kw C, K)

A thread takes a block of pixels: patches.py copies their patches (im2row) into scratch, some values of a patch at a time. It packs
the part of w that these values meet into panels, multiplies, and goes on to the next part. So w is read once a block of pixels, and its
panels stay in the second-level cache. A 1 x 1 kernel of stride 1 reads x in place. Where pixels are few, the threads share the outputs
instead, so that each packs only its own part of w; all patches are copied before. The order of an output's sum is that of w's rows,
however the work is shared. Bias, residual and activation follow while z is in cache.

dx is a convolution of dz with the kernel rotated by 180 degrees. With a stride, the pixels of dx form stride x stride phases. A phase uses
only the taps of w that reach it, so nothing is multiplied with the zeros between the pixels of dz.

depthwise.py computes convolutions with one kernel per channel, winograd.py those of 3 x 3, 5 x 5 and stride 1, where that pays,
conv_inputs.py dx of few channels, conv_weights.py dw. Tiles that winograd.py flags as not finite are recomputed here.
"""

import numpy as np

from .. import types
from . import conv_inputs, conv_weights, depthwise, winograd, winograd_weights
from .activation import activate, activation_backward, forward_address
from .engine.compile import Addresses, device_function, driver, kernel, or_empty
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
from .engine.matrix import Matrix, null_matrix, rows_apart, submatrix
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import B_BYTES, DEEP, K_MOST, Panels, clear, is_odd, pack_b, tiles, tiles_in_place
from .patches import CONV, describe, describe_taps, im2row, is_product

IDENTITY = types.ACTIVATIONS["identity"]
# values of patches beside which all of w, if small, fits into the second-level cache; pixels at a time elsewhere, which pay for packing w
PATCHES, PIXELS = 27_648, 768
# so few pixels a thread, and a w of so many values, are shared by outputs; values of all patches at most that are lowered together
FEW_PIXELS, LARGE_W, LOWERED = 256, 32_768, 1 << 22
# pixels at most for which w, if it fits into the second-level cache, is not worth packing
FEW_ROWS = 4 * ROWS
# values that panels take at most
PANELS = max(B_BYTES // 4, 64 * K_MOST)
LOWER_PART, PRODUCT_PART, ACTIVATION_PART, CLEAR_PART = range(4)


@device_function
def pack_w(conv, group, k, kc, j, nc, panels, like):
    """kc rows of w from the k-th on, as values of a patch meet them, and its columns j..j+nc of the group, in panels."""
    w_taps, width = carray(void_pointer(conv.w_taps), conv.taps // conv.w_depth, np.int64), VECTORS * lanes(like)
    done = 0
    while done < kc:
        tap, row = (k + done) // conv.w_depth, (k + done) % conv.w_depth
        rows = min(conv.w_depth - row, kc - done)
        w = advance(
            pointer(conv.w, like), w_taps[tap] + group * conv.w_group + row * conv.w_row + j * conv.w_column
        )  # (rows, nc), w_row and w_column apart
        pack_b(rows, nc, Matrix(w, conv.w_row, conv.w_column), advance(panels, done * width), kc)
        done += rows


@device_function
def place(conv, p, n, j, nc, source, like):
    """Copy the outputs j..j+nc of n pixels from p on, source (n, nc), to where they are in the output."""
    for k in range(n):
        line, column = (p + k) // conv.columns, (p + k) % conv.columns
        at = line // conv.rows * conv.out_image + line % conv.rows * conv.out_row + column * conv.out_pixel
        copy(nc, advance(source, k * nc), advance(pointer(conv.z, like), at + j))


@device_function
def finish(conv, p, n, like):
    """Residual and activation of n pixels from p on."""
    z, y = advance(pointer(conv.z, like), p * conv.K), advance(pointer(conv.y, like), p * conv.K)  # (n, K)
    if conv.residual:
        map_arrays(add, n * conv.K, (z, advance(pointer(conv.residual, like), p * conv.K)), (z,), ())
    activate(conv.activate, conv.parameter, n, conv.K, z, y)


@kernel(CONV)
def conv_lower_part(thread_index, thread_count, record, like):
    """The thread's pixels' patches, all of them (pixels, taps), lowered_row apart."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.rows * conv.columns, 1)
    patches = advance(pointer(conv.lowered, like), lo * conv.lowered_row)
    im2row(conv, 0, lo, hi - lo, 0, conv.taps, patches, conv.lowered_row, like)


@kernel(CONV)
def conv_activation_part(thread_index, thread_count, record, like):
    """Residual and activation of the thread's pixels."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.rows * conv.columns, 1)
    finish(conv, lo, hi - lo, like)


@kernel(CONV, needs=provide_microkernel)
def conv_part(thread_index, thread_count, record, like):
    """The thread's pixels of the output, or its outputs of all pixels: forward, or of dx, which undoes im2row and product."""
    conv = carray(record, 1)[0]
    taps, outputs, width = conv.taps, conv.K // conv.groups, VECTORS * lanes(like)
    lo, hi, first, last = 0, conv.N * conv.rows * conv.columns, 0, outputs
    if conv.by_outputs:
        first, last = thread_range(thread_index, thread_count, outputs, width)
    else:
        lo, hi = thread_range(thread_index, thread_count, hi, ROWS)
    # w in panels (tap_block, output_block), and where the output's pixels are apart, its values (pixel_block, last - first)
    panels = advance(pointer(conv.scratch, like), thread_index * conv.scratch_size)
    sums = advance(panels, PANELS)
    patches = advance(sums, conv.pixel_block * (last - first)) if conv.phases else sums  # (pixel_block, tap_block)
    small_w = taps * outputs * conv.itemsize <= B_BYTES
    packed_once = conv.groups == 1 and conv.tap_block >= taps and conv.output_block >= last - first
    for p in range(lo, hi if first < last else lo, conv.pixel_block):
        n = min(conv.pixel_block, hi - p)
        for group in range(conv.groups):
            z = rows_apart(
                advance(pointer(conv.z, like), p * conv.K + group * outputs + first), conv.K
            )  # (n, last - first)
            if conv.phases:
                z = rows_apart(sums, last - first)
            for k in range(0, taps, conv.tap_block):
                kc = min(conv.tap_block, taps - k)
                # im2row
                a = rows_apart(patches, kc)  # (n, kc)
                if conv.in_place:
                    a = rows_apart(advance(pointer(conv.x, like), p * conv.C + k), conv.C)
                elif conv.by_outputs:
                    a = rows_apart(advance(pointer(conv.lowered, like), p * conv.lowered_row + k), conv.lowered_row)
                else:
                    im2row(conv, group, p, n, k, k + kc, patches, kc, like)
                # product and bias
                for j in range(first, last, conv.output_block):
                    nc, c = min(conv.output_block, last - j), submatrix(z, 0, j - first)  # (n, nc)
                    b = Panels(panels, width, width * kc)
                    if conv.w_in_order and ((n <= FEW_ROWS and small_w) or is_odd(nc, lanes(like))):
                        # w as it lies
                        at = group * conv.w_group + k * conv.w_row + j
                        b = Panels(advance(pointer(conv.w, like), at), conv.w_row, width)
                    elif not (packed_once and p > lo):
                        pack_w(conv, group, k, kc, j, nc, panels, like)
                    start = null_matrix(like)
                    if k > 0:
                        start = c
                    elif conv.b:
                        start = rows_apart(advance(pointer(conv.b, like), group * outputs + j), 0)  # (nc,)
                    tiles(n, nc, kc, tiles_in_place(a), b, start, c)
            if conv.phases:
                place(conv, p, n, group * outputs + first, last - first, sums, like)
        if conv.y and not conv.by_outputs:
            finish(conv, p, n, like)


@kernel(CONV)
def conv_clear_part(thread_index, thread_count, record, like):
    """0 in the thread's values of the whole output."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.out_image, 16)
    clear(hi - lo, advance(pointer(conv.z, like), lo))


@device_function
def describe_blocks(conv, lowered, thread_count, width):
    """How the work is shared and cut; lowered: an array for all patches, or an empty one."""
    outputs, pixels = conv.K // conv.groups, conv.N * conv.rows * conv.columns
    panels = (outputs + width - 1) // width
    idle = (thread_count - panels % thread_count) % thread_count
    conv.lowered_row = lowered_row(conv.taps, conv.itemsize)
    conv.by_outputs = (
        thread_count > 1 == conv.groups
        and pixels <= FEW_PIXELS * thread_count
        and conv.taps * outputs >= LARGE_W
        and 8 * idle <= panels
        and (conv.in_place or pixels * conv.lowered_row <= lowered.size)
    )
    conv.lowered = address(lowered)
    columns = (panels + thread_count - 1) // thread_count * width if conv.by_outputs else panels * width
    # of w at a time
    room = B_BYTES // conv.itemsize
    k_blocks = (conv.taps + DEEP - 1) // DEEP
    if conv.taps <= K_MOST and conv.taps * columns <= room:
        k_blocks = 1
    conv.tap_block = (conv.taps + k_blocks - 1) // k_blocks
    conv.output_block = max(1, room // (conv.tap_block * width)) * width
    # of the pixels at a time
    if conv.by_outputs:
        conv.pixel_block = max(pixels, 1)
        return
    share, most = ((pixels + ROWS - 1) // ROWS + thread_count - 1) // thread_count, PIXELS // ROWS
    if k_blocks == 1 and conv.output_block >= outputs:
        most = max(1, min(most if conv.phases else share, PATCHES // conv.taps // ROWS))
    blocks = max(1, (share + most - 1) // most)
    conv.pixel_block = max(1, (share + blocks - 1) // blocks) * ROWS


@device_function
def lowered_row(taps, itemsize):
    """Values from one patch to the next: not a multiple of 2 KiB, of which the first-level cache has few places."""
    return taps + 16 if taps * itemsize % 2048 == 0 else taps


@device_function
def has_part(conv, part):
    """Whether the convolution needs the kernel of this number."""
    if part == LOWER_PART:
        return conv.by_outputs != 0 and conv.in_place == 0
    if part == ACTIVATION_PART:
        return conv.by_outputs != 0 and conv.y != 0 and (conv.residual != 0 or conv.activate != 0)
    return part == PRODUCT_PART


@driver
def _forward(
    launcher, thread_count, kernels, x, w, b, stride, pads, dilation, residual, function, parameter, z, y, lowered_size, scratch
):  # fmt: skip
    kh, kw, channels, K = w.shape
    lowered, runs, w_taps = scratch[:lowered_size], np.empty((kh * kw, 3), np.int64), np.empty(kh * kw, np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    describe(conv, x, x.shape[3] // channels, K, z.shape[1], z.shape[2], scratch[lowered_size:], thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.w, conv.w_taps, conv.w_depth, conv.w_row, conv.w_column = address(w), address(w_taps), channels, K, 1
    conv.w_group, conv.w_in_order = K // conv.groups, True
    for tap in range(kh * kw):
        w_taps[tap] = tap * channels * K
    describe_blocks(conv, lowered, thread_count, VECTORS * lanes(data(w)))
    conv.b, conv.residual = address_or_null(b), address_or_null(residual)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address(y), function, parameter
    for part in range(CLEAR_PART):
        if has_part(conv, part):
            run_kernel(launcher, kernels[part], thread_count, record, (runs, w_taps))


@device_function
def phase_taps(phase, pad, size, step, dilation, taps):
    """How many taps reach the pixels phase, phase + step, ... of the image; taps (size, 2): each, last first, and its first output."""
    n = 0
    for tap in range(size - 1, -1, -1):
        if (phase + pad - tap * dilation) % step == 0:
            taps[n, 0], taps[n, 1] = tap, (phase + pad - tap * dilation) // step
            n += 1
    return n


@driver
def _input_gradient(launcher, thread_count, kernels, dz, w, stride, pads, dilation, dx, lowered_size, scratch):
    kh, kw, channels, K = w.shape
    C = dx.shape[3]
    row_taps, column_taps = np.empty((kh, 2), np.int64), np.empty((kw, 2), np.int64)
    lowered, runs, w_taps = scratch[:lowered_size], np.empty((kh * kw, 3), np.int64), np.empty(kh * kw, np.int64)
    record = local_zeros(1, CONV)
    conv = record[0]
    if min(kh, kw) < max(stride) or max(dilation) > 1:
        # there may be pixels that no tap reaches
        conv.N, conv.out_image, conv.z = 1, dx.size, address(dx)
        run_kernel(launcher, kernels[CLEAR_PART], thread_count, record, ())
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            m = phase_taps(i, pads[0], kh, stride[0], dilation[0], row_taps)
            n = phase_taps(j, pads[1], kw, stride[1], dilation[1], column_taps)
            if m * n == 0:
                continue
            rows = (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            describe(conv, dz, C // channels, C, rows, columns, scratch[lowered_size:], thread_count)
            one_run = conv.groups == 1 and column_taps[n - 1, 1] - column_taps[0, 1] == n - 1
            conv.step_h = conv.step_w = 1
            conv.runs, conv.n_runs = address(runs), m if one_run else m * n
            for a in range(m):
                for b in range(n):
                    if not one_run or b == 0:
                        run = runs[a if one_run else a * n + b]
                        run[0], run[1], run[2] = row_taps[a, 1], column_taps[b, 1], n if one_run else 1
                    w_taps[a * n + b] = (row_taps[a, 0] * kw + column_taps[b, 0]) * channels * K
            conv.w, conv.w_taps, conv.w_row, conv.w_column = address(w), address(w_taps), 1, K
            conv.w_depth = conv.w_group = K // conv.groups
            conv.taps, conv.in_place = m * n * conv.w_depth, is_product(kh, kw, conv.groups, stride, pads)
            conv.phases = max(stride) > 1
            conv.out_image, conv.out_pixel = dx.size // max(conv.N, 1), stride[1] * C
            conv.out_row = stride[0] * dx.shape[2] * C
            conv.z = address(dx) + (i * dx.shape[2] + j) * C * dx.itemsize
            describe_blocks(conv, lowered, thread_count, VECTORS * lanes(data(w)))
            for part in range(CLEAR_PART):
                if has_part(conv, part):
                    run_kernel(launcher, kernels[part], thread_count, record, (runs, w_taps))


_KERNELS = Addresses(conv_lower_part, conv_part, conv_activation_part, conv_clear_part)


def _scratch(depth, pixels, outputs, phases, in_place):
    """Sizes of scratch: of all patches of `depth` values, if they may be lowered together, and of a thread's blocks."""
    lowered = 0 if in_place or pixels * (depth + 16) > LOWERED else pixels * (depth + 16)
    block = min(pixels, PIXELS) + ROWS
    patches = max(PATCHES + 2 * ROWS * depth, block * min(depth, DEEP))
    return lowered, PANELS + patches + (block * outputs if phases else 0)


def _forward_by_patches(x, w, b, geometry, residual, activation, saved):
    z, depth = saved.z, w[..., 0].size
    lowered, each = _scratch(depth, z.size // z.shape[3], 0, False, depth == x.shape[3] and max(geometry.stride) == 1)
    run(
        2 * z.size * depth, _forward, _KERNELS[x.dtype.char], x, w, *or_empty(x.dtype, 1, b), *geometry,
        *or_empty(x.dtype, 4, residual), forward_address[x.dtype.char, activation.code], activation.parameter,
        *saved, lowered, scratch=(x.dtype, lowered, each),
    )  # fmt: skip


def _input_gradient_by_patches(dz, w, geometry, groups, dx):
    (kh, kw, _, K), stride = w.shape, geometry.stride
    # of the largest phase
    taps = kh * kw if max(geometry.dilation) > 1 else -(-kh // stride[0]) * -(-kw // stride[1])
    pixels, depth = len(dx) * -(-dx.shape[1] // stride[0]) * -(-dx.shape[2] // stride[1]), taps * K // groups
    lowered, each = _scratch(depth, pixels, dx.shape[3], max(stride) > 1, kh * kw * max(stride) == 1)
    run(
        2 * dz.size * w[..., 0].size, _input_gradient, _KERNELS[dz.dtype.char], dz, w, *geometry, dx, lowered,
        scratch=(dz.dtype, lowered, each),
    )  # fmt: skip


def conv2d_forward(x, w, b, geometry, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (N, H', W', K); b (K,), residual may be None."""
    if depthwise.applies(x, w):
        depthwise.forward(x, w, b, geometry, residual, activation, saved)
    elif winograd.applies(w, geometry, x.shape[3] // w.shape[2], saved.z):
        flags = winograd.convolve(x, w, b, geometry.pads, False, residual, activation, saved)
        if flags.any():
            y = np.empty_like(saved.y)
            direct = types.LayerSaved(y if saved.z is saved.y else np.empty_like(y), y)
            _forward_by_patches(x, w, b, geometry, residual, activation, direct)
            for array, values in zip(saved, direct, strict=True):
                winograd.replace_tiles(flags, len(w), array, values)
    else:
        _forward_by_patches(x, w, b, geometry, residual, activation, saved)


def _input_gradient_of_all_channels(dz, w, geometry, groups, dx):
    stride, pads, dilation = geometry
    flipped = types.Geometry(stride, tuple(len(w) - 1 - pad for pad in pads), dilation)
    if conv_inputs.applies(w, groups):
        conv_inputs.input_gradient(dz, w, geometry, dx)
    elif winograd.applies(w, flipped, groups, dx):
        flags = winograd.convolve(dz, w, None, flipped.pads, True, None, IDENTITY, types.LayerSaved(dx, None))
        if flags.any():
            direct = np.empty_like(dx)
            _input_gradient_by_patches(dz, w, geometry, groups, direct)
            winograd.replace_tiles(flags, len(w), dx, direct)
    else:
        _input_gradient_by_patches(dz, w, geometry, groups, dx)


def conv2d_backward(dy, x, w, geometry, activation, saved, gradients):
    """Overwrite gradients: dz (N, H', W', K), which is dresidual, dx, dw and db (K,), each of which but dz may be None."""
    dz, dx, dw, db = gradients
    activation_backward(dy, *saved, dz, activation)
    groups, channelwise = x.shape[3] // w.shape[2], depthwise.applies(x, w)
    if channelwise and dw is not None:
        depthwise.weight_gradient(x, dz, geometry, dw)
    wants_dw = dw is not None and not channelwise
    if wants_dw and winograd_weights.pays(x, w, geometry, dz):
        winograd_weights.weight_gradient(x, dz, geometry.pads, dw)
        wants_dw = not np.isfinite(dw).all()
    if wants_dw or db is not None:
        conv_weights.weight_gradient(x, dz, geometry, w if dw is None else dw, wants_dw, db)
    if channelwise and dx is not None:
        depthwise.input_gradient(dz, w, geometry, dx)
    elif dx is not None:
        _input_gradient_of_all_channels(dz, w, geometry, groups, dx)
