"""Workload of initial weights: he_normal of a large matrix."""

from dataclasses import dataclass

import numpy as np

from bench.harness.targets import Targets


@dataclass(frozen=True)
class Weights(Targets):
    """he_normal of one matrix; every call draws it again."""

    name: str
    shape: tuple[int, int]
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "init"
    runner = "HeNormal"
    checked_calls = 1
    # each library draws its own numbers: what is compared is a statistic of millions of them
    tolerance = 0.01
    flops = 0

    @property
    def title(self):
        return f"he_normal, {np.prod(self.shape) / 1e6:g} M values"

    @property
    def memory_bytes(self):
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape))

    def outcome(self, w):
        """Standard deviation and mean magnitude, over the standard deviation of he_normal: of all values, and of the first rows."""
        due = np.sqrt(2 / self.shape[0])
        return np.array([f(part) / due for part in (w, w[: len(w) // 4]) for f in (np.std, lambda a: np.abs(a).mean())])


WEIGHTS = [Weights("he-normal", (2500, 4000), target_ratio=4)]
