"""Steps that leave their health: those of steps.py, which know nothing of it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastgrad import gpu
from fastgrad.backend import kernels
from fastgrad.chains import DenseChain
from fastgrad.epoch import Epoch
from fastgrad.health import KEPT, Health
from fastgrad.kernels import names
from fastgrad.kernels.names import ACTIVATIONS
from fastgrad.model import Model
from fastgrad.seen import Places, Seen, in_force
from fastgrad.steps import FUSED, ChainSteps, LayerSteps

NOTHING: AbstractContextManager = nullcontext()


class Watched:
    """Steps of a chain, whose kernels look at what they make; they are asked to in `watch`."""

    updates = 0

    def __init__(self, steps: Any, health: Health) -> None:
        self.params, self.mask, self.reserve, self.whole = steps.params, steps.mask, steps.reserve, steps.whole
        self._steps, self._health = steps, health

    def step(self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray) -> Any:
        if gpu.is_there(self.params) and gpu.device().records():
            raise RuntimeError(
                "Trainer.step: a step with health cannot be captured in a graph, which looks at every step or none"
            )
        if done % self._health.every:
            return self._steps.step(x, target, lengths, done, record)
        with self._looking(done, 1):
            status = self._steps.step(x, target, lengths, done, record)
        self._health.add(done, self._health.rows[0], status)
        return status

    def epoch(self, asked: Epoch) -> int:
        """In parts of so many updates as there are rows for."""
        self.updates, batches = 0, max(KEPT // asked.windows, 1)
        for first in range(0, asked.batches, batches):
            part, status = asked.part(first, batches, self.updates), names.OK
            looking = self._looking(part.done, len(part.sizes))
            try:
                with looking:
                    status = self._steps.epoch(part)
            finally:
                self.updates += self._steps.updates
                self._health.add_updates(part.done, self._steps.updates, status)
            if status != names.OK:
                return status
        return names.OK

    def _looking(self, done: int, updates: int) -> AbstractContextManager:
        """A block in which so many updates after `done` leave rows."""
        return NOTHING


class WatchedLayers(Watched):
    """Steps of any other model, whose kernels are looked at."""

    def __init__(self, steps: LayerSteps, model: Model, health: Health) -> None:
        super().__init__(steps, health)
        self._places = Places(model, health)

    def _looking(self, done: int, updates: int) -> AbstractContextManager:
        self._health.reserve(updates, self.params)
        return in_force(Seen(kernels(self.params), self._health, self._places, done))


def watched(steps: ChainSteps | LayerSteps, model: Model, loss: str, health: Health) -> Watched:
    """These steps, watched."""
    health.reserve(KEPT, model.params)
    if isinstance(steps, LayerSteps):
        return WatchedLayers(steps, model, health)
    assert isinstance(model, DenseChain)
    activations = list(model._activations)
    if FUSED.get(loss) == model.output.code:
        activations[-1] = ACTIVATIONS["identity"]
    steps.watch = health.watch(activations)
    return Watched(steps, health)
