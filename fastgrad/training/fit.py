"""Trainer.fit: epochs of updates over batches, validation, callback and checkpoint after each epoch, pruning when it is due, and the end
at Ctrl-C or by early stopping."""

import os
import time
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.kernels import types
from fastgrad.kernels.types import Loss
from fastgrad.nn.model import Model
from fastgrad.nn.sequence import SequenceModel
from fastgrad.nn.state_snapshot import StateSnapshot
from fastgrad.schedule import Schedule
from fastgrad.training.batches import ArraySource, BatchSource, Part, check_arguments, is_batches
from fastgrad.training.data import EpochPlan, TrainingData, checked_data, window_size
from fastgrad.training.early_stopping import EarlyStopping
from fastgrad.training.evaluate import evaluate
from fastgrad.training.file_replacement import check_folder
from fastgrad.training.fit_checkpoint import read_checkpoint, write_checkpoint
from fastgrad.training.history import EpochResult, History, accuracy_of, means
from fastgrad.training.progress import epoch_bar, has_bar, show
from fastgrad.training.row_weights import by_class, class_weights
from fastgrad.training.settings import kernel_loss

OP = "Trainer.fit"


def fit(
    trainer: Any,
    x: Any,
    y: Any,
    epochs: int,
    batch_size: int,
    validation: tuple[Any, ...] | None,
    shuffle: bool,
    progress: bool | None,
    lengths: Any,
    window: int | None,
    drop_last: bool,
    callback: Callable[[EpochResult], Any] | None,
    patience: int | None,
    checkpoint: str | os.PathLike | None,
    checkpoint_every: int,
    resume: bool,
    sample_weight: Any,
    class_weight: Any,
) -> History:
    """See Trainer.fit."""
    model, loss = trainer.model, trainer.loss
    loss_of_data = kernel_loss(loss, model)
    weighted = _class_weighted(model, loss_of_data, class_weight)
    epochs, batch_size = check.count(OP, "epochs", epochs), check.count(OP, "batch_size", batch_size, most=None)
    every = check.count(OP, "checkpoint_every", checkpoint_every)
    window = window_size(OP, model, window)
    if callback is not None and not callable(callback):
        raise TypeError(f"{OP}: callback must be callable, got {type(callback).__name__}")
    source: ArraySource | BatchSource
    if is_batches(x, y):
        if lengths is not None or sample_weight is not None or drop_last:
            raise ValueError(
                f"{OP}: lengths, sample_weight and drop_last are for arrays; batches of an iterable are (x, y, lengths, sample_weight)"
            )
        if isinstance(class_weight, str):
            raise ValueError(f'{OP}: class_weight "balanced" is for arrays; of an iterable the labels are not known')
        source = BatchSource(OP, trainer, x, window, _check_batch, weighted)
    else:
        data = weighted(checked_data(OP, model, loss_of_data, x, y, lengths, sample_weight))
        source = _array_source(trainer, data, batch_size, window, shuffle, drop_last)
    held_out = None
    if validation is not None:
        check_arguments(OP, "validation", validation)
        held_out = checked_data(f"{OP}: validation", model, loss_of_data, *validation)
    stopping = None
    if patience is not None:
        if held_out is None:
            raise ValueError(f"{OP}: patience needs validation, whose loss tells when to stop")
        stopping = EarlyStopping(model, check.count(OP, "patience", patience))
    history = History()
    if checkpoint is not None:
        check_folder(f"{OP}: checkpoint", checkpoint)
        if resume and os.path.exists(checkpoint):
            history = read_checkpoint(OP, checkpoint, trainer, stopping)
    elif resume:
        raise ValueError(f"{OP}: resume needs checkpoint, the file to go on from")
    first = len(history.seconds)
    if isinstance(source, BatchSource):
        source.start_after(OP, first, epochs)
    _check_schedule(trainer, max(epochs - first, 0) * source.updates if source.updates else None, held_out is not None)
    try:
        with epoch_bar(epochs, first) if has_bar(progress) else nullcontext() as bar:
            for epoch in range(first + 1, epochs + 1):
                if stopping is not None and stopping.is_over:
                    break
                if trainer.loss != loss:
                    raise RuntimeError(f"{OP}: the callback changed the loss, for which y was not checked")
                result = _train_epoch(trainer, source, epoch)
                if held_out is not None:
                    val_loss, accuracy = evaluate(model, kernel_loss(loss, model), held_out)
                    trainer.val_losses.append(val_loss)
                    result = result._replace(val_loss=val_loss, val_accuracy=accuracy)
                    if stopping is not None:
                        stopping.record(val_loss)
                history.append(result)
                if bar is not None:
                    show(bar, history)
                answer = None if callback is None else callback(result)
                # only True stops, not another value that is truthy
                stop = isinstance(answer, bool | np.bool_) and bool(answer)
                is_last = stop or epoch == epochs or (stopping is not None and stopping.is_over)
                if checkpoint is not None and (is_last or epoch % every == 0):
                    write_checkpoint(OP, checkpoint, trainer, history, stopping)
                if stop:
                    break
        if stopping is not None:
            stopping.restore()
    except KeyboardInterrupt:
        message = f"Training interrupted by user. {OP}: {history.drop_unfinished_epoch()} of {epochs} epochs were made"
        # above the frames of fit, Trainer.fit and foreign_keywords
        warnings.warn(f"{message}; step_count is {trainer.step_count}", stacklevel=4)
    return history


