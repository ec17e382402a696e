"""Workloads of clipping and updates: the gradients of a net as a list of arrays are clipped by norm; Adam updates weights from them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.harness.targets import Targets
from bench.workloads.samples import sample


@dataclass(frozen=True)
class Clip(Targets):
    """Clipping a list of random gradients by the norm of all; clipped gradients stay clipped, and the next call's norm is smaller yet."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    clips: bool = False
    dtype: str = "float32"
    threads: int | None = None  # all

    kind = "clip"
    runner = "Clip"
    checked_calls = 2
    # PyTorch adds squares in float32
    tolerance = 1e-5
    flops = 0

    @property
    def title(self):
        return f"clip, {self.size / 1e6:g} M values in {len(self.shapes)} arrays" + (", clipped" if self.clips else "")

    @cached_property
    def size(self):
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def memory_bytes(self):
        """One pass that reads; with clipping one more that reads and writes. 0 if the arrays fit a cache."""
        return (3 if self.clips else 1) * 4 * self.size if self.size > 4 << 20 else 0

    def arrays(self):
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, "f4").astype(self.dtype) for shape in self.shapes]

    def max_norm(self, call):
        """For this call, counted from 0: a little less than the last call's."""
        return self.size**0.5 * (0.5 * 0.9999**call if self.clips else 2)

    def outcome(self, norm, gradients):
        return np.concatenate([[norm / self.size**0.5], sample([g for g in gradients if g.ndim > 1], 1)])


@dataclass(frozen=True)
class Update(Clip):
    """Clipping and Adam over lists of weights and gradients; the gradients of every call are the same."""

    clips: bool = True
    lr: float = 1e-3

    runner = "Update"
    checked_calls = 3

    @property
    def title(self):
        return f"clip + Adam, {self.size / 1e6:g} M values in {len(self.shapes)} arrays"

    @property
    def memory_bytes(self):
        """Weights, two moments and, twice, gradients are read; the first three are written."""
        return 32 * self.size if self.size > 4 << 20 else 0

    def max_norm(self):
        return 0.5 * self.size**0.5

    def outcome(self, params):
        return sample([p for p in params if p.ndim > 1], 1) / self.lr


LAYERS = ((577, 577), (577,)) * 30
MANY = ((1000,),) * 999 + ((10, 100),)
CLIPS = [
    Clip("clip-nothing", LAYERS, target_ratio=1.8, target_peer="PyTorch", target_share=0.85),
    Clip("clip-clipped", LAYERS, clips=True, target_ratio=1, target_peer="PyTorch", target_share=0.85),
    Clip("clip-many", MANY, target_ratio=5, target_peer="PyTorch"),
    Update("update", LAYERS, target_ratio=1.2, target_peer="PyTorch", target_share=0.9),
    Update("update-many", MANY, target_ratio=5, target_peer="PyTorch"),
]
