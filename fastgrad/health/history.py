"""HealthHistory: the rows that steps with health write, the last measurement of a trainer, and a bounded number of earlier ones.

A measurement is a row (L, 9): for each layer the values of HEALTH in kernels/types.py, which layers.py measures.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import device
from fastgrad.core.allocator import empty_float64
from fastgrad.health.report import Report
from fastgrad.health.verdict import model_traits
from fastgrad.kernels import types
from fastgrad.kernels.types import HEALTH, Activation
from fastgrad.nn.model import Model

# measurements that are kept at most: of a longer run every second, then every fourth, ... so that the memory of all is
# CAPACITY * layers * 72 bytes, and as many again for those of a part of an epoch
CAPACITY = 256


class Measurement(NamedTuple):
    """The row (L, 9) and the status of the step after `step` updates. On a GPU both stay there until they are read."""

    step: int
    row: Any
    status: Any


class HealthHistory:
    """The measurements of a trainer's steps, of which every `every`-th is measured."""

    def __init__(self, model: Model, every: int) -> None:
        self.every = every
        # of each layer its name and where its parameters begin; of each array the number of its layer
        self.layers, self.offsets, self.layer_of_array = _layers(model)
        self._traits = model_traits(model)
        self.activations: list[Activation | None] = [None] * len(self.layers)
        # what steps write, one row for each update of a part of an epoch
        self.rows: Any = np.empty((0, len(self.layers), len(HEALTH)))
        self._last: Measurement | None = None
        self._earlier: list[Measurement] = []
        self._stride = every

    def reserve(self, updates: int, like: np.ndarray) -> None:
        """Set `rows` to NaN for this many updates, with more memory if needed, on the device of `like`."""
        if len(self.rows) < updates or type(self.rows) is not type(like):
            shape = updates, *self.rows.shape[1:]
            self.rows = empty_float64(prod(shape), like).reshape(shape)
        self.rows[:updates] = np.nan

    def add(self, step: int, row: Any, status: Any) -> None:
        """Add the row of the step after `step` updates.

        A step that made no update, since a value was not finite, is kept as the last one only; a step that failed otherwise is not kept.
        """
        # the status of a step on a GPU is read with its row
        failed = isinstance(row, np.ndarray) and status != types.OK
        if failed and status != types.NONFINITE:
            return
        self._last = Measurement(step, row.copy(), status)
        if not failed and self._earlier and self._earlier[-1].step >= step:
            # a load or an assignment has set the count back: what came after that is of another run
            self._earlier = [m for m in self._earlier if m.step < step]
            self._stride = self._stride if self._earlier else self.every
        if not failed and step % self._stride == 0:
            self._earlier.append(self._last)
            while len(self._earlier) > CAPACITY:
                self._stride *= 2
                self._earlier = [m for m in self._earlier if m.step % self._stride == 0]

    def add_updates(self, step: int, updates: int, status: int) -> None:
        """Add the rows of so many updates, after `step` earlier ones, and that of a step after them that failed with this status."""
        measured = range(-step % self.every, updates + (status != types.OK), self.every)
        rows = device.to_host(self.rows[: measured.stop]) if measured else self.rows
        for update in measured:
            self.add(step + update, rows[update], status if update == updates else types.OK)

    def report(self, clip_norm: float) -> Report:
        """The report of the measurements so far. clip_norm: the trainer's."""
        self._read()
        if self._last is None:
            raise RuntimeError("Trainer.health: no step has run that could be looked at")
        steps = np.array([m.step for m in self._earlier], np.int64)
        values = np.array([m.row for m in self._earlier]).reshape(-1, *self._last.row.shape)
        traits = [t._replace(clip_norm=clip_norm) for t in self._traits]
        layers = list(self.layers), list(self.activations), traits
        return Report(*layers, self._last.step, self._last.row.copy(), steps, values)

    def _read(self) -> None:
        """Copy measurements from the GPU to the host, and drop from the history those of steps that made no update."""
        measurements = [*self._earlier, *([self._last] if self._last else [])]
        on_gpu = [m for m in measurements if not isinstance(m.row, np.ndarray)]
        if on_gpu:
            rows = device.to_host(np.stack([m.row for m in on_gpu]))
            statuses = device.to_host(np.stack([m.status for m in on_gpu])).tolist()
            on_host = iter([Measurement(m.step, row, s) for m, row, s in zip(on_gpu, rows, statuses, strict=True)])
            *earlier, last = [m if isinstance(m.row, np.ndarray) else next(on_host) for m in measurements]
            self._earlier = [m for m in earlier if m.status == types.OK]
            ran = last.status in (types.OK, types.NONFINITE)
            self._last = last if ran else self._earlier[-1] if self._earlier else None


def _layers(model: Model) -> tuple[list[str], list[int], np.ndarray]:
    layers: list[str] = []
    offsets, layer_of_array, offset = [], [], 0
    for name, array in model.parameters().items():
        label = f"layers.{name.rpartition('.')[0] or 0}"
        if not layers or layers[-1] != label:
            layers.append(label)
            offsets.append(offset)
        layer_of_array.append(len(layers) - 1)
        offset += array.size
    return layers, offsets, np.array(layer_of_array, np.int64)
