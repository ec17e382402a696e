"""The layout of a convolution's weights: PyTorch's (K, C, kh, kw), and (kh, kw, C, K) as kernels read them.

Both are a transposed matrix, (K, C taps) and (C taps, K), whose rows are then in another order. They are copied in tiles of TILE rows
by LINE columns through a buffer in cache, so that of either matrix whole cache lines are read and written. A thread has a range of
the columns.
"""

import numpy as np

from .engine.compile import Addresses, device_function, driver, kernel
from .engine.intrinsics import address, advance, carray, copy, data, local, pointer, run_kernel
from .engine.thread_pool import run, thread_range
from .gemm import transpose_rows

# sizes K, C and taps; addresses of weight (K, C, taps) and w (taps, C, K)
WEIGHTS = np.dtype([(name, "i8") for name in "K C taps weight w".split()])
TILE, LINE = 64, 16
BUFFER = TILE * LINE
TO_TAPS, FROM_TAPS = range(2)
# a copied value costs about as much as this many multiplications and additions
COPY = 16


@device_function
def row_of(weights, column, k, like):
    """w's values from k on for a column of weight."""
    tap = column % weights.taps * weights.C + column // weights.taps
    return advance(pointer(weights.w, like), tap * weights.K + k)


@kernel(WEIGHTS)
def to_taps_part(thread_index, thread_count, record, like):
    """The thread's columns of weight to rows of w."""
    weights, buffer = carray(record, 1)[0], local(BUFFER, like)
    columns = weights.C * weights.taps
    lo, hi = thread_range(thread_index, thread_count, columns, LINE)
    for j0 in range(lo, hi, LINE):
        width = min(LINE, hi - j0)
        for k0 in range(0, weights.K, TILE):
            rows = min(TILE, weights.K - k0)
            source = advance(pointer(weights.weight, like), k0 * columns + j0)  # (rows, width), columns apart
            transpose_rows(rows, width, source, columns, data(buffer), TILE)
            for j in range(width):
                copy(rows, data(buffer[j * TILE :]), row_of(weights, j0 + j, k0, like))


@kernel(WEIGHTS)
def from_taps_part(thread_index, thread_count, record, like):
    """Rows of w to the thread's columns of weight."""
    weights, buffer = carray(record, 1)[0], local(BUFFER, like)
    columns = weights.C * weights.taps
    lo, hi = thread_range(thread_index, thread_count, columns, LINE)
    for k0 in range(0, weights.K, TILE):
        rows = min(TILE, weights.K - k0)
        for j0 in range(lo, hi, LINE):
            width = min(LINE, hi - j0)
            for j in range(width):
                copy(rows, row_of(weights, j0 + j, k0, like), data(buffer[j * TILE :]))
            target = advance(pointer(weights.weight, like), k0 * columns + j0)  # (rows, width), columns apart
            transpose_rows(width, rows, data(buffer), TILE, target, columns)


@driver
def _copy_weights(launcher, thread_count, kernels, direction, weight, w):
    record = local(1, WEIGHTS)
    weights = record[0]
    weights.K, weights.C, weights.taps = weight.shape[0], weight.shape[1], weight.shape[2] * weight.shape[3]
    weights.weight, weights.w = address(weight), address(w)
    run_kernel(launcher, kernels[direction], thread_count, record, ())


_KERNELS = Addresses(to_taps_part, from_taps_part)


def weights_to_taps(weight, w):
    """w (kh, kw, C, K) = weight (K, C, kh, kw)."""
    run(COPY * w.size, _copy_weights, _KERNELS[w.dtype.char], TO_TAPS, weight, w)


def weights_from_taps(w, weight):
    """weight (K, C, kh, kw) = w (kh, kw, C, K)."""
    run(COPY * w.size, _copy_weights, _KERNELS[w.dtype.char], FROM_TAPS, weight, w)
