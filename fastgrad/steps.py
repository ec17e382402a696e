"""How a training step is run: one compiled call over a dense chain, or layer by layer over any other model.

Both read and write the model's flat arrays, keep their scratch between steps, and return a status of kernels/names.py;
one that is not OK leaves parameters and state untouched. hyper is the trainer's; its first is the rate of the next step. count (1,) is the
trainer's too, the number of updates: kernels add to it with each update, so that it is right wherever an exception comes from.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastgrad.backend import kernels
from fastgrad.chains import DenseChain
from fastgrad.data import Data, target_rows, windows
from fastgrad.epoch import Epoch, Pace
from fastgrad.kernels import names
from fastgrad.memory import empty
from fastgrad.model import Kept, Model
from fastgrad.reduction import Reduction
from fastgrad.rows import rows_of, sequences, sequences_of

if TYPE_CHECKING:
    from fastgrad.health import Health

# losses taken from the logits where the model ends in this activation
FUSED = {"cross_entropy": names.SOFTMAX, "binary_cross_entropy": names.SIGMOID}


class Steps(Protocol):
    """What a trainer runs. updates: made since the last epoch began."""

    params: np.ndarray
    mask: np.ndarray | None

    @property
    def updates(self) -> int: ...

    def whole(self) -> AbstractContextManager:
        """A block in which the model is as after the last update, though a step be under way."""

    def reserve(self, rows: int) -> None:
        """Scratch for batches of this many rows."""

    def step(self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray) -> Any:
        """The update after so many; record (2,) = mean loss and norm. Returns the status, on a GPU an array () there."""

    def epoch(self, asked: Epoch) -> int:
        """An update after the other, up to one that fails, whose status is returned."""


class Counted:
    """The number of updates, and of those since the last epoch began."""

    _count: np.ndarray
    _before = 0

    @property
    def updates(self) -> int:
        return int(self._count[0]) - self._before

    @contextmanager
    def whole(self) -> Iterator[None]:
        """See Steps: a chain's update is one call, and so it is always whole."""
        yield


class ChainSteps(Counted):
    """Steps of a DenseChain: one call each, and of an epoch as many batches a call as Pace says."""

    # what the kernels are asked to look at
    watch: names.Watch | None = None

    def __init__(
        self,
        model: DenseChain,
        loss: str,
        optimizer: Any,
        state: np.ndarray,
        hyper: np.ndarray,
        clip_norm: float,
        constraint: names.Constraint | None,
        count: np.ndarray,
    ) -> None:
        self.params, self.mask = model.params, model._mask
        self._count, self._pace, self._pace_of = count, Pace(0), 0
        self._sizes, self._work, self._rows = model.sizes, empty((0,), model.params), 0
        self._net = model.table, model.activation_parameters, names.LOSSES[loss], model.params, model.grads
        self._optimizer = optimizer.code, state, hyper, clip_norm, self.mask, constraint
        self._arguments: tuple = ()

    def reserve(self, rows: int) -> None:
        if rows > self._rows:
            self._work = empty((names.workspace_size(self._sizes, rows),), self._work)
            self._arguments = *self._net, self._work, *self._optimizer
            self._rows = rows

    def step(self, x: np.ndarray, target: np.ndarray, lengths: Any, done: int, record: np.ndarray) -> int:
        ops = kernels(x)
        return ops.dense_chain_step(
            x, target, *self._arguments, done, record, health=self.watch, updates=self._count
        )  # fmt: skip

    def epoch(self, asked: Epoch) -> int:
        self._before = int(self._count[0])
        asked.sizes[...] = np.diff(np.append(np.arange(0, len(asked.order), asked.batch_size), len(asked.order)))
        if type(self.params) is not np.ndarray:
            # launches return at once, and to wait for them more often would cost
            return self._part(asked, self.watch)
        if self._pace_of != asked.batch_size:
            self._pace_of = asked.batch_size
            self._pace = Pace(6 * asked.batch_size * self.params.size)
        first = 0
        while first < asked.batches:
            batches = min(self._pace.batches(), asked.batches - first)
            status = self._part(asked.part(first, batches, first), self.watch and self.watch.after(first))
            self._pace.made(batches)
            if status != names.OK:
                return status
            first += batches
        return names.OK

    def _part(self, asked: Epoch, watch: names.Watch | None) -> int:
        """Batches in one call."""
        (x, y, _), order, size = asked.data, asked.order, asked.batch_size
        status, _ = kernels(x).dense_chain_epoch(
            x,
            y,
            order,
            size,
            asked.rates,
            *self._arguments,
            asked.done,
            asked.record,
            health=watch,
            updates=self._count,
        )
        return status


