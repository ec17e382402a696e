"""What an epoch is asked for, as a whole or in parts."""

from dataclasses import dataclass, replace

import numpy as np

from fastgrad.data import Data


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
