"""Steps that leave their health: those of steps.py, which know nothing of it."""

from typing import Any

import numpy as np

from fastgrad.backend import kernels
from fastgrad.chains import DenseChain
from fastgrad.data import Data
from fastgrad.health import KEPT, Health
from fastgrad.kernels import names
from fastgrad.kernels.names import ACTIVATIONS
from fastgrad.seen import Seen, in_force
from fastgrad.steps import FUSED, ChainSteps, LayerSteps


class WatchedChainSteps(ChainSteps):
    """Steps whose kernels look at what they make."""

    def __init__(self, health: Health, model: DenseChain, loss: str, *rest: Any) -> None:
        super().__init__(model, loss, *rest)
        activations = list(model._activations)
        if FUSED.get(loss) == model.output.code:
            activations[-1] = ACTIVATIONS["identity"]
        self._health, self._watch = health, health.watch(activations)

    def step(self, x: np.ndarray, target: np.ndarray, lengths: None, done: int, record: np.ndarray) -> int:
        status = super().step(x, target, lengths, done, record)
        if done % self._health.every == 0 and status != names.BAD_LABEL:
            self._health.add(done, self._health.rows[0], status != names.OK)
        return status

    def epoch(
        self,
        data: Data,
        order: np.ndarray,
        batch_size: int,
        window: int | None,
        rates: np.ndarray,
        done: int,
        record: np.ndarray,
        sizes: np.ndarray,
    ) -> int:
        """In parts of so many batches as there are rows for."""
        made = 0
        for first in range(0, len(sizes), KEPT):
            part = slice(first, first + KEPT)
            rows = order[first * batch_size : (first + KEPT) * batch_size]
            status = super().epoch(data, rows, batch_size, window, rates[part], done + first, record[part], sizes[part])
            self._health.add_batches(done + first, self.updates, status == names.NONFINITE)
            made += self.updates
            self.updates = made
            if status != names.OK:
                return status
        return names.OK


class WatchedLayerSteps(LayerSteps):
    """Steps whose kernels are looked at: their outputs are known by where the layers' parameters lie."""

    def __init__(self, health: Health, model: Any, *rest: Any) -> None:
        super().__init__(model, *rest)
        self._health = health
        start = model.params.ctypes.data
        self._places = {start + offset * model.params.itemsize: i for i, offset in enumerate(health.offsets)}
        self._layers = np.split(model.grads, health.offsets[1:])

    def _step(
        self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray, state: Any
    ) -> int:
        if done % self._health.every or not self._places:
            return super()._step(x, target, lengths, done, record, state)
        self._health.rows[0] = np.nan
        with in_force(Seen(kernels(), self._health, self._places, self._layers)):
            status = super()._step(x, target, lengths, done, record, state)
        if status != names.BAD_LABEL:
            self._health.add(done, self._health.rows[0], status != names.OK)
        return status


def steps_of(health: Health, model: Any, *rest: Any) -> ChainSteps | LayerSteps:
    """Steps of the kind that steps.py makes."""
    *settings, reduction = rest
    if isinstance(model, DenseChain) and reduction is None:
        return WatchedChainSteps(health, model, *settings)
    return WatchedLayerSteps(health, model, *rest)
