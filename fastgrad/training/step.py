"""A training step: one compiled call over a dense chain, or layer by layer over any other model.

Both read and write the model's flat arrays, keep their scratch between steps, and return a status of kernels/types.py;
one that is not OK leaves parameters and state untouched. hyper is the trainer's; its first is the rate of the next step. count (1,) is the
trainer's too, the number of updates: kernels add to it with each update, so that it is right wherever an exception comes from.

A chain that processes share makes its gradients in one compiled call, before the all-reduce, and its update in another.

On a GPU nothing waits but the end of an epoch. A step's record lies there, and its status is an array () there. A chain's kernels do the
rest; other models' steps, where one of an epoch has failed, are given NaN for x from then on, and so leave all as it is. What waits for
an all-reduce is said in all_reduce.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np

from fastgrad.core import device
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.pace import Pace
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.health.monitor import KEPT, HealthMonitor
from fastgrad.health.observer import Places, Seen, in_force
from fastgrad.kernels import types
from fastgrad.kernels.types import ACTIVATIONS
from fastgrad.nn.dense import DenseChain
from fastgrad.nn.model import ForwardContext, Model, StateSnapshot
from fastgrad.training.all_reduce import DISAGREED, AllReduce
from fastgrad.training.data import EpochPlan, TrainingData, target_rows, windows

# losses taken from the logits where the model ends in this activation
FUSED = {"cross_entropy": types.SOFTMAX, "binary_cross_entropy": types.SIGMOID}


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

    def epoch(self, asked: EpochPlan) -> int:
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
    watch: types.Watch | None = None

    def __init__(
        self,
        model: DenseChain,
        loss: str,
        optimizer: Any,
        state: np.ndarray,
        hyper: np.ndarray,
        clip_norm: float,
        constraint: types.Constraint | None,
        count: np.ndarray,
    ) -> None:
        self.params, self.mask = model.params, model._mask
        self._count, self._pace, self._pace_of = count, Pace(0), 0
        self._sizes, self._work, self._rows = model.sizes, empty((0,), model.params), 0
        self._net = types.Net(
            model.table, model.activation_parameters, types.LOSSES[loss], model.params, model.grads, self._work
        )
        self._rule = types.UpdateRule(optimizer.code, state, hyper, clip_norm, self.mask, constraint)

    def reserve(self, rows: int) -> None:
        if rows > self._rows:
            self._work = empty((types.workspace_size(self._sizes, rows),), self._work)
            self._net = self._net._replace(work=self._work)
            self._rows = rows

    def step(self, x: np.ndarray, target: np.ndarray, lengths: Any, done: int, record: np.ndarray) -> int:
        ops = kernels(x)
        return ops.dense_chain_step(
            x, target, self._net, self._rule, done, record, watch=self.watch, updates=self._count
        )  # fmt: skip

    def epoch(self, asked: EpochPlan) -> int:
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
            if status != types.OK:
                return status
            first += batches
        return types.OK

    def _part(self, asked: EpochPlan, watch: types.Watch | None) -> int:
        """Batches in one call."""
        (x, y, _), order, size = asked.data, asked.order, asked.batch_size
        status, _ = kernels(x).dense_chain_epoch(
            x,
            y,
            types.Batches(order, size, asked.rates),
            self._net,
            self._rule,
            asked.done,
            asked.record,
            watch=watch,
            updates=self._count,
        )
        return status


class LayerSteps(Counted):
    """Steps of any model: forward, loss, backward, norm, update."""

    # what the step that is under way, or was interrupted, has moved of the model besides its parameters; and updates before it
    _under_way: tuple[StateSnapshot, int] | None = None

    def __init__(
        self,
        model: Model,
        loss: str,
        optimizer: Any,
        state: np.ndarray,
        hyper: np.ndarray,
        clip_norm: float,
        constraint: types.Constraint | None,
        count: np.ndarray,
        reduction: AllReduce | None,
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
        self._rule = types.UpdateRule(optimizer.code, state, hyper, clip_norm, self.mask, constraint)

    def reserve(self, rows: int) -> None:
        """Nothing: layers ask for their memory themselves."""

    def epoch(self, asked: EpochPlan) -> int:
        self._before = int(self._count[0])
        for status in self._run(asked, asked.record):
            if status != types.OK:
                return status
            asked.sizes[self.updates - 1] = self._rows
        return types.OK

    def _run(self, asked: EpochPlan, record: np.ndarray) -> Iterator[Any]:
        """An epoch's updates: the status of each."""
        self._planned, made = asked.planned, 0
        if self._reduction is not None:
            self._reduction.sure = False
        for start in range(0, len(asked.order), asked.batch_size):
            state, taken = None, self._taken(asked.data, asked.order[start : start + asked.batch_size])
            # sequences of another process may be longer
            for part in windows(taken, asked.window, self._reduction is not None):
                self._rule.hyper[0] = asked.rates[made]
                status = self.step(*part, asked.done + made, record[made], state)
                if self._over:
                    break
                yield status
                state, made = self._state, made + 1

    def _taken(self, data: TrainingData, rows: np.ndarray) -> TrainingData:
        def taken(a: np.ndarray) -> np.ndarray:
            # "clip" writes straight into out, "raise" by way of a copy
            return np.take(a, rows, axis=0, mode="clip", out=empty((len(rows), *a.shape[1:]), a))

        return TrainingData(taken(data.x), taken(data.y), None if data.lengths is None else taken(data.lengths))

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
        self._over, self._under_way = False, (StateSnapshot(self._model), int(self._count[0]))
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
        now = StateSnapshot(self._model)
        self._under_way[0].restore()
        try:
            yield
        finally:
            now.restore()

    def _step(
        self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray, state: Any
    ) -> int:
        ops = kernels(self.params)
        batch = None if lengths is None else packed_batch("Trainer", x.shape[:2], lengths)
        context = ForwardContext(True, self._logits, batch, state, want_dx=False)
        y, self._state, backward = self._model._forward(x if batch is None else pack(x, batch), context)
        whole = packed_batch("Trainer", y.shape[:2], None) if y.ndim == 3 else None
        if whole is not None:
            y, target = pack(y, whole), target_rows(target, whole)
        elif batch is not None and not self._model.pools:
            target = target_rows(target, batch)
        self._rows = len(y)
        losses = empty((len(y),) if self._loss == "cross_entropy" else y.shape, y)
        dy = empty(y.shape, y)
        # a GPU's kernels make NaN of what is no class
        by_class = target.ndim == 1 and target.size and self._model.is_here
        if by_class and not (target.min() >= 0 and target.max() < y.shape[1]):
            return types.BAD_LABEL
        scale = 1.0 if self._reduction else 1 / max(losses.size, 1)
        total = getattr(ops, self._loss)(y, target, losses, dy, scale)
        backward(dy if whole is None else unpack(dy, whole))
        record[:1] = total * scale
        if self._reduction:
            record[:1], self._rows = self._reduction(total, losses.size, self._settings(done))
            # who has rows need not ask, and so wait, whether anybody has
            self._over = not losses.size and not self._rows
            if self._over:
                return types.OK
        return ops.update_arrays(self._arrays, self._gradients, self._rule, done + 1, record[1:], updates=self._count)

    def _settings(self, done: int) -> bytes:
        """What processes that share a step must have in common."""
        rule = self._rule
        settings = types.LOSSES[self._loss], rule.optimizer, *rule.hyper, rule.clip_norm, done, self._planned
        return np.array(settings).tobytes()


