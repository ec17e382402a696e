"""Adam, and AdamW, which is Adam with decoupled weight decay."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.kernels import types
from fastgrad.optim.group_settings import Groups
from fastgrad.optim.optimizer import Optimizer
from fastgrad.schedule import Schedule


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
        decoupled: Subtract lr weight_decay p from p at each update, in place of the L2 term.
        eps_hat: Add eps to the root of v before its bias is corrected, as Keras and scikit-learn do.
        groups: Settings of some parameters by patterns of their names, see Optimizer; None for none.

    Raises:
        ValueError: A setting is out of its range, or unknown.
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
    groups: Groups | None = None

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
        groups: Settings of some parameters by patterns of their names, see Optimizer; None for none.

    Raises:
        ValueError: A setting is out of its range, or unknown.
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
