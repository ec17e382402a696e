"""Magnitude pruning of lists of arrays, in place: masks (P,), bool, have all their values in order, False where one is pruned.

What is pruned is 0. No value is NaN; infinity is the largest.
"""

import numpy as np


def prune_smallest(arrays, masks, count):
    """Prune the `count` smallest |x| that are not pruned, of equal ones the first."""
    sizes = np.concatenate([np.abs(a).reshape(-1) for a in arrays])
    alive = np.flatnonzero(masks)
    if count:
        sizes = sizes[alive]
        largest = np.partition(sizes, count - 1)[count - 1]
        smaller, equal = alive[sizes < largest], alive[sizes == largest]
        masks[smaller] = False
        masks[equal[: count - len(smaller)]] = False
    prune_below(arrays, masks, 0.0)


def prune_below(arrays, masks, threshold):
    """Prune |x| < threshold."""
    at = 0
    for array in arrays:
        x, mask = array.reshape(-1), masks[at : at + array.size]
        mask &= ~(np.abs(x) < x.dtype.type(threshold))
        x[~mask] = 0
        at += array.size
