"""A GPU's global memory: one arena whose buffers lie apart, so that an access past one of them is none of another; and its traffic."""

import numpy as np

from ptxsim.formats import PTXError

GLOBAL_BASE = 0x7F0000000000
# bytes between buffers
RED_ZONE = 256


class Traffic:
    """Bytes that a launch read from a buffer and wrote to it."""

    def __init__(self):
        self.read = self.written = 0


class Memory:
    def __init__(self, size):
        size = -(-size // 8) * 8
        raw = np.zeros(size + 8, np.uint8)
        first = -raw.ctypes.data % 8
        self.raw = raw[first : first + size]
        self.top = RED_ZONE
        self.names, self.traffic = [], []
        self._starts, self._ends = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def allocate(self, size, name):
        """The address of this many bytes."""
        start = -(-self.top // RED_ZONE) * RED_ZONE
        self.top = start + size + RED_ZONE
        if self.top > self.raw.size:
            raise MemoryError(f"ptxsim: {size} bytes for {name} do not fit into the arena")
        self._starts, self._ends = np.append(self._starts, start), np.append(self._ends, start + size)
        self.names.append(name)
        self.traffic.append(Traffic())
        return GLOBAL_BASE + start

    def put(self, array, name):
        """The address of a copy of a contiguous array."""
        address = self.allocate(array.nbytes, name)
        self._bytes(address, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return address

    def get(self, address, array):
        """Copy back what lies at the address."""
        array[...] = self._bytes(address, array.nbytes).view(array.dtype).reshape(array.shape)

    def _bytes(self, address, size):
        start = address - GLOBAL_BASE
        return self.raw[start : start + size]

    def check(self, offsets, size, text):
        """Each access must be of one buffer; returns the buffers' numbers, one for all if it is one."""
        low, high = int(offsets.min()), int(offsets.max())
        first = int(np.searchsorted(self._starts, low, "right")) - 1
        if first >= 0 and high + size <= self._ends[first]:
            return first
        buffers = np.searchsorted(self._starts, offsets, "right") - 1
        bad = (buffers < 0) | (offsets + size > self._ends[np.maximum(buffers, 0)])
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            buffer = max(int(buffers[i]), 0)
            place = int(offsets[i]) - int(self._starts[buffer])
            raise PTXError(
                f"{text}: out-of-bounds global access at byte {place} of buffer '{self.names[buffer]}' ({int(bad.sum())} threads)"
            )
        return buffers

    def count(self, buffers, threads, size, kind):
        """Add an access of `size` bytes by each of the threads: kind R, W or A, an atomic, which reads and writes."""
        every = (
            [(buffers, threads)]
            if isinstance(buffers, int)
            else zip(*np.unique(buffers, return_counts=True), strict=True)
        )
        for buffer, n in every:
            traffic = self.traffic[buffer]
            traffic.read += int(n) * size * (kind != "W")
            traffic.written += int(n) * size * (kind != "R")
