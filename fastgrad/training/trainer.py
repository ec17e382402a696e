"""A small trainer: steps, epochs, validation."""

import math
import os
import sys
import threading
import time
import warnings
import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty_float64, zeros
from fastgrad.core.backend import kernels
from fastgrad.core.lazy import LazyScalar
from fastgrad.core.random import generator
from fastgrad.health.monitor import HealthMonitor
from fastgrad.health.report import Report
from fastgrad.kernels import types
from fastgrad.nn.model import Model, StateSnapshot
from fastgrad.nn.sequence import SequenceModel
from fastgrad.optim import Adam, Optimizer, successor
from fastgrad.optim import constraint as constraints
from fastgrad.optim.constraint import Constraint
from fastgrad.pruning import GradualPruning
from fastgrad.schedule import Schedule
from fastgrad.training.all_reduce import DISAGREED, AllReduce, Reduce, disagreement
from fastgrad.training.data import EpochPlan, TrainingData, checked, window_size
from fastgrad.training.evaluate import evaluate
from fastgrad.training.history import History, means
from fastgrad.training.step import Steps, steps_of


class Trainer:
    """Trains a model in place; over a DenseChain a step, and an epoch, is one compiled call.

    loss is the mean of "cross_entropy" (y: class numbers (N,), or one-hot rows or probabilities (N, K)),
    "binary_cross_entropy", "mse" or "poisson_nll" (y like the output). Of outputs (N, T, K) it is over every step; class numbers are
    then (N, T). cross_entropy over a softmax output and binary_cross_entropy
    over a sigmoid output are taken from the logits before it; any other output is itself the logits. clip_norm limits
    the gradient's norm over all parameters. constraint is what parameters are held to after each update, one of fastgrad.optim's
    MaxValue and MaxNorm. What is pruned of the model stays 0; pruning, a GradualPruning, prunes more as updates go on. seed starts the
    shuffling. val_losses, which fit adds to, are what a schedule of the learning rate may look at. With health, True or
    every how many steps, a step also leaves what `health` tells.

    optimizer, loss, clip_norm, constraint, pruning, reduce and seed may be assigned between steps, and are checked as here; an optimizer
    must be of the kind whose state there is. state may be assigned an array like it, and step_count a number. What is counted is what
    was made: an exception, a signal's as any other (KeyboardInterrupt), leaves parameters, statistics, state, generators and step_count as
    they are after a whole number of updates. A signal's handler may save, predict and evaluate; a step, a fit or a load in one, while
    this thread's own runs, raises RuntimeError. On the backends "numpy" and "cuda" an update is several calls, between which an exception
    may come.

    reduce shares each step among processes that run the same program, each with rows of its own: an all-reduce that puts the sum over
    all processes, or the mean, into a flat array in place. It is called once a step, between backward and clipping, with the gradients'
    sums over the rows and what belongs to them; gradients, norm and loss are then those of all rows of all processes, which need not be
    equally many. Models must start from the same parameters, and fits have equally many batches. Batch norms, validation and outputs in
    health are of a process's own rows. Where it raises, so does the step, RuntimeError, and is not made. On a GPU it is given a CuPy array;
    the first step there, and the first of each epoch, waits to know that all processes agree, others say so where their loss is read.
    """

    # of x and y in the last step, for which there is scratch
    _shapes: tuple
    _steps: Steps
    # whether a step or an epoch runs, in the thread that has the lock
    _running = False

    def __init__(
        self,
        model: Model,
        loss: str = "cross_entropy",
        optimizer: Optimizer | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
        *,
        constraint: Constraint | None = None,
        pruning: GradualPruning | None = None,
        health: bool | int = False,
        reduce: Reduce | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"Trainer: model must be a layer of fastgrad.nn, got {type(model).__name__}")
        self._model, self._loss = model, _loss(loss)
        self._optimizer = Adam() if optimizer is None else _optimizer(optimizer)
        self._clip_norm, self._pruning, self._reduce = _clip_norm(clip_norm), _pruning(pruning, model), _reduce(reduce)
        self._constraint = constraint
        every = health if isinstance(health, bool) else check.count("Trainer", "health", health, least=0)
        self._health = HealthMonitor(model, int(every)) if every else None
        # kernels count, in the call that makes the update
        self._count = np.zeros(1, np.int64)
        # the number of updates up to which was pruned what was due
        self._pruned = 0
        self.val_losses: list[float] = []
        if hasattr(kernels(model.params), "direct"):
            # where each call would carry the model to the GPU it goes there for good
            model.to("cuda")
        self._state = zeros((self.optimizer.state_rows, model.params.size), model.params)  # (S, P)
        # a signal's handler may come while this thread has it
        self.lock = threading.RLock()
        _trainers.add(self)
        self.seed = seed
        self._record = np.zeros(2)  # loss, norm
        self._hyper = self.optimizer.hyper
        self._dtype = model.dtype
        self._bind()

    @property
    def model(self) -> Model:
        return self._model

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        found = successor("Trainer", optimizer, self._optimizer)
        with self.lock:
            self._optimizer, self._hyper = found, found.hyper
            self._bind()

    @property
    def loss(self) -> str:
        return self._loss

    @loss.setter
    def loss(self, loss: str) -> None:
        loss = _loss(loss)
        with self.lock:
            self._loss = loss
            self._bind()

    @property
    def clip_norm(self) -> float:
        """Infinity where nothing is clipped."""
        return self._clip_norm

    @clip_norm.setter
    def clip_norm(self, clip_norm: float | None) -> None:
        clip_norm = _clip_norm(clip_norm)
        with self.lock:
            self._clip_norm = clip_norm
            self._bind()

    @property
    def constraint(self) -> Constraint | None:
        return self._constraint

    @constraint.setter
    def constraint(self, constraint: Constraint | None) -> None:
        constraints.checked("Trainer", constraint, "parameters", list(self.model.parameters().values()))
        with self.lock:
            self._constraint = constraint
            self._bind()

    @property
    def pruning(self) -> GradualPruning | None:
        return self._pruning

    @pruning.setter
    def pruning(self, pruning: GradualPruning | None) -> None:
        pruning = _pruning(pruning, self.model)
        with self.lock:
            # what would have been due before is not made up for
            self._pruned, self._pruning = self.step_count, pruning

    @property
    def reduce(self) -> Reduce | None:
        return self._reduce

    @reduce.setter
    def reduce(self, reduce: Reduce | None) -> None:
        reduce = _reduce(reduce)
        with self.lock:
            self._reduce = reduce
            self._bind()

    @property
    def seed(self) -> int:
        """Where the shuffling started; an assignment starts it anew."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.rng, self._seed = generator(seed), seed

    @property
    def state(self) -> np.ndarray:
        """The optimiser's, (S, P)."""
        return self._state

    @state.setter
    def state(self, state: np.ndarray) -> None:
        values = check.array("Trainer", "state", state, "(S, P)", self._state.shape, self._state)
        with self.lock:
            self._state[...] = values

    @property
    def step_count(self) -> int:
        """Updates so far."""
        return int(self._count[0])

    @step_count.setter
    def step_count(self, count: int) -> None:
        self._count[0] = self._pruned = check.count("Trainer", "step_count", count, least=0)

    def step(self, x: np.ndarray, y: np.ndarray, lengths: Any = None) -> float | LazyScalar:
        """One update; the mean loss before it, of sequences over their own steps.

        Raises FloatingPointError where the gradient is not finite. After an error trainer and model are as before.
        On a GPU nothing waits for the loss: it is read, and the error raised, when it is used, as float(loss). Until then the update
        that was not made counts as a step.
        """
        with self.lock:
            self._refuse_nested("Trainer.step")
            self._running = True
            try:
                return self._step(x, y, lengths)
            finally:
                self._running = False
                if self._pruning:
                    self._prune()

    def _step(self, x: Any, y: Any, lengths: Any) -> float | LazyScalar:
        if self._pruning:
            # an interrupt may have come between the last update and this
            self._prune()
        # the full check costs as much as a small net's step: arrays like those of the last one pass by
        if not (
            type(x) is np.ndarray
            and type(y) is np.ndarray
            and x.dtype is self._dtype
            and y.dtype is self._target_dtype
            and x.shape == self._shapes[0]
            and y.shape == self._shapes[1]
            and x.flags.carray
            and y.flags.carray
            and self._steps.params is self._model.params
            and self._steps.mask is self._model._mask
            and lengths is None
        ):
            if not self.model.is_here:
                return self._step_there(x, y, lengths)
            x, y, lengths = self._checked("Trainer.step", x, y, lengths)
            self._reserve(len(x))
            self._shapes = x.shape, y.shape
        if self._scheduled:
            self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
        status = self._steps.step(x, y, lengths, self._count.item(0), self._record)
        if status != types.OK:
            self._fail("Trainer.step", status, y)
        return self._record.item(0)

    def _step_there(self, x: Any, y: Any, lengths: Any) -> LazyScalar:
        op = "Trainer.step"
        data = checked(op, self.model, self.loss, x, y, lengths, values=False)
        self._reserve(len(data.x))
        self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
        record = empty_float64(2, self.model.params)
        status: Any = self._steps.step(data.x, data.y, data.lengths, self.step_count, record)
        return LazyScalar(record[0], status, lambda: self._fail(op, int(status), data.y))

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        epochs: int = 1,
        batch_size: int = 32,
        validation: tuple[Any, ...] | None = None,
        shuffle: bool = True,
        progress: bool | None = None,
        *,
        lengths: Any = None,
        window: int | None = None,
        drop_last: bool = False,
    ) -> History:
        """Epochs of steps over batches of rows, the last batch perhaps short, in a new order each epoch.

        validation is (x, y), or (x, y, lengths), looked at after each epoch. progress shows a bar: None where stderr is a
        terminal. lengths (N,) are those of sequences x. With window, a batch's sequences are run that many steps at a time, an
        update each, and states go on from window to window, gradients do not (truncated backpropagation through time). drop_last leaves
        a short last batch out; rows that are fewer than batch_size are one batch, which stays.
        Raises FloatingPointError at a gradient that is not finite: the updates before it stay, and it is not made; ValueError before the
        first update where a batch of one row is too small for a batch norm. At a KeyboardInterrupt (Ctrl-C) it stops, after some 0.1 s in
        a chain and before the next batch's update in any other model, warns, and returns the history of the epochs that were whole; the
        updates of the last one stay, and are counted.
        """
        op = "Trainer.fit"
        data = self._checked(op, x, y, lengths)
        # numpy takes rows of nothing else without copying it whole
        data = data._replace(x=check.contiguous(data.x))
        steps = window_size(op, self.model, window)
        epochs, batch_size = check.count(op, "epochs", epochs), check.count(op, "batch_size", batch_size, most=None)
        batch_size = min(batch_size, len(x))
        if validation is not None:
            check.each(op, "validation", validation, 3 if self.model.recurrent and len(validation) == 3 else 2)
            seen = self._checked(f"{op}: validation", *validation)
        identity = np.arange(len(x))
        order = identity.copy()
        short = len(x) % batch_size
        batches, windows = -(-len(x) // batch_size), -(-x.shape[1] // steps) if steps else 1
        if drop_last and short:
            batches, short = batches - 1, 0
        self._check_batch_norm(op, data, short or batch_size, batch_size, steps)
        updates = batches * windows
        record, sizes, rates = np.zeros((updates, 2)), np.zeros(updates), np.full(updates, self._hyper[0])
        self._check_schedule(op, epochs * updates, validation is not None)
        history = History()
        shown = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
        try:
            with _bar(epochs) if shown else nullcontext() as bar:
                for epoch in range(epochs):
                    started, before = time.perf_counter(), self.step_count
                    with self.lock:
                        self._refuse_nested(op)
                        self._running, shuffling = True, self.rng.bit_generator.state
                        try:
                            if self._pruning:
                                self._prune()
                            before = self.step_count
                            if self._scheduled:
                                rates[:] = [self.optimizer.rate(before + i, self.val_losses) for i in range(updates)]
                            if shuffle:
                                np.copyto(order, identity)
                                self.rng.shuffle(order)
                            rows = order[: batches * batch_size]
                            whole = EpochPlan(data, rows, batch_size, steps, rates, before, record, sizes, updates)
                            part = "window" if steps else "batch"
                            self._epoch(f"{op}: epoch {epoch + 1}, {part}", whole, windows)
                        finally:
                            self._running = False
                            if self.step_count == before:
                                self.rng.bit_generator.state = shuffling
                            if self._pruning:
                                self._prune()
                        done = self.step_count - before
                    seconds = time.perf_counter() - started
                    found = dict(zip(("loss", "grad_norm"), means(record[:done], sizes[:done]), strict=True))
                    if validation is not None:
                        loss, accuracy = evaluate(self.model, self.loss, seen)
                        found["val_loss"] = loss
                        self.val_losses.append(loss)
                        if accuracy is not None:
                            found["val_accuracy"] = accuracy
                    # the last to come tells that an epoch is whole
                    for name, value in (found | {"seconds": seconds}).items():
                        getattr(history, name).append(value)
                    if bar is not None:
                        bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in vars(history).items() if values})
                        bar.update()
        except KeyboardInterrupt:
            epochs_made = len(history.seconds)
            for values in vars(history).values():
                del values[epochs_made:]
            message = f"Training interrupted by user. Trainer.fit: {epochs_made} of {epochs} epochs were made"
            warnings.warn(f"{message}; step_count is {self.step_count}", stacklevel=2)
        return history

    def _epoch(self, label: str, whole: EpochPlan, windows: int) -> None:
        """An epoch's updates: its batches end where pruning is due."""
        first = done = 0
        while first < whole.batches:
            self._reserve(whole.batch_size)
            count = self._until_pruning(whole.batches - first, windows)
            try:
                status = self._steps.epoch(whole.part(first, count, done))
            finally:
                done = self.step_count - whole.done
                if self._pruning:
                    self._prune()
            first += count
            if status != types.OK:
                self._fail(f"{label} {done + 1}", status, whole.data.y)

    def evaluate(self, x: np.ndarray, y: np.ndarray, lengths: Any = None) -> tuple[float, float | None]:
        """(mean loss, accuracy); the accuracy is None for mse and poisson_nll."""
        return evaluate(self.model, self.loss, self._checked("Trainer.evaluate", x, y, lengths))

    def health(self) -> Report:
        """How gradients, outputs and updates of every layer looked in the last step that was looked at, and what is wrong with them."""
        if self._health is None:
            raise RuntimeError(
                "Trainer.health: the trainer must be made with health=True, or with every how many steps to look"
            )
        with self.lock:
            return self._health.report(self.clip_norm)

    def predict(self, x: np.ndarray, batch_size: int | None = None, lengths: Any = None) -> np.ndarray:
        """The model's output: probabilities where it ends in softmax or sigmoid."""
        if lengths is None:
            return self.model.predict(x, batch_size)
        if not isinstance(self.model, SequenceModel):
            raise ValueError("Trainer.predict: lengths are for models with an LSTM")
        return self.model.predict(x, batch_size, lengths=lengths)

    def _refuse_nested(self, op: str) -> None:
        """Raise where this thread, which has the lock, is in a step or an epoch already: what changes the trainer would tear it."""
        if self._running:
            raise RuntimeError(
                f"{op}: the trainer is in the middle of a step or a fit in this thread, which a signal's handler or reduce came out of"
            )

    def _bind(self) -> None:
        self._shapes = None, None
        self._scheduled = isinstance(self.optimizer.lr, Schedule)
        self._target_dtype = np.dtype(np.int64) if self.loss == "cross_entropy" else self._dtype
        if type(self._state) is not type(self.model.params):
            # the model was moved
            self._state = device.to_host(self._state) if self.model.is_here else device.to_gpu(self._state)
        parameters = list(self.model.parameters().values())
        held = constraints.checked("Trainer", self.constraint, "parameters", parameters)
        reduction = None if self.reduce is None else AllReduce(self.reduce, self.model)
        rest = self.optimizer, self._state, self._hyper, self.clip_norm, held, self._count, reduction, self._health
        self._steps = steps_of(self.model, self.loss, *rest)

    def _prune(self) -> None:
        """Prune if that was due after one of the updates since it was last looked at."""
        if self._pruning is None or self._pruned == self.step_count:
            return
        due = self._pruning.next_due(self._pruned)
        if due is not None and due <= self.step_count:
            try:
                self._pruning.prune(self.model, self.step_count)
            except KeyboardInterrupt:
                # what is pruned twice is pruned once
                self._pruning.prune(self.model, self.step_count)
                self._pruned = self.step_count
                raise
        self._pruned = self.step_count

    def _check_batch_norm(self, op: str, data: TrainingData, rows: int, batch_size: int, steps: int | None) -> None:
        """Raise now for what a batch norm would only in the middle of an epoch: a batch of one row that is too small for it."""
        if rows > 1 or not self.model.statistics():
            return
        x, lengths, row = data.x[:1], None, 0
        if self.model.recurrent:
            # of all rows the one whose last window is shortest
            ends = np.full(len(data.x), data.x.shape[1]) if data.lengths is None else np.maximum(data.lengths, 1)
            width = steps or data.x.shape[1]
            left = (ends - 1) % width + 1
            row = int(left.argmin())
            first = int(ends[row] - left[row])
            x = data.x[row : row + 1, first : first + width]
            lengths = None if data.lengths is None else left[row : row + 1]
        before = StateSnapshot(self.model)
        try:
            if isinstance(self.model, SequenceModel):
                self.model.forward(x, True, lengths=lengths)
            else:
                self.model.forward(x, True)
        except ValueError as error:
            what = f"batches have batch_size = {batch_size} row" if batch_size == 1 else "the last batch has one row"
            ways = (
                "a larger batch_size"
                if batch_size == 1
                else "drop_last=True, which leaves it out, or another batch_size"
            )
            raise ValueError(f"{op}: {what}, too few for a batch norm; the way out is {ways} ({error})") from error
        finally:
            before.restore()

    def _until_pruning(self, batches: int, windows: int) -> int:
        """How many of so many batches of so many windows come before pruning is due."""
        due = self.pruning.next_due(self.step_count) if self.pruning else None
        return batches if due is None else min(batches, -(-(due - self.step_count) // windows))

    def _check_schedule(self, op: str, updates: int, validated: bool) -> None:
        """Raise now for a schedule that has no rate for the last of so many updates."""
        lr = self.optimizer.lr
        if isinstance(lr, Schedule):
            if lr.validates and not validated:
                raise ValueError(f"{op}: {type(lr).__name__} needs validation")
            self.optimizer.rate(self.step_count + updates - 1, self.val_losses)

    def _reserve(self, rows: int) -> None:
        if self._steps.params is not self.model.params or self._steps.mask is not self.model._mask:
            # a Sequential has taken the model over, or it was pruned
            self._bind()
        self._steps.reserve(rows)

    def _checked(self, op: str, x: Any, y: Any, lengths: Any = None) -> TrainingData:
        return checked(op, self.model, self.loss, x, y, lengths)

    def _fail(self, op: str, status: int, y: np.ndarray) -> None:
        if status == DISAGREED:
            raise disagreement()
        if (status == types.BAD_LABEL or not self.model.is_here) and self.model.n_out and y.dtype == np.int64:
            check.labels(op, "y", y, (*y.shape, self.model.n_out), self.model.params)
        hint = "; health() of the trainer tells of every layer" if self._health is not None else ""
        raise check.no_update(op, self.model.gradients(), hint)


# whose locks are fresh in a forked child: the thread that has one in the parent is not there
_trainers: weakref.WeakSet[Trainer] = weakref.WeakSet()


def _after_in_child() -> None:
    for trainer in list(_trainers):
        trainer.lock, trainer._running = threading.RLock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)


def _bar(epochs: int) -> Any:
    # made only where it is seen: its destructor is Python's, and loses an interrupt that comes into it
    from tqdm import tqdm

    return tqdm(total=epochs, unit="epoch")


def _loss(loss: Any) -> str:
    check.choice("Trainer", "loss", loss, types.LOSSES)
    return loss


def _optimizer(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"Trainer: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
    return optimizer


def _clip_norm(clip_norm: Any) -> float:
    return math.inf if clip_norm in (None, math.inf) else check.number("Trainer", "clip_norm", clip_norm, zero=False)


def _pruning(pruning: Any, model: Model) -> GradualPruning | None:
    if not isinstance(pruning, GradualPruning | None):
        raise TypeError(f"Trainer: pruning must be a GradualPruning, got {type(pruning).__name__}")
    if pruning:
        pruning.check(model)
    return pruning


def _reduce(reduce: Any) -> Reduce | None:
    if reduce is not None and not callable(reduce):
        raise TypeError(f"Trainer: reduce must be callable, got {type(reduce).__name__}")
    return reduce
