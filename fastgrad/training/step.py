"""TrainStep: a training step, that is the gradients of a batch, the all-reduce among processes, and the update.

There are two paths. If the model is one chain of dense layers and there is one process, a step is one compiled call, and an epoch is a few:
Pace says how many batches a call computes. Any other step is forward, loss and backward (of a chain one call), the all-reduce, and
update_arrays. Both paths read and write the model's flat arrays, keep their scratch memory, and end with a status: if it is not OK,
parameters and state are as before. The kernel that makes an update counts it, so the count is right at any exception.

On a GPU the host waits at the end of an epoch only, and for an all-reduce (all_reduce.py). The results and the status of a step stay on the
GPU, and an update is made only if the one before it was. A health observer is passed to the steps that it measures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import device
from fastgrad.core.allocator import empty, empty_float64
from fastgrad.core.backend import kernels
from fastgrad.core.pace import Pace
from fastgrad.health.layers import HealthObserver
from fastgrad.kernels import types
from fastgrad.kernels.types import Batches, Net, UpdateRule
from fastgrad.nn.context import before_loss
from fastgrad.nn.model import Model
from fastgrad.nn.state_snapshot import StateSnapshot
from fastgrad.training.all_reduce import DISAGREED, AllReduce
from fastgrad.training.data import EpochPlan, TrainingData, select_rows, windows
from fastgrad.training.gradients import layer_gradients


class StepResult(NamedTuple):
    """Counts of a plan or None, and status: numbers, or arrays on the GPU."""

    counts: Any
    status: Any


class TrainStep:
    """Steps of a model with its present arrays; once it is moved, pruned or put into a Sequential, it needs a new TrainStep.

    count (1,): the number of updates.
    """

    # statistics and generators before the step that runs, or was interrupted, and the number of updates before it
    _before_step: tuple[StateSnapshot, int] | None = None
    # the number of updates of the whole epoch
    _epoch_updates = 0
    # the state of recurrent layers after the last step
    _state: Any = None

    def __init__(
        self,
        model: Model,
        loss: types.Loss,
        rule: UpdateRule,
        count: np.ndarray,
        all_reduce: AllReduce | None = None,
        observer: HealthObserver | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        """frozen: the names of running statistics that stay."""
        statistics = model.statistics()
        self._frozen = [statistics[name] for name in frozen]
        self.params, self.mask = model.params, model._mask
        self._model, self._loss, self._rule, self._count = model, loss, rule, count
        self._all_reduce, self._observer, self._on_gpu = all_reduce, observer, model.on_gpu
        # whether a forward in training changes statistics or generators
        self._has_statistics = bool(statistics or model._generators())
        # a model without parameters has an empty array of them
        self._arrays = list(model.parameters().values()) or [model.params]
        self._gradients = list(model.gradients().values()) or [model.grads]
        self._chain, self._rows, self._record = model._chain, 0, np.zeros(2)
        self._compiled = self._chain is not None and all_reduce is None
        self._watch: types.Watch | None = None
        self._paces: dict[int, Pace] = {}
        if self._chain is not None:
            chain, work = self._chain, empty((0,), model.params)
            self._net = Net(chain.table, chain.activation_parameters, loss, model.params, model.grads, work)
            if self._compiled and observer is not None:
                last = before_loss(chain.output, loss.is_fused_with(chain.output))
                self._watch = observer.watch([*chain._activations[:-1], last])

    def step(self, x: Any, target: Any, lengths: Any = None, weights: Any = None) -> tuple[Any, Any]:
        """One update, on checked data: the loss before it, and a status."""
        step = self._count.item(0)
        observer = self._observer and self._observer.begin(step, 0)
        record = empty_float64(2, self.params) if self._on_gpu else self._record
        if self._compiled:
            watch = self._watch if observer else None
            if len(x) > self._rows:
                self._reserve(len(x))
            status = kernels(x).dense_chain_step(
                x, target, self._net, self._rule, step, record, row_weights=weights, watch=watch, updates=self._count
            )  # fmt: skip
        else:
            if observer is not None:
                observer.history.reserve(1, self.params)
            result = self._update(TrainingData(x, target, lengths, weights), record, observer)
            assert result is not None, "the check of data refuses sequences without a step"
            status = result.status
        if observer is not None:
            observer.history.add(step, observer.history.rows[0], status)
        return record[0] if self._on_gpu else record.item(0), status

    def epoch(self, plan: EpochPlan) -> int:
        """The updates of a plan, up to the first that fails; returns its status, or OK."""
        observer, run = self._observer, self._compiled_epoch if self._compiled else self._epoch
        if observer is None:
            return run(plan)
        batches = max(observer.capacity // plan.windows, 1)
        for first in range(0, plan.batches, batches):
            part, status = plan.part(first, batches, self._count.item(0) - plan.step), types.OK
            if not self._compiled:
                observer.history.reserve(len(part.counts), self.params)
            try:
                status = run(part)
            finally:
                observer.history.add_updates(part.step, self._count.item(0) - part.step, status)
            if status != types.OK:
                return status
        return types.OK

    @contextmanager
    def after_last_update(self) -> Iterator[None]:
        """A context in which the model is as after the last update, even if a step is in progress."""
        now = StateSnapshot(self._model)
        if self._before_step is not None and self._count[0] == self._before_step[1]:
            self._before_step[0].restore()
        try:
            yield
        finally:
            now.restore()

    def _reserve(self, rows: int) -> None:
        """Make scratch memory of the chain for batches of this many rows."""
        if rows > self._rows:
            size = types.workspace_size(self._chain.sizes, rows)
            self._net, self._rows = self._net._replace(work=empty((size,), self.params)), rows

    def _compiled_epoch(self, plan: EpochPlan) -> int:
        size, (x, y, _, weights) = plan.batch_size, plan.data
        self._reserve(size)
        pace, first = self._paces.setdefault(size, Pace(6 * size * self.params.size)), 0
        while first < plan.batches:
            # launches on a GPU return at once, and waiting for them costs time
            batches = plan.batches if self._on_gpu else min(pace.batches(), plan.batches - first)
            part = plan.part(first, batches, first)
            status, _ = kernels(x).dense_chain_epoch(
                x, y, Batches(part.order, size, part.rates), self._net, self._rule, part.step, part.record,
                row_weights=weights, watch=self._watch and self._watch.after(first), updates=self._count, counts=part.counts,
            )  # fmt: skip
            pace.measure(batches)
            if status != types.OK:
                return status
            first += batches
        return types.OK

    def _epoch(self, plan: EpochPlan) -> int:
        observer, update, status, self._epoch_updates = self._observer, 0, None, plan.epoch_updates
        if self._all_reduce is not None:
            self._all_reduce.epoch_agreed = False
        # loss, norm, counts and status of each update
        outcomes = device.zeros((len(plan.counts), 5), np.float64) if self._on_gpu else None
        records = plan.record if outcomes is None else outcomes[:, :2]
        try:
            for start in range(0, len(plan.order), plan.batch_size):
                self._state, batch = None, select_rows(plan.data, plan.order[start : start + plan.batch_size])
                # sequences of another process may be longer
                for window in windows(batch, plan.window, self._all_reduce is not None):
                    # lr of hyper (7,), or of each row of hyper (G, 7)
                    self._rule.hyper[..., 0] = plan.rates[update]
                    measuring = observer and observer.begin(plan.step + update, update)
                    result = self._update(window, records[update], measuring, self._state, status)
                    if result is None:
                        break
                    if outcomes is None:
                        if result.status != types.OK:
                            return result.status
                        plan.counts[update] = result.counts
                    else:
                        status = result.status
                        outcomes[update, 2:4], outcomes[update, 4] = result.counts, status
                    update += 1
        finally:
            failure = types.OK if outcomes is None else self._read(plan, device.to_host(outcomes)[:update])
        return failure

    def _read(self, plan: EpochPlan, outcomes: np.ndarray) -> int:
        """Write the outcomes of an epoch's updates on a GPU to the plan; the status of the first update that failed, or OK."""
        updates, failures = len(outcomes), np.flatnonzero(outcomes[:, 4])
        plan.record[:updates], plan.counts[:updates] = outcomes[:, :2], outcomes[:, 2:4]
        if not len(failures):
            return types.OK
        # those after it were launched, and counted
        self._count[0] = plan.step + failures[0]
        if failures[0] < updates - 1:
            # the gradients of the step that failed are overwritten
            self._model.grads[...] = np.nan
        return int(outcomes[failures[0], 4])

    def _update(
        self, batch: TrainingData, record: Any, observer: HealthObserver | None, state: Any = None, only_if: Any = None
    ) -> StepResult | None:
        """Gradients, all-reduce and update; None in a window in which no process has rows: then there is no update.

        record (2,): mean loss and norm, which are written. observer: that of a measured step. only_if: on a GPU the status of the step
        before; the update is made only if that is OK.
        """
        self._restore_after_failure()
        step, before = self._count.item(0), StateSnapshot(self._model) if self._has_statistics else None
        self._before_step = None if before is None else (before, step)
        try:
            if self._chain is not None and self._observer is None:
                status, loss, rows, counts = self._chain_gradients(batch, record)
            else:
                status, loss, rows, counts, self._state = layer_gradients(
                    self._model, self._loss, batch, state, observer, self._all_reduce is None, self._frozen
                )
            if not self._on_gpu and status != types.OK:
                return StepResult(counts, status)
            if self._all_reduce is not None:
                rule = self._rule
                groups = () if rule.groups is None else rule.groups
                settings = rule.optimizer, *rule.hyper.flat, rule.clip_norm, step, self._epoch_updates, *groups
                loss, all_rows, counts = self._all_reduce(loss, rows, counts, settings)
                # on a GPU this reads the number of all rows, and waits, only without rows of its own
                if not rows and not all_rows:
                    # a step without rows keeps its statistics, though it makes no update
                    self._before_step = None
                    return None
            record[:1] = loss
            squares = None if observer is None else observer.measure_gradients(self._arrays)
            status = kernels(self.params).update_arrays(
                self._arrays, self._gradients, self._rule, step + 1, record[1:], moved=squares, updates=self._count, only_if=only_if
            )  # fmt: skip
            if observer is not None:
                observer.measure_update(squares, status)
        finally:
            self._restore_after_failure()
        if self._on_gpu and self._all_reduce is not None:
            status = np.where(self._all_reduce.agreed, status, DISAGREED)
        if self._on_gpu and before is not None:
            before.restore_unless(status == types.OK)
        return StepResult(counts, status)

    def _restore_after_failure(self) -> None:
        """Restore what a step without an update has changed; if an interrupt stops this, the next step does it again."""
        if self._before_step is not None:
            before, count = self._before_step
            if self._count[0] == count:
                before.restore()
            self._before_step = None

    def _chain_gradients(self, data: TrainingData, record: np.ndarray) -> tuple[Any, Any, int, Any]:
        """The gradients of a chain in one call, for an all-reduce: (status, sum of losses, rows, counts)."""
        self._reserve(len(data.x))
        counts = empty_float64(2, self.params) if self._on_gpu else np.zeros(2)
        status = kernels(data.x).dense_chain_gradients(
            data.x, data.y, self._net, record[:1], row_weights=data.weights, mean=False, counts=counts
        )
        return status, record[0], len(data.x), counts
