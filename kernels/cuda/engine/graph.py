"""Calls as CUDA graphs: launches that are recorded once, and then started together for the cost of one.

Between two launches nothing here waits, asks for what is on the device or copies from the host, so every call of arrays that lie on the
device can be recorded. What it makes on the way comes from a pool that is the graph's own: a run before the recorded one fills the pool,
compiles the kernels and leaves addresses and tables on the device, and the recorded one finds all of it there. Numbers are as they were
then, an update's rate too, but for what goes with the number of an update: that is counted on the device, one more at each replay.
"""

from . import array_table, device


class Captured:
    """function() as a graph. `result` is what it returned, which every replay writes anew; calling it replays, on the current stream."""

    def __init__(self, function):
        # tables and constants of this graph lie in its pool, which outlives those that are kept for others
        array_table._table.cache_clear()
        device._copied.cache_clear()
        self.result, self._replay = device.record(function)

    def __call__(self):
        self._replay()
        return self.result
