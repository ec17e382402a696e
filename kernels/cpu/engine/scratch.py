"""ScratchPool: uninitialised scratch arrays for drivers, reused from call to call."""

import numpy as np


class ScratchPool:
    """Uninitialised arrays that calls borrow: `take` returns one, `give` returns it to the pool for the next call.

    The frame that calls a driver holds the array as long as machine code may write to it, even if the interpreter ends meanwhile.
    The pool grows to the largest number of simultaneous calls, not to one array for each Python thread.
    """

    # bytes of arrays of a dtype, all of one size, that are kept; the first always is
    KEPT = 64 << 20

    def __init__(self):
        self._free = {"f": [], "d": []}

    def take(self, dtype, size):
        """At least so many values."""
        free = self._free[dtype.char]
        try:
            scratch = free.pop()
        except IndexError:
            return np.empty(size, dtype)
        return scratch if scratch.size >= size else np.empty(size, dtype)

    def give(self, scratch):
        free = self._free[scratch.dtype.char]
        # as if all were of this size: a sum over them would cost a small call more than all else here
        if not free or scratch.nbytes * (len(free) + 1) <= self.KEPT:
            free.append(scratch)


# of calls on the caller's thread alone, of which there may be many at once, and of calls on all threads
serial_scratch, threaded_scratch = ScratchPool(), ScratchPool()
