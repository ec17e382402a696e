"""Gradient health: what every layer's gradient, output and update look like, taken in the passes that run anyway.

A layer's numbers are those of kernels/names.py's HEALTH, defined in kernels/reference/health.py: grad_norm and largest |gradient| before
clipping, zeros, nonfinite, mean and spread of its output, saturated and dead shares, and update_ratio, |dw| / |w|, of what the optimiser
does before masks and constraints. An output is saturated within 1 % of the limits of its activation (of relu at 0), and a unit dead where
it is 0, or within a millionth of a limit, for the whole batch. gelu, silu and softmax, whose values do not tell their slope, have no
limits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.backend import kernels
from fastgrad.kernels import names
from fastgrad.kernels.names import HEALTH, Activation, Watch
from fastgrad.lists import Arrays
from fastgrad.model import Model
from fastgrad.report import Report

# measurements that are kept at most: of a longer run every second, then every fourth, ... so that the memory of all is
# KEPT * layers * 72 bytes, and as many again for those of a part of an epoch
KEPT = 256
# shares of the distance between an activation's limits, or of its one limit from 0
SATURATED, FLAT = 1e-2, 1e-6
# columns of gradients, of outputs and of updates
GRADIENTS, OUTPUTS, RATIO = slice(0, 4), slice(4, 8), 8
SELU_LIMIT = 1.7580993408473766


def of(grads: Any, names: Sequence[str] | None = None) -> Report:
    """The report of gradients alone, an array or a list of arrays of one dtype: for training code of any kind.

    names: of the arrays, from the first layer's to the last's; without them "0", "1", ... What is not known of outputs and updates is NaN.
    """
    op = "health.of"
    arrays = Arrays(op, "grads", grads, written=False)
    if names is not None:
        check.each(op, "names", names, len(arrays.flat))
    values = np.full((len(arrays.flat), len(HEALTH)), np.nan)
    found = np.empty((len(values), 4))
    kernels().array_health(arrays.flat, found)
    values[:, GRADIENTS] = found
    labels = [str(i) for i in range(len(values))] if names is None else list(names)
    return Report(labels, [None] * len(values), 0, values, np.zeros(1, np.int64), values[None])


def bands(activation: Activation) -> tuple[float, float, float, float]:
    """low, high, flat_low, flat_high: at which and beyond which an output is saturated, and flat."""
    code, p = activation
    low, high, span = {
        names.RELU: (0.0, np.inf, 0.0),
        names.CLIPPED_RELU: (0.0, p, 0.0),
        names.SIGMOID: (0.0, 1.0, 1.0),
        names.TANH: (-1.0, 1.0, 1.0),
        names.ELU: (-p, np.inf, p),
        names.SELU: (-SELU_LIMIT, np.inf, SELU_LIMIT),
        names.SOFTPLUS: (0.0, np.inf, 1.0),
    }.get(code, (-np.inf, np.inf, 0.0))
    return low + SATURATED * span, high - SATURATED * span, low + FLAT * span, high - FLAT * span


class Health:
    """What a trainer keeps of its steps: the last measurement, and a history whose size is bounded."""

    def __init__(self, model: Model, every: int) -> None:
        self.every = every
        # of each layer its name and where its parameters begin, by array and by value
        self.layers, self.arrays, self.offsets = _layers(model)
        self.activations: list[Activation | None] = [None] * len(self.layers)
        self.step = -1
        # what steps write, one row for each batch of a part of an epoch
        self.rows = np.full((KEPT, len(self.layers), len(HEALTH)), np.nan)
        self.latest = self.rows[0]
        self._steps, self._kept = np.empty(KEPT, np.int64), np.empty_like(self.rows)
        self._count, self._stride = 0, every

    def watch(self, activations: Sequence[Activation]) -> Watch:
        """What a chain's steps are asked for."""
        self.activations = list(activations)
        return Watch(np.array([bands(f) for f in activations]), self.rows, self.every)

    def add(self, step: int, row: np.ndarray, failed: bool = False) -> None:
        """Take in the row of the step after so many others; what led to no update is the latest only."""
        self.step, self.latest = step, row
        if failed or step % self._stride:
            return
        if self._count == KEPT:
            half = KEPT // 2
            self._stride *= 2
            chosen = np.flatnonzero(self._steps % self._stride == 0)[:half]
            self._count = len(chosen)
            self._steps[: self._count], self._kept[: self._count] = self._steps[chosen], self._kept[chosen]
            if step % self._stride:
                return
        self._steps[self._count], self._kept[self._count] = step, row
        self._count += 1

    def add_batches(self, step: int, done: int, failed: bool) -> None:
        """Take in what `done` batches after `step` others have written into rows, and the one after them that failed."""
        for batch in range(done + failed):
            if (step + batch) % self.every == 0:
                self.add(step + batch, self.rows[batch], batch == done)

    def report(self) -> Report:
        """As it is now."""
        if self.step < 0:
            raise RuntimeError("Trainer.health: no step has run that could be looked at")
        steps, values = self._steps[: self._count].copy(), self._kept[: self._count].copy()
        return Report(list(self.layers), list(self.activations), self.step, self.latest.copy(), steps, values)


def _layers(model: Model) -> tuple[list[str], list[int], list[int]]:
    layers: list[str] = []
    arrays, offsets, offset = [], [], 0
    for i, (name, array) in enumerate(model.parameters().items()):
        label = f"layers.{name.rpartition('.')[0] or 0}"
        if not layers or layers[-1] != label:
            layers.append(label)
            arrays.append(i)
            offsets.append(offset)
        offset += array.size
    return layers, arrays, offsets
