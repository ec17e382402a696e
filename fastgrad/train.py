"""A small trainer: steps, epochs, validation."""

import math
import sys
import threading
import time
from typing import Any

import numpy as np

from fastgrad import check, gpu
from fastgrad import constraint as constraints
from fastgrad.backend import kernels
from fastgrad.constraint import Constraint
from fastgrad.data import Data, checked, window_size
from fastgrad.epoch import Epoch
from fastgrad.evaluate import evaluate
from fastgrad.gradual import GradualPruning
from fastgrad.health import Health
from fastgrad.history import History
from fastgrad.kernels import names
from fastgrad.later import Later
from fastgrad.memory import doubles, zeros
from fastgrad.model import Model, generator
from fastgrad.optim import Adam, Optimizer
from fastgrad.reduction import DISAGREED, Reduce, Reduction, disagreement
from fastgrad.report import Report
from fastgrad.schedule import Schedule
from fastgrad.sequences import SequenceModel
from fastgrad.steps import Steps, steps_of


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
        check.choice("Trainer", "loss", loss, names.LOSSES)
        if not isinstance(optimizer, Optimizer | None):
            raise TypeError(f"Trainer: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
        self.model, self.loss, self.optimizer = model, loss, optimizer or Adam()
        self.clip_norm = math.inf if clip_norm is None else check.number("Trainer", "clip_norm", clip_norm, zero=False)
        if not isinstance(pruning, GradualPruning | None):
            raise TypeError(f"Trainer: pruning must be a GradualPruning, got {type(pruning).__name__}")
        if pruning:
            pruning.check(model)
        if reduce is not None and not callable(reduce):
            raise TypeError(f"Trainer: reduce must be callable, got {type(reduce).__name__}")
        self.constraint, self.pruning, self.reduce = constraint, pruning, reduce
        every = health if isinstance(health, bool) else check.count("Trainer", "health", health, least=0)
        self._health = Health(model, int(every)) if every else None
        self.step_count = 0
        self.val_losses: list[float] = []
        if hasattr(kernels(model.params), "direct"):
            # where each call would carry the model to the GPU it goes there for good
            model.to("cuda")
        self.state = zeros((self.optimizer.state_rows, model.params.size), model.params)  # (S, P)
        self.lock = threading.Lock()
        self.rng = generator(seed)
        self._record = np.zeros(2)  # loss, norm
        self._hyper = self.optimizer.hyper
        self._scheduled = isinstance(self.optimizer.lr, Schedule)
        self._dtype = model.dtype
        self._target_dtype = np.dtype(np.int64) if loss == "cross_entropy" else model.dtype
        self._bind()

    def step(self, x: np.ndarray, y: np.ndarray, lengths: Any = None) -> float | Later:
        """One update; the mean loss before it, of sequences over their own steps.

        Raises FloatingPointError where the gradient is not finite. After an error trainer and model are as before.
        On a GPU nothing waits for the loss: it is read, and the error raised, when it is used, as float(loss). Until then the update
        that was not made counts as a step.
        """
        with self.lock:
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
                and self._steps.params is self.model.params
                and self._steps.mask is self.model._mask
                and lengths is None
            ):
                if not self.model.is_here:
                    return self._step_there(x, y, lengths)
                x, y, lengths = self._checked("Trainer.step", x, y, lengths)
                self._reserve(len(x))
                self._shapes = x.shape, y.shape
            if self._scheduled:
                self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
            status = self._steps.step(x, y, lengths, self.step_count, self._record)
            if status != names.OK:
                self._fail("Trainer.step", status, y)
            self._count(1)
            return self._record.item(0)

    def _step_there(self, x: Any, y: Any, lengths: Any) -> Later:
        op = "Trainer.step"
        data = checked(op, self.model, self.loss, x, y, lengths, values=False)
        self._reserve(len(data.x))
        self._hyper[0] = self.optimizer.rate(self.step_count, self.val_losses)
        record = doubles(2, self.model.params)
        status: Any = self._steps.step(data.x, data.y, data.lengths, self.step_count, record)
        self._count(1)
        return Later(record[0], status, lambda: self._fail(op, int(status), data.y))

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
    ) -> History:
        """Epochs of steps over batches of rows, the last batch perhaps short, in a new order each epoch.

        validation is (x, y), or (x, y, lengths), looked at after each epoch. progress shows a bar: None where stderr is a
        terminal. lengths (N,) are those of sequences x. With window, a batch's sequences are run that many steps at a time, an
        update each, and states go on from window to window, gradients do not (truncated backpropagation through time).
        Raises FloatingPointError at a gradient that is not finite: the updates before it stay, and it is not made.
        """
        from tqdm import tqdm

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
        batches, windows = -(-len(x) // batch_size), -(-x.shape[1] // steps) if steps else 1
        updates = batches * windows
        record, sizes, rates = np.zeros((updates, 2)), np.zeros(updates), np.full(updates, self._hyper[0])
        self._check_schedule(op, epochs * updates, validation is not None)
        history = History()
        shown = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
        with tqdm(total=epochs, unit="epoch", disable=not shown) as bar:
            for epoch in range(epochs):
                started = time.perf_counter()
                with self.lock:
                    if self._scheduled:
                        rates[:] = [self.optimizer.rate(self.step_count + i, self.val_losses) for i in range(updates)]
                    if shuffle:
                        np.copyto(order, identity)
                        self.rng.shuffle(order)
                    whole = Epoch(data, order, batch_size, steps, rates, self.step_count, record, sizes, updates)
                    first = done = 0
                    while first < batches:
                        self._reserve(batch_size)
                        # an epoch is one call but for pruning, before which its batches end
                        count = self._until_pruning(batches - first, windows)
                        try:
                            status = self._steps.epoch(whole.part(first, count, done))
                        finally:
                            self._count(self._steps.updates)
                        first, done = first + count, done + self._steps.updates
                        if status != names.OK:
                            part = "window" if steps else "batch"
                            self._fail(f"Trainer.fit: epoch {epoch + 1}, {part} {done + 1}", status, data.y)
                history.seconds.append(time.perf_counter() - started)
                history.loss.append(float(record[:done, 0] @ sizes[:done] / sizes[:done].sum()))
                history.grad_norm.append(float(record[:done, 1].mean()))
                if validation is not None:
                    loss, accuracy = evaluate(self.model, self.loss, seen)
                    history.val_loss.append(loss)
                    self.val_losses.append(loss)
                    if accuracy is not None:
                        history.val_accuracy.append(accuracy)
                if shown:
                    bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in vars(history).items() if values})
                    bar.update()
        return history

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
            return self._health.report()

    def predict(self, x: np.ndarray, batch_size: int | None = None, lengths: Any = None) -> np.ndarray:
        """The model's output: probabilities where it ends in softmax or sigmoid."""
        if lengths is None:
            return self.model.predict(x, batch_size)
        if not isinstance(self.model, SequenceModel):
            raise ValueError("Trainer.predict: lengths are for models with an LSTM")
        return self.model.predict(x, batch_size, lengths=lengths)

    def _bind(self) -> None:
        self._shapes = None, None
        if type(self.state) is not type(self.model.params):
            # the model was moved
            self.state = gpu.here(self.state) if self.model.is_here else gpu.there(self.state)
        parameters = list(self.model.parameters().values())
        held = constraints.checked("Trainer", self.constraint, "parameters", parameters)
        reduction = None if self.reduce is None else Reduction(self.reduce, self.model)
        rest = self.optimizer, self.state, self._hyper, self.clip_norm, held, reduction, self._health
        self._steps = steps_of(self.model, self.loss, *rest)

    def _count(self, updates: int) -> None:
        """Count updates, and prune if any was due."""
        before = self.step_count
        self.step_count += updates
        due = self.pruning.next_due(before) if self.pruning else None
        if self.pruning and due is not None and due <= self.step_count:
            self.pruning.prune(self.model, self.step_count)

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

    def _checked(self, op: str, x: Any, y: Any, lengths: Any = None) -> Data:
        return checked(op, self.model, self.loss, x, y, lengths)

    def _fail(self, op: str, status: int, y: np.ndarray) -> None:
        if status == DISAGREED:
            raise disagreement()
        if (status == names.BAD_LABEL or not self.model.is_here) and self.model.n_out and y.dtype == np.int64:
            check.labels(op, "y", y, (*y.shape, self.model.n_out), self.model.params)
        hint = "; health() of the trainer tells of every layer" if self._health is not None else ""
        raise check.no_update(op, self.model.gradients(), hint)
