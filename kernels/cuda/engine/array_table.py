"""Lists of arrays as chunks, so that one launch works on all arrays, with a block of threads for each chunk.

An array is read as rows of `width` values: 1, or more where its columns are units of clip.py. A chunk is some rows of some columns, over
which the tile of reductions.py lies; it belongs to one array. A kernel takes the table of chunks and the arrays,

    chunks: Integers, x: Arrays

and each of its blocks, one for each chunk, goes over its own values:

    a, width, tile, column, row, end = chunk_of(chunks, cuda.blockIdx.x)
    if column < width:
        while row < end:
            ...                                  # x[a][row * width + column]
            row += BLOCK // tile

A flat array for all arrays of a list, such as an optimiser's state, has their values one after the other: chunks[OFFSET] is the offset of
the chunk's array in it.
"""

from functools import lru_cache
from itertools import accumulate

import numpy as np
from numba import cuda

from . import device
from .device import BLOCK, device_function

# columns of a table: array; its width; the tile's width; first column; first row and the row after the last; values of the arrays before;
# units of the arrays before; where its partial results begin, `tile` of them
ARRAY, WIDTH, TILE, COLUMN, ROW, END, OFFSET, UNITS, PARTIALS = range(9)
COLUMNS = 9
# a thread takes this many values
DEPTH = 8


class Table:
    """The chunks (n, COLUMNS) of arrays of these sizes, widths and offsets, and the groups of chunks with the same columns of one array.

    groups (m, 6): first chunk, how many, width, the tile's width, first column, units of the arrays before. chunk_offsets (arrays + 1,)
    and group_offsets: where each array's chunks and groups begin.
    """

    def __init__(self, sizes, widths, offsets):
        chunks, groups, chunk_offsets, group_offsets = [], [], [], []
        units = partials = 0
        for array, (size, width, offset) in enumerate(zip(sizes, widths, offsets, strict=True)):
            rows, tile = size // width, min(1 << (width - 1).bit_length(), BLOCK)
            step = DEPTH * (BLOCK // tile)
            chunk_offsets.append(len(chunks))
            group_offsets.append(len(groups))
            for column in range(0, width, tile):
                first = len(chunks)
                for row in range(0, rows, step):
                    chunks.append((array, width, tile, column, row, min(row + step, rows), offset, units, partials))
                    partials += tile
                groups.append((first, len(chunks) - first, width, tile, column, units))
            units += width
        self.count, self.group_count, self.partials, self.units = len(chunks), len(groups), partials, units
        tables = chunks, groups, [*chunk_offsets, len(chunks)], [*group_offsets, len(groups)]
        self.chunks, self.groups, self.chunk_offsets, self.group_offsets = (
            device.xp.asarray(np.array(rows, np.int64).reshape(-1)) for rows in tables
        )


@lru_cache(maxsize=64)
def _table(sizes, widths, offsets, queue):
    return Table(sizes, widths, offsets_of(sizes) if offsets is None else offsets)


def table(arrays, widths=None, offsets=None):
    """The table of arrays of these sizes; that of a training loop is made once.

    offsets: of each array in a flat one; None where that has these arrays alone.
    """
    widths = (1,) * len(arrays) if widths is None else tuple(int(w) for w in widths)
    return _table(tuple(a.size for a in arrays), widths, offsets, device.queue())


def offsets_of(sizes):
    """Where arrays of these sizes begin in a flat one, one after the other."""
    return tuple(accumulate(sizes, initial=0))[: len(sizes)]


@device_function
def chunk_of(chunks, number):
    """(array, width, tile, column, row, end) of a chunk: this thread's column and first row, and the end of rows."""
    at, thread = number * COLUMNS, cuda.threadIdx.x
    tile = chunks[at + TILE]
    column, row = chunks[at + COLUMN] + (thread & (tile - 1)), chunks[at + ROW] + thread // tile
    return chunks[at + ARRAY], chunks[at + WIDTH], tile, column, row, chunks[at + END]


def flat(arrays):
    """A list of the arrays' values, C-contiguous."""
    return [device.flat(a).reshape(-1) for a in arrays]


def are_uniform(arrays):
    """Whether all of a list (not empty) are arrays of the current device, C-contiguous, aligned and writable, and float32 or float64."""
    dtype, array_type, number = getattr(arrays[0], "dtype", None), device.xp.ndarray, device.device_number()
    return dtype in (np.float32, np.float64) and all(
        type(array) is array_type
        and array.dtype == dtype
        and device.usable(array)
        and _is_writable(array)
        and _is_on(array, number)
        for array in arrays
    )


def _is_on(array, number):
    # an emulated device has NumPy's arrays
    return getattr(getattr(array, "device", None), "id", number) == number


def _is_writable(array):
    # CuPy's arrays always are
    return getattr(array.flags, "writeable", True)
