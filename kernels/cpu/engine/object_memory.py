"""NumPy arrays and Python lists of them, read by machine code from the memory of the objects: address, shape, strides, dtype, flags.

Python takes longer to read the addresses of 1,000 arrays than their norms take. The offsets of the fields are those of NumPy's C interface
(PyArrayObject_fields in ndarraytypes.h), which are part of its ABI. The import compares them with an example array. Where they differ,
Python writes a MemoryImage of the objects that a driver reads.
"""

import ctypes

import numpy as np

from .compile import device_function, driver
from .intrinsics import carray, void_pointer

# what every object begins with, its type last; then, in words of 8 bytes, the fields of an array, and of a list its size and its items
HEAD = object.__basicsize__
DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS = 0, 1, 2, 3, 5, 6
ITEMS = 1
# C-contiguous, aligned and writable
NEEDED = 0x1 | 0x100 | 0x400
# other processes have other addresses, so machine code is given them
KIND, FLOAT32, FLOAT64 = id(np.ndarray), id(np.dtype(np.float32)), id(np.dtype(np.float64))


def layout_is_known(head=HEAD):
    """Whether arrays and lists have the layout that this file assumes, by an example; head: bytes before an object's fields."""
    array = np.zeros((2, 3), np.float32)[:, :2]
    fields = (ctypes.c_int64 * (FLAGS + 1)).from_address(id(array) + head)
    shape, strides = ((ctypes.c_int64 * 2).from_address(fields[place]) for place in (SHAPE, STRIDES))
    items = [array, array]
    size, first = (ctypes.c_int64 * 2).from_address(id(items) + head)
    low = [ctypes.c_int32.from_address(id(array) + head + 8 * place).value for place in (NDIM, FLAGS)]
    return (
        fields[DATA] == array.ctypes.data
        and (*shape,) == array.shape
        and (*strides,) == array.strides
        and fields[DTYPE] == FLOAT32
        and low == [2, array.flags.num]
        and size == 2
        and (*(ctypes.c_int64 * 2).from_address(first),) == (id(array),) * 2
        and ctypes.c_int64.from_address(id(array) + head - 8).value == KIND
    )


LAYOUT_IS_KNOWN = layout_is_known()
_word_at, _DATA = ctypes.c_int64.from_address, HEAD + 8 * DATA


def address_of(array: np.ndarray) -> int:
    """Address of an array's first value, good for as long as the caller holds the array; `.ctypes.data` takes ten times as long."""
    return _word_at(id(array) + _DATA).value if LAYOUT_IS_KNOWN else array.ctypes.data


def address_or_zero(array: np.ndarray | None) -> int:
    """address_of, or 0 for None."""
    return 0 if array is None else address_of(array)


class MemoryImage:
    """An array, or a list of arrays and None, in words as CPython would lay it out; machine code reads it while it is held."""

    def __init__(self, value):
        first = HEAD // 8
        if isinstance(value, np.ndarray):
            words, behind = np.zeros(first + FLAGS + 1 + 2 * value.ndim, np.int64), first + FLAGS + 1
            words[behind:] = *value.shape, *value.strides
            shape, kind = words.ctypes.data + 8 * behind, [DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS]
            fields = value.ctypes.data, value.ndim, shape, shape + 8 * value.ndim, id(value.dtype), value.flags.num
            words[[first + place for place in kind]] = fields
            self.held = words, value
        else:
            images = [None if item is None else MemoryImage(item) for item in value]
            items = np.array([address_of_image(image) for image in images], np.int64)
            words = np.zeros(first + ITEMS + 1, np.int64)
            words[first + ITEMS] = items.ctypes.data
            self.held = words, images, items
        self.address = words.ctypes.data


def address_of_image(value):
    """Where a driver reads a MemoryImage or None."""
    return id(None) if value is None else value.address


def readable_objects(array, lists):
    """What a driver can read while the caller holds it: the array and copies of lists of arrays, where Python's lock does not keep others
    from changing them; and their places. A list may be None, and its items too.
    """
    if LAYOUT_IS_KNOWN:
        lists = [a if a is None else list(a) for a in lists]
        return (array, lists), id(array), tuple(map(id, lists))
    array, lists = MemoryImage(array), [a if a is None else MemoryImage(a) for a in lists]
    return (array, lists), array.address, tuple(map(address_of_image, lists))


@device_function
def word(address, place):
    """The word at this place after an address."""
    return carray(void_pointer(address + 8 * place), 1, np.int64)[0]


@device_function
def low_word(address, place):
    """The C int at this place."""
    return carray(void_pointer(address + 8 * place), 1, np.int32)[0]


@driver
def _all_uniform(items, n, kind, float32, float64):
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


def are_uniform(arrays):
    """Whether all of a list (not empty) are NumPy's own arrays, C-contiguous, aligned and writable, of one dtype, float32 or float64."""
    if not LAYOUT_IS_KNOWN:
        dtype = getattr(arrays[0], "dtype", None)
        return dtype in (np.float32, np.float64) and all(
            type(a) is np.ndarray and a.dtype is dtype and a.flags.num & NEEDED == NEEDED for a in arrays
        )
    return type(arrays[0]) is np.ndarray and _all_uniform(id(arrays), len(arrays), KIND, FLOAT32, FLOAT64)
