"""Pooling of images (N, H, W, C), as in kernels/reference/pool.py: a window's pixels one after another, all channels of one at a time.

A thread has images of its own, since windows that overlap meet in dx.
"""

import numpy as np
from numba import carray

from .engine.compile import device_function, driver, inline_function, kernel
from .engine.intrinsics import address, address_of, advance, copy, pointer, real, run_kernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, add_times, map_arrays, times
from .gemm import clear

POOL = np.dtype(
    [
        (name, "i8")
        for name in "N H W C size_h size_w step_h step_w top left rows columns include_pad mean x y dy dx room".split()
    ]
)
# a value costs about as much as this many multiplications and additions, for every pixel of its window
COST = 4


@inline_function
def larger(y, x):
    """NaN stays, and comes."""
    return (y if y > x or y != y else x,)


@inline_function
def to_first(dx, taken, x, y, dy):
    """dy goes to the first pixel that is the largest; taken is 1 where it has gone."""
    hit = taken == real(0, x) and (x == y or x != x)
    return dx + (dy if hit else real(0, x)), real(1, x) if hit else taken


@device_function
def bounds(i, step, before, size, limit):
    """First pixel of the i-th window and the one past its last, of those that the image has."""
    return max(0, i * step - before), min(limit, i * step - before + size)


@device_function
def weight(g, pixels, like):
    """Of each of a window's pixels in its mean."""
    return real(1 / (g.size_h * g.size_w if g.include_pad else pixels), carray(like, 1)[0])


@kernel(POOL)
def pool_forward_part(part, parts, job, like):
    g = carray(job, 1)[0]
    C = g.C
    lo, hi = thread_range(part, parts, g.N * g.rows, 1)
    for line in range(lo, hi):
        image, i = line // g.rows, line % g.rows
        h0, h1 = bounds(i, g.step_h, g.top, g.size_h, g.H)
        for j in range(g.columns):
            w0, w1 = bounds(j, g.step_w, g.left, g.size_w, g.W)
            y, first = advance(pointer(g.y, like), (line * g.columns + j) * C), True
            for h in range(h0, h1):
                for w in range(w0, w1):
                    x = advance(pointer(g.x, like), ((image * g.H + h) * g.W + w) * C)
                    if first:
                        copy(C, x, y)
                        first = False
                    elif g.mean:
                        map_arrays(add, C, (y, x), (y,), ())
                    else:
                        map_arrays(larger, C, (y, x), (y,), ())
            if g.mean:
                map_arrays(times, C, (y,), (y,), (weight(g, (h1 - h0) * (w1 - w0), y),))


@kernel(POOL)
def pool_backward_part(part, parts, job, like):
    g = carray(job, 1)[0]
    C = g.C
    taken = advance(pointer(g.room, like), part * C)
    lo, hi = thread_range(part, parts, g.N, 1)
    clear((hi - lo) * g.H * g.W * C, advance(pointer(g.dx, like), lo * g.H * g.W * C))
    for line in range(lo * g.rows, hi * g.rows):
        image, i = line // g.rows, line % g.rows
        h0, h1 = bounds(i, g.step_h, g.top, g.size_h, g.H)
        for j in range(g.columns):
            w0, w1 = bounds(j, g.step_w, g.left, g.size_w, g.W)
            at = (line * g.columns + j) * C
            dy, part_of_dy = advance(pointer(g.dy, like), at), weight(g, (h1 - h0) * (w1 - w0), taken)
            clear(C, taken)
            for h in range(h0, h1):
                for w in range(w0, w1):
                    pixel = ((image * g.H + h) * g.W + w) * C
                    dx = advance(pointer(g.dx, like), pixel)
                    if g.mean:
                        map_arrays(add_times, C, (dx, dy), (dx,), (part_of_dy,))
                    else:
                        x, y = advance(pointer(g.x, like), pixel), advance(pointer(g.y, like), at)
                        map_arrays(to_first, C, (dx, taken, x, y, dy), (dx, taken), ())


@driver
def _run(launcher, parts, function, job, room):
    """job: the fields of a POOL but for room, its last, which has C values for each part."""
    job[-1] = address(room)
    run_kernel(launcher, function, parts, job, ())


def _pool(part, images, outputs, size, stride, pads, mean, include_pad, **arrays):
    (N, H, W, C), (_, rows, columns, _) = images.shape, outputs.shape
    addresses = [address_of(arrays[name]) if name in arrays else 0 for name in ("x", "y", "dy", "dx")]
    job = np.array([N, H, W, C, *size, *stride, *pads[:2], rows, columns, include_pad, mean, *addresses, 0])
    operations, dtype = COST * outputs.size * size[0] * size[1], images.dtype
    run(operations, _run, part.address(dtype), job, scratch=(dtype, 0, C))


def max_pool2d_forward(x, size, stride, pads, y):
    """y (N, H', W', C): the largest of each window, NaN if there is one."""
    _pool(pool_forward_part, x, y, size, stride, pads, False, False, x=x, y=y)


def max_pool2d_backward(dy, x, y, size, stride, pads, dx):
    """dx (N, H, W, C): of each window to the first of its largest values, in row order."""
    _pool(pool_backward_part, dx, dy, size, stride, pads, False, False, dy=dy, x=x, y=y, dx=dx)


def avg_pool2d_forward(x, size, stride, pads, include_pad, y):
    """y (N, H', W', C): the mean of each window, with the padding's zeros if include_pad."""
    _pool(pool_forward_part, x, y, size, stride, pads, True, include_pad, x=x, y=y)


def avg_pool2d_backward(dy, size, stride, pads, include_pad, dx):
    """dx (N, H, W, C)."""
    _pool(pool_backward_part, dx, dy, size, stride, pads, True, include_pad, dy=dy, dx=dx)
