"""The batch norm layer."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional.batch_norm import run
from fastgrad.functional.norm import NormBackward
from fastgrad.kernels.types import Activation, Running
from fastgrad.nn.norm import Norm


@foreign_keywords
class BatchNorm(Norm):
    """Batch normalisation of n channels.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta), as fg.batch_norm

    x is (..., n): rows, steps of sequences or images. A forward in training takes the statistics of its batch and moves
    the running ones towards them; any other takes the running ones. These are saved, loaded and copied with the
    parameters "gamma", 1 at first, and "beta", 0. A batch norm after a layer without activation, in a Residual, adds
    the shortcut.

    Args:
        n: The number of channels, at least 1.
        activation: The name of an activation, or a pair of a name and its parameter.
        momentum: The share of the batch in an update of the running statistics, from 0 to 1: PyTorch's momentum, and 1
            minus that of Keras and ONNX.
        eps: What is added to the variance, at least 0.
        unbiased: Divide by M - 1 for running_var, with M values a channel, as PyTorch; False divides by M, as Keras.
        dtype: "float32" or "float64", of parameters and inputs.

    Raises:
        ValueError: A number is out of its range, or activation or dtype is unknown.
        TypeError: n is no integer, or momentum or eps no number.

    Example:
        >>> layer = fg.nn.BatchNorm(2, dtype="float64")
        >>> y, backward = layer.forward(np.array([[1.0, 0.0], [3.0, 0.0]]), training=True)
        >>> y.round(3).tolist(), layer.running_mean.tolist()
        ([[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.0])

    References:
        Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training".
    """

    def __init__(
        self,
        n: int,
        activation: str | tuple[str, float] = "identity",
        momentum: float = 0.1,
        eps: float = 1e-5,
        unbiased: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        op = type(self).__name__
        self.n_in = self.n_out = n = check.count(op, "n", n)
        self.output = check.activation(op, activation)
        self.momentum = check.number(op, "momentum", momentum, most=1)
        self.eps = check.number(op, "eps", eps)
        self.unbiased = bool(unbiased)
        super().__init__({"gamma": (n,), "beta": (n,)}, dtype, None)
        self._running = np.zeros(n, self.dtype), np.ones(n, self.dtype)
        self._start(generator(None))

    @property
    def gamma(self) -> np.ndarray:
        """The scale (n,), a view of params."""
        return self._weights.gamma

    @property
    def beta(self) -> np.ndarray:
        """The shift (n,), a view of params."""
        return self._weights.beta

    @property
    def running_mean(self) -> np.ndarray:
        """The running mean (n,), which forwards in training move."""
        return self._running[0]

    @property
    def running_var(self) -> np.ndarray:
        """The running variance (n,), which forwards in training move."""
        return self._running[1]

    def statistics(self) -> dict[str, np.ndarray]:
        return {"running_mean": self.running_mean, "running_var": self.running_var}

    def _run(
        self, op: str, x: np.ndarray, training: bool, activation: Activation, residual: np.ndarray | None
    ) -> tuple[np.ndarray, NormBackward]:
        running = Running(*self._running, self.momentum, self.unbiased)
        return run(op, x, self._weights, running, training, self.eps, activation, residual)

    def _move_statistics(self, move: Callable[[Any], Any]) -> None:
        self._running = move(self._running[0]), move(self._running[1])
