"""How much work one compiled call is given, so that Python sees signals, Ctrl-C among them, in time."""

import time

# seconds that a compiled call takes at most, more or less: Python looks at signals, as Ctrl-C is one, between calls
CALL = 0.1
# floating-point operations a second that any processor does
LEAST_SPEED = 1e9


class Pace:
    """How many batches a compiled call is asked for. operations: those of a batch, which tell as long as none was timed."""

    def __init__(self, operations: int) -> None:
        self._seconds = operations / LEAST_SPEED
        self._started = 0.0

    def batches(self) -> int:
        """How many the next call makes, which begins now."""
        self._started = time.perf_counter()
        return max(int(CALL / max(self._seconds, 1e-9)), 1)

    def made(self, batches: int) -> None:
        """Take the time of a call of so many, which ends now."""
        self._seconds = (time.perf_counter() - self._started) / max(batches, 1)
