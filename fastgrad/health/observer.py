"""HealthObserver: measures the health of the step that runs, and writes it to a row of the HealthMonitor.

Layers call `observe` with their outputs, by ForwardContext. TrainStep calls `look_at_gradients` before the update and `look_at_update`
after it. The compiled steps of a dense chain need none of these: their kernels measure in the same call, by the monitor's Watch.
"""

import importlib
import math
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty_float64
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.health.monitor import GRADIENTS, KEPT, OUTPUTS, RATIO, HealthMonitor, bands
from fastgrad.kernels import types
from fastgrad.kernels.types import Activation
from fastgrad.nn.model import Model

# values of outputs that wait to be looked at in one launch, at most: a MB or two stay in the second cache
IN_CACHE = 1 << 18


class HealthObserver:
    """Measures steps of a model. It knows a layer by the address of its first parameter.

    So a model whose parameters have moved needs a new observer.
    """

    # of the update that runs: its row (L, 9), and outputs that are not looked at yet, by their layers' numbers
    _row: Any = None
    _outputs: dict[int, tuple[Activation, np.ndarray]]
    _size = 0

    def __init__(self, model: Model, monitor: HealthMonitor) -> None:
        self.monitor, self.capacity = monitor, KEPT
        monitor.reserve(KEPT, model.params)
        start, size = device.address(model.params), model.params.itemsize
        self._layers = {start + offset * size: i for i, offset in enumerate(monitor.offsets)}
        ends = [*monitor.offsets[1:], model.grads.size]
        self._gradients = [model.grads[start:end] for start, end in zip(monitor.offsets, ends, strict=True)]
        self._on_gpu = not model.is_here
        # a GPU looks at all outputs in one launch
        self._most = math.inf if self._on_gpu else IN_CACHE

    def looks(self, step: int) -> bool:
        """Whether the update after `step` others is measured; RuntimeError where a CUDA graph is captured."""
        if self._on_gpu and device.cuda_device().is_recording():
            raise RuntimeError(
                "Trainer.step: a step with health cannot be captured in a graph, which looks at every step or none"
            )
        return step % self.monitor.every == 0

    def begin(self, row: int) -> None:
        """Measure the update that begins, into this row of the monitor."""
        self._row, self._outputs, self._size = self.monitor.rows[row], {}, 0

    def observe(self, first: np.ndarray, y: np.ndarray, activation: Activation) -> None:
        """Take the output y (..., K) of the layer whose first parameter is `first`; it is measured later, with others."""
        layer = self._layers.get(device.address(first))
        if layer is not None:
            self._outputs[layer] = activation, check.contiguous(y.reshape(-1, y.shape[-1]))
            self._size += y.size
            if self._size > self._most:
                self._look_at_outputs()

    def look_at_gradients(self, params: list[np.ndarray]) -> np.ndarray:
        """Measure the model's gradients, and the outputs that are left.

        Returns an uninitialised float64 array (n, 2), in which the update leaves sums of squares: of the changes of each of params, and of
        its values.
        """
        self._look_at_outputs()
        row, like = self._row, params[0]
        gradients = empty_float64(4 * len(row), like).reshape(-1, 4)
        kernels(like).array_health(self._gradients, gradients)
        row[:, GRADIENTS] = gradients
        return empty_float64(2 * len(params), like).reshape(-1, 2)

    @silent
    def look_at_update(self, moved: Any, status: Any) -> None:
        """Write the update ratios of an update that ended with this status. moved (n, 2): what the update left in the array of squares."""
        row, owners = self._row, self.monitor.owners
        if self._on_gpu:
            importlib.import_module("fastgrad.kernels.cuda.health").write_update_ratios(
                device.constant(owners, row), moved, status.reshape(1), row
            )
        elif status == types.OK:
            changed, weights = (np.bincount(owners, squares, len(row)) for squares in moved.T)
            row[:, RATIO] = np.where(changed == 0, 0, np.sqrt(changed / weights))

    def _look_at_outputs(self) -> None:
        """Measure the outputs that layers have passed since the last call, in one launch."""
        if self._outputs:
            row, activations = self._row, {layer: activation for layer, (activation, _) in self._outputs.items()}
            limits = device.constant(np.array([bands(activation) for activation in activations.values()]), row)
            health = empty_float64(limits.size, row).reshape(limits.shape)
            kernels(row).output_health([y for _, y in self._outputs.values()], limits, health)
            row[device.constant(np.array(list(activations)), row), OUTPUTS] = health
            for layer, activation in activations.items():
                self.monitor.activations[layer] = activation
        self._outputs, self._size = {}, 0
