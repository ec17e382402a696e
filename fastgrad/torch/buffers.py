"""BufferPool: sets of arrays that calls write, used again, since Python makes arrays more slowly than it computes a small net.

The results of a call are tensors over arrays of its BufferSet. A tensor holds its array as long as the tensor, a view of it or a NumPy
array over it exists, or autograd has saved it. So the reference counts of the arrays tell whether a set is free.
"""

from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np

# the sets that a pool keeps at most, and the bytes of one: beside the products of a larger one, what it takes to make arrays is nothing
MAX_SETS, MAX_BYTES = 4, 32 << 20


class BufferSet:
    """The arrays of one call. results: those that result tensors share. size: the bytes of all."""

    results: list[np.ndarray]
    size: int


class BufferPool:
    """The buffer sets of one owner. A caller takes a set, and gives it back once tensors or other references hold its results."""

    def __init__(self) -> None:
        self._entries: deque[tuple[Any, BufferSet, list[int]]] = deque(maxlen=MAX_SETS)

    def take(self, kind: Callable[..., BufferSet], rows: int, *arguments: Any) -> tuple[Any, Any, list[int]]:
        """An entry with a free buffer set, a new one from kind(rows, *arguments) if there is none.

        An entry is (kind and rows, the set, the reference counts of its results while it is free).
        """
        key = kind, rows
        for _ in range(len(self._entries)):
            try:
                entry = self._entries.popleft()
            except IndexError:
                break  # another thread has it
            if entry[0] == key and list(map(getrefcount, entry[1].results)) == entry[2]:
                return entry
            self._entries.append(entry)
        buffers = kind(rows, *arguments)
        return key, buffers, list(map(getrefcount, buffers.results))

    def give_back(self, entry: tuple[Any, BufferSet, list[int]]) -> None:
        if entry[1].size <= MAX_BYTES:
            self._entries.append(entry)
