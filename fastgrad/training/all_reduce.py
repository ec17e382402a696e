"""AllReduce: makes one gradient of the batches of several processes, by the user's all-reduce function.

The function gets one array: the sums of the gradients over this process's rows, the sum of the losses, the number of rows, the sums of
the rows' weights and of those of right rows, and a checksum of what the processes must agree on. So batches may differ in size: the
mean is over all rows of all processes. The function may leave sums over the processes or means of them, with the same result, since the
sum of the weights is treated alike.

On a GPU the array stays there. The host waits in two cases only. At the first step of a trainer and of an epoch it waits to know whether
the processes agree: if not, some would call the all-reduce more often than others. In a window in which this process has no rows, it waits
to know whether others have some. At all other steps disagreement is part of the step's status, and is reported when that is read.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastgrad.core import device
from fastgrad.core.allocator import zeros
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import Loss
from fastgrad.nn.model import Model

# puts the sum over all processes, or the mean, into a flat array in place
Reduce = Callable[[Any], Any]

# after the gradients: the sum of losses, the number of rows, their weights, those of right rows, and signs: 1, and 1 or -1 for each bit of
# what all processes must agree on
LOSS, ROWS, COUNTS, SIGNS = 0, 1, 2, 4
TAIL = SIGNS + 1 + 32
# the status of a step, beside those of kernels/types.py
DISAGREED = -1


def disagreement() -> RuntimeError:
    what = "parameters, loss, settings of the optimiser, number of updates and number of batches"
    return RuntimeError(f"Trainer: reduce: {what} must be the same in all processes; no update was made")


class AllReduce:
    """The user's all-reduce function, and the array (P + 37,) that it gets."""

    # whether the processes agreed at the last call, on a GPU an array () there
    agreed: Any = True
    # whether they agreed where the epoch began: then the host need not wait for it
    epoch_agreed = False

    def __init__(self, reduce: Reduce, model: Model, loss: Loss) -> None:
        self._reduce, self._model = reduce, model
        # values of a row's loss
        self._columns = 1 if loss.by_row else model.n_out or 0
        weights = b"" if loss.weights is None else device.to_host(loss.weights).tobytes()
        self._loss_settings = loss.code, loss.parameter, loss.ignore_index, zlib.crc32(weights)
        self._values = zeros((model.params.size + TAIL,), model.params)
        # bit 32 of the checksum is 0, which gives the sign 1
        bits = np.arange(32, -1, -1)
        self._bits = device.to_gpu(bits) if model.on_gpu else bits
        self._first = True

    @silent
    def __call__(self, total: Any, rows: int, counts: Any, settings: Sequence[float]) -> tuple[Any, Any, Any]:
        """Turn the model's gradients, sums over this process's rows, into means over the rows of all processes.

        Returns (mean loss (1,), rows, counts): those of all processes, or their means. total: the sum of the losses of this process's
        rows. counts (2,): the weights of rows, and of right rows. settings: what must be the same in all processes, beside the loss; at
        the first call parameters must be too.
        """
        values, grads, tail = self._values, self._model.grads, self._values[-TAIL:]
        values[: grads.size] = grads
        checksum = zlib.crc32(np.array([*self._loss_settings, *settings]).tobytes())
        if self._first:
            checksum = zlib.crc32(device.to_host(self._model.params).data, checksum)
        tail[LOSS], tail[ROWS], tail[COUNTS:SIGNS] = total, rows, counts
        tail[SIGNS:] = 1 - 2 * (checksum >> self._bits & 1)
        self._run()
        # signs that differ between processes add up to less than their number
        self.agreed = (np.abs(tail[SIGNS:]) == tail[SIGNS]).all()
        if not (self._model.on_gpu and self.epoch_agreed) and not self.agreed:
            raise disagreement()
        self._first, self.epoch_agreed = False, True
        grads[...] = values[: grads.size]
        all_counts = tail[COUNTS:SIGNS].astype(np.float64)
        weight = all_counts[:1] * self._columns
        # without weights all sums are 0; and a NaN makes the update fail
        scale = np.where(self.agreed, np.where(weight > 0, 1 / np.where(weight > 0, weight, 1), 0), np.nan)
        kernels(grads).scale_arrays([grads], None, scale)
        return tail[LOSS] * scale, tail[ROWS].astype(np.float64), all_counts

    def _run(self) -> None:
        try:
            returned = self._reduce(self._values)
        except Exception as error:
            kind = type(error).__name__
            raise RuntimeError(f"Trainer: reduce failed, and no update was made: {kind}: {error}") from error
        if returned is not None and returned is not self._values:
            kind = type(returned).__name__
            raise TypeError(f"Trainer: reduce must work in place and return None, got {kind}; no update was made")
