"""fg.schedule, learning-rate schedules for `lr` of an optimiser: the rate of an update by the number of updates before it.

A schedule may also read the validation losses. Your own schedule is a subclass of Schedule with a method `rate`.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import unknown_name

__all__ = [
    "Cosine",
    "Exponential",
    "Rates",
    "ReduceOnPlateau",
    "Schedule",
    "Steps",
    "WarmUp",
]


class Schedule:
    """The rate of every update: the base class of all schedules, and of one of your own, which defines rate.

    Example:
        >>> class Halving(fg.schedule.Schedule):
        ...     def rate(self, step, losses):
        ...         return 0.1 * 0.5 ** (step // 100)
        >>> fg.optim.SGD(Halving()).rate(step=100)
        0.05
    """

    # whether the rate depends on validation losses
    validates = False

    def rate(self, step: int, losses: Sequence[float]) -> float:
        """The rate of the update after `step` others.

        Args:
            step: The number of updates before this one, from 0.
            losses: The validation losses so far, the first one first.

        Returns:
            The learning rate, at least 0 and finite: an optimiser raises ValueError for another one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Steps(Schedule):
    """The rate falls by a factor after every so many updates (PyTorch's StepLR).

    rate(t) = lr factor^k, where k = floor(t / every)

    Args:
        lr: The first rate, above 0.
        every: The number of updates from one fall to the next, at least 1.
        factor: What the rate is multiplied by, above 0.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, or `every` no integer.

    Example:
        >>> schedule = fg.schedule.Steps(1.0, every=10, factor=0.5)
        >>> [schedule.rate(step, []) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]
    """

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check.keep(
            self,
            lr=check.number("Steps", "lr", self.lr, zero=False),
            every=check.count("Steps", "every", self.every),
            factor=check.number("Steps", "factor", self.factor, zero=False),
        )

    def rate(self, step: int, losses: Sequence[float]) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """The rate falls by a factor at each update (PyTorch's ExponentialLR).

    rate(t) = lr factor^t

    Args:
        lr: The first rate, above 0.
        factor: What the rate is multiplied by, above 0.

    Raises:
        ValueError: A setting is not above 0 and finite.
        TypeError: A setting is no number.

    Example:
        >>> schedule = fg.schedule.Exponential(1.0, factor=0.5)
        >>> [schedule.rate(step, []) for step in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """

    lr: float
    factor: float

    def __post_init__(self) -> None:
        check.keep(
            self,
            lr=check.number("Exponential", "lr", self.lr, zero=False),
            factor=check.number("Exponential", "factor", self.factor, zero=False),
        )

    def rate(self, step: int, losses: Sequence[float]) -> float:
        return self.lr * self.factor**step


@dataclass(frozen=True)
class Cosine(Schedule):
    """From lr to `least` along half a cosine, and `least` from there.

    rate(t) = least + (lr - least) (1 + cos(pi min(t / steps, 1))) / 2

    Args:
        lr: The first rate, above 0.
        steps: The number of updates from lr to `least`, at least 1.
        least: The last rate, from 0 to lr.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, or `steps` no integer.

    Example:
        >>> schedule = fg.schedule.Cosine(1.0, steps=100)
        >>> [round(schedule.rate(step, []), 3) for step in (0, 50, 100, 200)]
        [1.0, 0.5, 0.0, 0.0]

    References:
        Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5.
    """

    lr: float
    steps: int
    least: float = 0.0

    def __post_init__(self) -> None:
        check.keep(
            self,
            lr=check.number("Cosine", "lr", self.lr, zero=False),
            steps=check.count("Cosine", "steps", self.steps),
            least=check.number("Cosine", "least", self.least, most=self.lr),
        )

    def rate(self, step: int, losses: Sequence[float]) -> float:
        share = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.least + (self.lr - self.least) * share


@dataclass(frozen=True)
class WarmUp(Schedule):
    """The rate grows to the first rate of another schedule, along a line, and then follows that from its beginning.

    rate(t) = then(max(t - steps, 0)) (start + (1 - start) min(t / steps, 1))

    Args:
        steps: The number of updates of the growth, at least 1.
        then: What follows: a number above 0, or a Schedule.
        start: The share of then's first rate that the first update has, from 0 to 1.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, `steps` no integer, or `then` a list: Rates takes one.

    Example:
        >>> schedule = fg.schedule.WarmUp(10, fg.schedule.Cosine(1.0, 100), start=0.5)
        >>> [round(schedule.rate(step, []), 3) for step in (0, 5, 10, 60, 110)]
        [0.5, 0.75, 1.0, 0.5, 0.0]
    """

    steps: int
    then: float | Schedule
    start: float = 0.01

    def __post_init__(self) -> None:
        check.keep(
            self,
            steps=check.count("WarmUp", "steps", self.steps),
            then=check_rate("WarmUp", "then", self.then, zero=False),
            start=check.number("WarmUp", "start", self.start, most=1.0),
        )

    @property
    def validates(self) -> bool:  # type: ignore[override]
        """Whether the rate depends on validation losses: whether that of `then` does."""
        return isinstance(self.then, Schedule) and self.then.validates

    def rate(self, step: int, losses: Sequence[float]) -> float:
        rate = rate_of(self.then, max(step - self.steps, 0), losses)
        return rate * (self.start + (1 - self.start) * min(step / self.steps, 1.0))


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """The rate falls by a factor whenever the validation loss has stopped falling.

    A loss is better if it is below best - threshold |best|, where best is the last loss that was better. Whenever more
    than `patience` validations in a row have found no better loss, the rate is multiplied by factor, but does not fall
    below `least`. It is PyTorch's ReduceLROnPlateau without cooldown, but that a negative loss has to fall too. A
    Trainer's fit needs validation data for it.

    Args:
        lr: The first rate, above 0.
        factor: What the rate is multiplied by, above 0 and below 1.
        patience: The number of validations in a row that need not be better, from 0.
        threshold: The share of |best| by which a loss must be below best, from 0 and below 1.
        least: The rate below which it does not fall, from 0 to lr.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, or `patience` no integer.

    Example:
        >>> schedule = fg.schedule.ReduceOnPlateau(1.0, factor=0.5, patience=1)
        >>> schedule.rate(0, losses=[2.0, 1.0])
        1.0
        >>> schedule.rate(0, losses=[2.0, 1.0, 1.0, 1.0])
        0.5
    """

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    least: float = 0.0

    validates = True

    def __post_init__(self) -> None:
        check.keep(
            self,
            lr=check.number("ReduceOnPlateau", "lr", self.lr, zero=False),
            factor=check.number("ReduceOnPlateau", "factor", self.factor, zero=False, below=1.0),
            patience=check.count("ReduceOnPlateau", "patience", self.patience, least=0),
            threshold=check.number("ReduceOnPlateau", "threshold", self.threshold, below=1.0),
            least=check.number("ReduceOnPlateau", "least", self.least, most=self.lr),
        )

    def rate(self, step: int, losses: Sequence[float]) -> float:
        rate, best, waited = self.lr, math.inf, 0
        for loss in losses:
            better = loss < best * (1 - math.copysign(self.threshold, best))
            best, waited = (loss, 0) if better else (best, waited + 1)
            if waited > self.patience:
                rate, waited = max(rate * self.factor, self.least), 0
        return rate


@dataclass(frozen=True)
class Rates(Schedule):
    """The rate of each update from a list.

    Args:
        rates: One rate for every update, each at least 0 and finite: a list, tuple or array (T,). It is copied.

    Raises:
        ValueError: A rate is out of its range, or the list is empty; and from rate, for an update past the list's end.
        TypeError: A rate is no number, or rates no list.

    Example:
        >>> fg.schedule.Rates([0.1, 0.05]).rate(1, [])
        0.05
    """

    rates: Sequence[float]

    def __post_init__(self) -> None:
        rates = self.rates.tolist() if isinstance(self.rates, np.ndarray) else self.rates
        check.sequence("Rates", "rates", rates)
        # a copy: the list is the caller's
        check.keep(self, rates=tuple(check.number("Rates", f"rates[{i}]", rate) for i, rate in enumerate(rates)))

    def __repr__(self) -> str:
        return f"Rates({reprlib.repr(self.rates)})"

    def rate(self, step: int, losses: Sequence[float]) -> float:
        if step >= len(self.rates):
            raise ValueError(
                f"Rates: rates must have one for every update, got {len(self.rates)}, none for update {step + 1}"
            )
        return self.rates[step]


def check_rate(op: str, name: str, lr: float | Schedule, *, zero: bool = True) -> float | Schedule:
    """lr as a float, or a Schedule."""
    if isinstance(lr, list | tuple | np.ndarray):
        raise TypeError(
            f"{op}: {name} must be a number or one of fastgrad.schedule, got {type(lr).__name__}; Rates takes a list"
        )
    return lr if isinstance(lr, Schedule) else check.number(op, name, lr, zero=zero)


def rate_of(lr: float | Schedule, step: int, losses: Sequence[float]) -> float:
    """The rate of the update after `step` others."""
    if not isinstance(lr, Schedule):
        return lr
    try:
        rate = lr.rate(step, losses)
    except OverflowError:
        # of Python's power operator
        rate = math.inf
    if not 0 <= rate < math.inf:
        raise ValueError(
            f"{type(lr).__name__}: the rate of update {step + 1} must be at least 0 and finite, got {rate}"
        )
    return rate


def base_rate(schedule: Schedule) -> float:
    """The first rate of a schedule, without its warm-up."""
    then: float | Schedule = schedule
    while isinstance(then, WarmUp):
        then = then.then
    return rate_of(then, 0, ())


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise unknown_name(__name__, name)
