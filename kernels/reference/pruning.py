"""Magnitude pruning of lists of arrays, in place: by count or by threshold.

masks (P,), bool, has a value for each value of all arrays in their order; False where it is pruned. Pruned values are 0. No value may be
NaN; infinity is the largest.
"""

import numpy as np


def prune_smallest(arrays, masks, count):
    """Prune the `count` smallest |x| that are not pruned yet; among equal values the first ones."""
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
