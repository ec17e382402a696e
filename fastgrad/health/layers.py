"""The health of each layer, measured by HealthObserver in a training step: of its gradient, its output and its update.

    gradient, before clipping                     grad_norm, largest |gradient|, zeros, nonfinite
    output                                        mean, spread, saturated and dead shares
    update, before masks and constraints          update_ratio = |dw| / |w|

kernels/reference/health.py has the formulas, history.py keeps the values, verdict.py says what is wrong with a layer, report.py prints all.

An output is saturated within 1 % of a limit of its activation (of relu: at 0). A unit is dead if it is 0, or within a millionth of a limit,
for the whole batch. gelu, silu and softmax have no limits, since their values do not tell their slope.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty_float64
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.health.history import CAPACITY, HealthHistory
from fastgrad.kernels import types
from fastgrad.kernels.types import Activation, Watch
from fastgrad.nn.model import Model

# columns of gradients, of outputs and of updates
GRADIENTS, OUTPUTS, RATIO = slice(0, 4), slice(4, 8), 8
# shares of the distance between an activation's limits, or of its one limit from 0
SATURATED, FLAT = 1e-2, 1e-6
SELU_LIMIT = 1.7580993408473766
# values of outputs that wait to be measured in one launch, at most: a MB or two stay in the second cache
IN_CACHE = 1 << 18


def bands(activation: Activation) -> tuple[float, float, float, float]:
    """(low, high, flat_low, flat_high): outputs from low down or high up are saturated, from flat_low down or flat_high up flat."""
    code, p = activation
    low, high, span = {
        types.RELU: (0.0, np.inf, 0.0),
        types.CLIPPED_RELU: (0.0, p, 0.0),
        types.SIGMOID: (0.0, 1.0, 1.0),
        types.TANH: (-1.0, 1.0, 1.0),
        types.ELU: (-p, np.inf, p),
        types.SELU: (-SELU_LIMIT, np.inf, SELU_LIMIT),
        types.SOFTPLUS: (0.0, np.inf, 1.0),
    }.get(code, (-np.inf, np.inf, 0.0))
    return low + SATURATED * span, high - SATURATED * span, low + FLAT * span, high - FLAT * span


class HealthObserver:
    """Measures steps of a model and writes each to a row (L, 9) of the history. It knows a layer by the address of its first parameter.

    Layers call `observe` with their outputs, by ForwardContext. TrainStep calls `measure_gradients` before the update and `measure_update`
    after it. The compiled steps of a dense chain need none of these: their kernels measure in the same call, by `watch`. A model whose
    parameters have moved needs a new observer.
    """

    # of the update that runs: its row (L, 9), and outputs that are not measured yet, by their layers' numbers
    _row: Any = None
    _outputs: dict[int, tuple[Activation, np.ndarray]]
    _size = 0

    def __init__(self, model: Model, history: HealthHistory) -> None:
        # of the updates of a part of an epoch
        self.history, self.capacity = history, CAPACITY
        history.reserve(CAPACITY, model.params)
        start, size = device.address(model.params), model.params.itemsize
        self._layers = {start + offset * size: i for i, offset in enumerate(history.offsets)}
        ends = [*history.offsets[1:], model.grads.size]
        self._gradients = [model.grads[start:end] for start, end in zip(history.offsets, ends, strict=True)]
        self._on_gpu = model.on_gpu
        # a GPU measures all outputs in one launch
        self._most = math.inf if self._on_gpu else IN_CACHE

    def watch(self, activations: Sequence[Activation]) -> Watch:
        """The Watch that a dense chain's compiled steps take: they write their measurements to the history's rows."""
        self.history.activations = list(activations)
        return Watch(np.array([bands(f) for f in activations]), self.history.rows, self.history.every)

    def begin(self, step: int, row: int) -> "HealthObserver | None":
        """The observer itself if the update after `step` others is measured, into this row of the history; else None.

        Raises RuntimeError where a CUDA graph is captured.
        """
        if self._on_gpu and device.cuda_device().records():
            raise RuntimeError(
                "Trainer.step: a step with health cannot be captured in a graph, which looks at every step or none"
            )
        if step % self.history.every:
            return None
        self._row, self._outputs, self._size = self.history.rows[row], {}, 0
        return self

    def observe(self, first: np.ndarray, y: np.ndarray, activation: Activation) -> None:
        """Take the output y (..., K) of the layer whose first parameter is `first`; it is measured later, with others."""
        layer = self._layers.get(device.address(first))
        if layer is not None:
            self._outputs[layer] = activation, check.contiguous(y.reshape(-1, y.shape[-1]))
            self._size += y.size
            if self._size > self._most:
                self._measure_outputs()

    def measure_gradients(self, params: list[np.ndarray]) -> np.ndarray:
        """Measure the model's gradients, and the outputs that are left.

        Returns an uninitialised float64 array (n, 2), in which the update leaves sums of squares: of the changes of each of params, and of
        its values.
        """
        self._measure_outputs()
        row, like = self._row, params[0]
        gradients = empty_float64(4 * len(row), like).reshape(-1, 4)
        kernels(like).array_health(self._gradients, gradients)
        row[:, GRADIENTS] = gradients
        return empty_float64(2 * len(params), like).reshape(-1, 2)

    @silent
    def measure_update(self, squares: Any, status: Any) -> None:
        """Write the update ratios of an update that ended with this status. squares (n, 2): the sums that the update left."""
        row, layer_of_array = self._row, self.history.layer_of_array
        if self._on_gpu:
            importlib.import_module("fastgrad.kernels.cuda.health").leave_ratios(
                device.constant(layer_of_array, row), squares, status.reshape(1), row
            )
        elif status == types.OK:
            changes, weights = (np.bincount(layer_of_array, sums, len(row)) for sums in squares.T)
            row[:, RATIO] = np.where(changes == 0, 0, np.sqrt(changes / weights))

    def _measure_outputs(self) -> None:
        """Measure the outputs that layers have passed since the last call, in one launch."""
        if self._outputs:
            row, activations = self._row, {layer: activation for layer, (activation, _) in self._outputs.items()}
            limits = device.constant(np.array([bands(activation) for activation in activations.values()]), row)
            health = empty_float64(limits.size, row).reshape(limits.shape)
            kernels(row).output_health([y for _, y in self._outputs.values()], limits, health)
            row[device.constant(np.array(list(activations)), row), OUTPUTS] = health
            for layer, activation in activations.items():
                self.history.activations[layer] = activation
        self._outputs, self._size = {}, 0
