"""Dropout; formula and random numbers: kernels/reference/dropout.py.

No mask is stored: a thread computes the random number of value i from the key and i, in backward again.
"""

from ..reference.dropout import limit
from .engine.device import Bits, Integer, Number, Real, Values, blocks, grid_start, grid_stride, kernel, launch
from .engine.random import random


@kernel
def drop_values(dtype: Real, n: Integer, key: Bits, least: Bits, factor: Number, x: Values, y: Values):
    for i in range(grid_start(), n, grid_stride()):
        y[i] = x[i] * (factor if random(key, i) >= least else dtype(0))


def dropout_forward(x, rate, key, y):
    """y like x, and maybe x; 0 <= rate < 1. Backward is dropout_forward(dy, rate, key, dx)."""
    launch(drop_values, x.dtype, blocks(x.size), x.size, key, limit(rate), 1 / (1 - rate), x, y)
