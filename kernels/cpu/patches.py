"""Patches of images as rows of a matrix (im2row), and the record of a convolution; used by conv.py, conv_weights.py and conv_inputs.py.

The patch of a pixel of the output has the values of x under the kernel: (kh, kw, channels of the group). It is made of runs of values that
lie side by side in x: a row of the kernel where its pixels lie side by side and there are no groups, else one tap.
"""

import numpy as np
from numba import carray

from .engine.compile import device_function, inline_function
from .engine.intrinsics import address, advance, copy, lanes, pointer, void_pointer
from .gemm import clear

# a convolution of x (N, H, W, C) in groups of channels to K channels of rows x columns pixels; x is dz where dx is made. Its fields:
# runs (n_runs, 3), int64: taps side by side in a row of x, by row and column of the first, seen from the pixel, and their number;
# taps: values of a patch, of one group; step_h, step_w: pixels of x from one of the output to the next; in_place: whether the patches
# are x itself; out_image, out_row, out_pixel: values between those of the output;
# w_taps (taps / w_depth,), int64: where each tap of w begins, w_depth values of a patch by outputs, w_row and w_column apart, and w_group
# from group to group;
# blocks, see conv.py: pixels, values of a patch and outputs at a time; by_outputs: whether threads share the outputs, not the pixels;
# lowered: all patches, lowered_row values apart, or null; scratch: scratch_size values a thread; phases: whether the output's pixels are
# apart; activate: address of a kernel of activation.py; b, residual, z, y, dz, dw, db and parameter: as in conv2d_forward and
# conv2d_backward, null for None
CONV = np.dtype(
    [
        (name, "i8")
        for name in "N H W C groups runs n_runs taps step_h step_w in_place rows columns K out_image out_row out_pixel".split()
    ]
    + [(name, "i8") for name in "x w w_taps w_depth w_row w_column w_group".split()]
    + [(name, "i8") for name in "pixel_block tap_block output_block by_outputs lowered lowered_row".split()]
    + [(name, "i8") for name in "scratch scratch_size phases b residual z y activate dz dw db itemsize".split()]
    + [(name, "i8") for name in "chunks sums".split()]
    + [("parameter", "f8")]
)


@inline_function
def copy_run(n, source, target):
    """Copy a few values in whole vectors, of which the last two may overlap."""
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
def im2row(conv, group, first, n, lo, hi, patches, patch_size, like):
    """patches (n, patch_size): the columns lo..hi of the patches of n pixels of the output, from the first on."""
    runs, channels = carray(void_pointer(conv.runs), (conv.n_runs, 3), np.int64), conv.C // conv.groups
    step, size, k = conv.step_w * channels, conv.W * channels, 0
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
                # from the group's first channel on; with groups a run is of one tap, the next one's channels lie C further
                x = advance(pointer(conv.x, like), (image * conv.H + h) * conv.W * conv.C + group * channels)
                for j in range(pixels):
                    # where the run begins in this row of the image
                    left = (j0 + j) * step + runs[r, 1] * channels
                    patch = advance(patches, (k + j) * patch_size + at + begin - lo)  # (end - begin,)
                    if h < 0 or h >= conv.H or left + end <= 0 or left + begin >= size:
                        clear(end - begin, patch)
                    elif left + begin >= 0 and left + end <= size:
                        copy_run(end - begin, advance(x, left * conv.groups + begin), patch)
                    else:
                        x_begin, x_end = max(begin, -left), min(end, size - left)
                        clear(x_begin - begin, patch)
                        copy_run(
                            x_end - x_begin, advance(x, left * conv.groups + x_begin), advance(patch, x_begin - begin)
                        )
                        clear(end - x_end, advance(patch, x_end - begin))
            at += length
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
