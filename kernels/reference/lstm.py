"""LSTM over whole sequences (Hochreiter & Schmidhuber 1997; forget gate and peepholes: Gers et al. 2002; projection: Sak et al. 2014).

    z = x_t w_ih + h_{t-1} w_hh + b, in four parts of H columns
    i = sigmoid(z_i + p_i c_{t-1})      f = sigmoid(z_f + p_f c_{t-1})      g = tanh(z_g)
    c_t = f c_{t-1} + i g               o = sigmoid(z_o + p_o c_t)          h_t = (o tanh c_t) w_proj

Backwards, with dh and dc from above and from the step after:

    dr = dh w_proj^T                    dz_o = dr tanh c_t o (1 - o)
    dc += dr o (1 - tanh^2 c_t) + p_o dz_o
    dz_i = dc g i (1 - i)               dz_f = dc c_{t-1} f (1 - f)         dz_g = dc i (1 - g^2)
    dh_{t-1} = dz w_hh^T                dc_{t-1} = dc f + p_i dz_i + p_f dz_f

Sequences are rows as packing.py lays them out; with `reverse` the steps run from each sequence's last to its first, and step t - 1 of the
formulas is the step that ran before t.

w_ih (C, 4H) and w_hh (P, 4H) in the order i, f, g, o; b (4H,) or None; peephole (3, H) = p_i, p_f, p_o or None; w_proj (H, P) or None,
where P = H. The states at the start and at the end are in the caller's order. All arrays are contiguous, but the rows of xs, h and dh may
lie apart, and w_ih and w_hh may be the transposes of contiguous arrays.
"""

import numpy as np

from .activation import sigmoid
from .packing import rows_before, steps


def lstm_forward(xs, weights, start, batch, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    w_ih, w_hh, b, peephole, w_proj = weights
    gates, c, tanh_c, h = saved
    order, offsets, _ = batch
    hidden = start.c.shape[1]
    state_h, state_c = start.h[order], start.c[order]
    gates[...] = xs @ w_ih
    if b is not None:
        gates += b
    for t in steps(batch):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        z, c_before = gates[rows] + state_h[:n] @ w_hh, state_c[:n]
        i, f, g, o = (z[:, k * hidden : (k + 1) * hidden] for k in range(4))
        if peephole is not None:
            i += peephole[0] * c_before
            f += peephole[1] * c_before
        i[...], f[...], g[...] = sigmoid(i), sigmoid(f), np.tanh(g)
        c_now = f * c_before + i * g
        if peephole is not None:
            o += peephole[2] * c_now
        o[...] = sigmoid(o)
        tanh_now = np.tanh(c_now)
        h[rows] = o * tanh_now if w_proj is None else (o * tanh_now) @ w_proj
        gates[rows], state_h[:n], state_c[:n] = z, h[rows], c_now
        if c is not None:
            c[rows], tanh_c[rows] = c_now, tanh_now
    end.h[order], end.c[order] = state_h, state_c


def lstm_backward(upstream, xs, weights, start, batch, saved, gradients, accumulate):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero.

    The gradients of the weights are added to the arrays if `accumulate`, and overwritten if not.
    """
    dh, dh_n, dc_n = upstream
    w_ih, w_hh, _, peephole, w_proj = weights
    gates, c, tanh_c, h = saved
    dz, dxs, dweights, dstart, squares = gradients
    order, offsets, _ = batch
    hidden = start.c.shape[1]
    state_dh = np.zeros_like(start.h) if dh_n is None else dh_n[order]
    state_dc = np.zeros_like(start.c) if dc_n is None else dc_n[order]
    h_before, c_before = rows_before(h, start.h, batch), rows_before(c, start.c, batch)
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden].copy() for k in range(4))
    dz_i, dz_f, dz_g, dz_o = (dz[:, k * hidden : (k + 1) * hidden] for k in range(4))
    dh_whole = np.empty((len(h), h.shape[1]), h.dtype)  # every step's whole dL/dh_t
    for t in reversed(steps(batch)):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        dh_t = state_dh[:n] if dh is None else state_dh[:n] + dh[rows]
        dh_whole[rows] = dh_t
        dr = dh_t if w_proj is None else dh_t @ w_proj.T
        dz_o[rows] = dr * tanh_c[rows] * o[rows] * (1 - o[rows])
        dc = state_dc[:n] + dr * o[rows] * (1 - tanh_c[rows] ** 2)
        if peephole is not None:
            dc += peephole[2] * dz_o[rows]
        dz_i[rows] = dc * g[rows] * i[rows] * (1 - i[rows])
        dz_f[rows] = dc * c_before[rows] * f[rows] * (1 - f[rows])
        dz_g[rows] = dc * i[rows] * (1 - g[rows] ** 2)
        state_dc[:n] = dc * f[rows]
        if peephole is not None:
            state_dc[:n] += peephole[0] * dz_i[rows] + peephole[1] * dz_f[rows]
        state_dh[:n] = dz[rows] @ w_hh.T
    if dxs is not None:
        dxs[...] = dz @ w_ih.T
    for gradient in dweights:
        if gradient is not None and not accumulate:
            gradient[...] = 0
    dw_ih, dw_hh, db, dpeephole, dw_proj = dweights
    dw_ih += xs.T @ dz
    dw_hh += h_before.T @ dz
    if db is not None:
        db += dz.sum(axis=0, dtype=np.float64).astype(db.dtype)
    if dpeephole is not None:
        products = dz_i * c_before, dz_f * c_before, dz_o * c
        dpeephole += np.array([p.sum(axis=0, dtype=np.float64) for p in products]).astype(dpeephole.dtype)
    if dw_proj is not None:
        dw_proj += (o * tanh_c).T @ dh_whole
    if squares is not None:
        squares[...] = (dh_whole.astype(np.float64) ** 2).sum(axis=1)
    dstart.h[order], dstart.c[order] = state_dh, state_dc
