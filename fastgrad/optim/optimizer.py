"""Optimizer, the base class of the optimisers: settings, their checks, and the settings as kernels read them.

lr is a number or a schedule of fastgrad.schedule. weight_decay is an L2 term in the gradient. With decoupled, each update takes
lr weight_decay p from a parameter p instead, whatever the gradient (Loshchilov & Hutter 2019).
"""

from collections.abc import Sequence

import numpy as np

from fastgrad.core import check
from fastgrad.schedule import Schedule, check_rate, rate_of


class Optimizer:
    """The base class of all optimisers, which are settings alone: the state is a Trainer's or an Updater's.

    Every optimiser has the settings `lr`, `weight_decay` and `decoupled`.

    Example:
        >>> isinstance(fg.optim.SGD(0.1), fg.optim.Optimizer)
        True
    """

    lr: float | Schedule
    weight_decay: float
    decoupled: bool
    code: int

    @property
    def state_rows(self) -> int:
        """The number of values of state for each parameter."""
        raise NotImplementedError

    @property
    def hyper(self) -> np.ndarray:
        """The settings as the kernels read them, float64 (7,); the first is the first update's rate."""
        raise NotImplementedError

    def rate(self, step: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of one update.

        Args:
            step: The number of updates before this one, from 0.
            losses: The validation losses so far, which a schedule may look at.

        Returns:
            The rate.

        Raises:
            ValueError: The rate of the schedule is negative or not finite.
        """
        return rate_of(self.lr, step, losses)

    def _check(self, **numbers: float) -> None:
        """Raise for a setting that is no number from 0, or from 0 and below 1 where the name is that of a beta."""
        op = type(self).__name__
        check_rate(op, "lr", self.lr)
        for name, value in {**numbers, "weight_decay": self.weight_decay}.items():
            check.number(op, name, value, below=1.0 if name.startswith(("betas", "alpha")) else np.inf)

    def _hyper(self, beta1: float, beta2: float, eps: float, form: bool) -> np.ndarray:
        rate = self.rate(0)
        return np.array([rate, beta1, beta2, eps, self.weight_decay, form, self.decoupled], np.float64)  # (7,)
