"""TrainingData: checked inputs, targets and lengths, with its windows and rows; and EpochPlan, the updates of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.functional.loss_arguments import checked_labels
from fastgrad.functional.packing import PackedBatch, checked_lengths, pack, packed_batch
from fastgrad.kernels.types import NO_LABEL, Loss
from fastgrad.nn.model import Model
from fastgrad.training.row_weights import checked_sample_weight


class TrainingData(NamedTuple):
    """x (N, C), (N, T, C) or (N, H, W, C), y like the output or class numbers, lengths (N,) or None, and the weights of rows (N,), or of
    sequences' steps (N, T), or None.
    """

    x: np.ndarray
    y: np.ndarray
    lengths: np.ndarray | None = None
    weights: np.ndarray | None = None


def checked_data(
    op: str,
    model: Model,
    loss: Loss,
    x: Any,
    y: Any,
    lengths: Any = None,
    sample_weight: Any = None,
    values: bool = True,
) -> TrainingData:
    """TrainingData for this model and loss, checked, on the model's device; values past the ends of sequences may be anything.

    values=False leaves out the check that class numbers are in range, for which the host would wait.
    """
    if model.on_gpu:
        x, y = device.to_gpu(x), device.to_gpu(y)
    if model.recurrent:
        x = model._array(op, "x", x, "(N, T, C)", (None, None, model.n_in))
    else:
        form, axes = ("(N, H, W, C)", 4) if model.images else ("(N, C)", 2)
        x = model._array(op, "x", x, form, (*[None] * (axes - 1), model.n_in))
        x = check.contiguous(x)
        if model.images and not (model.pools and model.n_out):
            raise ValueError(
                f"{op}: model must make a row of known length of each image; GlobalAvgPool2d() and Flatten(n_out) do"
            )
        if lengths is not None:
            raise ValueError(f"{op}: lengths are for models with an LSTM or a GRU")
    if not len(x):
        raise ValueError(f"{op}: x must have at least one row, got {x.shape}")
    shape = *(x.shape[:1] if model.pools else x.shape[:-1]), model.n_out
    if lengths is not None:
        lengths = checked_lengths(op, "lengths", lengths, *x.shape[:2])
    if len(shape) == 3:
        if not (shape[1] if lengths is None else lengths.any()):
            raise ValueError(
                f"{op}: x must have at least one step, got {x.shape}{'' if lengths is None else ' and lengths 0'}"
            )
        if lengths is not None and loss.by_row:
            y = _without_padding(y, shape[:2], lengths)
        if lengths is not None:
            sample_weight = _without_padding(sample_weight, shape[:2], lengths)
    if loss.by_row:
        in_range = values and (lengths is None or not model.on_gpu)
        y = checked_labels(op, "y", y, shape, model.params, in_range, of_model=True, ignore_index=loss.ignore_index)
    else:
        form = "(N, T, K)" if len(shape) == 3 else "(N, K)"
        y = check.contiguous(model._array(op, "y", y, form, shape))
    weights = checked_sample_weight(op, sample_weight, shape[:-1], model.params, values)
    return TrainingData(x, y, lengths, weights)


def _without_padding(value: Any, shape: tuple[int, ...], lengths: np.ndarray) -> Any:
    """An array (N, T) of the host with 0 past the ends of sequences; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.shape != shape:
        return value
    return np.where(np.arange(shape[1]) < lengths[:, None], value, value.dtype.type(0))


def has_bad_label(target: np.ndarray, classes: int, loss: Loss) -> bool:
    """Whether one of some class numbers (R,) is no class, and not ignored."""
    if target.min() >= 0 and target.max() < classes:
        return False
    bad = (target < 0) | (target >= classes)
    return loss.ignore_index == NO_LABEL or bool((bad & (target != loss.ignore_index)).any())


