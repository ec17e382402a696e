"""Steps of a model that lies on a GPU: what steps.py does, with nothing that waits but the end of an epoch.

A step's record lies there, and its status is an array () there. A chain's kernels do the rest; other models' steps, where one of an epoch
has failed, are given NaN for x from then on, and so leave all as it is. Of an all-reduce reduction.py says what waits.
"""

from typing import Any

import numpy as np

from fastgrad import gpu
from fastgrad.data import Data
from fastgrad.epoch import Epoch
from fastgrad.kernels import names
from fastgrad.model import Kept
from fastgrad.reduction import DISAGREED
from fastgrad.steps import LayerSteps


class ThereLayerSteps(LayerSteps):
    """Steps of any model that lies on a GPU."""

    # 1, or NaN once a step of the epoch has failed
    _alive: Any = None

    def epoch(self, asked: Epoch) -> int:
        self._before = int(self._count[0])
        # mean loss, norm, rows and status of each update
        there, made = gpu.zeros((len(asked.sizes), 4), np.float64), 0
        try:
            for status in self._run(asked, there[:, :2]):
                there[made, 2], there[made, 3] = self._rows, status
                alive = np.where(status == names.OK, 1.0, np.nan)
                self._alive = alive if self._alive is None else self._alive * alive
                made += 1
        finally:
            self._alive, found = None, gpu.here(there)[:made]
            asked.record[:made], asked.sizes[:made] = found[:, :2], found[:, 2]
            failed = np.flatnonzero(found[:, 3])
            if len(failed):
                # launched they were, and counted
                self._count[0] = self._before + failed[0]
        return int(found[failed[0], 3]) if len(failed) else names.OK

    def step(
        self,
        x: np.ndarray,
        target: np.ndarray,
        lengths: np.ndarray | None,
        done: int,
        record: np.ndarray,
        state: Any = None,
    ) -> Any:
        self._settle()
        before = Kept(self._model)
        self._over, self._under_way = False, (before, int(self._count[0]))
        if self._alive is not None:
            x = x * self._alive.astype(x.dtype)
        try:
            status: Any = self._step(x, target, lengths, done, record, state)
        finally:
            self._settle()
        if self._reduction is not None:
            status = np.where(self._reduction.agreed, status, DISAGREED)
        before.restore_unless(status == names.OK)
        return status

    def _taken(self, data: Data, rows: np.ndarray) -> Data:
        x, y = gpu.rows_of(data.x, rows), gpu.rows_of(data.y, rows)
        return Data(x, y, None if data.lengths is None else data.lengths[rows])
