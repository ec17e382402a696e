"""HealthMonitor: the measurements of a trainer's layers, the last one and a history of bounded size; and its report.

A measurement is a row (L, 9): for each layer the values of HEALTH in kernels/types.py. The formulas are in kernels/reference/health.py.

    gradient, before clipping                     grad_norm, largest |gradient|, zeros, nonfinite
    output                                        mean, spread, saturated and dead shares
    update, before masks and constraints          update_ratio = |dw| / |w|

An output is saturated within 1 % of a limit of its activation (of relu: at 0). A unit is dead if it is 0, or within a millionth of a limit,
for the whole batch. gelu, silu and softmax have no limits, since their values do not tell their slope.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import device
from fastgrad.core.allocator import empty_float64
from fastgrad.health.report import Report, Traits
from fastgrad.kernels import types
from fastgrad.kernels.types import HEALTH, Activation, Watch
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Container
from fastgrad.nn.dense import DenseChain
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import IDENTITY, Model
from fastgrad.nn.residual import Residual

# measurements that are kept at most: of a longer run every second, then every fourth, ... so that the memory of all is
# KEPT * layers * 72 bytes, and as many again for those of a part of an epoch
KEPT = 256
# shares of the distance between an activation's limits, or of its one limit from 0
SATURATED, FLAT = 1e-2, 1e-6
# columns of gradients, of outputs and of updates
GRADIENTS, OUTPUTS, RATIO = slice(0, 4), slice(4, 8), 8
SELU_LIMIT = 1.7580993408473766


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


class Measured(NamedTuple):
    """A measurement: the row (L, 9) and the status of the step after `step` updates. On a GPU both stay there until they are read."""

    step: int
    row: Any
    status: Any


class HealthMonitor:
    """The measurements of a trainer's steps: the last one, and a history of at most KEPT."""

    def __init__(self, model: Model, every: int) -> None:
        self.every = every
        # of each layer its name and where its parameters begin; of each array the number of its layer
        self.layers, self.offsets, self.owners = _layers(model)
        self._traits = _traits(model)
        self.activations: list[Activation | None] = [None] * len(self.layers)
        # what steps write, one row for each update of a part of an epoch
        self.rows: Any = np.empty((0, len(self.layers), len(HEALTH)))
        self._latest: Measured | None = None
        self._kept: list[Measured] = []
        self._stride = every

    def reserve(self, updates: int, like: np.ndarray) -> None:
        """Set `rows` to NaN for this many updates, with more memory if needed, on the device of `like`."""
        if len(self.rows) < updates or type(self.rows) is not type(like):
            shape = updates, *self.rows.shape[1:]
            self.rows = empty_float64(prod(shape), like).reshape(shape)
        self.rows[:updates] = np.nan

    def watch(self, activations: Sequence[Activation]) -> Watch:
        """The Watch that a dense chain's compiled steps take: they write their measurements to `rows`."""
        self.activations = list(activations)
        return Watch(np.array([bands(f) for f in activations]), self.rows, self.every)

    def add(self, step: int, row: Any, status: Any) -> None:
        """Add the row of the step after `step` updates.

        A step that made no update, since a value was not finite, is kept as the last one only; a step that failed otherwise is not kept.
        """
        # how a step on a GPU has ended is looked at when it is read
        failed = isinstance(row, np.ndarray) and status != types.OK
        if failed and status != types.NONFINITE:
            return
        self._latest = Measured(step, row.copy(), status)
        if not failed and step % self._stride == 0:
            self._kept.append(self._latest)
            while len(self._kept) > KEPT:
                self._stride *= 2
                self._kept = [m for m in self._kept if m.step % self._stride == 0]

    def add_updates(self, step: int, made: int, status: int) -> None:
        """Add the rows of `made` updates, after `step` earlier ones, and that of a step after them that failed with this status."""
        updates = range(-step % self.every, made + (status != types.OK), self.every)
        rows = device.to_host(self.rows[: updates.stop]) if updates else self.rows
        for update in updates:
            self.add(step + update, rows[update], status if update == made else types.OK)

    def report(self, clip_norm: float) -> Report:
        """The report of the measurements so far. clip_norm: the trainer's."""
        self._read()
        if self._latest is None:
            raise RuntimeError("Trainer.health: no step has run that could be looked at")
        steps = np.array([m.step for m in self._kept], np.int64)
        values = np.array([m.row for m in self._kept]).reshape(-1, *self._latest.row.shape)
        traits = [t._replace(clip_norm=clip_norm) for t in self._traits]
        layers = list(self.layers), list(self.activations), traits
        return Report(*layers, self._latest.step, self._latest.row.copy(), steps, values)

    def _read(self) -> None:
        """Copy measurements from the GPU to the host, and drop from the history those of steps that made no update."""
        every = [*self._kept, *([self._latest] if self._latest else [])]
        there = [m for m in every if not isinstance(m.row, np.ndarray)]
        if there:
            rows, statuses = (
                device.to_host(np.stack([m.row for m in there])),
                device.to_host(np.stack([m.status for m in there])),
            )
            read = iter([Measured(m.step, *found) for m, *found in zip(there, rows, statuses.tolist(), strict=True)])
            *kept, latest = [m if isinstance(m.row, np.ndarray) else next(read) for m in every]
            self._kept = [m for m in kept if m.status == types.OK]
            ran = latest.status in (types.OK, types.NONFINITE)
            self._latest = latest if ran else self._kept[-1] if self._kept else None


