"""Steps of a DenseChain that processes share: its gradients are one compiled call, before the all-reduce, and the update another."""

from typing import Any

import numpy as np

from fastgrad.backend import kernels
from fastgrad.chains import DenseChain
from fastgrad.kernels import names
from fastgrad.optim import SGD
from fastgrad.steps import LayerSteps

# an update that changes nothing, to have a step's gradients alone
STILL = SGD(0.0)


class SharedChainSteps(LayerSteps):
    """A step of the chain that stands still, the all-reduce, and the update."""

    def __init__(self, model: DenseChain, loss: str, *rest: Any) -> None:
        super().__init__(model, loss, *rest)
        self._chain = model
        self._net = model.table, model.activation_parameters, names.LOSSES[loss], model.params, model.grads
        self._still = STILL.code, np.empty((0, model.params.size), model.dtype), STILL.hyper, np.inf, None, None
        self._work, self._state = np.empty(0, model.dtype), None

    def reserve(self, rows: int) -> None:
        size = names.workspace_size(self._chain.sizes, rows)
        if size > self._work.size:
            self._work = np.empty(size, self._work.dtype)

    def _step(
        self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray, state: Any
    ) -> int:
        ops, reduction = kernels(), self._reduction
        assert reduction is not None
        status = ops.dense_chain_step(x, target, *self._net, self._work, *self._still, 0, record)
        if status == names.BAD_LABEL:
            return status
        # where a gradient is not finite the others have to know
        ops.scale_arrays([self._chain.grads], None, np.full(1, float(len(x))))
        record[:1], self._rows = reduction(record.item(0) * len(x), len(x), self._settings(done))
        return ops.update_arrays(
            self._arrays, self._gradients, *self._optimizer, done + 1, *self._held, record[1:], updates=self._count
        )
