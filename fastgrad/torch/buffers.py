"""Arrays that calls write, made once for many calls: to make them takes Python longer than a small net's products take.

A call's results are tensors over arrays of its room, and a tensor holds its array as long as anyone has the tensor, a view of it or a
NumPy array over it, or autograd has saved it. So the arrays' reference counts tell whether a room is free.
"""

from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np

# rooms that are kept at most, and bytes of one: beside the products of more, what it takes to make arrays is nothing
KEPT, LARGEST = 4, 32 << 20


class BufferSet:
    """Arrays of one call; `lent` are those that tensors are made of, and `size` the bytes of all."""

    lent: list[np.ndarray]
    size: int


class BufferPool:
    """The rooms of one owner. Whoever takes one gives it back, when it has made its tensors or holds an array that is lent."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Any, BufferSet, list[int]]] = deque(maxlen=KEPT)

    def take(self, kind: Callable[..., BufferSet], rows: int, *of: Any) -> tuple[Any, Any, list[int]]:
        """Of a room that nobody has, made by kind(rows, *of): what it is, the room, and the counts of a free one's arrays."""
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
