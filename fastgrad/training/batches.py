"""BatchSource and ArraySource: where the batches of a fit come from, an iterable or arrays, as parts of an epoch.

A part makes an EpochPlan: of a whole epoch of arrays, or of a batch of an iterable. The next batch of an iterable is made, and copied, in a
thread while this one trains: a generator may yield one buffer again and again, and the rows of a memory-mapped array are read there.
"""

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check, device
from fastgrad.schedule import Schedule
from fastgrad.training.data import EpochPlan, TrainingData, checked_data


class Part(NamedTuple):
    """plan(step): the EpochPlan after `step` updates; label, first: what errors call its updates, and the number of the first."""

    plan: Callable[[int], EpochPlan]
    label: str
    first: int


class ArraySource:
    """Epochs of batches of rows of arrays, each in a new order where they are shuffled."""

    def __init__(
        self, trainer: Any, data: TrainingData, batch_size: int, batches: int, window: int | None, shuffle: bool
    ) -> None:
        self._trainer, self._data, self._batch_size, self._batches = trainer, data, batch_size, batches
        self._window, self._shuffle, self._order = window, shuffle, np.arange(len(data.x))
        if shuffle:
            # the most that an order can have: the longest sequences are each in another batch
            counts = np.sort(window_counts(trainer, data, self._order, 1, window))[-batches:]
        else:
            counts = window_counts(trainer, data, self._order[: batches * batch_size], batch_size, window)
        # updates of an epoch
        self.updates: int | None = int(counts.sum())

    def parts(self, op: str) -> Generator[Part, None, None]:
        yield Part(self._plan, f"{op}, {'window' if self._window else 'batch'}", 1)

    def _plan(self, step: int) -> EpochPlan:
        if self._shuffle:
            self._order[:] = np.arange(len(self._order))
            self._trainer.rng.shuffle(self._order)
        rows = self._order[: self._batches * self._batch_size]
        return plan_of(self._trainer, self._data, rows, self._batch_size, self._window, step)


class BatchSource:
    """Epochs of the batches (x, y), (x, y, lengths) or (x, y, lengths, sample_weight) of an iterable, or of those that a function of the
    epoch returns.

    check_batch(op, data, trainer, window): raises for a batch that is too small. weighted(data): the data with class_weight.
    """

    updates: int | None = None

    def __init__(
        self,
        op: str,
        trainer: Any,
        batches: Any,
        window: int | None,
        check_batch: Callable[..., None],
        weighted: Callable[[TrainingData], TrainingData],
    ) -> None:
        self._trainer, self._batches, self._window, self._check_batch = trainer, batches, window, check_batch
        self._weighted = weighted
        self._epoch = 0
        if not isinstance(batches, Iterable):
            _check_takes_epoch(op, batches)

    def start_after(self, op: str, epoch: int, epochs: int) -> None:
        """Go on after this epoch, up to `epochs` in all."""
        if isinstance(self._batches, Iterator) and epochs - epoch > 1:
            left = f" and {epochs - epoch} are left" if epoch else ""
            raise ValueError(
                f"{op}: x is an iterator, which ends after one epoch, and epochs is {epochs}{left}; "
                "a function of the epoch that returns an iterable has one for each"
            )
        self._epoch = epoch

    def parts(self, op: str) -> Generator[Part, None, None]:
        self._epoch += 1
        batches = self._batches if isinstance(self._batches, Iterable) else self._batches(self._epoch)
        if not isinstance(batches, Iterable):
            raise TypeError(f"{op}: the function must return an iterable of batches, got {type(batches).__name__}")
        number = 0
        with closing(prefetched(map(_copy, iter(batches)))) as items:
            while True:
                label = f"{op}, batch {number + 1}"
                try:
                    item = next(items)
                except StopIteration:
                    break
                except Exception as error:
                    error.add_note(
                        f"{label}: this came out of the iterable; the {number} batches before it were trained on"
                    )
                    raise
                number += 1
                yield self._part(label, item, number)
        if not number:
            raise ValueError(f"{op}: the iterable has no batch")

    def _part(self, label: str, item: Any, number: int) -> Part:
        def plan(step: int) -> EpochPlan:
            trainer = self._trainer
            check_arguments(label, "a batch", item)
            data = checked_data(label, trainer.model, trainer._kernel_loss, *item)
            data = self._weighted(data._replace(x=check.contiguous(data.x)))
            self._check_batch(label, data, trainer, self._window)
            return plan_of(trainer, data, np.arange(len(data.x)), len(data.x), self._window, step)

        if self._window:
            return Part(plan, f"{label}, window", 1)
        return Part(plan, label.removesuffix(f" {number}"), number)


