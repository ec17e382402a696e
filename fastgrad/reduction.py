"""Steps that several processes share: every one has rows of its own, and an all-reduce makes one gradient of theirs.

The gradients' sums over the rows go through it, with the number of rows, so that batches may differ in size: the mean is over all rows of
all processes. Whether it leaves sums over the processes or means of them is the same, since rows are counted by it too.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.backend import kernels
from fastgrad.model import Model

# puts the sum over all processes, or the mean, into a flat array in place
Reduce = Callable[[np.ndarray], Any]

# after the gradients: the sum of losses, the number of rows, 1, and 1 or -1 for each bit of what all processes must agree on
LOSS, ROWS, SIGNS = 0, 1, 2
TAIL = SIGNS + 1 + 32


class Reduction:
    """An all-reduce, and the one array (P + 35,) that it is given."""

    def __init__(self, reduce: Reduce, model: Model) -> None:
        self._reduce, self._model = reduce, model
        self._values = np.zeros(model.params.size + TAIL, model.dtype)
        self._first = True

    def __call__(self, total: float, rows: int, settings: bytes) -> tuple[float, float]:
        """Turn the model's gradients, sums over this process's rows, into means over all; (mean loss, rows), and these may be their mean.

        total: of the losses. settings: what must be the same in all processes; so must parameters at the first call.
        """
        values, grads, tail = self._values, self._model.grads, self._values[-TAIL:]
        values[: grads.size] = grads
        tail[LOSS], tail[ROWS], tail[SIGNS] = total, rows, 1
        seen = zlib.crc32(self._model.params.data, zlib.crc32(settings)) if self._first else zlib.crc32(settings)
        tail[SIGNS + 1 :] = np.where(np.unpackbits(np.frombuffer(seen.to_bytes(4), np.uint8)), 1, -1)
        self._run()
        # 1 and -1 of different processes add up to less than their number
        if (np.abs(tail[SIGNS:]) != tail[SIGNS]).any():
            what = "parameters, settings of the optimiser, number of updates and number of batches"
            raise RuntimeError(f"Trainer: reduce: {what} must be the same in all processes; no update was made")
        self._first = False
        grads[...] = values[: grads.size]
        scale = 1 / tail.item(ROWS) if tail[ROWS] else 0.0
        kernels().scale_arrays([grads], None, np.full(1, scale))
        return tail.item(LOSS) * scale, tail.item(ROWS)

    def _run(self) -> None:
        try:
            returned = self._reduce(self._values)
        except Exception as error:
            kind = type(error).__name__
            raise RuntimeError(f"Trainer: reduce failed, and no update was made: {kind}: {error}") from error
        if returned is not None and returned is not self._values:
            kind = type(returned).__name__
            raise TypeError(f"Trainer: reduce must work in place and return None, got {kind}; no update was made")