def _layers(model: Model) -> tuple[list[str], list[int], np.ndarray]:
    layers: list[str] = []
    offsets, owners, offset = [], [], 0
    for name, array in model.parameters().items():
        label = f"layers.{name.rpartition('.')[0] or 0}"
        if not layers or layers[-1] != label:
            layers.append(label)
            offsets.append(offset)
        owners.append(len(layers) - 1)
        offset += array.size
    return layers, offsets, np.array(owners, np.int64)


def _traits(model: Model) -> list[Traits]:
    """The traits of each layer of `_layers`, for the verdicts."""
    leaves = list(_leaves(model, None, ()))
    norms, residuals = any(isinstance(leaf, BatchNorm) for leaf, *_ in leaves), any(block for _, block, _ in leaves)
    traits = []
    for i, (leaf, block, place) in enumerate(leaves):
        after, its_block = next(((other, b) for other, b, _ in leaves[i + 1 :] if other.params.size), (None, None))
        # the sum that a block ends in is no layer's alone
        normed = isinstance(after, BatchNorm) and its_block is block and leaf.output == IDENTITY
        parts = list(dict.fromkeys(key.rpartition(".")[0] for key in leaf._shapes))
        for part in parts:
            followed = normed and part == parts[-1]
            dense = isinstance(leaf, DenseChain)
            kind = " ".join(
                ["Dense" if dense else type(leaf).__name__, *place, *(["before a batch norm"] if followed else [])]
            )
            init = getattr(leaf, "_init", None)
            name = None if init is None or followed else getattr(getattr(init, "func", init), "__name__", "")
            forget_bias = leaf.forget_bias if isinstance(leaf, LSTM) else None
            traits.append(Traits(kind, name, block is not None, norms, residuals, forget_bias))
    return traits


def _leaves(
    model: Model, block: Residual | None, place: tuple[str, ...]
) -> Iterator[tuple[Model, Any, tuple[str, ...]]]:
    """The layers that are no containers, each with its Residual, or None, and its place in that."""
    if not isinstance(model, Container):
        yield model, block, place
        return
    for name, part in model.parts.items():
        if isinstance(model, Residual):
            yield from _leaves(part, model, (name,))
        else:
            yield from _leaves(part, block, (*place, name) if block else ())