def _check_takes_epoch(op: str, function: Callable[..., Any]) -> None:
    """The function must take one argument, as far as Python can tell."""
    # a callable of C may have no signature
    with suppress(ValueError):
        signature = inspect.signature(function)
        try:
            signature.bind(1)
        except TypeError as error:
            name = getattr(function, "__name__", type(function).__name__)
            raise TypeError(
                f"{op}: the function of batches is called with the number of the epoch, which {name}{signature} does not take: {error}"
            ) from None


def check_arguments(op: str, name: str, value: Any) -> None:
    """value must be (x, y), (x, y, lengths) or (x, y, lengths, sample_weight)."""
    check.sequence(op, name, value)
    if not 2 <= len(value) <= 4:
        raise ValueError(
            f"{op}: {name} must be (x, y), (x, y, lengths) or (x, y, lengths, sample_weight), got {len(value)} values"
        )


def is_batches(x: Any, y: Any) -> bool:
    """Whether x is an iterable of batches, or a function that returns one, in place of an array."""
    return (
        y is None
        and not isinstance(x, np.ndarray)
        and not device.on_gpu(x)
        and (isinstance(x, Iterable) or callable(x))
    )


def window_counts(
    trainer: Any, data: TrainingData, rows: np.ndarray, batch_size: int, window: int | None
) -> np.ndarray:
    """The number of updates of each batch of these rows: without windows 1, else the windows of its longest sequence."""
    firsts = np.arange(0, len(rows), batch_size)
    if window is None:
        return np.ones(len(firsts), np.int64)
    # sequences of another process may be longer
    if data.lengths is None or trainer.reduce is not None:
        return np.full(len(firsts), -(-data.x.shape[1] // window))
    return -(-np.maximum.reduceat(data.lengths[rows], firsts) // window)


def plan_of(
    trainer: Any, data: TrainingData, rows: np.ndarray, batch_size: int, window: int | None, step: int
) -> EpochPlan:
    """The plan of updates with these rows, after `step` others."""
    counts, optimizer = window_counts(trainer, data, rows, batch_size, window), trainer.optimizer
    updates = int(counts.sum())
    if isinstance(optimizer.lr, Schedule):
        rates = trainer._groups.rates(np.array([optimizer.rate(step + i, trainer.val_losses) for i in range(updates)]))
    else:
        rates = trainer._groups.constant_rates(updates)
    # each batch has room for as many as the longest
    most = len(counts) * max(int(counts.max()), 1)
    return EpochPlan(data, rows, batch_size, window, rates, step, np.zeros((most, 2)), np.zeros((most, 2)), most)


def prefetched(items: Iterator[Any]) -> Generator[Any, None, None]:
    """The items of an iterator, each made in a thread while the one before it is used."""
    requests: SimpleQueue[bool] = SimpleQueue()
    answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    # the chosen backend and NumPy's error state are those of the caller
    context = copy_context()

    def work() -> None:
        while requests.get():
            answer: tuple[Any, BaseException | None]
            try:
                answer = context.run(next, items), None
            except BaseException as error:
                answer = None, error
            answers.put(answer)
            # a batch is not held while the next one is made
            del answer

    thread = Thread(target=work, name="fastgrad-batches", daemon=True)
    try:
        thread.start()
        requests.put(True)
        while True:
            item, error = answers.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            requests.put(True)
            yield item
    finally:
        requests.put(False)
        # an iterable that waits for its own data must not hold up Ctrl-C
        if thread.ident is not None:
            thread.join(0.05)


def _copy(item: Any) -> Any:
    """A batch with arrays of its own; tensors and other arrays on the host are taken as NumPy's."""
    return tuple(map(_copy_array, item)) if isinstance(item, tuple | list) else item


def _copy_array(value: Any) -> Any:
    if isinstance(value, np.ma.MaskedArray) or device.on_gpu(value) or not hasattr(value, "__array__"):
        return value
    # np.asarray shares a tensor's memory; np.array would call its __array__ with copy=, which PyTorch does not take
    return np.array(np.asarray(value), order="C")
