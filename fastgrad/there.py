"""Steps of a model that lies on a GPU: what steps.py does, with nothing that waits but the end of an epoch.

A step's record lies there, and its status is an array () there. A chain's kernels do the rest; other models' steps, where one of an epoch
has failed, are given NaN for x from then on, and so leave all as it is.
"""

from typing import Any

import numpy as np

from fastgrad import gpu
from fastgrad.data import Data, windows
from fastgrad.kernels import names
from fastgrad.model import Kept
from fastgrad.steps import LayerSteps


class ThereLayerSteps(LayerSteps):
    """Steps of any model that lies on a GPU."""

    # 1, or NaN once a step of the epoch has failed
    _alive: Any = None

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
        there: Any = gpu.there(np.zeros(record.shape))
        statuses: list[Any] = []
        for start in range(0, len(order), batch_size):
            state = None
            for part in windows(self._taken(data, order[start : start + batch_size]), window, False):
                made = len(statuses)
                self._optimizer[2][0] = rates[made]
                status = self.step(*part, done + made, there[made], state).reshape(1)
                statuses.append(status)
                alive = np.where(status == names.OK, 1.0, np.nan)
                self._alive = alive if self._alive is None else self._alive * alive
                sizes[made], state = self._rows, self._state
        self._alive, self.updates = None, len(statuses)
        record[...] = gpu.here(there)
        if not statuses:
            return names.OK
        found = gpu.here(np.concatenate(statuses))
        failed = np.flatnonzero(found)
        if not len(failed):
            return names.OK
        self.updates = int(failed[0])
        return int(found[failed[0]])

    def step(
        self,
        x: np.ndarray,
        target: np.ndarray,
        lengths: np.ndarray | None,
        done: int,
        record: np.ndarray,
        state: Any = None,
    ) -> Any:
        before = Kept(self._model)
        if self._alive is not None:
            x = x * self._alive.astype(x.dtype)
        status = self._step(x, target, lengths, done, record, state)
        before.restore_unless(status == names.OK)
        return status

    def _taken(self, data: Data, rows: np.ndarray) -> Data:
        x, y = gpu.rows_of(data.x, rows), gpu.rows_of(data.y, rows)
        return Data(x, y, None if data.lengths is None else data.lengths[rows])
