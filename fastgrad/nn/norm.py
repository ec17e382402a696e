"""What the layers of normalisation share: a scale and a shift of each feature, and a residual in the same pass."""

import numpy as np

from fastgrad.core import check
from fastgrad.functional.norm import NormBackward
from fastgrad.kernels.types import Activation, Affine
from fastgrad.nn.context import ForwardContext
from fastgrad.nn.model import views
from fastgrad.nn.residual_layer import ResidualLayer, ResidualLayerBackward


class Norm(ResidualLayer):
    """A layer over (..., n) with the parameters "gamma" and "beta" (n,), which `_run` reads."""

    def _run(
        self, op: str, x: np.ndarray, training: bool, activation: Activation, residual: np.ndarray | None
    ) -> tuple[np.ndarray, NormBackward]:
        """The norm over checked arrays: (y, backward)."""
        raise NotImplementedError

    def _forward_residual(
        self, x: np.ndarray, context: ForwardContext, activation: Activation, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        op = type(self).__name__
        x = check.channels_last(op, "x", x)
        x = self._array(op, "x", x, "(..., C)", (*x.shape[:-1], self.n_in))
        if residual is not None:
            residual = self._array(op, "residual", residual, "like x", x.shape)
        training = context.training and not context.is_frozen(self)
        y, backward = self._run(op, x, training, activation, residual)
        context.observe(self._weights.gamma, y, activation)
        return y, lambda dy: backward(dy, *self._gradients, context.want_dx)

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._gradients = (Affine(**views(flat, self._shapes)) for flat in (params, grads))

    def _draw(self, rng: np.random.Generator) -> None:
        self._weights.gamma[...] = 1
        self._weights.beta[...] = 0