def window_size(op: str, model: Model, window: Any) -> int | None:
    """The number of steps of a window; None for whole sequences."""
    if window is None:
        return None
    if not model.recurrent or model.pools or model.reads_ahead:
        raise ValueError(f"{op}: window is for models with an LSTM or a GRU that runs forwards only and pools nothing")
    return check.count(op, "window", window)


def windows(data: TrainingData, steps: int | None, all_windows: bool) -> Iterator[TrainingData]:
    """Windows of this many steps of the data; the data itself if steps is None.

    With all_windows these are all, else those until no sequence has a step left.
    """
    x, y, lengths, weights = data
    if steps is None:
        yield data
        return
    for first in range(0, x.shape[1], steps):
        left = None if lengths is None else np.clip(lengths - first, 0, steps)
        if not all_windows and left is not None and not left.any():
            return
        part = slice(first, first + steps)
        yield TrainingData(x[:, part], y[:, part], left, None if weights is None else weights[:, part])


def select_rows(data: TrainingData, rows: np.ndarray) -> TrainingData:
    """These rows of the data, by their numbers."""
    x, y, lengths, weights = data
    weights = None if weights is None else _take(weights, rows)
    return TrainingData(_take(x, rows), _take(y, rows), None if lengths is None else lengths[rows], weights)


def _take(array: Any, rows: np.ndarray) -> Any:
    if not isinstance(array, np.ndarray):
        return device.take_rows(array, rows)
    # "clip" writes straight into out, "raise" by way of a copy
    return np.take(array, rows, axis=0, mode="clip", out=empty((len(rows), *array.shape[1:]), array))


def packed_output(
    model: Model, y: np.ndarray, target: np.ndarray, weights: np.ndarray | None, batch: PackedBatch | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, PackedBatch | None]:
    """Output, target and weights as rows in the same order, and the packing of y (N, T, K), or None.

    batch: the packing of the model's input, or None.
    """
    output_batch = packed_batch("Trainer", y.shape[:2], None) if y.ndim == 3 else None
    order = output_batch if output_batch is not None else None if model.pools else batch
    if order is not None:
        target = target_rows(target, order)
        weights = None if weights is None else pack(weights[..., None], order).reshape(-1)
    return y if output_batch is None else pack(y, output_batch), target, weights, output_batch


def target_rows(target: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """The sequences' own steps of targets (N, T, K) or class numbers (N, T), in the order of rows."""
    if target.ndim == 3:
        return pack(target, batch)
    # kernels copy rows of floats; the bits are the same
    return pack(target.view(np.float64)[..., None], batch).view(np.int64).reshape(-1)


@dataclass(frozen=True)
class EpochPlan:
    """The updates of an epoch, or of a part of one: one for each batch of rows, or for each window of a batch.

    order (N,): numbers of the data's rows, batch after batch. rates (V,): the learning rates, or (V, G) those of each group. step: the
    number of updates before. epoch_updates: the largest number of updates of the whole epoch. The updates write record (U, 2), mean losses
    and norms, and counts (U, 2), the weights of the rows of each mean, and of its right rows. There are at most V updates; U is V or more,
    the same number for each batch. All are NumPy arrays.
    """

    data: TrainingData
    order: np.ndarray
    batch_size: int
    window: int | None
    rates: np.ndarray
    step: int
    record: np.ndarray
    counts: np.ndarray
    epoch_updates: int

    @property
    def batches(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @property
    def windows(self) -> int:
        """The number of updates of a batch; there are fewer if its sequences end early."""
        return len(self.counts) // self.batches

    def part(self, first: int, batches: int, updates: int) -> "EpochPlan":
        """The plan of at most this many batches, from batch `first` on. updates: those of the batches before them."""
        last = min(first + batches, self.batches)
        part = slice(updates, updates + (last - first) * self.windows)
        return replace(
            self,
            order=self.order[first * self.batch_size : last * self.batch_size],
            rates=self.rates[part],
            step=self.step + updates,
            record=self.record[part],
            counts=self.counts[part],
        )
