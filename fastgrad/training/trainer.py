"""Trainer: trains a model with an optimiser and a loss. Its settings, step, fit, evaluate, predict and health."""

import math
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import zeros
from fastgrad.core.backend import kernels
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.fork import give_lock
from fastgrad.core.lazy import LazyScalar
from fastgrad.core.random import generator
from fastgrad.health.history import HealthHistory
from fastgrad.health.report import Report
from fastgrad.kernels import types
from fastgrad.kernels.types import UpdateRule
from fastgrad.loss import Loss
from fastgrad.nn.model import Model
from fastgrad.nn.sequence import SequenceModel
from fastgrad.nn.summary import line
from fastgrad.optim import Adam, Optimizer
from fastgrad.optim.constraint import Constraint
from fastgrad.optim.parameter_groups import ParameterGroups
from fastgrad.optim.setting import CLIP_NORM, clip_norm_of, setting
from fastgrad.pruning import GradualPruning
from fastgrad.training import settings
from fastgrad.training.all_reduce import Reduce
from fastgrad.training.data import checked_data
from fastgrad.training.evaluate import evaluate
from fastgrad.training.fit import fit
from fastgrad.training.history import EpochResult, History
from fastgrad.training.step import TrainStep

# left out of copies and pickles
REBUILT = "lock", "_running", "_steps", "_rule", "_groups", "_kernel_loss"


