"""Dropout (Srivastava et al. 2014): y_i = x_i / (1 - rate) where a random number is at least rate, else x_i 0.

The random number of value i, in row order, is number i of SplitMix64 (Steele, Lea & Flood 2014) with `key`, an integer below 2^64. It is a
function of key and i alone. So backward is the same function of dy, no mask is stored, and the number of threads changes nothing.
"""

import numpy as np

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def dropout_forward(x, rate, key, y):
    """y like x, and maybe x; 0 <= rate < 1. Backward is dropout_forward(dy, rate, key, dx)."""
    factor = x.dtype.type(1 / (1 - rate))
    y[...] = x * np.where(random(x.size, key).reshape(x.shape) >= limit(rate), factor, 0).astype(x.dtype)


def random(count, key):
    """The first numbers from a key, uint64 (count,)."""
    return random_at(np.arange(count), key)


def random_at(indices, keys):
    """The numbers of these indices from a key or from keys, uint64."""
    bits = (np.asarray(indices, np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + np.asarray(keys, np.uint64)
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(FIRST)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(SECOND)
    return bits ^ bits >> np.uint64(31)


def limit(rate):
    """The least number that keeps a value."""
    return np.uint64(int(rate * 2**64))
