"""Workloads of batch normalisation in training: random rows or images, forward and backward."""

from dataclasses import dataclass

import numpy as np

from bench.harness.targets import Targets
from bench.workloads.samples import sample


@dataclass(frozen=True)
class BatchNorm(Targets):
    """Batch normalisation in training, then a residual if `adds`, then relu: forward and backward."""

    name: str
    shape: tuple[int, ...]
    adds: bool = False
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "batch_norm"
    runner = "BatchNorm"
    checked_calls = 1
    # rounding turns relu the other way at a value near 0, which moves a sum over all rows by one of its terms
    tolerance = 5e-3
    flops = 0

    @property
    def title(self):
        return f"batch norm{' + add' if self.adds else ''} + relu, {'x'.join(map(str, self.shape))}"

    @property
    def memory_bytes(self):
        """Eight passes: x twice and y; dy and x twice and dx. A residual adds three: itself, y and dz. 0 if the arrays fit a cache."""
        size = 4 * int(np.prod(self.shape))
        return (11 if self.adds else 8) * size if size > 8 << 20 else 0

    def arrays(self):
        """x, residual and dy, and gamma and beta."""
        rng = np.random.default_rng(0)
        draw = [rng.standard_normal(self.shape, "f4").astype(self.dtype) for _ in range(3)]
        return draw, [rng.uniform(0.5, 1.5, self.shape[-1]).astype(self.dtype) for _ in range(2)]

    def outcome(self, *arrays):
        """Of (y, dx, dgamma, dbeta)."""
        return sample(arrays, (np.prod(self.shape) / self.shape[-1]) ** -0.5)


NORMS = [
    BatchNorm("norm-rows", (256, 1024), target_ratio=2),
    BatchNorm("norm-images", (32, 56, 56, 64), target_ratio=2, target_share=0.85),
    BatchNorm("norm-images-add", (32, 56, 56, 64), adds=True, target_ratio=2, target_peer="PyTorch"),
]
