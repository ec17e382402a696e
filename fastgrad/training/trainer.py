"""Trainer: trains a model with an optimiser and a loss. Its settings, step, fit, evaluate, predict and health."""

import threading
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import zeros
from fastgrad.core.backend import kernels
from fastgrad.core.fork import give_lock
from fastgrad.core.lazy import LazyScalar
from fastgrad.core.random import generator
from fastgrad.health.history import HealthHistory
from fastgrad.health.report import Report
from fastgrad.kernels import types
from fastgrad.kernels.types import UpdateRule
from fastgrad.nn.model import Model
from fastgrad.nn.sequence import SequenceModel
from fastgrad.optim import Adam, Optimizer, successor
from fastgrad.optim.constraint import Constraint
from fastgrad.optim.setting import clip_norm_of, setting
from fastgrad.pruning import GradualPruning
from fastgrad.training import settings
from fastgrad.training.all_reduce import Reduce
from fastgrad.training.data import checked
from fastgrad.training.evaluate import evaluate
from fastgrad.training.fit import fit
from fastgrad.training.history import History
from fastgrad.training.step import TrainStep


class Trainer:
    """Trains a model in place; of dense layers alone, a DenseChain or a Sequential, a step, and an epoch, is one compiled call.

    loss is the mean of "cross_entropy" (y: class numbers (N,), or one-hot rows or probabilities (N, K)), "binary_cross_entropy", "mse" or
    "poisson_nll" (y like the output). Of outputs (N, T, K) it is over every step; class numbers are then (N, T). cross_entropy over a
    softmax output and binary_cross_entropy over a sigmoid output are taken from the logits before it; any other output is itself the
    logits. clip_norm limits the gradient's norm over all parameters. constraint is what parameters are held to after each update, one of
    fastgrad.optim's MaxValue and MaxNorm. What is pruned of the model stays 0; pruning, a GradualPruning, prunes more as updates go on.
    seed starts the shuffling. val_losses, which fit adds to, are what a schedule of the learning rate may look at. With health, True or
    every how many steps, a step also leaves what `health` tells.

    optimizer, loss, clip_norm, constraint, pruning, reduce and seed may be assigned between steps, and are checked as here; an optimizer
    must be of the kind whose state there is. state may be assigned an array like it, and step_count a number. What is counted is what was
    made: an exception, KeyboardInterrupt too, leaves parameters, statistics, state, generators and step_count as they are after a whole
    number of updates. A signal's handler may save, predict and evaluate; a step, a fit or a load in one, while this thread's own runs,
    raises RuntimeError. On the backends "numpy" and "cuda" an update is several calls, between which an exception may come.

    reduce shares each step among processes that run the same program, each with rows of its own: an all-reduce that puts the sum over all
    processes, or the mean, into a flat array in place. It is called once a step, between backward and clipping, with the gradients' sums
    over the rows and what belongs to them; gradients, norm and loss are then those of all rows of all processes, which need not be equally
    many. Models must start from the same parameters, and fits have equally many batches. Batch norms, validation and outputs in health
    are of a process's own rows. Where it raises, so does the step, RuntimeError, and is not made. On a GPU it is given a CuPy array; the
    first step there, and the first of each epoch, waits to know that all processes agree, others say so where their loss is read.
    """

    _steps: TrainStep
    _rule: UpdateRule
    # of x and y in the last step, and y's dtype; whether the rate is a schedule's
    _shapes: tuple
    _target_dtype: np.dtype
    _scheduled: bool
    # whether a step or an epoch runs, in the thread that has the lock
    _running = False

    optimizer: Optimizer = setting(lambda self, value: successor("Trainer", value, self._optimizer))
    loss: str = setting(lambda _, value: settings.checked_loss(value))
    clip_norm: float | None = setting(
        lambda _, value: clip_norm_of("Trainer", value), "Infinity where nothing is clipped."
    )
    constraint: Constraint | None = setting(lambda self, value: settings.checked_constraint(value, self._model))
    pruning: GradualPruning | None = setting(lambda self, value: settings.checked_pruning(value, self._model))
    reduce: Reduce | None = setting(lambda _, value: settings.checked_reduce(value))
    lock: threading.RLock
    _bind, _fail, _refuse_nested = settings.bind, settings.fail, settings.refuse_nested

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
        self._model, self._loss = model, settings.checked_loss(loss)
        self._optimizer = Adam() if optimizer is None else settings.checked_optimizer(optimizer)
        self._clip_norm, self._constraint = clip_norm_of("Trainer", clip_norm), constraint
        self._pruning, self._reduce = settings.checked_pruning(pruning, model), settings.checked_reduce(reduce)
        every = health if isinstance(health, bool) else check.count("Trainer", "health", health, least=0)
        self._health = HealthHistory(model, int(every)) if every else None
        # kernels count, in the call that makes the update
        self._count = np.zeros(1, np.int64)
        # the number of updates up to which was pruned what was due, and by what
        self._pruned, self._pruned_by = 0, self._pruning
        self.val_losses: list[float] = []
        if hasattr(kernels(model.params), "direct"):
            # where each call would carry the model to the GPU it goes there for good
            model.to("cuda")
        self._state = zeros((self._optimizer.state_rows, model.params.size), model.params)  # (S, P)
        give_lock(self)
        self.seed = seed
        self._dtype = model.dtype
        self._bind()

    @property
    def model(self) -> Model:
        return self._model

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
        """One update; returns the mean loss before it. The loss of sequences is the mean over their own steps.

        Raises FloatingPointError if the gradient is not finite. After an error trainer and model are as before. On a GPU the call does not
        wait: the loss is read, and the error raised, when the loss is used, as in float(loss). Until then an update that was not made
        counts as a step.
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
            and self._steps.params is self._model._params
            and self._steps.mask is self._model._mask
            and lengths is None
        ):
            on_gpu = self._model.on_gpu
            x, y, lengths = checked("Trainer.step", self._model, self._loss, x, y, lengths, values=not on_gpu)
            self._rebind_if_changed()
            self._shapes = (None, None) if on_gpu else (x.shape, y.shape)
        if self._scheduled:
            self._rule.hyper[0] = self._optimizer.rate(self.step_count, self.val_losses)
        loss, _, _, status = self._steps.step(x, y, lengths)
        if type(loss) is not float:
            return LazyScalar(loss, status, lambda: self._fail("Trainer.step", int(status), y))
        if status != types.OK:
            self._fail("Trainer.step", status, y)
        return loss

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

        validation is (x, y), or (x, y, lengths), looked at after each epoch. progress shows a bar: None where stderr is a terminal. lengths
        (N,) are those of sequences x. With window, a batch's sequences are run that many steps at a time, an update each, and states go on
        from window to window, gradients do not (truncated backpropagation through time). drop_last leaves a short last batch out; rows
        that are fewer than batch_size are one batch, which stays.
        Raises FloatingPointError at a gradient that is not finite: the updates before it stay, and it is not made; ValueError before the
        first update where a batch of one row is too small for a batch norm. At a KeyboardInterrupt (Ctrl-C) it stops, after some 0.1 s in
        a chain and before the next batch's update in any other model, warns, and returns the history of the epochs that were whole; the
        updates of the last one stay, and are counted.
        """
        return fit(self, x, y, epochs, batch_size, validation, shuffle, progress, lengths, window, drop_last)

    def evaluate(self, x: np.ndarray, y: np.ndarray, lengths: Any = None) -> tuple[float, float | None]:
        """(mean loss, accuracy); the accuracy is None for mse and poisson_nll."""
        return evaluate(self.model, self._loss, checked("Trainer.evaluate", self.model, self._loss, x, y, lengths))

    def health(self) -> Report:
        """The report of the last measured step: gradients, outputs and updates of every layer, with a verdict on each."""
        if self._health is None:
            raise RuntimeError(
                "Trainer.health: the trainer must be made with health=True, or with every how many steps to look"
            )
        with self.lock:
            return self._health.report(self._clip_norm)

    def predict(self, x: np.ndarray, batch_size: int | None = None, lengths: Any = None) -> np.ndarray:
        """The model's output: probabilities where it ends in softmax or sigmoid."""
        if lengths is None:
            return self.model.predict(x, batch_size)
        if not isinstance(self.model, SequenceModel):
            raise ValueError("Trainer.predict: lengths are for models with an LSTM")
        return self.model.predict(x, batch_size, lengths=lengths)

    def _rebind_if_changed(self) -> None:
        """Bind again if the model was put into a Sequential, moved or pruned."""
        if self._steps.params is not self._model.params or self._steps.mask is not self._model._mask:
            self._bind()

    def _prune(self) -> None:
        """Prune if that was due after one of the updates since the last call."""
        if self._pruning is None or self._pruned == self.step_count:
            return
        due = self._pruning.next_due(self._pruned)
        try:
            if due is not None and due <= self.step_count:
                self._pruning.prune(self._model, self.step_count)
        except KeyboardInterrupt:
            # what is pruned twice is pruned once
            self._pruning.prune(self._model, self.step_count)
            self._pruned = self.step_count
            raise
        self._pruned = self.step_count
