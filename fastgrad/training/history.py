"""History: the result of Trainer.fit, lists with a value for each epoch; and EpochResult, the values of one epoch."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core.errstate import silent
from fastgrad.kernels.types import BINARY_CROSS_ENTROPY, Loss


class EpochResult(NamedTuple):
    """One epoch's values of a History: what the callback of Trainer.fit gets.

    Args:
        epoch: The number of the epoch, from 1.
        loss: The mean loss over the epoch's rows, as they were trained on.
        accuracy: The accuracy over the same rows, before each batch's update; None for the losses that have none.
        val_loss: The mean loss of the validation data; None without such data.
        val_accuracy: Its accuracy; None without, and for the losses that have none.
        grad_norm: The mean over the updates of the gradient's norm before clipping.
        learning_rate: The rate of the epoch's last update.
        seconds: The time of the training alone.
    """

    epoch: int
    loss: float
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    grad_norm: float
    learning_rate: float
    seconds: float


@dataclass
class History:
    """What Trainer.fit returns: lists with one value for each epoch. It prints the first and the last of each in one line.

    Args:
        loss: The mean loss over the epoch's rows, as they were trained on.
        accuracy: The accuracy over the same rows, before each batch's update; empty for the losses that have none.
        val_loss: The mean loss of the validation data after the epoch; empty without such data.
        val_accuracy: Its accuracy; empty without, and for the losses that have none.
        grad_norm: The mean over the updates of the gradient's norm before clipping.
        learning_rate: The rate of the epoch's last update.
        seconds: The time of the training alone.
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        epochs, ends = len(self.seconds), []
        for name, values in vars(self).items():
            if values and name != "seconds":
                ends.append(f"{name} {values[0]:.4g}" + (f" to {values[-1]:.4g}" if epochs > 1 else ""))
        ends.append(f"{sum(self.seconds):.3g} seconds")
        return f"History of {epochs} epoch{'s' * (epochs != 1)}: {', '.join(ends)}"

    @property
    def best_epoch(self) -> int | None:
        """The number, from 1, of the first epoch with the smallest validation loss; None without such data, or if all are NaN."""
        losses = [(loss, epoch) for epoch, loss in enumerate(self.val_loss, 1) if loss == loss]
        return min(losses)[1] if losses else None

    def append(self, result: EpochResult) -> None:
        """Add an epoch. seconds comes last: it has as many values as there are whole epochs."""
        for name, values in vars(self).items():
            if (value := getattr(result, name)) is not None:
                values.append(value)

    def drop_unfinished_epoch(self) -> int:
        """Take off the values of an epoch that was interrupted; returns the number of whole epochs."""
        epochs = len(self.seconds)
        for values in vars(self).values():
            del values[epochs:]
        return epochs

    def plot(self, path: Any = None) -> Any:
        """Losses, accuracy and gradient norm by epoch, as a picture. Needs fastgrad[plot].

        Args:
            path: A file that the picture is written to; None writes none.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('History.plot needs matplotlib: pip install "fastgrad[plot]"') from error
        panels = [{"loss": self.loss, "val_loss": self.val_loss}, {"grad_norm": self.grad_norm}]
        if self.accuracy:
            panels.insert(1, {"accuracy": self.accuracy, "val_accuracy": self.val_accuracy})
        figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for label, values in panel.items():
                if values:
                    axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=label)
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.set_xlabel("epoch")
            axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


@silent
def means(record: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """(loss, norm): means over updates with record (U, 2). Losses are weighted by counts[:, 0], the weights of each update's rows."""
    weight = counts[:, 0].sum()
    return float(record[:, 0] @ counts[:, 0] / weight) if weight else 0.0, float(record[:, 1].mean())


def accuracy_of(loss: Loss, weight: float, right: float) -> float | None:
    """The share of right rows by their weights, NaN of none; None for the losses that have no accuracy."""
    if not loss.by_row and loss.code != BINARY_CROSS_ENTROPY:
        return None
    return float(right / weight) if weight else float("nan")
