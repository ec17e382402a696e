"""CUDA graphs: the launches of a function are recorded once, and then started together for the cost of one.

Between its launches no op waits, reads a value of the device, or copies from the host. So every call on arrays of the device can be
recorded. Its intermediate arrays come from a memory pool that belongs to the graph. A first run, before the recorded one,
fills the pool, compiles the kernels and leaves addresses and tables on the device. Numbers are those of the recorded call, an update's
learning rate too; only the count of updates advances, on the device, with each replay.
"""

from . import array_table, device


class Captured:
    """function() as a graph. `result` is what it returned, which every replay writes anew; calling it replays, on the current stream."""

    def __init__(self, function):
        # tables and constants of this graph lie in its pool, which outlives those that are kept for others
        array_table._table.cache_clear()
        device._device_copy.cache_clear()
        self.result, self._replay = device.record(function)

    def __call__(self):
        self._replay()
        return self.result
