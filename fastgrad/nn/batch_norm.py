"""The batch norm layer."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional.batch_norm import run
from fastgrad.kernels.types import Activation, Affine, Running
from fastgrad.nn.context import ForwardContext
from fastgrad.nn.model import ResidualLayer, ResidualLayerBackward, views


@foreign_keywords
class BatchNorm(ResidualLayer):
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

    def _forward_residual(
        self, x: np.ndarray, context: ForwardContext, activation: Activation, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        op = type(self).__name__
        x = check.channels_last(op, "x", x)
        x = self._array(op, "x", x, "(..., C)", (*x.shape[:-1], self.n_in))
        if residual is not None:
            residual = self._array(op, "residual", residual, "like x", x.shape)
        running = Running(*self._running, self.momentum, self.unbiased)
        y, backward = run(op, x, self._weights, running, context.training, self.eps, activation, residual)
        context.observe(self.gamma, y, activation)
        return y, lambda dy: backward(dy, *self._gradients, context.want_dx)

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._gradients = (Affine(**views(flat, self._shapes)) for flat in (params, grads))

    def _move_statistics(self, move: Callable[[Any], Any]) -> None:
        self._running = move(self._running[0]), move(self._running[1])

    def _draw(self, rng: np.random.Generator) -> None:
        self.gamma[...] = 1
        self.beta[...] = 0
