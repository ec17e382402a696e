"""`sample`: the values of a result that are compared with the reference."""

import numpy as np


def sample(arrays, scale):
    """Some values of each array. Arrays after the second are sums over all rows; `scale` brings them to the size of the others."""
    scaled = [(array, 1 if i < 2 else scale) for i, array in enumerate(arrays)]
    # an odd stride does not stay in one column
    return np.concatenate([array.flat[:: array.size // 100 | 1] * factor for array, factor in scaled])