def steps_of(
    model: Model,
    loss: str,
    optimizer: Any,
    state: np.ndarray,
    hyper: np.ndarray,
    clip_norm: float,
    constraint: types.Constraint | None,
    count: np.ndarray,
    reduction: AllReduce | None,
    health: HealthMonitor | None,
) -> Steps:
    """Steps of the kind that the model allows: an all-reduce comes between a chain's gradients and its update."""
    settings = loss, optimizer, state, hyper, clip_norm, constraint, count
    steps: ChainSteps | LayerSteps
    if isinstance(model, DenseChain) and reduction is None:
        steps = ChainSteps(model, *settings)
    elif not model.is_here:
        steps = ThereLayerSteps(model, *settings, reduction)
    elif isinstance(model, DenseChain) and health is None:
        steps = SharedChainSteps(model, *settings, reduction)
    else:
        steps = LayerSteps(model, *settings, reduction)
    if health is None or not health.layers:
        return steps
    return watched(steps, model, loss, health)


class SharedChainSteps(LayerSteps):
    """The chain's gradients, the all-reduce, and the update."""

    def __init__(self, model: DenseChain, loss: str, *rest: Any) -> None:
        super().__init__(model, loss, *rest)
        self._chain = model
        work = np.empty(0, model.dtype)
        self._net = types.Net(
            model.table, model.activation_parameters, types.LOSSES[loss], model.params, model.grads, work
        )
        self._state = None

    def reserve(self, rows: int) -> None:
        size = types.workspace_size(self._chain.sizes, rows)
        if size > self._net.work.size:
            self._net = self._net._replace(work=np.empty(size, self._net.work.dtype))

    def _step(
        self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray, state: Any
    ) -> int:
        ops, reduction = kernels(), self._reduction
        assert reduction is not None
        status = ops.dense_chain_gradients(x, target, self._net, record)
        if status == types.BAD_LABEL:
            return status
        # where a gradient is not finite the others have to know
        ops.scale_arrays([self._chain.grads], None, np.full(1, float(len(x))))
        record[:1], self._rows = reduction(record.item(0) * len(x), len(x), self._settings(done))
        return ops.update_arrays(self._arrays, self._gradients, self._rule, done + 1, record[1:], updates=self._count)


