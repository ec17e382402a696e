"""Workloads of convolution: random images, y, dx and dw together or one of the three."""

from dataclasses import dataclass

import numpy as np

from bench.harness.targets import Targets
from bench.workloads.samples import sample


@dataclass(frozen=True)
class Conv(Targets):
    """A convolution of random images, channels last: forward, backward and all gradients, or one of the three."""

    name: str
    batch: int
    side: int
    n_in: int
    n_out: int
    size: int
    stride: int = 1
    groups: int = 1
    runner: str = "Conv"  # or "ConvForward", "ConvInputs", "ConvWeights": y, dx or dw alone
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "conv"
    checked_calls = 1
    memory_bytes = 0
    # a 3x3 weight's gradient by Winograd's products is off by 1.2e-5 of its largest value, a plain sum by 0.5e-5
    tolerance = 3e-5

    @property
    def title(self):
        part = {"Conv": "", "ConvForward": ", y", "ConvInputs": ", dx", "ConvWeights": ", dw"}[self.runner]
        size = f"{self.size}x{self.size}" + (f"/{self.stride}" if self.stride > 1 else "")
        if self.groups > 1:
            size += " depthwise" if self.groups == self.n_in else f" in {self.groups} groups"
        return f"conv {size} {self.n_in} to {self.n_out}, {self.side}x{self.side}, N={self.batch}{part}"

    @property
    def padding(self):
        return self.size // 2

    @property
    def side_out(self):
        return (self.side + 2 * self.padding - self.size) // self.stride + 1

    @property
    def flops(self):
        each = 2 * self.batch * self.side_out**2 * self.size**2 * self.n_in // self.groups * self.n_out
        return each * (3 if self.runner == "Conv" else 1)

    def arrays(self):
        """x (N, H, W, C), w (kh, kw, C / groups, K) and dy (N, H', W', K)."""
        rng = np.random.default_rng(0)
        shapes = (
            (self.batch, self.side, self.side, self.n_in),
            (self.size, self.size, self.n_in // self.groups, self.n_out),
            (self.batch, self.side_out, self.side_out, self.n_out),
        )
        x, w, dy = (rng.standard_normal(shape, "f4").astype(self.dtype) for shape in shapes)
        return x, w / np.sqrt(self.size**2 * self.n_in // self.groups).astype(self.dtype), dy

    def outcome(self, *arrays):
        """Of (y, dx, dw), or of one of them, which comes alone."""
        return sample(arrays, (self.batch * self.side_out**2) ** -0.5)


USUAL = 32, 32, 64, 64, 3
CONVS = [
    Conv("conv-3x3-y", *USUAL, runner="ConvForward", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-dx", *USUAL, runner="ConvInputs", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-dw", *USUAL, runner="ConvWeights", target_ratio=1, target_peer="PyTorch"),
    Conv("conv-1x1", 32, 32, 64, 64, 1, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-5x5", 32, 32, 64, 64, 5, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-7x7-2", 32, 64, 3, 64, 7, 2, target_ratio=1, target_peer="PyTorch"),
    Conv("conv-3x3-2", *USUAL, 2, target_ratio=1, target_peer="PyTorch"),
]
