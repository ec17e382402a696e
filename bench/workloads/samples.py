"""Which values of a result are compared with the reference's."""

import numpy as np


def sample(arrays, scale):
    """Some values of each array, to be compared; those after the second, which are sums over all rows, are scaled to the others' size."""
    scaled = [(array, 1 if i < 2 else scale) for i, array in enumerate(arrays)]
    # an odd stride does not stay in one column
    return np.concatenate([array.flat[:: array.size // 100 | 1] * factor for array, factor in scaled])