class ThereLayerSteps(LayerSteps):
    """Steps of any model that lies on a GPU."""

    # 1, or NaN once a step of the epoch has failed
    _alive: Any = None

    def epoch(self, asked: EpochPlan) -> int:
        self._before = int(self._count[0])
        # mean loss, norm, rows and status of each update
        there, made = device.zeros((len(asked.sizes), 4), np.float64), 0
        try:
            for status in self._run(asked, there[:, :2]):
                there[made, 2], there[made, 3] = self._rows, status
                alive = np.where(status == types.OK, 1.0, np.nan)
                self._alive = alive if self._alive is None else self._alive * alive
                made += 1
        finally:
            self._alive, found = None, device.to_host(there)[:made]
            asked.record[:made], asked.sizes[:made] = found[:, :2], found[:, 2]
            failed = np.flatnonzero(found[:, 3])
            if len(failed):
                # launched they were, and counted
                self._count[0] = self._before + failed[0]
        return int(found[failed[0], 3]) if len(failed) else types.OK

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
        before = StateSnapshot(self._model)
        self._over, self._under_way = False, (before, int(self._count[0]))
        if self._alive is not None:
            x = x * self._alive.astype(x.dtype)
        try:
            status: Any = self._step(x, target, lengths, done, record, state)
        finally:
            self._settle()
        if self._reduction is not None:
            status = np.where(self._reduction.agreed, status, DISAGREED)
        before.restore_unless(status == types.OK)
        return status

    def _taken(self, data: TrainingData, rows: np.ndarray) -> TrainingData:
        x, y = device.take_rows(data.x, rows), device.take_rows(data.y, rows)
        return TrainingData(x, y, None if data.lengths is None else data.lengths[rows])


NOTHING: AbstractContextManager = nullcontext()


class Watched:
    """Steps of a chain, whose kernels look at what they make; they are asked to in `watch`."""

    updates = 0

    def __init__(self, steps: Any, health: HealthMonitor) -> None:
        self.params, self.mask, self.reserve, self.whole = steps.params, steps.mask, steps.reserve, steps.whole
        self._steps, self._health = steps, health

    def step(self, x: np.ndarray, target: np.ndarray, lengths: np.ndarray | None, done: int, record: np.ndarray) -> Any:
        if device.on_gpu(self.params) and device.cuda_device().records():
            raise RuntimeError(
                "Trainer.step: a step with health cannot be captured in a graph, which looks at every step or none"
            )
        if done % self._health.every:
            return self._steps.step(x, target, lengths, done, record)
        with self._looking(done, 1):
            status = self._steps.step(x, target, lengths, done, record)
        self._health.add(done, self._health.rows[0], status)
        return status

    def epoch(self, asked: EpochPlan) -> int:
        """In parts of so many updates as there are rows for."""
        self.updates, batches = 0, max(KEPT // asked.windows, 1)
        for first in range(0, asked.batches, batches):
            part, status = asked.part(first, batches, self.updates), types.OK
            looking = self._looking(part.done, len(part.sizes))
            try:
                with looking:
                    status = self._steps.epoch(part)
            finally:
                self.updates += self._steps.updates
                self._health.add_updates(part.done, self._steps.updates, status)
            if status != types.OK:
                return status
        return types.OK

    def _looking(self, done: int, updates: int) -> AbstractContextManager:
        """A block in which so many updates after `done` leave rows."""
        return NOTHING


class WatchedLayers(Watched):
    """Steps of any other model, whose kernels are looked at."""

    def __init__(self, steps: LayerSteps, model: Model, health: HealthMonitor) -> None:
        super().__init__(steps, health)
        self._places = Places(model, health)

    def _looking(self, done: int, updates: int) -> AbstractContextManager:
        self._health.reserve(updates, self.params)
        return in_force(Seen(kernels(self.params), self._health, self._places, done))


def watched(steps: ChainSteps | LayerSteps, model: Model, loss: str, health: HealthMonitor) -> Watched:
    """These steps, watched."""
    health.reserve(KEPT, model.params)
    if isinstance(steps, LayerSteps):
        return WatchedLayers(steps, model, health)
    assert isinstance(model, DenseChain)
    activations = list(model._activations)
    if FUSED.get(loss) == model.output.code:
        activations[-1] = ACTIVATIONS["identity"]
    steps.watch = health.watch(activations)
    return Watched(steps, health)
