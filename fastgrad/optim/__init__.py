"""Settings of optimisers, as PyTorch defines them; the arithmetic is the kernels' `update_arrays`.

lr is a number or one of fastgrad.schedule. weight_decay is an L2 term in the gradient; decoupled, what each update takes
away of a parameter, times lr, whatever the gradient (Loshchilov & Hutter 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastgrad.core import check
from fastgrad.kernels import types
from fastgrad.optim.constraint import MaxNorm, MaxValue
from fastgrad.schedule import Schedule, checked, rate_of

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "MaxNorm",
    "MaxValue",
    "Optimizer",
    "RMSprop",
]


class Optimizer:
    """What trainers ask of an optimiser's settings."""

    lr: float | Schedule
    weight_decay: float
    decoupled: bool
    code: int

    @property
    def state_rows(self) -> int:
        """Values of state for each parameter."""
        raise NotImplementedError

    @property
    def hyper(self) -> np.ndarray:
        """The settings as the kernels read them; the first is the first update's rate."""
        raise NotImplementedError

    def rate(self, step: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of the update after `step` others, when validation has found these losses."""
        return rate_of(self.lr, step, losses)

    def _check(self, **numbers: float) -> None:
        """Raise for a setting that is no number from 0, or from 0 and below 1 where the name is that of a beta."""
        op = type(self).__name__
        checked(op, "lr", self.lr)
        for name, value in {**numbers, "weight_decay": self.weight_decay}.items():
            check.number(op, name, value, below=1.0 if name.startswith(("betas", "alpha")) else np.inf)

    def _hyper(self, beta1: float, beta2: float, eps: float, form: bool) -> np.ndarray:
        rate = self.rate(0)
        return np.array([rate, beta1, beta2, eps, self.weight_decay, form, self.decoupled], np.float64)  # (7,)


def successor(op: str, optimizer: object, before: Optimizer) -> Optimizer:
    """An optimiser that takes the place of another one and goes on with its state."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{op}: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
    if (optimizer.code, optimizer.state_rows) != (before.code, before.state_rows):
        raise ValueError(
            f"{op}: optimizer must be {type(before).__name__} with {before.state_rows} values of state a parameter, as the one before, "
            f"whose state goes on, got {type(optimizer).__name__} with {optimizer.state_rows}; another kind needs a new {op}"
        )
    return optimizer


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum."""

    lr: float | Schedule
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False

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


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); amsgrad divides by the largest second moment so far (Reddi et al. 2018).

    With eps_hat, eps is added to the second moment's root before its bias is corrected, as Keras and scikit-learn do.
    """

    lr: float | Schedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled: bool = False
    eps_hat: bool = False

    code = types.ADAM

    def __post_init__(self) -> None:
        check.each(type(self).__name__, "betas", self.betas, 2)
        self._check(**{f"betas[{i}]": beta for i, beta in enumerate(self.betas)}, eps=self.eps)

    @property
    def state_rows(self) -> int:
        return 3 if self.amsgrad else 2

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(*self.betas, self.eps, self.eps_hat)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled decay (Loshchilov & Hutter 2019)."""

    weight_decay: float = 0.01
    decoupled: bool = True


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011). eps is added to the root, or inside it, as Keras does."""

    lr: float | Schedule = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0
    eps_inside: bool = False
    decoupled: bool = False

    code, state_rows = types.ADAGRAD, 1

    def __post_init__(self) -> None:
        self._check(eps=self.eps)

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(0.0, 0.0, self.eps, self.eps_inside)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012). eps is added to the root, or inside it, as Keras does; alpha is Keras's rho."""

    lr: float | Schedule = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    eps_inside: bool = False
    decoupled: bool = False

    code = types.RMSPROP

    def __post_init__(self) -> None:
        self._check(alpha=self.alpha, eps=self.eps, momentum=self.momentum)

    @property
    def state_rows(self) -> int:
        return 2 if self.momentum else 1

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(self.momentum, self.alpha, self.eps, self.eps_inside)
