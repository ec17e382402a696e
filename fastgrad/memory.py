"""Memory for results: what is let go is kept for the next, since pages that the system hands out anew cost more than many a kernel.

A result holds on to a block, as do all views of it; when the last of them is gone, the next result of that size gets the memory. So the
gradient that one layer of a model has read is where the next layer writes its own, and a training loop allocates nothing after its
first step. Blocks begin at cache lines.
"""

import ctypes
import os
import threading
from collections import deque
from math import prod
from typing import Any

import numpy as np

from fastgrad import gpu

# bytes from which on a result gets a block; bytes of free blocks that are kept at most, those let go of a size least lately used
LARGE, KEPT = 4 << 10, 1 << 29
LINE = 64


class Block(np.ndarray):
    """Bytes that results share. Its own base is no array, so that theirs is the block."""

    def __del__(self) -> None:
        # at any time and in any thread, that of a call of empty included: what needs a lock is done there
        returned.append(self.base)


returned: deque[Any] = deque()


class Memory:
    """Free blocks' bytes by their number, in the order in which numbers were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Any]] = {}
        self._kept = 0

    def take(self, size: int) -> Any:
        with self._lock:
            while returned:
                self._keep(returned.popleft())
            found = self._free.pop(size, None)
            if not found:
                return self._new(size)
            memory = found.pop()
            if found:
                self._free[size] = found
            self._kept -= size
            return memory

    def _keep(self, memory: Any) -> None:
        same = self._free.pop(len(memory), [])
        same.append(memory)
        self._free[len(memory)] = same
        self._kept += len(memory)
        while self._kept > KEPT:
            oldest = next(iter(self._free))
            self._free[oldest].pop()
            self._kept -= oldest
            if not self._free[oldest]:
                del self._free[oldest]

    def _new(self, size: int) -> Any:
        memory = np.empty(size + LINE, np.uint8)
        return (ctypes.c_char * size).from_buffer(memory.data, -memory.ctypes.data % LINE)


_memory = Memory()


def _after_in_child() -> None:
    # another thread of the parent may have held the lock, which would never be free here
    global _memory
    _memory = Memory()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)


def empty(shape: tuple[int, ...], like: Any) -> np.ndarray:
    """numpy.empty of a dtype, or of an array's and then where that lies: on a GPU CuPy keeps memory in a pool of its own."""
    if type(like) is np.ndarray:
        dtype = like.dtype
    elif isinstance(like, np.dtype):
        dtype = like
    else:
        return gpu.empty(shape, like.dtype)
    n = prod(shape) * dtype.itemsize
    if n < LARGE:
        return np.empty(shape, dtype)
    # sizes that differ little share their memory: there are eight from a power of two to the next
    step = 1 << n.bit_length() - 4
    size = (n + step - 1) // step * step
    return np.ndarray(shape, dtype, Block(size, np.uint8, _memory.take(size)))


def doubles(n: int, like: np.ndarray) -> np.ndarray:
    """An array (n,) of float64, uninitialised, where an array lies."""
    return np.empty(n) if isinstance(like, np.ndarray) else gpu.empty((n,), np.dtype(np.float64))


def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """numpy.zeros, where an array lies."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else gpu.zeros(shape, like.dtype)
