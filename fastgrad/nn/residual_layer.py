"""ResidualLayer, the base of layers that can add a residual before their activation, so that a residual block ends in one fused call."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.kernels.types import Activation
from fastgrad.nn.context import Backward, ForwardContext, before_loss
from fastgrad.nn.model import Model

# (dx, dresidual) of dy; dresidual may be anything without a residual, and dx without want_dx
ResidualLayerBackward = Callable[[np.ndarray], tuple[Any, Any]]


class ResidualLayer(Model):
    """Base of layers y = act(f(x) + residual), with f what the layer computes; `output` is the layer's activation."""

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        y, _, backward = self._forward(x, ForwardContext(training, logits))
        return y, backward

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        y, backward = self._forward_residual(x, context, before_loss(self.output, context.logits))
        return y, None, lambda dy: backward(dy)[0]

    def _forward_residual(
        self, x: np.ndarray, context: ForwardContext, activation: Activation, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        raise NotImplementedError
