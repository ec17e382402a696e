"""Trainer.fit: epochs of updates over batches of rows, validation after each epoch, pruning when it is due, and the end at Ctrl-C."""

import sys
import time
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.kernels import types
from fastgrad.nn.model import Model, StateSnapshot
from fastgrad.nn.sequence import SequenceModel
from fastgrad.schedule import Schedule
from fastgrad.training.data import EpochPlan, TrainingData, checked_data, window_size
from fastgrad.training.evaluate import evaluate
from fastgrad.training.history import History, means

OP = "Trainer.fit"


def fit(
    trainer: Any,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    batch_size: int,
    validation: tuple[Any, ...] | None,
    shuffle: bool,
    progress: bool | None,
    lengths: Any,
    window: int | None,
    drop_last: bool,
) -> History:
    """See Trainer.fit."""
    model = trainer.model
    data = checked_data(OP, model, trainer.loss, x, y, lengths)
    # NumPy selects rows of other arrays by way of a copy of the whole
    data = data._replace(x=check.contiguous(data.x))
    steps = window_size(OP, model, window)
    epochs, batch_size = check.count(OP, "epochs", epochs), check.count(OP, "batch_size", batch_size, most=None)
    batch_size = min(batch_size, len(x))
    held_out = None
    if validation is not None:
        check.sequence(OP, "validation", validation, 3 if model.recurrent and len(validation) == 3 else 2)
        held_out = checked_data(f"{OP}: validation", model, trainer.loss, *validation)
    order = np.arange(len(x))
    short = len(x) % batch_size
    batches, windows = -(-len(x) // batch_size), -(-x.shape[1] // steps) if steps else 1
    if drop_last and short:
        batches, short = batches - 1, 0
    _check_batch_norm(model, data, short or batch_size, batch_size, steps)
    updates = batches * windows
    record, sizes, rates = np.zeros((updates, 2)), np.zeros(updates), np.full(updates, trainer._rule.hyper[0])
    _check_schedule(trainer, epochs * updates, validation is not None)
    history, part = History(), "window" if steps else "batch"
    has_bar = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
    try:
        with _bar(epochs) if has_bar else nullcontext() as bar:
            for epoch in range(epochs):
                started = time.perf_counter()
                with trainer.lock:
                    trainer._refuse_nested(OP)
                    before, generator_state = -1, trainer.rng.bit_generator.state
                    trainer._running = True
                    try:
                        # read here, since a signal handler may make a step until now
                        before = trainer.step_count
                        trainer._prune()
                        if trainer._has_schedule:
                            rates[:] = [trainer.optimizer.rate(before + i, trainer.val_losses) for i in range(updates)]
                        if shuffle:
                            order[:] = np.arange(len(x))
                            trainer.rng.shuffle(order)
                        rows = order[: batches * batch_size]
                        plan = EpochPlan(data, rows, batch_size, steps, rates, before, record, sizes, updates)
                        _run_epoch(trainer, f"{OP}: epoch {epoch + 1}, {part}", plan, windows)
                    finally:
                        trainer._running = False
                        if trainer.step_count == before:
                            trainer.rng.bit_generator.state = generator_state
                        trainer._prune()
                    count = trainer.step_count - before
                seconds = time.perf_counter() - started
                values = dict(zip(("loss", "grad_norm"), means(record[:count], sizes[:count]), strict=True))
                if held_out is not None:
                    loss, accuracy = evaluate(model, trainer.loss, held_out)
                    values["val_loss"] = loss
                    trainer.val_losses.append(loss)
                    if accuracy is not None:
                        values["val_accuracy"] = accuracy
                # seconds comes last: it has as many values as there are whole epochs
                for name, value in (values | {"seconds": seconds}).items():
                    getattr(history, name).append(value)
                if bar is not None:
                    bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in vars(history).items() if values})
                    bar.update()
    except KeyboardInterrupt:
        finished = len(history.seconds)
        for values_of_epochs in vars(history).values():
            del values_of_epochs[finished:]
        message = f"Training interrupted by user. {OP}: {finished} of {epochs} epochs were made"
        # below this function, Trainer.fit and foreign_keywords
        warnings.warn(f"{message}; step_count is {trainer.step_count}", stacklevel=4)
    return history


def _run_epoch(trainer: Any, label: str, plan: EpochPlan, windows: int) -> None:
    """The updates of an epoch, in parts that end where pruning is due."""
    first = updates = 0
    while first < plan.batches:
        trainer._rebind_if_changed()
        batches = plan.batches - first
        due = trainer.pruning.next_due(trainer.step_count) if trainer.pruning else None
        if due is not None:
            batches = min(batches, -(-(due - trainer.step_count) // windows))
        try:
            status = trainer._steps.epoch(plan.part(first, batches, updates))
        finally:
            updates = trainer.step_count - plan.step
            trainer._prune()
        first += batches
        if status != types.OK:
            trainer._fail(f"{label} {updates + 1}", status, plan.data.y)


def _check_batch_norm(model: Model, data: TrainingData, rows: int, batch_size: int, steps: int | None) -> None:
    """Raise before the first update for a batch of one row that is too small for a batch norm: later, that would end the epoch."""
    if rows > 1 or not model.statistics():
        return
    x, lengths, row = data.x[:1], None, 0
    if model.recurrent:
        # the row whose last window is the shortest
        ends = np.full(len(data.x), data.x.shape[1]) if data.lengths is None else np.maximum(data.lengths, 1)
        left = (ends - 1) % (steps or data.x.shape[1]) + 1
        row = int(left.argmin())
        first = int(ends[row] - left[row])
        x = data.x[row : row + 1, first : first + (steps or data.x.shape[1])]
        lengths = None if data.lengths is None else left[row : row + 1]
    before = StateSnapshot(model)
    try:
        if isinstance(model, SequenceModel):
            model.forward(x, True, lengths=lengths)
        else:
            model.forward(x, True)
    except ValueError as error:
        what, ways = "the last batch has one row", "drop_last=True, which leaves it out, or another batch_size"
        if batch_size == 1:
            what, ways = "batches have batch_size = 1 row", "a larger batch_size"
        raise ValueError(f"{OP}: {what}, too few for a batch norm; the way out is {ways} ({error})") from error
    finally:
        before.restore()


def _check_schedule(trainer: Any, updates: int, validated: bool) -> None:
    """Raise before the first update for a schedule that has no rate for the last of this many updates."""
    lr = trainer.optimizer.lr
    if isinstance(lr, Schedule):
        if lr.validates and not validated:
            raise ValueError(f"{OP}: {type(lr).__name__} needs validation")
        trainer.optimizer.rate(trainer.step_count + updates - 1, trainer.val_losses)


def _bar(epochs: int) -> Any:
    # created only if it is shown: an interrupt in its destructor would be lost
    from tqdm import tqdm

    return tqdm(total=epochs, unit="epoch")
