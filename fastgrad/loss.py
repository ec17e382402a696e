"""Losses with options, for a Trainer: CrossEntropy, BinaryCrossEntropy and Huber. A loss without options is its name, such as "mse"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.functional.loss_arguments import checked_weights, class_loss, huber_loss
from fastgrad.kernels import types

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Huber", "Loss"]


class Loss:
    """The base class of losses: settings alone."""

    def over(self, op: str, columns: int | None, like: Any) -> types.Loss:
        """The loss as the kernels read it, for outputs of so many columns.

        Args:
            op: The name of the caller, for errors.
            columns: The number of a model's outputs; None where it is not known.
            like: An array with the dtype and the device of the outputs.

        Returns:
            The code and the options, with weights as an array like `like`.

        Raises:
            ValueError: There are not as many weights as columns.
        """
        raise NotImplementedError


@foreign_keywords
@dataclass(frozen=True)
class CrossEntropy(Loss):
    """fg.cross_entropy with options.

    Args:
        weights: Weights of the classes (C,), finite and at least 0, a list or an array; None is 1 for all.
        ignore_index: A class number of rows that are left out; None leaves out nothing. PyTorch's default is -100.
        label_smoothing: s from 0 to 1, with which targets are (1 - s) t + s / C.

    Raises:
        ValueError: An option is out of its range.
        TypeError: An option is of another type.

    Example:
        >>> loss = fg.loss.CrossEntropy(weights=[1.0, 3.0], label_smoothing=0.1)
        >>> trainer = fg.Trainer(fg.nn.Dense(4, 2, seed=0), loss)
        >>> value = trainer.step(np.ones((2, 4), np.float32), np.array([0, 1]))
    """

    weights: Sequence[float] | np.ndarray | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        class_loss("CrossEntropy", None, self.ignore_index, self.label_smoothing)
        if self.weights is not None:
            # numbers compare, copy and print as a dataclass does
            object.__setattr__(self, "weights", _numbers("CrossEntropy", "weights", self.weights))

    def over(self, op: str, columns: int | None, like: Any) -> types.Loss:
        weights = _weights(op, "the weights of CrossEntropy", self.weights, columns, like)
        return class_loss(op, weights, self.ignore_index, self.label_smoothing)


@foreign_keywords
@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """fg.binary_cross_entropy with options.

    Args:
        pos_weight: The weight of positive targets, finite and at least 0: a number, or one for each output (K,), a list
            or an array; None is 1.

    Raises:
        ValueError: pos_weight is out of its range.
        TypeError: pos_weight is of another type.

    Example:
        >>> trainer = fg.Trainer(fg.nn.Dense(4, 1, seed=0), fg.loss.BinaryCrossEntropy(pos_weight=5.0))
        >>> value = trainer.step(np.ones((2, 4), np.float32), np.array([[0], [1]], np.float32))
    """

    pos_weight: float | Sequence[float] | np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pos_weight is not None:
            numbers = _numbers("BinaryCrossEntropy", "pos_weight", self.pos_weight, scalar=True)
            object.__setattr__(self, "pos_weight", numbers)

    def over(self, op: str, columns: int | None, like: Any) -> types.Loss:
        weights = _weights(op, "the pos_weight of BinaryCrossEntropy", self.pos_weight, columns, like)
        return types.LOSSES["binary_cross_entropy"]._replace(weights=weights)


@foreign_keywords
@dataclass(frozen=True)
class Huber(Loss):
    """fg.huber with options.

    Args:
        delta: The size of an error from which on the loss is linear, above 0.

    Raises:
        ValueError: delta is not above 0, or not finite.
        TypeError: delta is no number.

    Example:
        >>> trainer = fg.Trainer(fg.nn.Dense(4, 1, seed=0), fg.loss.Huber(delta=0.5))
        >>> value = trainer.step(np.ones((2, 4), np.float32), np.zeros((2, 1), np.float32))
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        huber_loss("Huber", self.delta)

    def over(self, op: str, columns: int | None, like: Any) -> types.Loss:
        return huber_loss(op, self.delta)


def _numbers(op: str, name: str, value: Any, scalar: bool = False) -> float | tuple[float, ...]:
    """Weights as a number or a tuple of numbers, checked."""
    shape = np.shape(value)
    form = "a number or (K,)" if scalar else "(C,)"
    array = checked_weights(op, name, value, form, (shape or (1,))[:1], np.empty(0), scalar=scalar)
    return tuple(array.tolist()) if shape else float(array[0])


def _weights(op: str, name: str, value: Any, columns: int | None, like: Any) -> Any:
    """Weights as an array (K,) like `like`, or None."""
    if value is None:
        return None
    size = (columns or len(value)) if isinstance(value, tuple) else (columns or 1)
    return checked_weights(op, name, value, "(K,), one for each output", (size,), like, scalar=True)
