"""Adagrad: a learning rate for each parameter by the sum of its squared gradients."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.kernels import types
from fastgrad.optim.group_settings import Groups
from fastgrad.optim.optimizer import Optimizer
from fastgrad.schedule import Schedule


@foreign_keywords
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: a rate for each parameter by the sum of its squared gradients.

    v = v + g^2, p = p - lr g / (sqrt(v) + eps)

    Args:
        lr: The learning rate, at least 0, or a Schedule.
        eps: What is added to the root, at least 0.
        weight_decay: The factor of the L2 term in the gradient, at least 0.
        eps_inside: Divide by sqrt(v + eps), as Keras does.
        decoupled: Subtract lr weight_decay p from p at each update, in place of the L2 term.
        groups: Settings of some parameters by patterns of their names, see Optimizer; None for none.

    Raises:
        ValueError: A setting is out of its range, or unknown.
        TypeError: A setting is no number.

    Example:
        >>> p = np.array([1.0])
        >>> updater = fg.Updater([p], fg.optim.Adagrad(lr=0.1))
        >>> norm = updater.step([np.array([5.0])])
        >>> p.round(3).tolist()
        [0.9]

    References:
        Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization".
    """

    lr: float | Schedule = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0
    eps_inside: bool = False
    decoupled: bool = False
    groups: Groups | None = None

    code, state_rows = types.ADAGRAD, 1

    def __post_init__(self) -> None:
        self._check(eps=self.eps)

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(0.0, 0.0, self.eps, self.eps_inside)
