"""What an epoch is asked for, as a whole or in parts, and how large the parts are."""

import time
from dataclasses import dataclass, replace

import numpy as np

from fastgrad.data import Data

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


@dataclass(frozen=True)
class Epoch:
    """Updates on batches of rows, one after the other; of sequences in windows, those of a batch after each other.

    order (N,): data's rows, batch by batch; rates (U,): of the updates, before which there were `done`; planned: how many the whole epoch
    has at most. Written are record (U, 2), mean losses and norms, and sizes (U,), over how many rows each mean is: NumPy's arrays.
    """

    data: Data
    order: np.ndarray
    batch_size: int
    window: int | None
    rates: np.ndarray
    done: int
    record: np.ndarray
    sizes: np.ndarray
    planned: int

    @property
    def batches(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @property
    def windows(self) -> int:
        """Updates of a batch; fewer where its sequences end early."""
        return len(self.sizes) // self.batches

    def part(self, first: int, batches: int, made: int) -> "Epoch":
        """At most so many batches from `first` on; those before it have made `made` updates."""
        last = min(first + batches, self.batches)
        updates = slice(made, made + (last - first) * self.windows)
        return replace(
            self,
            order=self.order[first * self.batch_size : last * self.batch_size],
            rates=self.rates[updates],
            done=self.done + made,
            record=self.record[updates],
            sizes=self.sizes[updates],
        )