@foreign_keywords
class Trainer:
    """Trains a model in place, with an optimiser and a loss.

    A step of dense layers alone, a DenseChain or a Sequential, is one compiled call, and so is a part of an epoch.
    cross_entropy over a softmax output and binary_cross_entropy over a sigmoid output are taken from the logits before
    it; any other output is itself the logits. Of outputs (N, T, K) the loss is the mean over every step.

    All settings but model and health may be assigned between steps, and are checked as here; a new optimizer
    must have the same rule, with as many rows of state. fit adds to val_losses, a list, which a schedule of the learning
    rate may read.

    step_count counts the updates that were made. After an exception, KeyboardInterrupt too, parameters, statistics,
    state and generators are those of a whole number of updates. A copy by copy.deepcopy or pickle has a copy of the
    model too, and goes on with the same bits. A signal's handler may save, predict and evaluate; a
    step, a fit or a load in it raises RuntimeError while this thread trains. On the backends "numpy" and "cuda" an
    update is several calls, between which an exception may come.

    Args:
        model: A layer or model of fg.nn. If the chosen backend is "cuda" it is moved to the GPU.
        loss: "cross_entropy", whose y are class numbers (N,) or (N, T), or one-hot rows or probabilities like the
            output; "binary_cross_entropy", "mse", "mae", "huber" or "poisson_nll", whose y are like the output; or one of
            fg.loss, which has options, such as fg.loss.CrossEntropy(label_smoothing=0.1).
        optimizer: One of fg.optim; None is Adam(). Its groups are settings of some parameters, by patterns of the names
            that model.parameters() and model.statistics() have; what is frozen stays as it is.
        clip_norm: The largest norm of the gradient of all parameters, above 0; None clips nothing.
        seed: The seed of the shuffling, an integer from 0.
        constraint: MaxValue or MaxNorm of fg.optim, to which parameters are held after each update; None for none.
        pruning: A GradualPruning, which prunes more as updates go on; None for none. What is pruned stays 0.
        health: Measure the health of the layers at every step (True), at every so many-th step, or never (False).
        reduce: For several processes, each with rows of its own: a function that puts the sum over all processes, or
            the mean, of a flat array into that array. It is called once a step, between backward and clipping, with the
            sums of gradients and losses and the number of rows; so gradients, norm and loss are those of all rows of
            all processes, which may be of different number. Models must start from equal parameters, and fits have
            equally many batches. Batch norm, validation and the outputs in health are of a process's own rows. On a GPU
            the array is CuPy's.

    Raises:
        ValueError: A setting is unknown or out of its range, or a pattern of the optimiser's groups matches no name.
        TypeError: A setting is of another type.

    Example:
        >>> x, y = np.array([[0.0], [1.0]] * 16, np.float32), np.array([0, 1] * 16)
        >>> trainer = fg.Trainer(fg.nn.DenseChain([1, 8, 2], seed=0), optimizer=fg.optim.Adam(0.1))
        >>> history = trainer.fit(x, y, epochs=20, batch_size=8)
        >>> loss, accuracy = trainer.evaluate(x, y)
        >>> history.loss[-1] < history.loss[0], accuracy
        (True, 1.0)
    """

    _steps: TrainStep
    _rule: UpdateRule
    _groups: ParameterGroups
    _kernel_loss: types.Loss
    # shapes of x and y in the last step, and y's dtype; whether the rate is a schedule's
    _shapes: tuple
    _target_dtype: np.dtype
    _has_schedule: bool
    # whether a step or an epoch runs, in the thread that has the lock
    _running = False

    optimizer: Optimizer = setting(
        lambda self, value: settings.checked_optimizer(value, self._model, self._optimizer),
        "The optimiser, one of fg.optim.",
    )
    loss: str | Loss = setting(lambda self, value: settings.checked_loss(value, self._model), "The loss, or its name.")
    clip_norm: float | None = setting(lambda _, value: clip_norm_of("Trainer", value), CLIP_NORM)
    constraint: Constraint | None = setting(
        lambda self, value: settings.checked_constraint(value, self._model), "The constraint, or None."
    )
    pruning: GradualPruning | None = setting(
        lambda self, value: settings.checked_pruning(value, self._model), "The GradualPruning, or None."
    )
    reduce: Reduce | None = setting(lambda _, value: settings.checked_reduce(value), "The all-reduce, or None.")
    lock: threading.RLock
    _bind, _fail, _refuse_nested = settings.bind, settings.fail, settings.refuse_nested

    def __init__(
        self,
        model: Model,
        loss: str | Loss = "cross_entropy",
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
        self._model, self._loss = model, settings.checked_loss(loss, model)
        self._optimizer = settings.checked_optimizer(Adam() if optimizer is None else optimizer, model)
        self._clip_norm, self._constraint = clip_norm_of("Trainer", clip_norm), constraint
        self._pruning, self._reduce = settings.checked_pruning(pruning, model), settings.checked_reduce(reduce)
        every = health if isinstance(health, bool) else check.count("Trainer", "health", health, least=0)
        self._health = HealthHistory(model, int(every)) if every else None
        # the number of updates, which the kernel that makes an update counts
        self._count = np.zeros(1, np.int64)
        # the number of updates up to which pruning was done or none was due, and the pruning that it was
        self._pruning_step, self._last_pruning = -1, self._pruning
        self.val_losses: list[float] = []
        if hasattr(kernels(model.params), "direct"):
            # NumPy arrays would be copied to the GPU at each call, so the model moves there
            model.to("cuda")
        self._state = zeros((self._optimizer.state_rows, model.params.size), model.params)  # (S, P)
        give_lock(self)
        self.seed = seed
        self._dtype = model.dtype
        self._bind()

    def __repr__(self) -> str:
        named = {"clip_norm": self.clip_norm, "constraint": self.constraint, "pruning": self.pruning}
        settings = [f"{name}={value!r}" for name, value in named.items() if value not in (None, math.inf)]
        texts = [line(self.model), repr(self.loss), repr(self.optimizer), *settings, f"step_count={self.step_count}"]
        return f"{type(self).__name__}({', '.join(texts)})"

    def __getstate__(self) -> dict[str, Any]:
        with self.lock:
            self._refuse_nested("Trainer: a copy or a pickle")
            # made anew for the copy's own arrays
            return {name: value for name, value in vars(self).items() if name not in REBUILT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _dtype=state["_model"].dtype)
        give_lock(self)
        self._bind()

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self._model

    @property
    def seed(self) -> int:
        """The seed of the shuffling; an assignment starts it anew."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.rng, self._seed = generator(seed, "Trainer"), seed

    @property
    def state(self) -> np.ndarray:
        """The optimiser's state (S, P), S values for each of P parameters; an assignment copies an array like it."""
        return self._state

    @state.setter
    def state(self, state: np.ndarray) -> None:
        values = check.array("Trainer", "state", state, "(S, P)", self._state.shape, self._state)
        with self.lock:
            self._state[...] = values

    @property
    def step_count(self) -> int:
        """The number of updates so far."""
        return int(self._count[0])

    @step_count.setter
    def step_count(self, count: int) -> None:
        self._count[0] = check.count("Trainer", "step_count", count, least=0)
        # what is due at this count is pruned before the next update
        self._pruning_step = self.step_count - 1

    def step(self, x: np.ndarray, y: np.ndarray, lengths: Any = None, sample_weight: Any = None) -> float | LazyScalar:
        """One update from a batch.

        Args:
            x: The inputs, of the model's dtype: rows (N, C), sequences (N, T, C) or images (N, H, W, C).
            y: The targets, as the loss takes them.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all. The loss is the mean over
                these.
            sample_weight: Weights of the rows (N,), or of sequences' steps (N, T), finite and at least 0; None is 1 for
                all. The mean is the sum of weights times losses over the sum of the weights, 0 if that is 0.

        Returns:
            The mean loss before the update, a float. On a GPU the call does not wait: the loss is read, and the error
            raised, when it is used, as in float(loss); until then an update that was not made counts as a step.

        Raises:
            FloatingPointError: The gradient is not finite. Then trainer and model are as before, as after every error.
            ValueError: A shape, a length, a class number or a weight does not fit.
            TypeError: An argument is no array, or of another dtype than the model.
            RuntimeError: A step or a fit of this thread is under way, or reduce failed.

        Example:
            >>> trainer = fg.Trainer(fg.nn.Dense(4, 3, seed=0))
            >>> loss = trainer.step(np.ones((2, 4), np.float32), np.array([0, 2]))
            >>> trainer.step_count
            1
        """
        with self.lock:
            self._refuse_nested("Trainer.step")
            self._running = True
            try:
                return self._step(x, y, lengths, sample_weight)
            finally:
                self._running = False
                if self._pruning:
                    self._prune()

    def _step(self, x: Any, y: Any, lengths: Any, sample_weight: Any) -> float | LazyScalar:
        if self._pruning:
            # an interrupt may have come between the last update and this
            self._prune()
        # the full check costs as much as a step of a small net: arrays like those of the last step skip it
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
            and sample_weight is None
        ):
            on_gpu, op = self._model.on_gpu, "Trainer.step"
            x, y, lengths, sample_weight = checked_data(
                op, self._model, self._kernel_loss, x, y, lengths, sample_weight, values=not on_gpu
            )
            self._rebind_if_changed()
            self._shapes = (None, None) if on_gpu else (x.shape, y.shape)
        if self._has_schedule:
            self._groups.set_rate(self._optimizer.rate(self.step_count, self.val_losses))
        loss, status = self._steps.step(x, y, lengths, sample_weight)
        if type(loss) is not float:
            return LazyScalar(loss, status, lambda: self._fail("Trainer.step", int(status), y))
        if status != types.OK:
            self._fail("Trainer.step", status, y)
        return loss

    @foreign_keywords
    def fit(
        self,
        x: Any,
        y: np.ndarray | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation: tuple[Any, ...] | None = None,
        shuffle: bool = True,
        progress: bool | None = None,
        *,
        lengths: Any = None,
        window: int | None = None,
        drop_last: bool = False,
        callback: Callable[[EpochResult], Any] | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> History:
        """Train for some epochs of batches, in a new order each epoch.

        Data that does not fit in memory is an iterable of batches in place of x, without y: a list, a generator, a
        PyTorch DataLoader; or a function of the epoch, from 1, which returns one. A batch is (x, y), (x, y, lengths) or
        (x, y, lengths, sample_weight) as step takes them, of any number of rows, and is copied. The next one is made in
        a thread while this one trains, so at the end of fit one more may have been taken. batch_size and shuffle are
        for arrays.

        At a KeyboardInterrupt (Ctrl-C) it stops, after some 0.1 s in a chain and before the next batch's update in any
        other model, warns, and returns the history of the epochs that were whole; the updates of the last one stay, and
        are counted.

        Args:
            x: The inputs, of the model's dtype: rows (N, C), sequences (N, T, C) or images (N, H, W, C); or an iterable
                of batches, or a function of the epoch that returns one.
            y: The targets, as the loss takes them; None with an iterable.
            epochs: The number of epochs, at least 1.
            batch_size: The number of rows of a batch, at least 1; the last batch may be short.
            validation: (x, y), (x, y, lengths) or (x, y, lengths, sample_weight), on which the loss is computed after
                each epoch; None for none.
            shuffle: Whether the rows of each epoch come in a new order.
            progress: Whether a bar is shown; None shows it where stderr is a terminal, and in a notebook.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.
            window: Run a batch's sequences so many steps at a time, with an update each: states go on from window to
                window, gradients do not (truncated backpropagation through time). None runs them whole.
            drop_last: Leave a short last batch out; rows that are fewer than batch_size are one batch, which stays.
            callback: A function of an epoch's result, called after it. The result has epoch, loss, accuracy, val_loss,
                val_accuracy, grad_norm, learning_rate and seconds. If it returns True, fit stops. It may save, predict,
                evaluate, and assign settings other than the loss.
            patience: Stop after so many epochs in a row without a new smallest validation loss, at least 1. At the end,
                stopped or not, parameters, statistics and pruning masks are those of the epoch with the smallest one;
                the optimiser's state, step_count and generators go on from the last epoch. Ctrl-C restores nothing.
                With reduce, all processes must come to the same validation loss. None stops never.
            checkpoint: A file that the trainer, the history and the best weights are written to; None for none. load
                reads it too. After a crash the file is the old one or the new one, complete.
            checkpoint_every: Write the file after every so many epochs; after the last one it is always written.
            resume: Go on after the epoch at which the file was written, if it is there, up to `epochs` in all. With the
                same data and settings the bits are those of a fit that was never stopped.
            sample_weight: Weights of the rows, as of step.
            class_weight: Weights of the classes in training, by which those of the rows are multiplied: a dictionary, in
                which classes that are left out have 1, or numbers (C,); or "balanced", which is
                n / (number of classes that occur * rows of the class), as scikit-learn has it. For cross_entropy, one-hot
                rows too, and for binary_cross_entropy of one output, whose classes are 0 and 1.

        Returns:
            A History with lists of one value for each epoch: loss, grad_norm, learning_rate and seconds, for the cross
            entropies accuracy, and with validation val_loss and val_accuracy. best_epoch is the epoch with the smallest
            val_loss. Its plot() draws them.

        Raises:
            FloatingPointError: A gradient is not finite; the updates before it stay.
            ValueError: A shape, a length or a class number does not fit, an option is out of its range, or, before the
                first update, a batch of one row is too small for a batch norm.
            TypeError: An argument is no array, or of another dtype than the model.
            RuntimeError: A step or a fit of this thread is under way, reduce failed, or callback changed the loss.
            OSError: The checkpoint cannot be read or written.

        Example:
            >>> trainer = fg.Trainer(fg.nn.DenseChain([1, 4, 1], seed=0), "mse")
            >>> x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
            >>> history = trainer.fit(x[:48], 2 * x[:48], epochs=3, batch_size=16, validation=(x[48:], 2 * x[48:]))
            >>> len(history.loss), len(history.val_loss), trainer.step_count
            (3, 3, 9)
            >>> batches = [(x[i : i + 16], 2 * x[i : i + 16]) for i in range(0, 64, 16)]
            >>> history = trainer.fit(batches, epochs=2, callback=lambda result: print(result.epoch))
            1
            2
        """
        return fit(
            self, x, y, epochs, batch_size, validation, shuffle, progress, lengths, window, drop_last,
            callback, patience, checkpoint, checkpoint_every, resume, sample_weight, class_weight,
        )  # fmt: skip

    def evaluate(
        self, x: np.ndarray, y: np.ndarray, lengths: Any = None, sample_weight: Any = None
    ) -> tuple[float, float | None]:
        """The loss, and for classes the accuracy, on data that is not trained on.

        Args:
            x: The inputs, as of step.
            y: The targets, as the loss takes them.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.
            sample_weight: Weights of the rows, as of step.

        Returns:
            (mean loss, accuracy). The accuracy of cross_entropy is the share of rows, or of steps, whose largest output
            is the class, that of binary_cross_entropy the share of elements on the right side of probability 1/2; else
            it is None. It counts what the mean of the loss counts, with the same weights: no ignored label, and a row
            by the weight of its class. Where all is ignored, the loss is 0 and the accuracy NaN.

        Raises:
            ValueError: A shape, a length or a class number does not fit.
            TypeError: An argument is no array, or of another dtype than the model.
        """
        loss = settings.kernel_loss(self._loss, self.model)
        return evaluate(
            self.model, loss, checked_data("Trainer.evaluate", self.model, loss, x, y, lengths, sample_weight)
        )

    def health(self) -> Report:
        """The health of every layer at the last measured step.

        A row is of a layer's gradient, output and update; a verdict says what is wrong and what to try.

        Returns:
            A Report: print it, or take as_dict(), verdicts or plot().

        Raises:
            RuntimeError: The trainer was not made with health, or no step was measured.

        Example:
            >>> trainer = fg.Trainer(fg.nn.DenseChain([4, 8, 3], seed=0), health=True)
            >>> loss = trainer.step(np.ones((2, 4), np.float32), np.array([0, 2]))
            >>> trainer.health().layers
            ['layers.0', 'layers.1']
        """
        if self._health is None:
            raise RuntimeError(
                "Trainer.health: the trainer must be made with health=True, or with every how many steps to look"
            )
        with self.lock:
            return self._health.report(self._clip_norm)

    def predict(self, x: np.ndarray, batch_size: int | None = None, lengths: Any = None) -> np.ndarray:
        """The model's output: probabilities where it ends in softmax or sigmoid.

        Args:
            x: The inputs, of the model's dtype.
            batch_size: Compute so many rows at a time; None computes all at once.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.

        Returns:
            y, a new array.

        Raises:
            ValueError: A shape or a length does not fit, batch_size is below 1, or lengths come without an LSTM or a GRU.
            TypeError: x is no array, or of another dtype than the model.
        """
        if lengths is None:
            return self.model.predict(x, batch_size)
        if not isinstance(self.model, SequenceModel):
            raise ValueError("Trainer.predict: lengths are for models with an LSTM or a GRU")
        return self.model.predict(x, batch_size, lengths=lengths)

    def _rebind_if_changed(self) -> None:
        """Bind again if the model was put into a Sequential, moved or pruned."""
        if self._steps.params is not self._model.params or self._steps.mask is not self._model._mask:
            self._bind()

    def _prune(self) -> None:
        """Prune if that was due after one of the updates since the last call, or is due before the first."""
        if self._pruning is None or self._pruning_step == self.step_count:
            return
        due = self._pruning.next_due(self._pruning_step)
        try:
            if due is not None and due <= self.step_count:
                self._pruning.prune(self._model, self.step_count)
        except KeyboardInterrupt:
            # to prune twice is the same as once
            self._pruning.prune(self._model, self.step_count)
            self._pruning_step = self.step_count
            raise
        self._pruning_step = self.step_count
