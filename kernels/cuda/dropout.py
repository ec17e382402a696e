"""Dropout; formula and random numbers: kernels/reference/dropout.py. Also `random`, SplitMix64 as a device function, which init.py uses.

No mask is stored: a thread computes the random number of value i from the key and i, in backward again.
"""

import numpy as np

from ..reference.dropout import limit
from .engine.device import Bits, Integer, Number, Real, Values, blocks, first, function, kernel, launch, stride

GAMMA, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


@function
def random(key, i):
    bits = np.uint64(i + 1) * GAMMA + key
    bits = (bits ^ bits >> SHIFTS[0]) * FIRST
    bits = (bits ^ bits >> SHIFTS[1]) * SECOND
    return bits ^ bits >> SHIFTS[2]


@kernel
def drop_values(dtype: Real, n: Integer, key: Bits, least: Bits, factor: Number, x: Values, y: Values):
    for i in range(first(), n, stride()):
        y[i] = x[i] * (factor if random(key, i) >= least else dtype(0))


def dropout_forward(x, rate, key, y):
    """y like x, and maybe x; 0 <= rate < 1. Backward is dropout_forward(dy, rate, key, dx)."""
    launch(drop_values, x.dtype, blocks(x.size), x.size, key, limit(rate), 1 / (1 - rate), x, y)
