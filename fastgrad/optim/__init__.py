"""fg.optim, the optimisers SGD, Adam, AdamW, Adagrad and RMSprop: settings, as PyTorch defines them.

The kernels' `update_arrays` computes the updates. lr is a number or a schedule of fastgrad.schedule. weight_decay is an L2 term in the
gradient. With decoupled, each update takes lr weight_decay p from a parameter p instead, whatever the gradient (Loshchilov & Hutter 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords, unknown_name
from fastgrad.kernels import types
from fastgrad.optim.constraint import MaxNorm, MaxValue
from fastgrad.schedule import Schedule, check_rate, rate_of

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
        decoupled: Each update takes lr weight_decay p from p instead, whatever the gradient.

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


@foreign_keywords
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: steps of the first moment by the root of the second.

    m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
    p = p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        lr: The learning rate, at least 0, or a Schedule.
        betas: (beta1, beta2), the decay of the two moments, each from 0 and below 1.
        eps: What is added to the root, at least 0.
        weight_decay: The factor of the L2 term in the gradient, at least 0.
        amsgrad: Take the largest v so far in place of v.
        decoupled: Each update takes lr weight_decay p from p instead, whatever the gradient.
        eps_hat: Add eps to the root of v before its bias is corrected, as Keras and scikit-learn do.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, or betas no pair.

    Example:
        >>> p = np.array([1.0])
        >>> updater = fg.Updater([p], fg.optim.Adam(lr=0.1))
        >>> norm = updater.step([np.array([5.0])])
        >>> p.round(3).tolist()
        [0.9]

    References:
        Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1; eps_hat: its section 2.
        Reddi et al. 2018, "On the Convergence of Adam and Beyond": amsgrad.
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
        check.sequence(type(self).__name__, "betas", self.betas, 2)
        self._check(**{f"betas[{i}]": beta for i, beta in enumerate(self.betas)}, eps=self.eps)

    @property
    def state_rows(self) -> int:
        return 3 if self.amsgrad else 2

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(*self.betas, self.eps, self.eps_hat)


@foreign_keywords
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    p = (1 - lr weight_decay) p before Adam's step, whose gradient has no L2 term

    Args:
        lr: The learning rate, at least 0, or a Schedule.
        betas: (beta1, beta2), the decay of the two moments, each from 0 and below 1.
        eps: What is added to the root, at least 0.
        weight_decay: The share of p, times lr, that each update takes away, at least 0.
        amsgrad: Take the largest v so far in place of v.
        decoupled: With False weight_decay is Adam's L2 term.
        eps_hat: Add eps to the root of v before its bias is corrected, as Keras and scikit-learn do.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number, or betas no pair.

    Example:
        >>> p = np.array([1.0])
        >>> updater = fg.Updater([p], fg.optim.AdamW(lr=0.1, weight_decay=0.5))
        >>> norm = updater.step([np.array([0.0])])
        >>> p.round(3).tolist()
        [0.95]

    References:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    weight_decay: float = 0.01
    decoupled: bool = True


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
        decoupled: Each update takes lr weight_decay p from p instead, whatever the gradient.

    Raises:
        ValueError: A setting is out of its range.
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

    code, state_rows = types.ADAGRAD, 1

    def __post_init__(self) -> None:
        self._check(eps=self.eps)

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(0.0, 0.0, self.eps, self.eps_inside)


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
        decoupled: Each update takes lr weight_decay p from p instead, whatever the gradient.

    Raises:
        ValueError: A setting is out of its range.
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

    code = types.RMSPROP

    def __post_init__(self) -> None:
        self._check(alpha=self.alpha, eps=self.eps, momentum=self.momentum)

    @property
    def state_rows(self) -> int:
        return 2 if self.momentum else 1

    @property
    def hyper(self) -> np.ndarray:
        return self._hyper(self.momentum, self.alpha, self.eps, self.eps_inside)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise unknown_name(__name__, name)
