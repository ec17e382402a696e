"""The dropout layer."""

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import copy_of, empty
from fastgrad.core.backend import kernels
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import draw_key, generator
from fastgrad.nn.context import Backward
from fastgrad.nn.pool import ParameterFreeLayer


@foreign_keywords
class Dropout(ParameterFreeLayer):
    """Sets a share of the values to 0 in training, and scales the others.

    In training y = x / (1 - rate), or 0 for a share `rate` of the values, drawn anew for each forward; else y is a copy
    of x.

    Which values are dropped depends on the seed and the number of forwards before, not on backend or threads. No mask
    is kept. x may have any shape.

    Args:
        rate: The share of values that are dropped, from 0 and below 1.
        seed: The seed of the draws; None as 0.

    Raises:
        ValueError: rate is out of its range.
        TypeError: rate is no number.

    Example:
        >>> dropout = fg.nn.Dropout(0.5, seed=0)
        >>> y, backward = dropout.forward(np.ones((4, 3)), training=True)
        >>> bool(np.isin(y, [0.0, 2.0]).all())
        True

    References:
        Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
    """

    images, keeps_width = False, True

    def __init__(self, rate: float = 0.5, *, seed: int | None = None) -> None:
        self.rate = check.number(type(self).__name__, "rate", rate, below=1)
        super().__init__()
        self.seed = seed
        self._start(generator(seed, type(self).__name__))

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        op = type(self).__name__
        x = check.contiguous(check.floating(op, "x", x))
        if not training or not self.rate:
            return copy_of(x), lambda dy: copy_of(check.upstream(op, dy, x))
        forward, rate, key = kernels(x).dropout_forward, self.rate, draw_key(self._rng)
        y = empty(x.shape, x)
        forward(x, rate, key, y)

        def backward(dy: np.ndarray) -> np.ndarray:
            dy, dx = check.upstream(op, dy, y), empty(y.shape, y)
            forward(dy, rate, key, dx)
            return dx

        return y, backward

    def _generators(self) -> list[np.random.Generator]:
        return [self._rng] if self.rate else []

    def _draw(self, rng: np.random.Generator) -> None:
        self._rng = generator(int(rng.integers(2**63)))
