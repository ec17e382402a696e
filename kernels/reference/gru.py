"""GRU over whole sequences (Cho et al. 2014; the reset gate after the product: as in cuDNN, PyTorch and Keras).

    a = x_t w_ih + b, in three parts of H columns; w_hh = w_hr, w_hz, w_hn likewise
    r = sigmoid(a_r + h_{t-1} w_hr)     z = sigmoid(a_z + h_{t-1} w_hz)
    n = tanh(a_n + r q), q = h_{t-1} w_hn + b_hn          with reset_after
    n = tanh(a_n + s w_hn), s = r h_{t-1}                 without
    h_t = n + z (h_{t-1} - n)

Backwards, with dh from above and from the step after; dz, in three parts, is the gradient of what is inside of sigmoid and tanh:

    dz_n = dh (1 - z) (1 - n^2)         dz_z = dh (h_{t-1} - n) z (1 - z)
    dz_r = dz_n q r (1 - r)             dh_{t-1} = dh z + dz_r w_hr^T + dz_z w_hz^T + dq w_hn^T, dq = dz_n r          with reset_after
    dz_r = ds h_{t-1} r (1 - r)         dh_{t-1} = dh z + dz_r w_hr^T + dz_z w_hz^T + ds r, ds = dz_n w_hn^T          without

Sequences are rows as packing.py lays them out; with `reverse` the steps run from each sequence's last to its first, and step t - 1 of the
formulas is the step that ran before t.

w_ih (C, 3H) and w_hh (H, 3H) in the order r, z, n; b (3H,) or None; b_hn (H,) or None, which it is without reset_after, where b has it.
The states h_0 and h_n (N, H) are in the caller's order. All arrays are contiguous, but the rows of xs, h and dh may lie apart, and w_ih and
w_hh may be the transposes of contiguous arrays.
"""

import numpy as np

from .activation import sigmoid
from .packing import rows_before, steps


def gru_forward(xs, weights, h_0, batch, saved, h_n, *, reset_after):
    """Write h and the arrays for backward to `saved`, and the state after each sequence's last step to h_n."""
    w_ih, w_hh, b, b_hn = weights
    gates, reset, h = saved
    order, offsets, _ = batch
    hidden = h_0.shape[1]
    state = h_0[order]
    gates[...] = xs @ w_ih
    if b is not None:
        gates += b
    for t in steps(batch):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        h_before = state[:n]
        r, z, new = (gates[rows, k * hidden : (k + 1) * hidden] for k in range(3))
        r += h_before @ w_hh[:, :hidden]
        z += h_before @ w_hh[:, hidden : 2 * hidden]
        r[...], z[...] = sigmoid(r), sigmoid(z)
        if reset_after:
            reset[rows] = h_before @ w_hh[:, 2 * hidden :]
            if b_hn is not None:
                reset[rows] += b_hn
            new += r * reset[rows]
        else:
            reset[rows] = r * h_before
            new += reset[rows] @ w_hh[:, 2 * hidden :]
        new[...] = np.tanh(new)
        h[rows] = new + z * (h_before - new)
        state[:n] = h[rows]
    h_n[order] = state


def gru_backward(upstream, xs, weights, h_0, batch, saved, gradients, accumulate, *, reset_after):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    dh, dh_n = upstream
    w_ih, w_hh, _, _ = weights
    gates, reset, h = saved
    dz, dxs, dweights, dh_0, squares = gradients
    order, offsets, _ = batch
    hidden = h_0.shape[1]
    of_gates, of_n = slice(0, 2 * hidden), slice(2 * hidden, None)
    state = np.zeros_like(h_0) if dh_n is None else dh_n[order]
    h_before = rows_before(h, h_0, batch)
    r, z, new = (gates[:, k * hidden : (k + 1) * hidden].copy() for k in range(3))
    dz_r, dz_z, dz_n = (dz[:, k * hidden : (k + 1) * hidden] for k in range(3))
    dh_whole = np.empty((len(h), hidden), h.dtype)  # every step's whole dL/dh_t
    for t in reversed(steps(batch)):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        dh_t = state[:n] if dh is None else state[:n] + dh[rows]
        dh_whole[rows] = dh_t
        dz_n[rows] = dh_t * (1 - z[rows]) * (1 - new[rows] ** 2)
        dz_z[rows] = dh_t * (h_before[rows] - new[rows]) * z[rows] * (1 - z[rows])
        if reset_after:
            dz_r[rows] = dz_n[rows] * reset[rows] * r[rows] * (1 - r[rows])
            of_h = (dz_n[rows] * r[rows]) @ w_hh[:, of_n].T
        else:
            ds = dz_n[rows] @ w_hh[:, of_n].T
            dz_r[rows] = ds * h_before[rows] * r[rows] * (1 - r[rows])
            of_h = ds * r[rows]
        state[:n] = dh_t * z[rows] + of_h + dz[rows, of_gates] @ w_hh[:, of_gates].T
    if dxs is not None:
        dxs[...] = dz @ w_ih.T
    for gradient in dweights:
        if gradient is not None and not accumulate:
            gradient[...] = 0
    dw_ih, dw_hh, db, db_hn = dweights
    dw_ih += xs.T @ dz
    dw_hh[:, of_gates] += h_before.T @ dz[:, of_gates]
    dw_hh[:, of_n] += h_before.T @ (dz_n * r) if reset_after else reset.T @ dz_n
    if db is not None:
        db += dz.sum(axis=0, dtype=np.float64).astype(db.dtype)
    if db_hn is not None:
        db_hn += (dz_n * r).sum(axis=0, dtype=np.float64).astype(db_hn.dtype)
    if squares is not None:
        squares[...] = (dh_whole.astype(np.float64) ** 2).sum(axis=1)
    dh_0[order] = state
