"""The weights of a GRU: GRUWeights, the group in which kernels take them, made from a caller's arrays.

    w_ih  (C, 3H)  from x_t to the gates: columns 0 .. H are those of r, then z and n, H columns each
    w_hh  (H, 3H)  from h_{t-1} to the gates, in the same order
    b     (3H,)    the bias of the gates, or None
    b_hn  (H,)     a bias of h_{t-1} w_hn, which r multiplies, or None; there is none where r multiplies h_{t-1} before the product

convert/recurrent_arrays.py has the layouts of PyTorch, Keras and ONNX; the formulas are in kernels/reference/gru.py.
"""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, zeros
from fastgrad.functional.lstm_weights import contiguous
from fastgrad.kernels.types import GRUWeights as GRUWeights


def checked_weights(op: str, x: np.ndarray, w_ih: Any, w_hh: Any, b: Any, b_hn: Any, reset_after: bool) -> GRUWeights:
    """The weights, checked and C-contiguous, as GRUWeights, for inputs of the width and dtype of x."""
    w_ih = check.contiguous(check.array(op, "w_ih", w_ih, "(C, 3H)", (x.shape[-1], None), x))
    columns = w_ih.shape[1]
    if columns % 3:
        raise ValueError(
            f"{op}: w_ih must be (C, 3H), got {w_ih.shape}, of which {columns} columns are not three gates"
        )
    hidden = columns // 3
    w_hh = contiguous(op, "w_hh", w_hh, "(H, 3H)", (hidden, columns), x)
    if b is not None:
        b = contiguous(op, "b", b, "(3H,)", (columns,), x)
    if b_hn is not None:
        if not reset_after:
            raise ValueError(f"{op}: b_hn must be None with reset_after=False, where b has the bias of n")
        b_hn = contiguous(op, "b_hn", b_hn, "(H,)", (hidden,), x)
    return GRUWeights(w_ih, w_hh, b, b_hn)


def start_state(op: str, n: int, weights: GRUWeights, h: Any, name: str = "h_0") -> np.ndarray:
    """The state h (N, H), checked and C-contiguous; zeros in place of None."""
    w_hh = weights.w_hh
    shape = n, len(w_hh)
    return zeros(shape, w_hh) if h is None else contiguous(op, name, h, "(N, H)", shape, w_hh)


def empty_gradients(weights: GRUWeights) -> GRUWeights:
    """Uninitialised gradients of the weights."""
    return GRUWeights._make(None if w is None else empty(w.shape, w) for w in weights)
