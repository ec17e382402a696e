"""A test for lists of arrays: whether kernels can read all of them without a copy."""

import numpy as np


def are_uniform(arrays):
    """Whether all of a list (not empty) are NumPy's own arrays, C-contiguous, aligned and writable, of one dtype, float32 or float64."""
    first = getattr(arrays[0], "dtype", None)
    return first in (np.float32, np.float64) and all(
        type(a) is np.ndarray and a.dtype == first and a.flags.carray for a in arrays
    )
