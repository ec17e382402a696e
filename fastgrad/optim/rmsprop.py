"""RMSprop: a learning rate for each parameter by the running mean of its squared gradients."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.kernels import types
from fastgrad.optim.group_settings import Groups
from fastgrad.optim.optimizer import Optimizer
from fastgrad.schedule import Schedule


@foreign_keywords
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: a rate for each parameter by the running mean of its squared gradients.

    v = alpha v + (1 - alpha) g^2, p = p - lr g / (sqrt(v) + eps);
    with momentum m = momentum m + g / (sqrt(v) + eps), p = p - lr m

    Args:
        lr: The learning rate, at least 0, or a Schedule.
        alpha: The decay of the mean, from 0 and below 1: Keras's rho.
        eps: What is added to the root, at least 0.
        weight_decay: The factor of the L2 term in the gradient, at least 0.
        momentum: The factor of the velocity m, at least 0. With 0 there is none.
        eps_inside: Divide by sqrt(v + eps), as Keras does.
        decoupled: Subtract lr weight_decay p from p at each update, in place of the L2 term.
        groups: Settings of some parameters by patterns of their names, see Optimizer; None for none.

    Raises:
        ValueError: A setting is out of its range, or unknown.
        TypeError: A setting is no number.

    Example:
        >>> p = np.array([1.0])
        >>> updater = fg.Updater([p], fg.optim.RMSprop(lr=0.1, alpha=0.75))
        >>> norm = updater.step([np.array([5.0])])
        >>> p.round(3).tolist()
        [0.8]

    References:
        Tieleman & Hinton 2012, "Lecture 6.5: RMSProp", Neural Networks for Machine Learning.
    """

    lr: float | Schedule = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    eps_inside: bool = False
    decoupled: bool = False
    groups: Groups | None = None

    code = types.RMSPROP

    def __post_init__(self) -> None:
        self._check(alpha=self.alpha, eps=self.eps, momentum=self.momentum)

    @property
    def state_rows(self) -> int:
        return 2 if self.momentum else 1

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(self.momentum, self.alpha, self.eps, self.eps_inside)
