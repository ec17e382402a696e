"""The allocator of result arrays: it keeps memory blocks and uses them again, since new pages cost more than many kernels.

`empty` returns an uninitialised array. An array of LARGE bytes or more is a view of a block, which begins at a cache line. A smaller one is
NumPy's, and one on a GPU comes from CuPy's pool.

Lists hold blocks of up to KEPT bytes in all; NumPy frees the others at once. A block is free if only its list refers to it, which its
reference count tells. So there is no lock and no destructor, and an exception, a signal handler or another thread does no harm. In a
backward pass a gradient that has been read gives its memory to the next gradient, and a training loop allocates nothing after its first
step.
"""

import contextlib
import ctypes
from itertools import islice
from math import prod
from sys import getrefcount
from typing import Any

import numpy as np

from fastgrad.core import device
from fastgrad.kernels.types import Activation, LayerSaved

# the size in bytes from which a result gets a block; the most bytes that the lists hold: the least recently used sizes go first
LARGE, KEPT = 4 << 10, 1 << 29
LINE = 64
# the test of a block costs as much as new pages of so many bytes: of a size with many blocks in use only some are tested
LOOK = 1 << 10


def counts(blocks: list[np.ndarray], most: int) -> list[int]:
    """Reference counts of the first `most` blocks of a list."""
    return list(map(getrefcount, islice(blocks, most)))


# the reference count of a block that only its list refers to
FREE = counts([np.empty(0)], 1)[0]


class Allocator:
    """Lists of blocks by size. In a list the block that was used last is first; the size that was used last is the last."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[np.ndarray]] = {}

    def take(self, size: int) -> np.ndarray:
        """A free block (size,) of bytes, a new one if no block of the size is free."""
        # another thread between these two lines makes a list of its own, which this one then replaces
        blocks = self._blocks.pop(size, None) or []
        self._blocks[size] = blocks
        block = _free(blocks, 8 + size // LOOK)
        if block is None:
            self._make_room(size)
            block = _new(size)
            if size <= KEPT:
                blocks.insert(0, block)
        return block

    def clear(self) -> None:
        """Drop all blocks. NumPy frees each once nothing refers to it."""
        self._blocks.clear()

    @property
    def listed(self) -> int:
        """Bytes of all blocks in the lists."""
        return sum(size * len(blocks) for size, blocks in list(self._blocks.items()))

    def _make_room(self, size: int) -> None:
        """Drop blocks, of the least recently used sizes first, until KEPT bytes can hold one more block of this size."""
        over = self.listed + size - KEPT
        for other, blocks in list(self._blocks.items()):
            while over > 0 and blocks:
                del blocks[-1:]
                over -= other
            if not blocks and other != size:
                self._blocks.pop(other, None)


def _free(blocks: list[np.ndarray], most: int) -> np.ndarray | None:
    """A free block among the first `most` of a list, moved to the front of the list; None if none is free."""
    while FREE in (references := counts(blocks, most)):
        # no other thread gets what pop returns, but by now another block may be at this index
        try:
            own = [blocks.pop(references.index(FREE))]
        except IndexError:
            continue
        is_free = counts(own, 1) == [FREE]
        blocks.insert(0, own[0])
        if is_free:
            return own[0]
    return None


def _new(size: int) -> np.ndarray:
    memory = np.empty(size + LINE, np.uint8)
    # every view of an array whose base is not an array has that array as its base
    base: Any = (ctypes.c_char * size).from_buffer(memory.data, -memory.ctypes.data % LINE)
    return np.ndarray(size, np.uint8, base)


_memory = Allocator()


def release() -> None:
    """Give free memory back to the system: after work the like of which does not come again.

    With glibc that of other libraries too, whose freed arrays the C library keeps; other C libraries lack the call.
    """
    _memory.clear()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def empty(shape: tuple[int, ...], like: Any) -> np.ndarray:
    """An uninitialised array. like: its dtype, or an array of the same dtype and device. On a GPU the memory comes from CuPy's pool."""
    if type(like) is np.ndarray:
        dtype = like.dtype
    elif isinstance(like, np.dtype):
        dtype = like
    else:
        return device.empty(shape, like.dtype)
    needed = prod(shape) * dtype.itemsize
    if needed < LARGE:
        return np.empty(shape, dtype)
    # similar sizes share their blocks: there are eight sizes from a power of two to the next
    step = 1 << needed.bit_length() - 4
    size = (needed + step - 1) // step * step
    return np.ndarray(shape, dtype, _memory.take(size))


def layer_saved(y: np.ndarray, activation: Activation) -> LayerSaved:
    """The arrays y and z that a layer's forward writes. z is y itself unless the activation's derivative is computed from z."""
    return LayerSaved(empty(y.shape, y) if activation.needs_input else y, y)


def copy_of(x: np.ndarray) -> np.ndarray:
    """A copy of x, for a result that must not share its caller's memory."""
    y = empty(x.shape, x)
    y[...] = x
    return y


def empty_float64(n: int, like: np.ndarray) -> np.ndarray:
    """An uninitialised float64 array (n,), on the device of `like`."""
    return np.empty(n) if isinstance(like, np.ndarray) else device.empty((n,), np.dtype(np.float64))


def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """An array of zeros, with the dtype and on the device of `like`."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else device.zeros(shape, like.dtype)
