"""SGD: gradient descent, with momentum or without."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.kernels import types
from fastgrad.optim.group_settings import Groups
from fastgrad.optim.optimizer import Optimizer
from fastgrad.schedule import Schedule


@foreign_keywords
@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with momentum or without.

    g = grad + weight_decay p, v = momentum v + g (v = g at the first update), p = p - lr v;
    with nesterov p = p - lr (g + momentum v)

    Args:
        lr: The learning rate, at least 0, or a Schedule.
        momentum: The factor of the velocity v, at least 0. With 0 there is no state.
        nesterov: Nesterov's momentum. It needs a momentum above 0.
        weight_decay: The factor of the L2 term in the gradient, at least 0.
        decoupled: Subtract lr weight_decay p from p at each update, in place of the L2 term.
        groups: Settings of some parameters by patterns of their names, see Optimizer; None for none.

    Raises:
        ValueError: A setting is out of its range, or nesterov comes without momentum.
        TypeError: A setting is no number.

    Example:
        >>> p = np.array([1.0])
        >>> updater = fg.Updater([p], fg.optim.SGD(0.1, momentum=0.9))
        >>> for _ in range(2):
        ...     norm = updater.step([np.array([1.0])])
        >>> p.round(3).tolist()
        [0.71]

    References:
        Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization": decoupled.
    """

    lr: float | Schedule
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    groups: Groups | None = None

    code = types.SGD

    def __post_init__(self) -> None:
        self._check(momentum=self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    @property
    def state_rows(self) -> int:
        return 1 if self.momentum else 0

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(self.momentum, 0.0, 0.0, self.nesterov)
