"""A small trainer: steps, epochs, validation."""

import math
import sys
import threading
import time
from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.evaluate import evaluate
from fastgrad.history import History
from fastgrad.kernels import names
from fastgrad.model import Model, generator
from fastgrad.optim import SGD, Adam
from fastgrad.steps import ChainSteps, LayerSteps, steps_of


class Trainer:
    """Trains a model in place; over a DenseChain a step, and an epoch, is one compiled call.

    loss is the mean of "cross_entropy" (y: class numbers (N,), or one-hot rows or probabilities (N, K)),
    "binary_cross_entropy" or "mse" (y like the output). cross_entropy over a softmax output and binary_cross_entropy
    over a sigmoid output are taken from the logits before it; any other output is itself the logits. clip_norm limits
    the gradient's norm over all parameters. seed starts the shuffling.
    """

    # of x and y in the last step, for which there is scratch
    _shapes: tuple
    _steps: ChainSteps | LayerSteps

    def __init__(
        self,
        model: Model,
        loss: str = "cross_entropy",
        optimizer: SGD | Adam | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"Trainer: model must be a layer of fastgrad.nn, got {type(model).__name__}")
        check.choice("Trainer", "loss", loss, names.LOSSES)
        if not isinstance(optimizer, SGD | Adam | None):
            raise TypeError(f"Trainer: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
        self.model, self.loss, self.optimizer = model, loss, optimizer or Adam()
        self.clip_norm = math.inf if clip_norm is None else check.number("Trainer", "clip_norm", clip_norm, zero=False)
        self.step_count = 0
        self.state = np.zeros((self.optimizer.state_rows, model.params.size), model.dtype)  # (S, P)
        self.lock = threading.Lock()
        self.rng = generator(seed)
        self._record = np.zeros(2)  # loss, norm
        self._dtype, self._n_in = model.dtype, model.n_in
        self._target_dtype = np.dtype(np.int64) if loss == "cross_entropy" else model.dtype
        self._bind()

    def step(self, x: np.ndarray, y: np.ndarray) -> float:
        """One update; the mean loss before it.

        Raises FloatingPointError where the gradient is not finite. After an error trainer and model are as before.
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
            ):
                x, y = self._checked("Trainer.step", x, y)
                self._reserve(len(x))
                self._shapes = x.shape, y.shape
            status = self._steps.step(x, y, self.step_count, self._record)
            if status != names.OK:
                self._fail("Trainer.step", status, y)
            self.step_count += 1
            return self._record.item(0)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        epochs: int = 1,
        batch_size: int = 32,
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        shuffle: bool = True,
        progress: bool | None = None,
    ) -> History:
        """Epochs of steps over batches of rows, the last batch perhaps short, in a new order each epoch.

        validation is a pair (x, y) looked at after each epoch. progress shows a bar: None where stderr is a terminal.
        Raises FloatingPointError at a gradient that is not finite: the updates before it stay, and it is not made.
        """
        from tqdm import tqdm

        op = "Trainer.fit"
        x, y = self._checked(op, x, y)
        epochs, batch_size = check.count(op, "epochs", epochs), min(check.count(op, "batch_size", batch_size), len(x))
        if validation is not None:
            check.each(op, "validation", validation, 2)
            validation = self._checked(f"{op}: validation", *validation)
        identity = np.arange(len(x))
        order = identity.copy()
        record = np.zeros((-(-len(x) // batch_size), 2))
        sizes = np.full(len(record), float(batch_size))
        sizes[-1] = len(x) - batch_size * (len(record) - 1)
        history = History()
        shown = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
        with tqdm(total=epochs, unit="epoch", disable=not shown) as bar:
            for epoch in range(epochs):
                started = time.perf_counter()
                with self.lock:
                    if shuffle:
                        np.copyto(order, identity)
                        self.rng.shuffle(order)
                    self._reserve(batch_size)
                    status, done = self._steps.epoch(x, y, order, batch_size, self.step_count, record)
                    self.step_count += int(done)
                    if status != names.OK:
                        self._fail(f"Trainer.fit: epoch {epoch + 1}, batch {done + 1}", status, y)
                history.seconds.append(time.perf_counter() - started)
                history.loss.append(float(record[:, 0] @ sizes) / len(x))
                history.grad_norm.append(float(record[:, 1].mean()))
                if validation is not None:
                    loss, accuracy = evaluate(self.model, self.loss, *validation)
                    history.val_loss.append(loss)
                    if accuracy is not None:
                        history.val_accuracy.append(accuracy)
                if shown:
                    bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in vars(history).items() if values})
                    bar.update()
        return history

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, float | None]:
        """(mean loss, accuracy); the accuracy is None for mse."""
        return evaluate(self.model, self.loss, *self._checked("Trainer.evaluate", x, y))

    def predict(self, x: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """The model's output: probabilities where it ends in softmax or sigmoid."""
        return self.model.predict(x, batch_size)

    def _bind(self) -> None:
        self._shapes = None, None
        self._steps = steps_of(self.model, self.loss, self.optimizer, self.state, self.clip_norm)

    def _reserve(self, rows: int) -> None:
        if self._steps.params is not self.model.params:
            # a Sequential has taken the model over
            self._bind()
        self._steps.reserve(rows)

    def _checked(self, op: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        x = check.contiguous(check.array(op, "x", x, "(N, C)", (None, self._n_in), self._dtype))
        if not len(x):
            raise ValueError(f"{op}: x must have at least one row, got {x.shape}")
        shape = len(x), self.model.n_out
        if self.loss == "cross_entropy":
            return x, check.labels(op, "y", y, shape, self._dtype)
        return x, check.contiguous(check.array(op, "y", y, "(N, K)", shape, self._dtype))

    def _fail(self, op: str, status: int, y: np.ndarray) -> None:
        if status == names.BAD_LABEL:
            check.labels(op, "y", y, (len(y), self.model.n_out), self._dtype)
        bad = [name for name, grad in self.model.gradients().items() if not np.isfinite(grad).all()]
        where = f"the gradient is not finite in {', '.join(bad)}" if bad else "the gradient's norm overflows"
        raise FloatingPointError(f"{op}: {where}; no update was made")
