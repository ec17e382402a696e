"""Memory for results: what is let go is kept for the next, since pages that the system hands out anew cost more than many a kernel.

A result is a view of a block, as all views of it are. Blocks of up to KEPT bytes together are listed here, lent or free, and one that the
list alone holds is free: so reference counts tell, as they do when an exception, a signal's handler or another thread comes between. No
lock is held and no destructor runs, and blocks past the bound are NumPy's to free at once. The gradient that one layer of a model has
read is where the next layer writes its own, and a training loop allocates nothing after its first step. Blocks begin at cache lines.
"""

import ctypes
from itertools import islice
from math import prod
from sys import getrefcount
from typing import Any

import numpy as np

from fastgrad.core import device
from fastgrad.kernels.types import Activation, LayerSaved

# bytes from which on a result gets a block; bytes of blocks that are listed at most, those of a size least lately used go first
LARGE, KEPT = 4 << 10, 1 << 29
LINE = 64
# to look at a block costs as much as new pages for so many bytes: of a size with many lent blocks some are looked at
LOOK = 1 << 10


def counts(blocks: list[np.ndarray], most: int) -> list[int]:
    """References to the first blocks of a list."""
    return list(map(getrefcount, islice(blocks, most)))


# of a block that nothing but its list holds
FREE = counts([np.empty(0)], 1)[0]


class Allocator:
    """Lists of blocks by their size, the last one taken first; sizes in the order in which they were used last."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[np.ndarray]] = {}

    def take(self, size: int) -> np.ndarray:
        """A block (size,) of bytes that nobody has."""
        # whoever comes between the two lines has a list of its own, whose blocks are soon listed no more
        blocks = self._blocks.pop(size, None) or []
        self._blocks[size] = blocks
        block = _free(blocks, 8 + size // LOOK)
        if block is None:
            self._make_room(size)
            block = _new(size)
            if size <= KEPT:
                blocks.insert(0, block)
        return block

    @property
    def listed(self) -> int:
        """Bytes of all blocks in the lists."""
        return sum(size * len(blocks) for size, blocks in list(self._blocks.items()))

    def _make_room(self, size: int) -> None:
        """Make the lists short enough for one more block."""
        over = self.listed + size - KEPT
        for other, blocks in list(self._blocks.items()):
            while over > 0 and blocks:
                del blocks[-1:]
                over -= other
            if not blocks and other != size:
                self._blocks.pop(other, None)


def _free(blocks: list[np.ndarray], most: int) -> np.ndarray | None:
    """A free block among the first of a list, which becomes its first."""
    while FREE in (found := counts(blocks, most)):
        # what pop returns nobody else gets, but another may be at that place by now
        try:
            own = [blocks.pop(found.index(FREE))]
        except IndexError:
            continue
        is_free = counts(own, 1) == [FREE]
        blocks.insert(0, own[0])
        if is_free:
            return own[0]
    return None


def _new(size: int) -> np.ndarray:
    memory = np.empty(size + LINE, np.uint8)
    # of an array whose own base is no array all views have the array for base
    base: Any = (ctypes.c_char * size).from_buffer(memory.data, -memory.ctypes.data % LINE)
    return np.ndarray(size, np.uint8, base)


_memory = Allocator()


def empty(shape: tuple[int, ...], like: Any) -> np.ndarray:
    """numpy.empty of a dtype, or of an array's and then where that lies: on a GPU CuPy keeps memory in a pool of its own."""
    if type(like) is np.ndarray:
        dtype = like.dtype
    elif isinstance(like, np.dtype):
        dtype = like
    else:
        return device.empty(shape, like.dtype)
    n = prod(shape) * dtype.itemsize
    if n < LARGE:
        return np.empty(shape, dtype)
    # sizes that differ little share their memory: there are eight from a power of two to the next
    step = 1 << n.bit_length() - 4
    size = (n + step - 1) // step * step
    return np.ndarray(shape, dtype, _memory.take(size))


def layer_saved(y: np.ndarray, activation: Activation) -> LayerSaved:
    """What a layer's forward writes: y, and z, which is y too unless the activation's derivative is taken from z."""
    return LayerSaved(empty(y.shape, y) if activation.needs_input else y, y)


def copied(x: np.ndarray) -> np.ndarray:
    """A copy, of a result that would else share its caller's memory."""
    y = empty(x.shape, x)
    y[...] = x
    return y


def empty_float64(n: int, like: np.ndarray) -> np.ndarray:
    """An array (n,) of float64, uninitialised, where an array lies."""
    return np.empty(n) if isinstance(like, np.ndarray) else device.empty((n,), np.dtype(np.float64))


def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """numpy.zeros, where an array lies."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else device.zeros(shape, like.dtype)
