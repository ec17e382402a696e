"""Learning rates that change: `lr` of an optimiser, the rate of each update a function of how many went before it.

One of your own is a subclass of Schedule with `rate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastgrad.core import check

__all__ = [
    "Cosine",
    "Exponential",
    "ReduceOnPlateau",
    "Schedule",
    "Steps",
    "WarmUp",
]


class Schedule:
    """The rate of every update."""

    # whether the rate depends on validation losses
    validates = False

    def rate(self, step: int, losses: Sequence[float]) -> float:
        """The rate of the update after `step` others, when validation has found these losses."""
        raise NotImplementedError


@dataclass(frozen=True)
class Steps(Schedule):
    """lr factor^k after k times `every` updates (PyTorch's StepLR)."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check.number("Steps", "lr", self.lr, zero=False)
        check.count("Steps", "every", self.every)
        check.number("Steps", "factor", self.factor, zero=False)

    def rate(self, step: int, losses: Sequence[float]) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Exponential(Schedule):
    """lr factor^t after t updates (PyTorch's ExponentialLR)."""

    lr: float
    factor: float

    def __post_init__(self) -> None:
        check.number("Exponential", "lr", self.lr, zero=False)
        check.number("Exponential", "factor", self.factor, zero=False)

    def rate(self, step: int, losses: Sequence[float]) -> float:
        return self.lr * self.factor**step


@dataclass(frozen=True)
class Cosine(Schedule):
    """From lr to `least` in so many updates, along half a cosine, and `least` from there (Loshchilov & Hutter 2017, eq. 5)."""

    lr: float
    steps: int
    least: float = 0.0

    def __post_init__(self) -> None:
        check.number("Cosine", "lr", self.lr, zero=False)
        check.count("Cosine", "steps", self.steps)
        check.number("Cosine", "least", self.least, most=self.lr)

    def rate(self, step: int, losses: Sequence[float]) -> float:
        share = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.least + (self.lr - self.least) * share


@dataclass(frozen=True)
class WarmUp(Schedule):
    """From `start` times the first rate of `then` up to it in so many updates, and then `then` from its beginning."""

    steps: int
    then: float | Schedule
    start: float = 0.01

    def __post_init__(self) -> None:
        check.count("WarmUp", "steps", self.steps)
        checked("WarmUp", "then", self.then, zero=False)
        check.number("WarmUp", "start", self.start, most=1.0)

    @property
    def validates(self) -> bool:  # type: ignore[override]
        return isinstance(self.then, Schedule) and self.then.validates

    def rate(self, step: int, losses: Sequence[float]) -> float:
        rate = rate_of(self.then, max(step - self.steps, 0), losses)
        return rate * (self.start + (1 - self.start) * min(step / self.steps, 1.0))


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """lr, times `factor` whenever more than `patience` validations in a row have found no loss below best - threshold |best|, where
    best is the least one so far; never below `least`. PyTorch's ReduceLROnPlateau without cooldown, but that a negative loss has to
    fall too."""

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    least: float = 0.0

    validates = True

    def __post_init__(self) -> None:
        check.number("ReduceOnPlateau", "lr", self.lr, zero=False)
        check.number("ReduceOnPlateau", "factor", self.factor, zero=False, below=1.0)
        check.count("ReduceOnPlateau", "patience", self.patience, least=0)
        check.number("ReduceOnPlateau", "threshold", self.threshold, below=1.0)
        check.number("ReduceOnPlateau", "least", self.least, most=self.lr)

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
    """The rate of each update from a list; one past its end is an error."""

    rates: Sequence[float]

    def __post_init__(self) -> None:
        rates = self.rates.tolist() if isinstance(self.rates, np.ndarray) else self.rates
        check.each("Rates", "rates", rates)
        # a copy: the list is the caller's
        object.__setattr__(self, "rates", tuple(check.number("Rates", f"rates[{i}]", r) for i, r in enumerate(rates)))

    def rate(self, step: int, losses: Sequence[float]) -> float:
        if step >= len(self.rates):
            raise ValueError(
                f"Rates: rates must have one for every update, got {len(self.rates)}, none for update {step + 1}"
            )
        return self.rates[step]


def checked(op: str, name: str, lr: float | Schedule, *, zero: bool = True) -> None:
    """lr must be a number or a Schedule."""
    if isinstance(lr, list | tuple | np.ndarray):
        raise TypeError(
            f"{op}: {name} must be a number or one of fastgrad.schedule, got {type(lr).__name__}; Rates takes a list"
        )
    if not isinstance(lr, Schedule):
        check.number(op, name, lr, zero=zero)


def rate_of(lr: float | Schedule, step: int, losses: Sequence[float]) -> float:
    """The rate of the update after `step` others."""
    if not isinstance(lr, Schedule):
        return lr
    try:
        rate = lr.rate(step, losses)
    except OverflowError:
        # of Python's powers
        rate = math.inf
    if not 0 <= rate < math.inf:
        raise ValueError(
            f"{type(lr).__name__}: the rate of update {step + 1} must be at least 0 and finite, got {rate}"
        )
    return rate
