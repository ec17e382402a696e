"""Kernels that measure the health of layers, in the calls that a training step makes anyway."""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty_float64
from fastgrad.core.backend import _context, _loaded, backend
from fastgrad.health.monitor import GRADIENTS, OUTPUTS, RATIO, HealthMonitor, bands
from fastgrad.kernels import types
from fastgrad.kernels.types import ACTIVATIONS, Activation
from fastgrad.nn.model import Model

# values of outputs that wait to be looked at in one launch, at most: a MB or two stay in the second cache
IN_CACHE = 1 << 18


class Places:
    """Where a model's layers lie: their outputs are known by where their parameters do, and their gradients by theirs."""

    def __init__(self, model: Model, health: HealthMonitor) -> None:
        self._start, size = device.address(model.params), model.params.itemsize
        self._layers = {self._start + offset * size: i for i, offset in enumerate(health.offsets)}
        ends = [*health.offsets[1:], model.grads.size]
        self.gradients = [model.grads[start:end] for start, end in zip(health.offsets, ends, strict=True)]
        # a GPU looks at all outputs in one launch
        self.most = IN_CACHE if model.is_here else math.inf

    def layer(self, first: np.ndarray) -> int | None:
        """The number of the layer whose first parameters these are."""
        return self._layers.get(device.address(first))


class Seen:
    """Kernels that leave the health of the updates after `done`, those of them that are to be looked at, in a row each."""

    def __init__(self, ops: Any, health: HealthMonitor, places: Places, done: int) -> None:
        self._ops, self._health, self._places = ops, health, places
        self._done, self._made = done, 0
        self._found: dict[int, tuple[Activation, np.ndarray]] = {}
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(self._ops, name)
        return found

    def dense_chain_forward(self, chain: Any, saved: Any) -> None:
        self._ops.dense_chain_forward(chain, saved)
        for w, activation, y in zip(chain.weights, chain.activations, saved.outputs, strict=True):
            self._see(w, activation, y)

    def conv2d_forward(self, x: Any, w: Any, *rest: Any) -> None:
        self._ops.conv2d_forward(x, w, *rest)
        *_, activation, saved = rest
        self._see(w, activation, saved.y)

    def batch_norm_forward(self, x: Any, statistics: Any, affine: Any, *rest: Any) -> None:
        self._ops.batch_norm_forward(x, statistics, affine, *rest)
        *_, activation, saved = rest
        self._see(affine.gamma, activation, saved.y)

    def lstm_forward(self, xs: Any, weights: Any, start: Any, batch: Any, saved: Any, end: Any) -> None:
        self._ops.lstm_forward(xs, weights, start, batch, saved, end)
        # h is a gate times tanh, unless it is projected
        self._see(weights.w_ih, ACTIVATIONS["tanh" if weights.w_proj is None else "identity"], saved.h)

    def update_arrays(self, params: Any, grads: Any, *rest: Any, **named: Any) -> Any:
        if not self._looks:
            self._made += 1
            return self._ops.update_arrays(params, grads, *rest, **named)
        self._look()
        row, like = self._row, params[0]
        found, moved = (
            empty_float64(4 * len(row), like).reshape(-1, 4),
            empty_float64(2 * len(params), like).reshape(-1, 2),
        )
        self._ops.array_health(self._places.gradients, found)
        row[:, GRADIENTS] = found
        status = self._ops.update_arrays(params, grads, *rest, moved=moved, **named)
        owners = self._health.owners
        if device.on_gpu(moved):
            importlib.import_module("fastgrad.kernels.cuda.health").leave_ratios(
                device.constant(owners, row), moved, status.reshape(1), row
            )
        elif status == types.OK:
            changed, weights = (np.bincount(owners, squares, len(row)) for squares in moved.T)
            with np.errstate(all="ignore"):
                row[:, RATIO] = np.where(changed == 0, 0, np.sqrt(changed / weights))
        self._made += 1
        return status

    @property
    def _looks(self) -> bool:
        """Whether the update that runs is to be looked at."""
        return (self._done + self._made) % self._health.every == 0

    @property
    def _row(self) -> Any:
        return self._health.rows[self._made]

    def _see(self, first: np.ndarray, activation: Activation, y: np.ndarray) -> None:
        layer = self._places.layer(first) if self._looks else None
        if layer is not None:
            self._found[layer] = activation, check.contiguous(y.reshape(-1, y.shape[-1]))
            self._size += y.size
            if self._size > self._places.most:
                self._look()

    def _look(self) -> None:
        """Look at the outputs that have come since, in one launch."""
        if self._found:
            row, activations = self._row, {layer: activation for layer, (activation, _) in self._found.items()}
            limits = device.constant(np.array([bands(activation) for activation in activations.values()]), row)
            found = empty_float64(limits.size, row).reshape(limits.shape)
            self._ops.output_health([y for _, y in self._found.values()], limits, found)
            row[device.constant(np.array(list(activations)), row), OUTPUTS] = found
            for layer, activation in activations.items():
                self._health.activations[layer] = activation
        self._found, self._size = {}, 0


@contextmanager
def in_force(ops: Any) -> Iterator[None]:
    """A block in which these are the kernels, for the thread or task that runs it."""
    name = f"{backend()}, seen as {id(ops)}"
    _loaded[name] = ops
    before = _context.get()
    try:
        # an interrupt may come before this is over
        _context.set(name)
        yield
    finally:
        _context.set(before)
        del _loaded[name]
