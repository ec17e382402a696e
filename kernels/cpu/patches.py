"""Patches of images as rows of a matrix (im2row), and the record of a convolution; used by conv.py, conv_weights.py and conv_inputs.py.

The patch of a pixel of the output has the values of x under the kernel: (kh, kw, channels of the group). It is made of runs of values that
lie side by side in x: a row of the kernel where its pixels lie side by side and there are no groups, else one tap.
"""

import numpy as np

from .engine.compile import device_function, inline_function
from .engine.intrinsics import address, advance, carray, copy, lanes, pointer, void_pointer
from .gemm import clear

# a convolution of x (N, H, W, C) in groups of channels to K channels of rows x columns pixels; x is dz where dx is made. Its fields:
# runs (n_runs, 3), int64: taps side by side in a row of x, by row and column of the first, seen from the pixel, and their number;
# taps: values of a patch, of one group; step_h, step_w: pixels of x from one of the output to the next; in_place: whether the patches
# are x itself; out_image, out_row, out_pixel: values between those of the output, and phases: whether its pixels are apart;
# w_taps (taps / w_depth,), int64: where w has each tap, w_depth values of a patch by outputs, w_row and w_column apart, and w_group from
# group to group; w_in_order: whether its rows are those of a patch, one after another; pixel_block, tap_block, output_block: pixels, values
# of a patch and outputs at a time; by_outputs: whether threads share the outputs, not the pixels; lowered: all patches, lowered_row
# values apart; chunks: of the pixels, sums (chunks, taps, K): dw of each; scratch: scratch_size values a thread; activate: address of a
# kernel of activation.py; b, residual, z, y, dz, dw, db and parameter: as in conv2d_forward and conv2d_backward, null for None
CONV = np.dtype(
    [(name, "i8") for name in "N H W C groups K rows columns step_h step_w runs n_runs taps in_place".split()]
    + [(name, "i8") for name in "x w w_taps w_depth w_row w_column w_group w_in_order".split()]
    + [(name, "i8") for name in "pixel_block tap_block output_block by_outputs lowered lowered_row".split()]
    + [(name, "i8") for name in "b residual z y out_image out_row out_pixel phases activate".split()]
    + [(name, "i8") for name in "dz dw db chunks sums scratch scratch_size itemsize".split()]
    + [("parameter", "f8")]
)


@inline_function
def copy_run(n, source, target):
    """Copy a few values, as whole vectors of which the last two may overlap."""
    width = lanes(source)
    if n < width:
        of, to = carray(source, n), carray(target, n)
        for i in range(n):
            to[i] = of[i]
    else:
        for i in range(0, n - width, width):
            copy(lanes(source), advance(source, i), advance(target, i))
        copy(lanes(source), advance(source, n - width), advance(target, n - width))


@device_function
def copy_runs(count, n, source, source_step, target, target_step):
    """Copy so many runs of n values."""
    width = lanes(source)
    if width <= n <= 2 * width:
        # a row of the kernel of a first layer
        for j in range(count):
            of, to = advance(source, j * source_step), advance(target, j * target_step)
            copy(lanes(source), of, to)
            copy(lanes(source), advance(of, n - width), advance(to, n - width))
    else:
        for j in range(count):
            copy_run(n, advance(source, j * source_step), advance(target, j * target_step))


@device_function
def copy_edge(n, left, size, source, target):
    """Copy n values of a row (size,), which begin at `left` in it, or 0 outside; source: where they begin."""
    begin = min(max(-left, 0), n)
    end = max(begin, min(n, size - left))
    clear(begin, target)
    copy_run(end - begin, advance(source, begin), advance(target, begin))
    clear(n - end, advance(target, end))


@device_function
def im2row(conv, group, first, n, lo, hi, patches, patch_size, like):
    """patches (n, patch_size): the columns lo..hi of the patches of n pixels of the output, from the first on."""
    runs, channels, k = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), conv.C // conv.groups, 0
    # of one group's channels; with groups a run is of one tap, and the next tap's channels lie C further
    groups, step, size, height = conv.groups, conv.step_w * channels, conv.W * channels, conv.H
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
            count, target = (
                end - begin,
                advance(patches, k * patch_size + at + begin - lo),
            )  # (pixels, count), patch_size apart
            at += length
            if count > 0 and 0 <= h < height:
                # where they begin in the row of x, and the pixels that have all of them there
                left = j0 * step + runs[r, 1] * channels + begin
                inside = min(max((step - 1 - left) // step, 0), pixels)
                outside = min(max((size - count - left) // step + 1, inside), pixels)
                row = (image * height + h) * conv.W * conv.C + group * channels
                x = advance(pointer(conv.x, like), row + (left - begin) * groups + begin)
                for j in range(inside):
                    copy_edge(
                        count, left + j * step, size, advance(x, j * step * groups), advance(target, j * patch_size)
                    )
                copy_runs(
                    outside - inside, count, advance(x, inside * step * groups), step * groups,
                    advance(target, inside * patch_size), patch_size,
                )  # fmt: skip
                for j in range(outside, pixels):
                    copy_edge(
                        count, left + j * step, size, advance(x, j * step * groups), advance(target, j * patch_size)
                    )
            elif count > 0:
                for j in range(pixels):
                    clear(count, advance(target, j * patch_size))
        k += pixels


@device_function
def describe(conv, x, groups, K, rows, columns, scratch, thread_count):
    """Fill in sizes and scratch."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.groups, conv.K, conv.rows, conv.columns, conv.x = groups, K, rows, columns, address(x)
    conv.scratch, conv.scratch_size, conv.itemsize = address(scratch), scratch.size // thread_count, x.itemsize


@device_function
def describe_taps(conv, kh, kw, stride, pads, dilation, runs):
    """The taps of every pixel of the output, a row of the kernel in one run where its pixels lie side by side."""
    one_run = conv.groups == 1 and dilation[1] == 1
    conv.step_h, conv.step_w, conv.runs, conv.n_runs = stride[0], stride[1], address(runs), kh if one_run else kh * kw
    for i in range(kh):
        for j in range(1 if one_run else kw):
            run = runs[i if one_run else i * kw + j]
            run[0], run[1], run[2] = i * dilation[0] - pads[0], j * dilation[1] - pads[1], kw if one_run else 1
    conv.taps = kh * kw * (conv.C // conv.groups)
    conv.in_place = is_product(kh, kw, conv.groups, stride, pads)


@device_function
def is_product(kh, kw, groups, stride, pads):
    """Whether the convolution is the product of the pixels, as they lie, and w."""
    return kh * kw * groups == 1 and max(stride) == 1 and max(pads) == 0
