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

from .engine.device import BLOCK, Integer, Real, Values, device_function, kernel, launch
from .engine.reductions import add_down, larger, largest_down, tile_column, tile_width

WARP = 32


@device_function
def quotient(a, b):
    """a // b of integers in 0 .. 2^32 - 1: a 32-bit division costs a fraction of a 64-bit one."""
    return np.int64(np.uint32(a) // np.uint32(b))


@device_function
def block_position(rows, row_groups):
    """(image, row, group) of this block."""
    line = quotient(cuda.blockIdx.x, row_groups)
    image = quotient(line, rows)
    return image, line - image * rows, cuda.blockIdx.x - line * row_groups


@device_function
def pixel_of(rows, width, row_groups):
    """(image, h, w, channel) of this thread."""
    image, h, group = block_position(rows, row_groups)
    return image, h, group * (BLOCK // width) + cuda.threadIdx.x // width, tile_column(width)


@device_function
def pixels_of(i, step, pad, size, limit):
    """First pixel of window i inside the image, and the end of its pixels."""
    return max(i * step - pad, 0), min(i * step - pad + size, limit)


@device_function
def windows_of(h, step, pad, size, count):
    """First window that holds pixel h, and the end of those windows."""
    return quotient(max(h + pad - size + step, 0), step), min(quotient(h + pad, step) + 1, count)


@kernel
def pool_windows(
    dtype: Real, H: Integer, W: Integer, C: Integer, size_h: Integer, size_w: Integer, step_h: Integer, step_w: Integer,
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, row_groups: Integer, windows: Integer,
    bottom: Integer, right: Integer, mean: Integer, include_pad: Integer, x: Values, y: Values,
):  # fmt: skip
    """The `windows` windows of a block, with BLOCK // width // windows threads for each window and channel."""
    shared = cuda.shared.array(BLOCK, dtype)
    image, i, group = block_position(rows, row_groups)
    channel, thread_row = tile_column(width), cuda.threadIdx.x // width
    j, first_row = group * windows + (thread_row & (windows - 1)), thread_row // windows
    h0, h1 = pixels_of(i, step_h, top, size_h, H)
    w0, w1 = pixels_of(j, step_w, left, size_w, W)
    inside, threads_per_window = j < columns and channel < C, BLOCK // width // windows
    value = dtype(0) if mean else dtype(-math.inf)
    for h in range(h0 + first_row, h1 if inside else 0, threads_per_window):
        begin = ((image * H + h) * W + w0) * C + channel
        for at in range(begin, begin + (w1 - w0) * C, C):
            value = value + x[at] if mean else larger(x[at], value)
    if threads_per_window > 1:
        span = BLOCK // threads_per_window
        value = add_down(shared, value, span) if mean else largest_down(shared, value, span)
    if inside and first_row == 0:
        count = (h1 - h0) * (w1 - w0)
        if include_pad:
            # a window may end past the padding
            count = min(size_h, top + H + bottom - i * step_h) * min(size_w, left + W + right - j * step_w)
        y[((image * rows + i) * columns + j) * C + channel] = value / dtype(count) if mean else value


@device_function
def contains(y, x, start, stop, pixel):
    """Whether x has y or NaN at an index in range(begin, end, pixel)."""
    while start < stop:
        if x[start] == y or x[start] != x[start]:
            return True
        start += pixel
    return False


@device_function
def is_first(y, x, at, start, across, line, pixel):
    """Whether no pixel of a window before index `at` has y. The window begins at `begin` and spans `across` values of each line."""
    while start + across <= at:
        if contains(y, x, start, start + across, pixel):
            return False
        start += line
    return not contains(y, x, start, at, pixel)


@kernel
def max_pixels(
    dtype: Real, H: Integer, W: Integer, C: Integer, size_h: Integer, size_w: Integer, step_h: Integer, step_w: Integer,
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, row_groups: Integer,
    dy: Values, x: Values, y: Values, dx: Values,
):  # fmt: skip
    """dx of the maximum: dy of each window whose first largest value is the thread's pixel."""
    image, h, w, channel = pixel_of(H, width, row_groups)
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
    top: Integer, left: Integer, rows: Integer, columns: Integer, width: Integer, row_groups: Integer,
    bottom: Integer, right: Integer, include_pad: Integer, dy: Values, dx: Values,
):  # fmt: skip
    """dx of the mean: the sum of dy / count over the windows that hold the thread's pixel."""
    image, h, w, channel = pixel_of(H, width, row_groups)
    if w < W and channel < C:
        i0, i1 = windows_of(h, step_h, top, size_h, rows)
        j0, j1 = windows_of(w, step_w, left, size_w, columns)
        # what a window has at most of an image with its padding, or without
        h_begin, h_end = (-top, H + bottom) if include_pad else (0, H)
        w_begin, w_end = (-left, W + right) if include_pad else (0, W)
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


def kernel_sizes(images, outputs, size, stride, pads):
    """The kernels' first arguments: sizes, and how many threads have neighbouring channels."""
    width = min(tile_width(images.shape[3]), WARP)
    return *images.shape[1:], *size, *stride, *pads[:2], *outputs.shape[1:3], width


def grid(array, width, windows):
    """(grid, row_groups): each image row has row_groups groups, of `windows` pixels or windows and `width` channels."""
    n, rows, columns, channels = array.shape
    row_groups = -(-columns // windows)
    return (n * rows * row_groups, -(-channels // width)), row_groups


def windows_per_block(columns, width, size):
    """How many windows a block has, a power of two: about those of a row, but so many that no window has more threads than rows."""
    block_windows = BLOCK // width
    most_threads = 1 << size[0].bit_length() - 1
    return max(min(block_windows, 1 << (columns - 1).bit_length()), block_windows // most_threads)


def pool_forward(x, size, stride, pads, mean, include_pad, y):
    shape = kernel_sizes(x, y, size, stride, pads)
    windows = windows_per_block(y.shape[2], shape[-1], size)
    window_blocks, row_groups = grid(y, shape[-1], windows)
    launch(pool_windows, x.dtype, window_blocks, *shape, row_groups, windows, *pads[2:], mean, include_pad, x, y)


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C): the largest value of each window, NaN if it holds one."""
    pool_forward(x, size, stride, pads, False, False, y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C): dy of each window goes to the first of its largest values, in row order."""
    shape = kernel_sizes(x, y, size, stride, pads)
    pixel_blocks, row_groups = grid(x, shape[-1], BLOCK // shape[-1])
    launch(max_pixels, x.dtype, pixel_blocks, *shape, row_groups, dy, x, y, dx)


def avg_pool2d_forward(x, size, stride, pads, include_pad, y):
    """y (N, H', W', C): the mean of each window, with the padding's zeros if include_pad."""
    pool_forward(x, size, stride, pads, True, include_pad, y)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C)."""
    shape = kernel_sizes(dx, dy, size, stride, pads)
    pixel_blocks, row_groups = grid(dx, shape[-1], BLOCK // shape[-1])
    launch(mean_pixels, dx.dtype, pixel_blocks, *shape, row_groups, *pads[2:], include_pad, dy, dx)
