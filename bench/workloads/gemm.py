"""Workloads of the matrix product: random matrices in every layout."""

from dataclasses import dataclass

import numpy as np

from bench.harness.targets import Targets


@dataclass(frozen=True)
class Gemm(Targets):
    """out = a @ b; T in the layout marks an operand that is the transposed view of a C-ordered array."""

    m: int
    k: int
    n: int
    layout: str = "NN"
    threads: int | None = None  # all
    dtype: str = "float32"

    kind = "gemm"
    runner = "Gemm"
    checked_calls = 1
    memory_bytes = 0

    @property
    def name(self):
        return f"gemm-{self.m}x{self.k}x{self.n}-{self.layout}-{self.threads or 'all'}"

    @property
    def title(self):
        return f"gemm {self.m}x{self.k}x{self.n} {self.layout}" + (", one thread" if self.threads == 1 else "")

    @property
    def tolerance(self):
        """Of an element near 0, as a share of the largest: rounding grows with the root of k."""
        return 1e-6 * self.k**0.5

    @property
    def flops(self):
        return 2 * self.m * self.k * self.n

    def operands(self):
        rng = np.random.default_rng(0)

        def draw(rows, columns, transposed):
            if transposed == "T":
                return rng.standard_normal((columns, rows), "f4").astype(self.dtype).T
            return rng.standard_normal((rows, columns), "f4").astype(self.dtype)

        return draw(self.m, self.k, self.layout[0]), draw(self.k, self.n, self.layout[1])


GEMMS = [
    *(Gemm(*shape, layout, 1, target_share=0.9 if layout == "NN" else 0.81)
      for shape in ((128, 784, 64), (256, 1024, 1024), (1024, 1024, 1024)) for layout in ("NN", "NT", "TN", "TT")),
    Gemm(128, 784, 64, target_share=0.8),
    Gemm(1024, 1024, 1024, target_share=0.85),
    Gemm(2048, 2048, 2048, target_share=0.85),
    *(Gemm(*shape, target_ratio=1) for shape in ((127, 785, 65), (33, 100, 10), (1, 784, 64), (128, 64, 10))),
]  # fmt: skip