class LayerSteps(Counted):
    """Steps of any model: forward, loss, backward, norm, update."""

    # what the step that is under way, or was interrupted, has moved of the model besides its parameters; and updates before it
    _under_way: tuple[Kept, int] | None = None

    def __init__(
        self,
        model: Model,
        loss: str,
        optimizer: Any,
        state: np.ndarray,
        hyper: np.ndarray,
        clip_norm: float,
        constraint: names.Constraint | None,
        count: np.ndarray,
        reduction: Reduction | None,
    ) -> None:
        self.params, self.mask = model.params, model._mask
        self._model, self._loss, self._count = model, loss, count
        # updates of the epoch that runs
        self._reduction, self._planned = reduction, 0
        # of the last step; a share of them where means are taken over processes, and then on a GPU an array () there
        self._rows: Any = 0
        # whether it was past the ends of all processes' sequences
        self._over = False
        self._logits = FUSED.get(loss) == model.output.code
        # a model without parameters has an empty array of them
        self._arrays = list(model.parameters().values()) or [model.params]
        self._gradients = list(model.gradients().values()) or [model.grads]
        self._optimizer = optimizer.code, state, hyper
        self._held = clip_norm, self.mask, constraint

    def reserve(self, rows: int) -> None:
        """Nothing: layers ask for their memory themselves."""

    def epoch(self, asked: Epoch) -> int:
        self._before = int(self._count[0])
        for status in self._run(asked, asked.record):
            if status != names.OK:
                return status
            asked.sizes[self.updates - 1] = self._rows
        return names.OK

    def _run(self, asked: Epoch, record: np.ndarray) -> Iterator[Any]:
        """An epoch's updates: the status of each."""
        self._planned, made = asked.planned, 0
        if self._reduction is not None:
            self._reduction.sure = False
        for start in range(0, len(asked.order), asked.batch_size):
            state, taken = None, self._taken(asked.data, asked.order[start : start + asked.batch_size])
            # sequences of another process may be longer
            for part in windows(taken, asked.window, self._reduction is not None):
                self._optimizer[2][0] = asked.rates[made]
                status = self.step(*part, asked.done + made, record[made], state)
                if self._over:
                    break
                yield status
                state, made = self._state, made + 1

    def _taken(self, data: Data, rows: np.ndarray) -> Data:
        def taken(a: np.ndarray) -> np.ndarray:
            # "clip" writes straight into out, "raise" by way of a copy
            return np.take(a, rows, axis=0, mode="clip", out=empty((len(rows), *a.shape[1:]), a))

        return Data(taken(data.x), taken(data.y), None if data.lengths is None else taken(data.lengths))

    def step(
        self,
        x: np.ndarray,
        target: np.ndarray,
        lengths: np.ndarray | None,
        done: int,
        record: np.ndarray,
        state: Any = None,
    ) -> int:
        self._settle()
        self._over, self._under_way = False, (Kept(self._model), int(self._count[0]))
        try:
            return self._step(x, target, lengths, done, record, state)
        finally:
            self._settle()

    def _settle(self) -> None:
        """Put back what a step has moved that made no update. Where it is interrupted it is done again before the next step."""
        if self._under_way is not None:
            before, count = self._under_way
            # a window after all sequences' ends is no update, and moves on as one
            if self._count[0] == count and not self._over:
                before.restore()
            self._under_way = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._under_way is None or self._count[0] != self._under_way[1]:
            yield
            return
        now = Kept(self._model)
        self._under_way[0].restore()
        try:
            yield
        finally:
            now.restore()

    def _step(
        self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray, state: Any
    ) -> int:
        ops = kernels(self.params)
        y, self._state, backward = self._model._forward(x, True, self._logits, lengths, state, False)
        batch = sequences("Trainer", y.shape[:2], lengths) if y.ndim == 3 else None
        if batch:
            y, target = rows_of(y, batch), target_rows(target, batch)
        self._rows = len(y)
        losses = empty((len(y),) if self._loss == "cross_entropy" else y.shape, y)
        dy = empty(y.shape, y)
        # a GPU's kernels make NaN of what is no class
        by_class = target.ndim == 1 and target.size and self._model.is_here
        if by_class and not (target.min() >= 0 and target.max() < y.shape[1]):
            return names.BAD_LABEL
        scale = 1.0 if self._reduction else 1 / max(losses.size, 1)
        total = getattr(ops, self._loss)(y, target, losses, dy, scale)
        backward(sequences_of(dy, batch) if batch else dy)
        record[:1] = total * scale
        if self._reduction:
            record[:1], self._rows = self._reduction(total, losses.size, self._settings(done))
            # who has rows need not ask, and so wait, whether anybody has
            self._over = not losses.size and not self._rows
            if self._over:
                return names.OK
        return ops.update_arrays(
            self._arrays, self._gradients, *self._optimizer, done + 1, *self._held, record[1:], updates=self._count
        )

    def _settings(self, done: int) -> bytes:
        """What processes that share a step must have in common."""
        code, _, hyper = self._optimizer
        return np.array([names.LOSSES[self._loss], code, *hyper, self._held[0], done, self._planned]).tobytes()


def steps_of(
    model: Model,
    loss: str,
    optimizer: Any,
    state: np.ndarray,
    hyper: np.ndarray,
    clip_norm: float,
    constraint: names.Constraint | None,
    count: np.ndarray,
    reduction: Reduction | None,
    health: "Health | None",
) -> Steps:
    """Steps of the kind that the model allows: an all-reduce comes between a chain's gradients and its update."""
    settings = loss, optimizer, state, hyper, clip_norm, constraint, count
    steps: ChainSteps | LayerSteps
    if isinstance(model, DenseChain) and reduction is None:
        steps = ChainSteps(model, *settings)
    elif not model.is_here:
        from fastgrad.there import ThereLayerSteps

        steps = ThereLayerSteps(model, *settings, reduction)
    elif isinstance(model, DenseChain) and health is None:
        from fastgrad.shared import SharedChainSteps

        steps = SharedChainSteps(model, *settings, reduction)
    else:
        steps = LayerSteps(model, *settings, reduction)
    if health is None or not health.layers:
        return steps
    from fastgrad.watched import watched

    return watched(steps, model, loss, health)
