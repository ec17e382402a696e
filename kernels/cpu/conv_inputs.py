"""The gradient dx of a convolution of few channels, such as a net's first layer: products, added to the image (col2im).

    p (N H' W', kh kw C) = dz (N H' W', K) @ w^T        dx[h, j] = sum of p over the pixels of dz and the taps that reach it

As a convolution of dz (conv.py), dx would leave the vectors nearly empty, whose lanes are channels. Here the lanes are the taps' channels.
A thread has rows of dx. It takes the rows of dz that reach them, from the first to the last, and multiplies one at a time; the values of
its products that belong to the thread's rows are added there. So a value of dx is a sum over the pixels of dz in their order, however
the threads share the rows.
"""

import numpy as np

from .engine.compile import Addresses, device_function, driver, kernel
from .engine.intrinsics import address, advance, carray, data, lanes, local_zeros, pointer, run_kernel
from .engine.microkernel import provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import clear, pack_b, panel_tiles

# channels at most: more fill the vectors of conv.py
CHANNELS = 7
# dz (N, rows, columns, K) and dx (N, H, W, C); kernel, strides, dilation and first pads of the convolution; panels: w^T (K, kh kw C);
# scratch: scratch_size values a thread
INPUTS = np.dtype(
    [(name, "i8") for name in "N H W C rows columns K kh kw step_h step_w top left dilation_h dilation_w".split()]
    + [(name, "i8") for name in "dz dx panels scratch scratch_size".split()]
)


@device_function
def add_run(n, source, target):
    """target += source, a few values."""
    width = lanes(source)
    whole = n - n % width
    for i in range(0, whole, width):
        to = advance(target, i)
        map_arrays(add, lanes(source), (to, advance(source, i)), (to,), ())
    to = advance(target, whole)
    map_arrays(add, n - whole, (to, advance(source, whole)), (to,), ())


@device_function
def add_row(conv, columns, products, products_row, dx, like):
    """Add a row of dz's products with one row of the kernel, (columns, kw C), products_row apart, to a row of dx (W, C)."""
    # taps side by side are one run
    runs, taps = (1, conv.kw) if conv.dilation_w == 1 else (conv.kw, 1)
    length, size = taps * conv.C, conv.W * conv.C
    for j in range(columns):
        for r in range(runs):
            left = (j * conv.step_w + r * conv.dilation_w - conv.left) * conv.C
            begin, end = max(0, -left), min(length, size - left)
            if begin < end:
                source = advance(products, j * products_row + r * length + begin)
                add_run(end - begin, source, advance(dx, left + begin))


@kernel(INPUTS, needs=provide_microkernel)
def conv_inputs_part(thread_index, thread_count, record, like):
    """The thread's rows of dx (N H, W, C)."""
    conv = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.H, 1)
    taps, null = conv.kh * conv.kw * conv.C, pointer(0 * lo, like)
    products = advance(pointer(conv.scratch, like), thread_index * conv.scratch_size)  # (columns, taps)
    clear((hi - lo) * conv.W * conv.C, advance(pointer(conv.dx, like), lo * conv.W * conv.C))
    reach = (conv.kh - 1) * conv.dilation_h
    for image in range(lo // conv.H, (hi + conv.H - 1) // conv.H):
        # the thread's rows of this image, and the rows of dz that reach them
        h_lo, h_hi = max(lo - image * conv.H, 0), min(hi - image * conv.H, conv.H)
        first = max(0, -((reach - conv.top - h_lo) // conv.step_h))
        last = min(conv.rows, (h_hi - 1 + conv.top) // conv.step_h + 1)
        for i in range(first, last):
            dz = advance(pointer(conv.dz, like), (image * conv.rows + i) * conv.columns * conv.K)  # (columns, K)
            panels = pointer(conv.panels, like)  # (K, taps) in panels
            panel_tiles(conv.columns, taps, conv.K, dz, conv.K, panels, null, 0, products, taps)
            for r in range(conv.kh):
                h = i * conv.step_h + r * conv.dilation_h - conv.top
                if h_lo <= h < h_hi:
                    row = advance(pointer(conv.dx, like), (image * conv.H + h) * conv.W * conv.C)  # (W, C)
                    add_row(conv, conv.columns, advance(products, r * conv.kw * conv.C), taps, row, like)


@driver
def _input_gradient(launcher, thread_count, kernels, dz, w, stride, pads, dilation, dx, panels_size, scratch):
    record = local_zeros(1, INPUTS)
    conv = record[0]
    conv.N, conv.H, conv.W, conv.C = dx.shape
    conv.rows, conv.columns, conv.K = dz.shape[1:]
    conv.kh, conv.kw = w.shape[:2]
    conv.step_h, conv.step_w = stride
    conv.dilation_h, conv.dilation_w = dilation
    conv.top, conv.left = pads[0], pads[1]
    panels, rest = scratch[:panels_size], scratch[panels_size:]
    pack_b(conv.K, conv.kh * conv.kw * conv.C, data(w), 1, conv.K, data(panels), conv.K)
    conv.dz, conv.dx, conv.panels = address(dz), address(dx), address(panels)
    conv.scratch, conv.scratch_size = address(rest), rest.size // thread_count
    run_kernel(launcher, kernels[0], thread_count, record, (panels, rest, w))


_KERNELS = Addresses(conv_inputs_part)


def applies(w, groups):
    """Whether dx has few channels, and the taps' channels fill vectors."""
    return groups == 1 and w.shape[2] <= CHANNELS and w.shape[0] * w.shape[1] > 1


def input_gradient(dz, w, geometry, dx):
    """Write dx (N, H, W, C)."""
    kh, kw, C, K = w.shape
    # the last panel may have room for columns that w has not
    panels = K * (kh * kw * C + 64)
    run(
        2 * dz.size * w[..., 0].size, _input_gradient, _KERNELS[dz.dtype.char], dz, w, *geometry, dx, panels,
        scratch=(dz.dtype, panels, dz.shape[2] * kh * kw * C),
    )  # fmt: skip
