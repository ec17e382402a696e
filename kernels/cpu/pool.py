"""Max and mean pooling of images (N, H, W, C); formulas: kernels/reference/pool.py.

A kernel goes through a window pixel by pixel; vectors run along the channels. Forward a thread has rows of windows. Backward it has whole
images, since windows that overlap add to the same pixels of dx.
"""

import numpy as np

from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import address, advance, carray, copy, pointer, real, run_kernel
from .engine.object_memory import address_of
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, add_times, map_arrays, times
from .gemm import clear

# windows of size_h x size_w pixels, step_h and step_w apart from (-top, -left) on, over images x (N, H, W, C) with bottom and right pixels
# of padding behind them: y (N, rows, columns, C) of their mean or largest values; x, y, dy and dx are null where they are not needed;
# scratch (threads, C)
POOL = np.dtype(
    [
        (name, "i8")
        for name in "N H W C size_h size_w step_h step_w top left bottom right rows columns include_pad mean x y dy dx scratch".split()
    ]
)
# a value costs about as much as this many multiplications and additions, for every pixel of its window
COST = 4


@inline_function
def larger(y, x):
    """The larger of y and x, NaN if either is."""
    return (y if y > x or y != y else x,)


@inline_function
def add_to_first(dx, matched, x, y, dy):
    """Add dy to dx at the first pixel that equals y; matched is 1 after that."""
    match = matched == real(0, x) and (x == y or x != x)
    return dx + (dy if match else real(0, x)), real(1, x) if match else matched


@device_function
def bounds(i, step, pad, size, limit):
    """First pixel of window i inside the image, and the end of its pixels."""
    return max(0, i * step - pad), min(limit, i * step - pad + size)


@device_function
def weight(pool, i, j, pixels, like):
    """The weight of a pixel in the mean of window (i, j), of so many pixels of the image."""
    if pool.include_pad:
        # a window may end past the padding
        h = min(pool.size_h, pool.top + pool.H + pool.bottom - i * pool.step_h)
        w = min(pool.size_w, pool.left + pool.W + pool.right - j * pool.step_w)
        pixels = h * w
    return real(1 / pixels, carray(like, 1)[0])


@kernel(POOL)
def pool_forward_part(thread_index, thread_count, record, like):
    """Mean or largest values of the thread's rows of windows."""
    pool = carray(record, 1)[0]
    C = pool.C
    lo, hi = thread_range(thread_index, thread_count, pool.N * pool.rows, 1)
    for line in range(lo, hi):
        image, i = line // pool.rows, line % pool.rows
        h0, h1 = bounds(i, pool.step_h, pool.top, pool.size_h, pool.H)
        for j in range(pool.columns):
            w0, w1 = bounds(j, pool.step_w, pool.left, pool.size_w, pool.W)
            y, first = advance(pointer(pool.y, like), (line * pool.columns + j) * C), True  # (C,)
            for h in range(h0, h1):
                for w in range(w0, w1):
                    x = advance(pointer(pool.x, like), ((image * pool.H + h) * pool.W + w) * C)  # (C,)
                    if first:
                        copy(C, x, y)
                        first = False
                    elif pool.mean:
                        map_arrays(add, C, (y, x), (y,), ())
                    else:
                        map_arrays(larger, C, (y, x), (y,), ())
            if pool.mean:
                map_arrays(times, C, (y,), (y,), (weight(pool, i, j, (h1 - h0) * (w1 - w0), y),))


@kernel(POOL)
def pool_backward_part(thread_index, thread_count, record, like):
    """dx of the thread's images, which undoes the windows of the forward pass in their order."""
    pool = carray(record, 1)[0]
    C = pool.C
    matched = advance(pointer(pool.scratch, like), thread_index * C)  # (C,)
    lo, hi = thread_range(thread_index, thread_count, pool.N, 1)
    clear((hi - lo) * pool.H * pool.W * C, advance(pointer(pool.dx, like), lo * pool.H * pool.W * C))
    for line in range(lo * pool.rows, hi * pool.rows):
        image, i = line // pool.rows, line % pool.rows
        h0, h1 = bounds(i, pool.step_h, pool.top, pool.size_h, pool.H)
        for j in range(pool.columns):
            w0, w1 = bounds(j, pool.step_w, pool.left, pool.size_w, pool.W)
            at = (line * pool.columns + j) * C
            dy, factor = advance(pointer(pool.dy, like), at), weight(pool, i, j, (h1 - h0) * (w1 - w0), matched)  # (C,)
            clear(C, matched)
            for h in range(h0, h1):
                for w in range(w0, w1):
                    pixel = ((image * pool.H + h) * pool.W + w) * C
                    dx = advance(pointer(pool.dx, like), pixel)  # (C,)
                    if pool.mean:
                        map_arrays(add_times, C, (dx, dy), (dx,), (factor,))
                    else:
                        x, y = advance(pointer(pool.x, like), pixel), advance(pointer(pool.y, like), at)  # (C,)
                        map_arrays(add_to_first, C, (dx, matched, x, y, dy), (dx, matched), ())


@driver
def _run(launcher, thread_count, function, record, scratch):
    """record: the fields of a POOL, the last of which, scratch, is the driver's to fill in."""
    record[-1] = address(scratch)
    run_kernel(launcher, function, thread_count, record, ())


def _pool(function, images, outputs, size, stride, pads, mean, include_pad, **arrays):
    (N, H, W, C), (_, rows, columns, _) = images.shape, outputs.shape
    addresses = [address_of(arrays[name]) if name in arrays else 0 for name in ("x", "y", "dy", "dx")]
    record = np.array([N, H, W, C, *size, *stride, *pads, rows, columns, include_pad, mean, *addresses, 0])
    operations, dtype = COST * outputs.size * size[0] * size[1], images.dtype
    run(operations, _run, function.address(dtype), record, scratch=(dtype, 0, C))


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C): the largest value of each window, NaN if it holds one."""
    _pool(pool_forward_part, x, y, size, stride, pads, False, False, x=x, y=y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C): dy of each window goes to the first of its largest values, in row order."""
    _pool(pool_backward_part, dx, dy, size, stride, pads, False, False, dy=dy, x=x, y=y, dx=dx)


def avg_pool2d_forward(x, size, stride, pads, include_pad, y):
    """y (N, H', W', C): the mean of each window, with the padding's zeros if include_pad."""
    _pool(pool_forward_part, x, y, size, stride, pads, True, include_pad, x=x, y=y)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C)."""
    _pool(pool_backward_part, dx, dy, size, stride, pads, True, include_pad, dy=dy, dx=dx)
