"""The layer norm layer."""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional.layer_norm import run
from fastgrad.functional.norm import NormBackward
from fastgrad.kernels.types import Activation
from fastgrad.nn.norm import Norm


@foreign_keywords
class LayerNorm(Norm):
    """Layer normalisation of n features.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta), as fg.layer_norm

    x is (..., n): rows, steps of sequences or pixels of images, each with a mean and var of its own. There are no
    running statistics: training and evaluation are the same. Parameters are "gamma", 1 at first, and "beta", 0. A layer
    norm after a layer without activation, in a Residual, adds the shortcut.

    Args:
        n: The number of features, at least 1.
        activation: The name of an activation, or a pair of a name and its parameter.
        eps: What is added to the variance, at least 0.
        dtype: "float32" or "float64", of parameters and inputs.

    Raises:
        ValueError: A number is out of its range, or activation or dtype is unknown.
        TypeError: n is no integer, or eps no number.

    Example:
        >>> layer = fg.nn.LayerNorm(2, dtype="float64")
        >>> y, backward = layer.forward(np.array([[1.0, 3.0], [20.0, 10.0]]))
        >>> y.round(3).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]

    References:
        Ba, Kiros & Hinton 2016, "Layer Normalization".
    """

    def __init__(
        self,
        n: int,
        activation: str | tuple[str, float] = "identity",
        eps: float = 1e-5,
        *,
        dtype: Any = "float32",
    ) -> None:
        op = type(self).__name__
        self.n_in = self.n_out = n = check.count(op, "n", n)
        self.output = check.activation(op, activation)
        self.eps = check.number(op, "eps", eps)
        super().__init__({"gamma": (n,), "beta": (n,)}, dtype, None)
        self._start(generator(None))

    @property
    def gamma(self) -> np.ndarray:
        """The scale (n,), a view of params."""
        return self._weights.gamma

    @property
    def beta(self) -> np.ndarray:
        """The shift (n,), a view of params."""
        return self._weights.beta

    def _run(
        self, op: str, x: np.ndarray, training: bool, activation: Activation, residual: np.ndarray | None
    ) -> tuple[np.ndarray, NormBackward]:
        return run(op, x, self._weights, self.eps, activation, residual)
