"""Norms of lists of arrays, and scaling and clamping of lists of arrays in place. Arithmetic is in float64; each result is rounded once.

    norm   (sum |x|^p)^(1/p) of an array or of each of its units; p = inf: the largest |x|
    scale  x = scale x, a scale for an array or for each of its units
    clamp  x = -limit where x < -limit, limit where x > limit

Units: an array is read as rows of `width` values, and its columns are its units; with width 1 the whole array is one unit. The units of all
arrays are numbered in order. NaN in a unit gives NaN. A norm overflows only where it is itself beyond float64.
"""

import numpy as np


def array_norms(arrays, widths, p, norms, nonfinite):
    """norms (U,) of all units, and nonfinite (n,), how many values of each array are NaN or infinite. widths (n,), or None: all 1."""
    first = 0
    for a, array in enumerate(arrays):
        width = 1 if widths is None else widths[a]
        x = np.abs(array.astype(np.float64)).reshape(-1, width)
        nonfinite[a] = np.count_nonzero(~np.isfinite(x))
        norms[first : first + width] = _norm(x, p)
        first += width


def _norm(x, p):
    """The norm of each column of |x|: values are divided by the largest one, so that no power overflows and not all underflow."""
    largest = x.max(axis=0, initial=0)
    finite = (largest > 0) & np.isfinite(largest)
    if p == np.inf:
        return largest
    unit = np.where(finite, largest, 1)
    return np.where(finite, unit * ((x / unit) ** p).sum(axis=0) ** (1 / p), largest)


def joint_norm(norms, p):
    """The norm of all values, from the norms (U,) of parts of them."""
    return float(_norm(norms.reshape(-1, 1), p)[0])


def scale_arrays(arrays, widths, scales):
    """arrays *= scales (U,), one for each unit."""
    first = 0
    for a, array in enumerate(arrays):
        width = 1 if widths is None else widths[a]
        rows = array.reshape(-1, width)
        rows[...] = rows * scales[first : first + width]
        first += width


def clamp_arrays(arrays, limit):
    """Clamp each value of the arrays to -limit .. limit; NaN stays."""
    for array in arrays:
        bound = array.dtype.type(limit)
        np.clip(array, -bound, bound, out=array)
