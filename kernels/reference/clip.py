"""Norms of arrays, and what clips by them, in place: the arithmetic is in float64, and each result is rounded once.

    norm   (sum |x|^p)^(1/p) of an array or of each of its units; p = inf: the largest |x|
    scale  x = scale x, a scale for an array or for each of its units
    clamp  x = -limit where x < -limit, limit where x > limit

Units are the columns of an array seen as rows of `width` values: an array whose width is 1 is one unit. The units of all arrays are counted
through. NaN in a unit gives NaN; a norm overflows only where it is itself past float64.
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
    """Of the columns of |x|, as shares of the largest value: no power of it overflows, nor do all vanish."""
    largest = x.max(axis=0, initial=0)
    plain = (largest > 0) & np.isfinite(largest)
    if p == np.inf:
        return largest
    unit = np.where(plain, largest, 1)
    return np.where(plain, unit * ((x / unit) ** p).sum(axis=0) ** (1 / p), largest)


def joint_norm(norms, p):
    """The norm of all values of which these are norms (U,) of parts."""
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
    """Each value of the arrays to -limit .. limit; NaN stays."""
    for array in arrays:
        bound = array.dtype.type(limit)
        np.clip(array, -bound, bound, out=array)
