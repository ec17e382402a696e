"""SplitMix64, a counter-based random generator: number i is a function of the key and i alone, and no state is kept."""

import numpy as np

from .compile import inline_function

GAMMA, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


@inline_function
def random(key, i):
    return mixed(np.uint64(i + 1) * GAMMA + key)


@inline_function
def mixed(bits):
    bits = (bits ^ bits >> SHIFTS[0]) * FIRST
    bits = (bits ^ bits >> SHIFTS[1]) * SECOND
    return bits ^ bits >> SHIFTS[2]
