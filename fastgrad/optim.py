"""Settings of optimisers, as PyTorch defines them; the arithmetic is the kernels' `update`."""

from dataclasses import dataclass

import numpy as np

from fastgrad import check
from fastgrad.kernels import names


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum; weight_decay is an L2 term in the gradient."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check.number("SGD", "lr", self.lr)
        check.number("SGD", "momentum", self.momentum)
        check.number("SGD", "weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    @property
    def code(self) -> int:
        return names.SGD

    @property
    def state_rows(self) -> int:
        """Values of state for each parameter."""
        return 1 if self.momentum else 0

    @property
    def hyper(self) -> np.ndarray:
        """The settings as the kernels read them."""
        return np.array([self.lr, self.momentum, 0.0, 0.0, self.weight_decay, self.nesterov], np.float64)  # (6,)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015); weight_decay is an L2 term in the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check.number("Adam", "lr", self.lr)
        check.each("Adam", "betas", self.betas, 2)
        for i, beta in enumerate(self.betas):
            check.number("Adam", f"betas[{i}]", beta, below=1.0)
        check.number("Adam", "eps", self.eps)
        check.number("Adam", "weight_decay", self.weight_decay)

    @property
    def code(self) -> int:
        return names.ADAM

    @property
    def state_rows(self) -> int:
        """Values of state for each parameter."""
        return 2

    @property
    def hyper(self) -> np.ndarray:
        """The settings as the kernels read them."""
        return np.array([self.lr, *self.betas, self.eps, self.weight_decay, 0.0], np.float64)  # (6,)
