"""Sums and maxima in one fixed order, with the same bits every run: over the threads of a block by a tree, over blocks by a second launch.

A tile is the arrangement of BLOCK threads over a matrix (rows, columns): `width` threads side by side, a power of two, and BLOCK / width
rows. Thread i has column i % width and row i / width. So few columns leave no warp idle, and neighbouring threads read neighbouring values.
A block goes over TILE_ROWS tiles of rows. All threads of a block must call a reduction; it uses shared memory (BLOCK,), which is free
again when it returns.
"""

from numba import cuda

from . import device
from .device import BLOCK, Integer, Real, Values, device_function, kernel, launch

# tiles of rows of a block: enough that sums by column are about a hundredth of the values read
TILE_ROWS = 16
# rows of block sums that a thread adds up one after the other
ROWS_OF_A_BLOCK = 128


def tile_width(columns):
    """Threads side by side: the least power of two from `columns` on, or BLOCK."""
    return min(1 << max(columns - 1, 0).bit_length(), BLOCK)


def tiles(rows, columns):
    """The grid over a matrix: (blocks of rows, blocks of columns)."""
    width = tile_width(columns)
    return -(-rows // (TILE_ROWS * (BLOCK // width))), -(-columns // width)


@device_function
def tile_column(width):
    """This thread's column."""
    return cuda.blockIdx.y * width + (cuda.threadIdx.x & (width - 1))


@device_function
def tile_row(width):
    """This thread's first row; its next ones are BLOCK // width rows further each, up to `row_limit`."""
    return cuda.blockIdx.x * (TILE_ROWS * (BLOCK // width)) + cuda.threadIdx.x // width


@device_function
def row_limit(width, rows):
    """The end of this block's rows."""
    return min((cuda.blockIdx.x + 1) * (TILE_ROWS * (BLOCK // width)), rows)


@device_function
def add(a, b):
    return a + b


@device_function
def larger(a, b):
    """The larger one, or NaN."""
    return a if a > b or a != a else b


def reduction(join):
    """(down, across), functions of (shared, value, width) that join the values of threads pairwise.

    down: those over a tile's rows, for each column, which its threads get; `width` is the tile's. across: those of each `width` threads
    side by side, which all of them get.
    """

    @device_function
    def join_values(shared, value, span, least):
        """Join the values of each `span` threads side by side pairwise, until `least` values are left."""
        thread = cuda.threadIdx.x
        lane = thread & (span - 1)
        shared[thread] = value
        cuda.syncthreads()
        distance = span // 2
        while distance >= least:
            if lane < distance:
                shared[thread] = join(shared[thread], shared[thread + distance])
            cuda.syncthreads()
            distance //= 2
        result = shared[thread - lane + (thread & (least - 1))]
        cuda.syncthreads()
        return result

    @device_function
    def down(shared, value, width):
        return join_values(shared, value, BLOCK, width)

    @device_function
    def across(shared, value, width):
        return join_values(shared, value, width, 1)

    return down, across


add_down, add_across = reduction(add)
# NaN if one is
largest_down, largest_across = reduction(larger)


@device_function
def sum_before_thread(shared, value):
    """(the sum over the threads before this one, the sum over all)."""
    thread, distance = cuda.threadIdx.x, 1
    shared[thread] = value
    cuda.syncthreads()
    while distance < BLOCK:
        other = shared[thread - distance] if thread >= distance else shared[thread] - shared[thread]
        cuda.syncthreads()
        shared[thread] += other
        cuda.syncthreads()
        distance *= 2
    before, total = shared[thread] - value, shared[BLOCK - 1]
    cuda.syncthreads()
    return before, total


@kernel
def add_rows(dtype: Real, rows: Integer, columns: Integer, width: Integer, partials: Values, sums: Values):
    """sums (blocks, columns) of partials (rows, columns): each block of the grid's first axis adds up rows_per_block rows."""
    shared = cuda.shared.array(BLOCK, dtype)
    column, total = tile_column(width), dtype(0)
    rows_per_block = (rows + cuda.gridDim.x - 1) // cuda.gridDim.x
    if column < columns:
        first, last = cuda.blockIdx.x * rows_per_block, min((cuda.blockIdx.x + 1) * rows_per_block, rows)
        for row in range(first + cuda.threadIdx.x // width, last, BLOCK // width):
            total += partials[row * columns + column]
    total = add_down(shared, total, width)
    if cuda.threadIdx.x < width and column < columns:
        sums[cuda.blockIdx.x * columns + column] = total


def sum_rows(partials, sums):
    """sums (columns,) of contiguous partials (rows, columns): one launch, or two where one block would take long."""
    rows, columns = partials.shape
    width, across = tile_width(columns), tiles(1, columns)[1]
    rows_at_once = ROWS_OF_A_BLOCK * (BLOCK // width)
    if rows > rows_at_once:
        blocks = min(-(-rows // rows_at_once), rows_at_once)
        block_sums = device.xp.empty((blocks, columns), sums.dtype)
        launch(add_rows, sums.dtype, (blocks, across), rows, columns, width, partials, block_sums)
        partials, rows = block_sums, blocks
    launch(add_rows, sums.dtype, (1, across), rows, columns, width, partials, sums)
