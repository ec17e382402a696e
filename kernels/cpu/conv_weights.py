"""The gradients dw and db of a convolution; formulas: kernels/reference/conv.py.

    dw (kh kw C, K) = im2row(x)^T dz        db (K,) = sums of dz over all pixels

The pixels are cut into chunks, whose number the shapes fix. A thread has some of the chunks, or, where they are fewer than threads, some
rows of dw of a chunk. It takes a block of the chunk's pixels at a time: their patches (patches.py), or x in place where its columns share
the first-level cache, and their dz, in panels where several tiles read it. Then the chunks' sums are added in their order, so the bits do
not depend on the threads.
"""

import numpy as np

from .dense import column_sums
from .engine.compile import Addresses, device_function, driver, kernel, or_empty
from .engine.intrinsics import address, address_or_null, advance, carray, copy, lanes, local_zeros, pointer, run_kernel
from .engine.microkernel import ROWS, VECTORS, provide_microkernel
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import LONG, clear, is_odd, pack_b, reads_well, tiles
from .patches import CONV, describe, describe_taps, im2row

# pixels at a time at most
DEPTH = 208
# rows of dw at a time, and values from one patch to the next then: not a power of two, of which the first-level cache has few places
TAPS, TAPS_ROW = 384, 400
# chunks that are worth their sums: pixels of one, where dw has few values and where it has many, and values of all sums at most
CHUNKS, CHUNK_PIXELS, SMALL_DW, LARGE_CHUNK_PIXELS, SUMS = 16, 128, 16_384, 768, 1 << 20
SUMS_PART, ADD_PART = range(2)


@device_function
def chunk_products(conv, chunk, lo, hi, scratch, like):
    """The rows lo..hi of the chunk's sums (taps, K)."""
    outputs, width, null = conv.K // conv.groups, VECTORS * lanes(like), pointer(0 * lo, like)
    first, last = thread_range(chunk, conv.chunks, conv.N * conv.rows * conv.columns, 1)
    blocks = (last - first + DEPTH - 1) // DEPTH
    patches, panels = (
        scratch,
        advance(scratch, DEPTH * TAPS_ROW),
    )  # (DEPTH, TAPS_ROW), and dz (DEPTH, K / groups) in panels
    x_in_place = conv.in_place and reads_well(DEPTH, conv.C, conv.itemsize)
    dz_in_place = (
        outputs <= width
        or is_odd(outputs, lanes(like))
        or (hi - lo <= 4 * ROWS and reads_well(DEPTH, conv.K, conv.itemsize))
    )
    for t in range(lo, hi, TAPS):
        m = min(TAPS, hi - t)
        for group in range(conv.groups):
            sums = advance(
                pointer(conv.sums, like), (chunk * conv.taps + t) * conv.K + group * outputs
            )  # (m, K / groups), K apart
            for i in range(0 if blocks else m):
                clear(outputs, advance(sums, i * conv.K))
            start, start_row, start_col = null, 0, 0
            for block in range(blocks):
                p, end = thread_range(block, blocks, last - first, 1)
                p, n = p + first, end - p
                # patches
                a, a_col = patches, TAPS_ROW  # (n, m)
                if x_in_place:
                    a, a_col = advance(pointer(conv.x, like), p * conv.C + t), conv.C
                else:
                    im2row(conv, group, p, n, t, t + m, patches, TAPS_ROW, like)
                # product
                b = advance(pointer(conv.dz, like), p * conv.K + group * outputs)  # (n, K / groups), K apart
                b_row, b_panel = conv.K, width
                if not dz_in_place:
                    pack_b(n, outputs, b, conv.K, 1, panels, n)
                    b, b_row, b_panel = panels, width, n * width
                tiles(m, outputs, n, a, 1, a_col, 1, 0, b, b_row, b_panel, start, start_row, start_col, sums, conv.K)
                start, start_row, start_col = sums, conv.K, 1


