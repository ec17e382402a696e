"""Layers whose last step takes a residual and an activation with it: what a residual block ends in."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.kernels.names import Activation
from fastgrad.model import Backward, ForwardContext, Model, before_loss

# (dx, dresidual) of dy; the second is anything without a residual, and so is the first where it is not asked for
FusedBackward = Callable[[np.ndarray], tuple[Any, Any]]


class Fused(Model):
    """y = act(what the layer makes of x + residual); `output` is the activation of its own."""

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        y, _, backward = self._forward(x, ForwardContext(training, logits))
        return y, backward

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        activation = before_loss(self.output, context.logits)
        y, backward = self._fused(x, context.training, activation, None, context.want_dx)
        return y, None, lambda dy: backward(dy)[0]

    def _fused(
        self, x: np.ndarray, training: bool, activation: Activation, residual: np.ndarray | None, dx: bool
    ) -> tuple[np.ndarray, FusedBackward]:
        raise NotImplementedError
