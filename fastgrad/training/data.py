"""TrainingData: checked inputs, targets and lengths, with its windows and rows; and EpochPlan, the updates of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.functional.loss import checked_labels
from fastgrad.functional.packing import PackedBatch, checked_lengths, pack, packed_batch
from fastgrad.kernels.types import SIGMOID, SOFTMAX
from fastgrad.nn.model import Model

# losses taken from the logits where the model ends in this activation
LOGIT_LOSSES = {"cross_entropy": SOFTMAX, "binary_cross_entropy": SIGMOID}


class TrainingData(NamedTuple):
    """x (N, C), (N, T, C) or (N, H, W, C), y like the output or class numbers, and lengths (N,) or None."""

    x: np.ndarray
    y: np.ndarray
    lengths: np.ndarray | None


def checked_data(
    op: str, model: Model, loss: str, x: Any, y: Any, lengths: Any = None, values: bool = True
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
            raise ValueError(f"{op}: lengths are for models with an LSTM")
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
        if lengths is not None and loss == "cross_entropy" and isinstance(y, np.ndarray) and y.shape == shape[:2]:
            y = np.where(np.arange(shape[1]) < lengths[:, None], y, y.dtype.type(0))
    if loss == "cross_entropy":
        values = values and (lengths is None or not model.on_gpu)
        return TrainingData(x, checked_labels(op, "y", y, shape, model.params, values, of_model=True), lengths)
    form = "(N, T, K)" if len(shape) == 3 else "(N, K)"
    return TrainingData(x, check.contiguous(model._array(op, "y", y, form, shape)), lengths)


def window_size(op: str, model: Model, window: Any) -> int | None:
    """The number of steps of a window; None for whole sequences."""
    if window is None:
        return None
    if not model.recurrent or model.pools or model.reads_ahead:
        raise ValueError(f"{op}: window is for models with an LSTM that runs forwards only and pools nothing")
    return check.count(op, "window", window)


def windows(data: TrainingData, steps: int | None, all_windows: bool) -> Iterator[TrainingData]:
    """Windows of this many steps of the data; the data itself if steps is None.

    With all_windows these are all, else those until no sequence has a step left.
    """
    x, y, lengths = data
    if steps is None:
        yield data
        return
    for first in range(0, x.shape[1], steps):
        left = None if lengths is None else np.clip(lengths - first, 0, steps)
        if not all_windows and left is not None and not left.any():
            return
        yield TrainingData(x[:, first : first + steps], y[:, first : first + steps], left)


def select_rows(data: TrainingData, rows: np.ndarray) -> TrainingData:
    """These rows of the data, by their numbers."""
    x, y, lengths = data
    if not isinstance(x, np.ndarray):
        x, y = device.take_rows(x, rows), device.take_rows(y, rows)
    else:
        # "clip" writes straight into out, "raise" by way of a copy
        x, y = (np.take(a, rows, axis=0, mode="clip", out=empty((len(rows), *a.shape[1:]), a)) for a in (x, y))
    return TrainingData(x, y, None if lengths is None else lengths[rows])


def packed_output(
    model: Model, y: np.ndarray, target: np.ndarray, batch: PackedBatch | None
) -> tuple[np.ndarray, np.ndarray, PackedBatch | None]:
    """Output and target as rows in the same order, and the packing of y (N, T, K), or None.

    batch: the packing of the model's input, or None.
    """
    if y.ndim == 3:
        output_batch = packed_batch("Trainer", y.shape[:2], None)
        return pack(y, output_batch), target_rows(target, output_batch), output_batch
    return y, target if batch is None or model.pools else target_rows(target, batch), None


def target_rows(target: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """The sequences' own steps of targets (N, T, K) or class numbers (N, T), in the order of rows."""
    if target.ndim == 3:
        return pack(target, batch)
    # kernels copy rows of floats; the bits are the same
    return pack(target.view(np.float64)[..., None], batch).view(np.int64).reshape(-1)


@dataclass(frozen=True)
class EpochPlan:
    """The updates of an epoch, or of a part of one: one for each batch of rows, or for each window of a batch.

    order (N,): numbers of the data's rows, batch after batch. rates (U,): the learning rates. step: the number of updates before.
    epoch_updates: the largest number of updates of the whole epoch. The updates write record (U, 2), mean losses and norms, and sizes
    (U,), the number of rows of each mean. All are NumPy arrays.
    """

    data: TrainingData
    order: np.ndarray
    batch_size: int
    window: int | None
    rates: np.ndarray
    step: int
    record: np.ndarray
    sizes: np.ndarray
    epoch_updates: int

    @property
    def batches(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @property
    def windows(self) -> int:
        """The number of updates of a batch; there are fewer if its sequences end early."""
        return len(self.sizes) // self.batches

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
            sizes=self.sizes[part],
        )
