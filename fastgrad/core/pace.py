"""Pace: how many batches one compiled call computes, so that it returns in about 0.1 s and Python can handle signals, as Ctrl-C."""

import time

# about the most seconds of a compiled call: Python handles signals, as Ctrl-C, between calls
CALL = 0.1
# floating-point operations a second that any processor does
LEAST_SPEED = 1e9


class Pace:
    """The number of batches of the next compiled call. operations: those of a batch, for an estimate before the first call was timed."""

    def __init__(self, operations: int) -> None:
        self._seconds = operations / LEAST_SPEED
        self._started = 0.0

    def batches(self) -> int:
        """The number of batches for the call that begins now."""
        self._started = time.perf_counter()
        return max(int(CALL / max(self._seconds, 1e-9)), 1)

    def measure(self, batches: int) -> None:
        """Measure the time of a call of this many batches, which ends now."""
        self._seconds = (time.perf_counter() - self._started) / max(batches, 1)
