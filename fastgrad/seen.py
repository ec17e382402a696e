"""Kernels that are looked at while a step of layers runs, so that no layer knows of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.backend import _context, _loaded, backend
from fastgrad.health import GRADIENTS, OUTPUTS, RATIO, Health, bands
from fastgrad.kernels import names
from fastgrad.kernels.names import ACTIVATIONS, Activation

# values of outputs that wait to be looked at in one launch, at most: a MB or two stay in the second cache
IN_CACHE = 1 << 18


class Seen:
    """Kernels that leave the health of a step in the first row."""

    def __init__(self, ops: Any, health: Health, places: dict[int, int], layers: list[np.ndarray]) -> None:
        self._ops, self._health, self._places, self._layers = ops, health, places, layers
        self._found: dict[int, tuple[Activation, np.ndarray]] = {}
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def dense_chain_forward(
        self, x: Any, weights: Any, biases: Any, activations: Any, residual: Any, zs: Any, outputs: Any
    ) -> None:
        self._ops.dense_chain_forward(x, weights, biases, activations, residual, zs, outputs)
        for w, activation, y in zip(weights, activations, outputs, strict=True):
            self._see(w, activation, y)

    def conv2d_forward(self, x: Any, w: Any, *rest: Any) -> None:
        self._ops.conv2d_forward(x, w, *rest)
        *_, activation, _, y = rest
        self._see(w, activation, y)

    def batch_norm_forward(self, x: Any, mean: Any, rstd: Any, gamma: Any, *rest: Any) -> None:
        self._ops.batch_norm_forward(x, mean, rstd, gamma, *rest)
        *_, activation, _, y = rest
        self._see(gamma, activation, y)

    def lstm_forward(self, xs: Any, w_ih: Any, *rest: Any) -> None:
        self._ops.lstm_forward(xs, w_ih, *rest)
        *_, h, _, _ = rest
        # h is a gate times tanh, unless it is projected
        self._see(w_ih, ACTIVATIONS["tanh" if rest[3] is None else "identity"], h)

    def update_arrays(self, params: Any, grads: Any, *rest: Any) -> int:
        self._look()
        row = self._health.rows[0]
        found = np.empty((len(row), 4))
        self._ops.array_health(self._layers, found)
        row[:, GRADIENTS] = found
        moved = np.empty((len(params), 2))
        status = self._ops.update_arrays(params, grads, *rest, moved)
        if status == names.OK:
            changed, weights = np.add.reduceat(moved, self._health.arrays).T
            with np.errstate(divide="ignore", invalid="ignore"):
                row[:, RATIO] = np.where(changed == 0, 0, np.sqrt(changed / weights))
        return status

    def _see(self, first: np.ndarray, activation: Activation, y: np.ndarray) -> None:
        layer = self._places.get(first.ctypes.data)
        if layer is not None:
            self._found[layer] = activation, check.contiguous(y.reshape(-1, y.shape[-1]))
            self._size += y.size
            if self._size > IN_CACHE:
                self._look()

    def _look(self) -> None:
        """Look at the outputs that have come since, in one launch."""
        if self._found:
            limits = np.array([bands(activation) for activation, _ in self._found.values()])
            found = np.empty((len(limits), 4))
            self._ops.output_health([y for _, y in self._found.values()], limits, found)
            self._health.rows[0, list(self._found), OUTPUTS] = found
            for layer, (activation, _) in self._found.items():
                self._health.activations[layer] = activation
        self._found, self._size = {}, 0


@contextmanager
def in_force(ops: Any) -> Iterator[None]:
    """A block in which these are the kernels, for the thread or task that runs it."""
    name = f"{backend()}, seen as {id(ops)}"
    _loaded[name] = ops
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)
        del _loaded[name]
