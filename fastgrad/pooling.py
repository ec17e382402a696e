"""What an LSTM layer makes of its rows: themselves, each sequence's last one, or their mean.

A function (h, h_n, batch) of the rows h (R, D P), the directions side by side, and of each direction's last, h_n (D, N, P),
returns (y, backward); backward(dy) returns the gradients of h, and of h_n as (N, D P), or None where there is none.
"""

from collections.abc import Callable

import numpy as np

from fastgrad.arithmetic import silent
from fastgrad.memory import empty
from fastgrad.rows import Batch, above

Unpool = Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray | None]]


def every(h: np.ndarray, h_n: np.ndarray, batch: Batch) -> tuple[np.ndarray, Unpool]:
    """y (R, D P) = h."""
    return h, lambda dy: (dy, None)


def last(h: np.ndarray, h_n: np.ndarray, batch: Batch) -> tuple[np.ndarray, Unpool]:
    """y (N, D P) = h_n."""
    return np.concatenate(h_n, axis=1, out=empty((h_n.shape[1], h.shape[1]), h)), lambda dy: (None, dy)


@silent
def mean(h: np.ndarray, h_n: np.ndarray, batch: Batch) -> tuple[np.ndarray, Unpool]:
    """y (N, D P), added step by step, so that a sequence has the same bits alone and in a batch; 0 of no steps."""
    order, offsets = batch.order, batch.offsets
    n, under_way = len(order), np.diff(offsets)
    counts = np.maximum(above(under_way, n), 1).astype(h.dtype)[:, None]  # (N, 1)
    total, y = (empty((n, h.shape[1]), h) for _ in range(2))
    total[...] = 0
    for t, rows in enumerate(under_way):
        total[:rows] += h[offsets[t] : offsets[t + 1]]
    total /= counts
    y[order] = total

    @silent
    def backward(dy: np.ndarray) -> tuple[np.ndarray, None]:
        share, dh = dy[order] / counts, empty(h.shape, h)
        for t, rows in enumerate(under_way):
            dh[offsets[t] : offsets[t + 1]] = share[:rows]
        return dh, None

    return y, backward


POOLS: dict[str | None, Callable[..., tuple[np.ndarray, Unpool]]] = {None: every, "last": last, "mean": mean}
