"""BufferPool: sets of arrays that calls write, used again, since Python makes arrays more slowly than it computes a small net.

The results of a call are tensors over arrays of its BufferSet. A tensor holds its array as long as the tensor, a view of it or a NumPy
array over it exists, or autograd has saved it. So the reference counts of the arrays tell whether a set is free.
"""

from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np

# rooms that are kept at most, and bytes of one: beside the products of more, what it takes to make arrays is nothing
KEPT, LARGEST = 4, 32 << 20


class BufferSet:
    """The arrays of one call. lent: those that result tensors are over. size: the bytes of all."""

    lent: list[np.ndarray]
    size: int


class BufferPool:
    """The buffer sets of one owner. A caller takes a set, and gives it back once tensors or other references hold its lent arrays."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Any, BufferSet, list[int]]] = deque(maxlen=KEPT)

    def take(self, kind: Callable[..., BufferSet], rows: int, *of: Any) -> tuple[Any, Any, list[int]]:
        """An entry with a free buffer set, a new one from kind(rows, *of) if there is none.

        An entry is (kind and rows, the set, the reference counts of its lent arrays while it is free).
        """
        what = kind, rows
        for _ in range(len(self._kept)):
            try:
                entry = self._kept.popleft()
            except IndexError:
                break  # another thread has it
            if entry[0] == what and list(map(getrefcount, entry[1].lent)) == entry[2]:
                return entry
            self._kept.append(entry)
        room = kind(rows, *of)
        return what, room, list(map(getrefcount, room.lent))

    def give(self, entry: tuple[Any, BufferSet, list[int]]) -> None:
        if entry[1].size <= LARGEST:
            self._kept.append(entry)
