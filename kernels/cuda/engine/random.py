"""Random numbers as a function of a key and an index: SplitMix64, as kernels/reference/dropout.py defines it."""

import numpy as np

from .device import device_function

GAMMA, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


@device_function
def random(key, i):
    """Number i of the key."""
    bits = np.uint64(i + 1) * GAMMA + key
    bits = (bits ^ bits >> SHIFTS[0]) * FIRST
    bits = (bits ^ bits >> SHIFTS[1]) * SECOND
    return bits ^ bits >> SHIFTS[2]