def _array_source(
    trainer: Any, data: TrainingData, batch_size: int, window: int | None, shuffle: bool, drop_last: bool
) -> ArraySource:
    # NumPy selects rows of other arrays by way of a copy of the whole
    data = data._replace(x=check.contiguous(data.x))
    batch_size = min(batch_size, len(data.x))
    batches, short = -(-len(data.x) // batch_size), len(data.x) % batch_size
    if drop_last and short:
        batches, short = batches - 1, 0
    if (short or batch_size) == 1:
        what, ways = "the last batch has one row", "drop_last=True, which leaves it out, or another batch_size"
        if batch_size == 1:
            what, ways = "batches have batch_size = 1 row", "a larger batch_size"
        _check_batch_norm(f"{OP}: {what}, too few for a batch norm; the way out is {ways}", trainer, data, window)
    return ArraySource(trainer, data, batch_size, batches, window, shuffle)


def _train_epoch(trainer: Any, source: ArraySource | BatchSource, epoch: int) -> EpochResult:
    """The updates of an epoch, and their means."""
    started, records, counts, rate = time.perf_counter(), [], [], 0.0
    with closing(source.parts(f"{OP}: epoch {epoch}")) as parts:
        for part in parts:
            plan, updates = _run_part(trainer, part)
            records.append(plan.record[:updates])
            counts.append(plan.counts[:updates])
            # of groups the first has the optimiser's own rate
            rate = float(plan.rates[updates - 1].flat[0]) if updates else rate
    seconds = time.perf_counter() - started
    all_counts = np.concatenate(counts)
    loss, norm = means(np.concatenate(records), all_counts)
    accuracy = accuracy_of(trainer._kernel_loss, *all_counts.sum(axis=0))
    return EpochResult(epoch, loss, accuracy, None, None, norm, rate, seconds)


def _class_weighted(model: Model, loss: Loss, class_weight: Any) -> Callable[[TrainingData], TrainingData]:
    """A function of data that gives its rows the weights of their classes."""
    if class_weight is None:
        return lambda data: data
    of_class = class_weights(OP, class_weight, loss, model.n_out, model.params)

    def weighted(data: TrainingData) -> TrainingData:
        _, y, lengths, weights = data
        return data._replace(weights=by_class(y, weights, lengths, loss, of_class, model.n_out, model.params.dtype))

    return weighted


def _run_part(trainer: Any, part: Part) -> tuple[EpochPlan, int]:
    """The updates of a part of an epoch: its plan, and how many there were."""
    plan_after, label, first = part
    with trainer.lock:
        trainer._refuse_nested(OP)
        before, generator_state = -1, trainer.rng.bit_generator.state
        trainer._running = True
        try:
            # read here, and the count below, since a signal handler may make a step before and after
            before = trainer.step_count
            trainer._prune()
            plan = plan_after(before)
            _run_plan(trainer, label, first, plan)
            count = trainer.step_count - before
        finally:
            trainer._running = False
            if trainer.step_count == before:
                trainer.rng.bit_generator.state = generator_state
            trainer._prune()
        return plan, count


def _run_plan(trainer: Any, label: str, number: int, plan: EpochPlan) -> None:
    """The updates of a plan, up to each where pruning is due. number: that of the first update, for errors."""
    first, updates, windows = 0, 0, plan.windows
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
            trainer._fail(f"{label} {number + updates}", status, plan.data.y)


def _check_batch(op: str, data: TrainingData, trainer: Any, window: int | None) -> None:
    """Raise for a batch of an iterable that is too small for a batch norm."""
    if len(data.x) == 1:
        _check_batch_norm(f"{op}: the batch has one row, too few for a batch norm", trainer, data, window)


def _check_batch_norm(message: str, trainer: Any, data: TrainingData, steps: int | None) -> None:
    """Raise before the first update if one row is too few for a batch norm: later, that would end the epoch."""
    model = trainer.model
    if set(model.statistics()) <= set(trainer._groups.frozen_statistics):
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
        raise ValueError(f"{message} ({error})") from error
    finally:
        before.restore()


def _check_schedule(trainer: Any, updates: int | None, validated: bool) -> None:
    """Raise before the first update for a schedule that has no rate for the last of this many updates; None: nobody knows how many."""
    lr = trainer.optimizer.lr
    if isinstance(lr, Schedule):
        if lr.validates and not validated:
            raise ValueError(f"{OP}: {type(lr).__name__} needs validation")
        if updates:
            trainer.optimizer.rate(trainer.step_count + updates - 1, trainer.val_losses)