@kernel(CONV, needs=provide_microkernel)
def conv_sums_part(thread_index, thread_count, record, like):
    """The thread's chunks, or rows of a chunk, of the sums (chunks, kh kw C, K), and its columns of db."""
    conv = carray(record, 1)[0]
    scratch = advance(pointer(conv.scratch, like), thread_index * conv.scratch_size)
    # db = sums of dz: undoes the bias
    if conv.db:
        lo, hi = thread_range(thread_index, thread_count, conv.K, 16)
        at = conv.scratch + thread_index * conv.scratch_size * conv.itemsize
        column_sums(
            conv.N * conv.rows * conv.columns, conv.K, lo, hi, pointer(conv.dz, like), pointer(conv.db, like), at
        )
    if not conv.dw:
        return
    # sums = patches^T dz: undoes the product
    grains = (conv.taps + ROWS - 1) // ROWS
    begin, end = thread_range(thread_index, thread_count, conv.chunks * grains, 1)
    for chunk in range(begin // grains, (end + grains - 1) // grains):
        lo, hi = max(begin - chunk * grains, 0) * ROWS, min((end - chunk * grains) * ROWS, conv.taps)
        chunk_products(conv, chunk, lo, hi, scratch, like)


@kernel(CONV)
def conv_add_part(thread_index, thread_count, record, like):
    """The thread's values of dw: the chunks' sums, added in their order."""
    conv = carray(record, 1)[0]
    size = conv.taps * conv.K
    lo, hi = thread_range(thread_index, thread_count, size, 16)
    sums, dw = (
        advance(pointer(conv.sums, like), lo),
        advance(pointer(conv.dw, like), lo),
    )  # (chunks, hi - lo), size apart
    copy(hi - lo, sums, dw)
    for chunk in range(1, conv.chunks):
        map_arrays(add, hi - lo, (dw, advance(sums, chunk * size)), (dw,), ())


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, stride, pads, dilation, dw, wants_dw, db, chunks, scratch):
    kh, kw, channels, K = dw.shape
    record, runs = local_zeros(1, CONV), np.empty((kh * kw, 3), np.int64)
    conv = record[0]
    sums = scratch[: chunks * dw.size if chunks > 1 else 0]
    describe(conv, x, x.shape[3] // channels, K, dz.shape[1], dz.shape[2], scratch[sums.size :], thread_count)
    describe_taps(conv, kh, kw, stride, pads, dilation, runs)
    conv.dz, conv.dw, conv.db = address(dz), address(dw) if wants_dw else 0, address_or_null(db)
    conv.chunks, conv.sums = chunks, address(sums) if chunks > 1 else address(dw)
    run_kernel(launcher, kernels[SUMS_PART], thread_count, record, (runs,))
    if wants_dw and chunks > 1:
        run_kernel(launcher, kernels[ADD_PART], thread_count, record, (runs,))


_KERNELS = Addresses(conv_sums_part, conv_add_part)


def chunk_count(pixels, size):
    """Chunks of so many pixels, for sums of `size` values: a power of two, and no chain of sums is longer than LONG."""
    chunks, least = 1, CHUNK_PIXELS if size <= SMALL_DW else LARGE_CHUNK_PIXELS
    while pixels > chunks * LONG or (chunks < CHUNKS and 2 * chunks * least <= pixels and 2 * chunks * size <= SUMS):
        chunks *= 2
    return chunks


def weight_gradient(x, dz, geometry, dw, wants_dw, db):
    """Write dw (kh, kw, C / groups, K) if wanted, else it has that shape only, and db (K,), unless that is None."""
    outputs, pixels = dz.shape[3] // (x.shape[3] // dw.shape[2]), dz.size // dz.shape[3]
    chunks = chunk_count(pixels, dw.size) if wants_dw else 1
    run(
        2 * dz.size * dw[..., 0].size, _weight_gradient, _KERNELS[x.dtype.char], x, dz, *geometry, dw, wants_dw,
        *or_empty(x.dtype, 1, db), chunks,
        scratch=(x.dtype, chunks * dw.size if chunks > 1 else 0, DEPTH * (TAPS_ROW + outputs + 64)),
    )  # fmt: skip
