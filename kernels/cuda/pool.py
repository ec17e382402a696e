"""Max and mean pooling of images (N, H, W, C); formulas: kernels/reference/pool.py. One launch forward, one backward, no scratch.

Layout: a block has a part of one image row, windows forward and pixels backward; neighbouring threads have neighbouring channels, at most
a warp of them. Where a row has too few windows to fill a block (global pooling has one), several threads share each window by its rows.

Backward a thread has one value of dx and gathers from every window that holds its pixel, so no two threads write the same value. For max
pooling it adds dy of a window if the window's y equals the pixel's x and no earlier pixel of the window equals y.
x, y and dy come from memory once; where windows overlap, from the caches.
"""

import math

import numpy as np
from numba import cuda

from .engine.device import BLOCK, Integer, Real, Values, function, kernel, launch
from .engine.reductions import add_down, larger, largest_down, tile_column, tile_width

WARP = 32


@function
def over(a, b):
    """a // b of integers in 0 .. 2^32 - 1: a 32-bit division costs a fraction of a 64-bit one."""
    return np.int64(np.uint32(a) // np.uint32(b))


@function
def place(rows, groups):
    """(image, row, group) of this block."""
    line = over(cuda.blockIdx.x, groups)
    image = over(line, rows)
    return image, line - image * rows, cuda.blockIdx.x - line * groups


@function
def pixel_of(rows, width, groups):
    """(image, h, w, channel) of this thread."""
    image, h, group = place(rows, groups)
    return image, h, group * (BLOCK // width) + cuda.threadIdx.x // width, tile_column(width)


@function
def pixels_of(i, step, before, size, limit):
    """First pixel of window i inside the image, and the end of its pixels."""
    return max(i * step - before, 0), min(i * step - before + size, limit)


@function
def windows_of(h, step, before, size, count):
    """First window that holds pixel h, and the end of those windows."""
    return over(max(h + before - size + step, 0), step), min(over(h + before, step) + 1, count)


@kernel
def pool_windows(
    dtype: Real, H: Integer, W: Integer, C: Integer, size_h: Integer, size_w: Integer, step_h: Integer, step_w: Integer,
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, groups: Integer, together: Integer,
    mean: Integer, include_pad: Integer, x: Values, y: Values,
):  # fmt: skip
    """`together` windows of a row, with BLOCK // width // together threads for each window and channel."""
    shared = cuda.shared.array(BLOCK, dtype)
    image, i, group = place(rows, groups)
    channel, row = tile_column(width), cuda.threadIdx.x // width
    j, part = group * together + (row & (together - 1)), row // together
    h0, h1 = pixels_of(i, step_h, top, size_h, H)
    w0, w1 = pixels_of(j, step_w, left, size_w, W)
    inside, split = j < columns and channel < C, BLOCK // width // together
    value = dtype(0) if mean else dtype(-math.inf)
    for h in range(h0 + part, h1 if inside else 0, split):
        begin = ((image * H + h) * W + w0) * C + channel
        for at in range(begin, begin + (w1 - w0) * C, C):
            value = value + x[at] if mean else larger(x[at], value)
    if split > 1:
        value = add_down(shared, value, BLOCK // split) if mean else largest_down(shared, value, BLOCK // split)
    if inside and part == 0:
        count = size_h * size_w if include_pad else (h1 - h0) * (w1 - w0)
        y[((image * rows + i) * columns + j) * C + channel] = value / dtype(count) if mean else value


@function
def is_in(y, x, begin, end, pixel):
    """Whether x has y or NaN at an index in range(begin, end, pixel)."""
    while begin < end:
        if x[begin] == y or x[begin] != x[begin]:
            return True
        begin += pixel
    return False


@function
def is_first(y, x, at, begin, across, line, pixel):
    """Whether no pixel of a window before index `at` has y. The window begins at `begin` and spans `across` values of each line."""
    while begin + across <= at:
        if is_in(y, x, begin, begin + across, pixel):
            return False
        begin += line
    return not is_in(y, x, begin, at, pixel)


@kernel
def max_pixels(
    dtype: Real, H: Integer, W: Integer, C: Integer, size_h: Integer, size_w: Integer, step_h: Integer, step_w: Integer,
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, groups: Integer,
    dy: Values, x: Values, y: Values, dx: Values,
):  # fmt: skip
    image, h, w, channel = pixel_of(H, width, groups)
    if w < W and channel < C:
        i0, i1 = windows_of(h, step_h, top, size_h, rows)
        j0, j1 = windows_of(w, step_w, left, size_w, columns)
        corner = image * H * W * C + channel
        at, total = corner + (h * W + w) * C, dtype(0)
        value = x[at]
        for i in range(i0, i1):
            for j in range(j0, j1):
                window = ((image * rows + i) * columns + j) * C + channel
                largest = y[window]
                if value == largest or value != value:
                    h0 = max(i * step_h - top, 0)
                    w0, w1 = pixels_of(j, step_w, left, size_w, W)
                    if is_first(largest, x, at, corner + (h0 * W + w0) * C, (w1 - w0) * C, W * C, C):
                        total += dy[window]
        dx[at] = total


@kernel
def mean_pixels(
    dtype: Real, H: Integer, W: Integer, C: Integer, size_h: Integer, size_w: Integer, step_h: Integer, step_w: Integer,
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, groups: Integer, include_pad: Integer,
    dy: Values, dx: Values,
):  # fmt: skip
    image, h, w, channel = pixel_of(H, width, groups)
    if w < W and channel < C:
        i0, i1 = windows_of(h, step_h, top, size_h, rows)
        j0, j1 = windows_of(w, step_w, left, size_w, columns)
        # what a window has at most of an image with its padding, or without
        h_begin, h_end = (-top, H + size_h) if include_pad else (0, H)
        w_begin, w_end = (-left, W + size_w) if include_pad else (0, W)
        total = dtype(0)
        for i in range(i0, i1):
            line, first, in_row = (image * rows + i) * columns, j0 * step_w - left, dtype(0)
            at, end = (line + j0) * C + channel, (line + j1) * C
            while at < end:
                in_row += dy[at] / dtype(min(first + size_w, w_end) - max(first, w_begin))
                at += C
                first += step_w
            first = i * step_h - top
            total += in_row / dtype(min(first + size_h, h_end) - max(first, h_begin))
        dx[((image * H + h) * W + w) * C + channel] = total


def tiled(images, outputs, size, stride, pads):
    """The kernels' first arguments; the last one is how many threads have neighbouring channels."""
    width = min(tile_width(images.shape[3]), WARP)
    return *images.shape[1:], *size, *stride, *pads[:2], *outputs.shape[1:3], width


def grid(array, width, together):
    """(grid, groups): each image row has `groups` groups, of `together` pixels or windows and `width` channels."""
    n, rows, columns, channels = array.shape
    groups = -(-columns // together)
    return (n * rows * groups, -(-channels // width)), groups


def sharing(columns, width, size):
    """How many windows a block has, a power of two: about those of a row, but so many that no window has more threads than rows."""
    room = BLOCK // width
    most_each = 1 << size[0].bit_length() - 1
    return max(min(room, 1 << (columns - 1).bit_length()), room // most_each)


def pool_forward(x, size, stride, pads, mean, include_pad, y):
    shape = tiled(x, y, size, stride, pads)
    together = sharing(y.shape[2], shape[-1], size)
    over_windows, groups = grid(y, shape[-1], together)
    launch(pool_windows, x.dtype, over_windows, *shape, groups, together, mean, include_pad, x, y)


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C): the largest value of each window, NaN if it holds one."""
    pool_forward(x, size, stride, pads, False, False, y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C): dy of each window goes to the first of its largest values, in row order."""
    shape = tiled(x, y, size, stride, pads)
    over_pixels, groups = grid(x, shape[-1], BLOCK // shape[-1])
    launch(max_pixels, x.dtype, over_pixels, *shape, groups, dy, x, y, dx)


def avg_pool2d_forward(x, size, stride, pads, include_pad, y):
    """y (N, H', W', C): the mean of each window, with the padding's zeros if include_pad."""
    pool_forward(x, size, stride, pads, True, include_pad, y)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C)."""
    shape = tiled(dx, dy, size, stride, pads)
    over_pixels, groups = grid(dx, shape[-1], BLOCK // shape[-1])
    launch(mean_pixels, dx.dtype, over_pixels, *shape, groups, include_pad, dy, dx)
