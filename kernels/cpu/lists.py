"""Lists of arrays: a table of where they lie, and their values cut into blocks, which threads share whatever array they lie in.

How to use it. In Python, `rows = table(arrays)` of C-contiguous arrays of one dtype, or of Places; put their number and
`address_of(rows)` into the job, and keep arrays and rows until the launch is over. In the kernel, a part goes through the blocks that
begin in its share of all values:

    t = rows_at(job.table, job.n)
    lo, hi = share(part, parts, t[job.n, START], 64)
    a, at = first_block(t, job.n, lo)
    while a < job.n and t[a, START] + at < hi:
        size = block_size(t, a, at)  # of array number a, values at .. at + size
        ...                          # advance(pointer(t[a, ADDRESS], like), at)
        a, at = next_block(t, job.n, a, at)

No block lies in two arrays or two parts, and blocks do not depend on the number of threads: what is summed by blocks has one order. An
op over several lists of equal sizes (params, grads, state) walks one table and takes the other lists' addresses from theirs.

The table is read off the objects themselves, by machine code: to ask 1,000 arrays for their addresses takes Python longer than their norms
take. The fields are those of NumPy's C interface (PyArrayObject_fields in ndarraytypes.h), whose places are part of its ABI.
"""

import numpy as np
from numba import carray

from .jit import compiled, entry
from .simd import void_pointer

# columns of a table: address; values in all arrays before; values in a block, whole rows of `width`, which is 1 but for units; how many
# sums the blocks before have, `width` each, and how many units the arrays before; and where the array's values begin in a flat one that
# has a value for each. Row n holds the totals
ADDRESS, START, LENGTH, WIDTH, SUMS, UNITS, PLACE = range(7)
COLUMNS = 7
# values in a block: 64 KiB of float32 stay in the first two caches, and cost some microseconds
BLOCK = 16384
# rows of units in a block at least
ROWS = 64

# what every object begins with, its type last; then, in words of 8 bytes, the fields of an array, and of a list its size and its items
HEAD = object.__basicsize__
DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS = 0, 1, 2, 3, 5, 6
ITEMS = 1
# C-contiguous, aligned and writable
NEEDED = 0x1 | 0x100 | 0x400
# other processes have other addresses, so machine code is given them
KIND, FLOAT32, FLOAT64 = id(np.ndarray), id(np.dtype(np.float32)), id(np.dtype(np.float64))


@compiled
def word(address, place):
    """The word at this place after an address."""
    return carray(void_pointer(address + 8 * place), 1, np.int64)[0]


@compiled
def low_word(address, place):
    """The C int at this place."""
    return carray(void_pointer(address + 8 * place), 1, np.int32)[0]


@entry
def _all_plain(items, n, kind, float32, float64):
    items = word(items + HEAD, ITEMS)
    first = word(word(items, 0) + HEAD, DTYPE)
    if first != float32 and first != float64:
        return False
    for a in range(n):
        array = word(items, a)
        # an object that is no array may be shorter than one
        if word(array + HEAD, -1) != kind:
            return False
        if word(array + HEAD, DTYPE) != first or low_word(array + HEAD, FLAGS) & NEEDED != NEEDED:
            return False
    return True


def plain(arrays):
    """Whether all of a list (not empty) are NumPy's own arrays, C-contiguous, aligned and writable, of one dtype, float32 or float64."""
    return type(arrays[0]) is np.ndarray and _all_plain(id(arrays), len(arrays), KIND, FLOAT32, FLOAT64)


@compiled
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


@entry
def _fill(items, n, widths, table):
    items, place = word(items + HEAD, ITEMS), 0
    for a in range(n):
        fields = word(items, a) + HEAD
        shape, size = word(fields, SHAPE), 1
        for axis in range(low_word(fields, NDIM)):
            size *= word(shape, axis)
        add_array(table, a, word(fields, DATA), size, widths[a] if widths.size else 1, place, BLOCK)
        place += size


class Places:
    """Stands for a list of arrays whose owner knows where they lie: addresses and sizes, int64 (n,). [0] has their dtype, and no values."""

    def __init__(self, addresses, sizes, dtype):
        self.addresses, self.sizes, self._like = addresses, sizes, np.empty(0, dtype)

    def __len__(self):
        return len(self.addresses)

    def __getitem__(self, _):
        return self._like


@entry
def _fill_places(addresses, sizes, widths, table):
    place = 0
    for a in range(len(addresses)):
        add_array(table, a, addresses[a], sizes[a], widths[a] if widths.size else 1, place, BLOCK)
        place += sizes[a]


ONES = np.empty(0, np.int64)


def table(arrays, widths=ONES):
    """(n + 1, COLUMNS) of a list of C-contiguous arrays; widths (n,): how many values a row of each has, 0 and none: 1."""
    rows = np.empty((len(arrays) + 1, COLUMNS), np.int64)
    if isinstance(arrays, Places):
        _fill_places(arrays.addresses, arrays.sizes, widths, rows)
    else:
        _fill(id(arrays), len(arrays), widths, rows)
    return rows


@compiled
def rows_at(address, n):
    """A table, in a kernel."""
    return carray(void_pointer(address), (n + 1, COLUMNS), np.int64)


@compiled
def block_size(t, a, at):
    return min(t[a, LENGTH], t[a + 1, START] - t[a, START] - at)


@compiled
def _filled(t, n, a, at):
    """(a, at), or the beginning of the next array with values if this one ends there."""
    while a < n and t[a, START] + at >= t[a + 1, START]:
        a, at = a + 1, 0
    return a, at


@compiled
def next_block(t, n, a, at):
    """The block after that at (a, at): array n if there is none."""
    return _filled(t, n, a, at + t[a, LENGTH])


@compiled
def previous_block(t, a, at):
    """The block before that at (a, at): array -1 if there is none."""
    if at:
        return a, at - t[a, LENGTH]
    a -= 1
    while a >= 0 and t[a, START] == t[a + 1, START]:
        a -= 1
    return a, (t[a + 1, START] - t[a, START] - 1) // t[a, LENGTH] * t[a, LENGTH] if a >= 0 else 0


@compiled
def first_block(t, n, value):
    """(a, at): the first block that begins with this value of all or after it: values `at` on of array a, n if there is none."""
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


@compiled
def sums_of(t, a, at):
    """Where the sums of the block at (a, at) lie among all: `width` of them."""
    return t[a, SUMS] + at // t[a, LENGTH] * t[a, WIDTH]


def addresses_of(arrays):
    """The addresses alone, (n,): of a list whose sizes another's table has."""
    return np.ascontiguousarray(table(arrays)[:-1, ADDRESS])
