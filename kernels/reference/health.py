"""Health statistics of gradients, outputs and updates; the arithmetic is in float64.

    gradients   norm |g|_2, largest |g|, share of zeros, how many are NaN or infinite
    outputs     mean and spread (standard deviation) of all values, NaN where they are not finite;
                saturated: the share of values y <= low or y >= high;
                dead: the share of columns whose values are all 0, or flat: y <= flat_low or y >= flat_high
    updates     ratio |dw|_2 / |w|_2 of the change by the optimiser to the weights before it, 0 where nothing changes

bands (4,) = low, high, flat_low, flat_high of an output's activation. Columns are units: of an image's or sequence's output (rows, columns)
the rows are its pixels or steps. An output of no rows has no mean and spread (NaN) and shares of 0.
"""

import numpy as np

from .. import types
from .clip import array_norms


def array_health(arrays, health):
    """health (n, 4) of C-contiguous arrays: norm, largest magnitude, share of zeros, and how many are not finite."""
    norms, counts = np.empty(len(arrays)), np.empty(len(arrays), np.int64)
    array_norms(arrays, None, 2.0, norms, counts)
    for a, array in enumerate(arrays):
        largest = np.abs(array).max(initial=0)
        health[a] = norms[a], largest, np.count_nonzero(array == 0) / max(array.size, 1), counts[a]


def output_health(outputs, bands, health):
    """health (n, 4) of C-contiguous outputs (rows, columns): mean, spread, saturated and dead share, by bands (n, 4)."""
    for y, band, row in zip(outputs, bands, health, strict=True):
        # limits are rounded to what they are compared with
        low, high, flat_low, flat_high = band.astype(y.dtype)
        wide = y.astype(np.float64)
        moments = np.array([wide.mean(), wide.std()]) if y.size else np.full(2, np.nan)
        row[:2] = np.where(np.isfinite(moments), moments, np.nan)
        saturated = (y <= low) | (y >= high)
        flat = (y == 0) | (y <= flat_low) | (y >= flat_high)
        row[2:] = (saturated.mean(), flat.all(axis=0).mean()) if y.size else (0, 0)


def change(before, after):
    """The sums of squares of after - before, and of before."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    return np.square(after - before).sum(), np.square(before).sum()


def layer_health(watch, gradients, outputs, row):
    """row (L, 9) of a chain: gradients, a list for each layer, and outputs (rows, columns). The updates' ratio is set to NaN."""
    array_health([np.concatenate([g.reshape(-1) for g in layer]) for layer in gradients], row[:, :4])
    output_health(outputs, watch.bands, row[:, 4:8])
    row[:, types.HEALTH.index("update_ratio")] = np.nan


def update_health(table, before, after, row):
    """The updates' ratio in row (L, 9), from flat parameters laid out as in training_step.py."""
    for l, (n_in, n_out, w, b, _) in enumerate(table.tolist()):
        slices = [slice(w, w + n_in * n_out), *([slice(b, b + n_out)] if b >= 0 else [])]
        moved, weight = np.sum([change(before[values], after[values]) for values in slices], axis=0)
        row[l, types.HEALTH.index("update_ratio")] = ratio(moved, weight)


def ratio(moved, weight):
    """|dw| / |w| from their squares."""
    if moved == 0:
        return 0.0
    return float(np.sqrt(moved / weight)) if weight else np.inf
