"""Lists of arrays as one sequence of blocks, which threads divide evenly, whatever arrays the blocks are in.

A table, int64 (n + 1, COLUMNS), has a row for each array: its address, how many values are before it, and how it is cut into blocks. The
last row has the totals.

In Python: `rows = table(arrays)` for C-contiguous arrays of one dtype, or an AddressList. Put the number of arrays and `address_of(rows)`
into the record, and keep arrays and rows until the launch returns. In the kernel a thread takes the blocks that begin in its range of all
values:

    table = rows_at(record.table, record.n)
    lo, hi = thread_range(thread_index, thread_count, table[record.n, START], 64)
    a, at = first_block(table, record.n, lo)
    while a < record.n and table[a, START] + at < hi:
        size = block_size(table, a, at)  # of array number a, values at .. at + size
        ...                              # advance(pointer(table[a, ADDRESS], like), at)
        a, at = next_block(table, record.n, a, at)

A block is in one array, and one thread takes it. Blocks do not depend on the number of threads, so what is summed by block has one order.
An op over several lists of equal sizes (params, grads, state) walks the table of one and reads the addresses of the others from theirs.
Machine code fills the table: see object_memory.py.
"""

import numpy as np

from . import object_memory
from .compile import device_function, driver
from .intrinsics import carray, void_pointer
from .object_memory import DATA, HEAD, ITEMS, NDIM, SHAPE, address_of, low_word, word

# columns of a table: address; values in all arrays before; values in a block, whole rows of `width`, which is 1 but for units; how many
# sums the blocks before have, `width` each, and how many units the arrays before; and where the array's values begin in a flat one that
# has a value for each. Row n holds the totals
ADDRESS, START, LENGTH, WIDTH, SUMS, UNITS, PLACE = range(7)
COLUMNS = 7
# values in a block: 64 KiB of float32 stay in the first two caches, and cost some microseconds
BLOCK = 16384
# rows of units in a block at least
ROWS = 64


@device_function
def add_array(table, a, address, size, width, place, block):
    """Put array number a, of this many values, after those before it; its blocks have about `block` values."""
    if a == 0:
        table[0, START], table[0, SUMS], table[0, UNITS] = 0, 0, 0
    width = max(width, 1)
    # of few rows, their sums would cost as much as the rows
    length = block if width == 1 else max(ROWS, block // width) * width
    table[a, ADDRESS], table[a, LENGTH], table[a, WIDTH], table[a, PLACE] = address, length, width, place
    table[a + 1, START] = table[a, START] + size
    table[a + 1, SUMS] = table[a, SUMS] + (size + length - 1) // length * width
    table[a + 1, UNITS] = table[a, UNITS] + width


@driver
def _fill(items, n, widths, table):
    items, place = word(items + HEAD, ITEMS), 0
    for a in range(n):
        fields = word(items, a) + HEAD
        shape, size = word(fields, SHAPE), 1
        for axis in range(low_word(fields, NDIM)):
            size *= word(shape, axis)
        add_array(table, a, word(fields, DATA), size, widths[a] if widths.size else 1, place, BLOCK)
        place += size


class AddressList:
    """Stands for a list of arrays whose owner knows where they lie: addresses and sizes, int64 (n,). [0] has their dtype, and no values."""

    def __init__(self, addresses, sizes, dtype):
        self.addresses, self.sizes, self._like = addresses, sizes, np.empty(0, dtype)

    def __len__(self):
        return len(self.addresses)

    def __getitem__(self, _):
        return self._like


@driver
def _fill_places(addresses, sizes, widths, table):
    place = 0
    for a in range(len(addresses)):
        add_array(table, a, addresses[a], sizes[a], widths[a] if widths.size else 1, place, BLOCK)
        place += sizes[a]


ONES = np.empty(0, np.int64)


def table(arrays, widths=ONES):
    """(n + 1, COLUMNS) of a list of C-contiguous arrays; widths (n,): how many values a row of each has, 0 and none: 1."""
    rows = np.empty((len(arrays) + 1, COLUMNS), np.int64)
    if not object_memory.LAYOUT_IS_KNOWN and not isinstance(arrays, AddressList):
        addresses, sizes = [address_of(a) for a in arrays], [a.size for a in arrays]
        arrays = AddressList(np.array(addresses, np.int64), np.array(sizes, np.int64), arrays[0].dtype)
    if isinstance(arrays, AddressList):
        _fill_places(arrays.addresses, arrays.sizes, widths, rows)
    else:
        _fill(id(arrays), len(arrays), widths, rows)
    return rows


@device_function
def rows_at(address, n):
    """A table, in a kernel."""
    return carray(void_pointer(address), (n + 1, COLUMNS), np.int64)


@device_function
def block_size(t, a, at):
    return min(t[a, LENGTH], t[a + 1, START] - t[a, START] - at)


@device_function
def _filled(t, n, a, at):
    """(a, at), or the beginning of the next array with values if this one ends there."""
    while a < n and t[a, START] + at >= t[a + 1, START]:
        a, at = a + 1, 0
    return a, at


@device_function
def next_block(t, n, a, at):
    """The block after that at (a, at): array n if there is none."""
    return _filled(t, n, a, at + t[a, LENGTH])


@device_function
def previous_block(t, a, at):
    """The block before that at (a, at): array -1 if there is none."""
    if at:
        return a, at - t[a, LENGTH]
    a -= 1
    while a >= 0 and t[a, START] == t[a + 1, START]:
        a -= 1
    return a, (t[a + 1, START] - t[a, START] - 1) // t[a, LENGTH] * t[a, LENGTH] if a >= 0 else 0


@device_function
def first_block(t, n, value):
    """(a, at): the first block that begins at this value, counted over all arrays, or after it; array n if there is none."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if t[middle + 1, START] <= value:
            low = middle + 1
        else:
            high = middle
    if low == n:
        return n, 0
    length = t[low, LENGTH]
    return _filled(t, n, low, (value - t[low, START] + length - 1) // length * length)


@device_function
def sums_of(t, a, at):
    """Where the sums of the block at (a, at) lie among all: `width` of them."""
    return t[a, SUMS] + at // t[a, LENGTH] * t[a, WIDTH]
