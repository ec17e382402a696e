"""LSTM over whole sequences with layer norm (Ba, Kiros & Hinton 2016), zoneout (Krueger et al. 2017) and recurrent dropout (Semeniuta et
al. 2016), each of which may be absent.

    u = x_t w_ih        v = h_{t-1} w_hh
    z = LN(u) gamma_x + LN(v) gamma_h + b, in four parts of H columns; or u + v + b
    i = sigmoid(z_i)    f = sigmoid(z_f)    g = tanh(z_g)    o = sigmoid(z_o)
    cell = f c_{t-1} + i (m g)                  tanh_c = tanh(LN(cell) gamma_c + beta_c), or tanh(cell)
    c_t = k_c cell + (1 - k_c) c_{t-1}          h_t = k_h o tanh_c + (1 - k_h) h_{t-1}

LN(a) = (a - mean) rstd over a row, as in layer_norm.py. One bias is enough: those of the two norms would only be added to it.

m, k_c and k_h are the factors of recurrent dropout and zoneout, drawn anew for every step and unit. In training, m is 1 / (1 - p) where the
random number is at least p, else 0: only g is dropped, never c. k is 0 where it is below zoneout's p, and the unit keeps its value; else
k is 1. In evaluation m = 1 and k = 1 - p, the expectations. The number of unit j at step t is number t H + j of a key of
the sequence and the factor, itself number 3 n + 0, 1 or 2 of `key`, for m, k_c and k_h: see dropout.py. n is the sequence's place in the
batch. So backward computes the factors again, and they depend neither on other sequences nor on lengths.

Backwards, with dh and dc from above and from the step after:

    dr = k_h dh                         dz_o = dr tanh_c o (1 - o)
    dn = dr o (1 - tanh_c^2)            dcell = k_c dc + dLN(dn), or k_c dc + dn
    dz_i = dcell m g i (1 - i)          dz_f = dcell c_{t-1} f (1 - f)      dz_g = dcell i m (1 - g^2)
    du, dv = dLN(dz), or dz             dx = du w_ih^T
    dh_{t-1} = dv w_hh^T + (1 - k_h) dh                                     dc_{t-1} = dcell f + (1 - k_c) dc

Rows, states, gates and strides are those of lstm.py. The gradients of the weights are overwritten.
"""

import numpy as np

from .activation import sigmoid
from .dropout import random_at
from .packing import rows_before, steps


def lstm_variant_forward(xs, weights, start, batch, variant, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    w_ih, w_hh, b, gamma_x, gamma_h, gamma_c, beta_c = weights
    gates, c, tanh_c, h, u, v, cell, mean, rstd = saved
    order, offsets, _ = batch
    hidden, has_norm = start.c.shape[1], gamma_x is not None
    state_h, state_c = start.h[order], start.c[order]
    gates[...] = xs @ w_ih
    if has_norm:
        numbers = row_statistics(gates, variant.eps)
        if u is not None:
            u[...], mean[0], rstd[0] = gates, *numbers
        gates[...] = normalised(gates, *numbers) * gamma_x
    if b is not None:
        gates += b
    for t in steps(batch):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        h_before, c_before = state_h[:n].copy(), state_c[:n].copy()
        product = h_before @ w_hh
        if has_norm:
            numbers = row_statistics(product, variant.eps)
            if v is not None:
                v[rows], mean[1, rows], rstd[1, rows] = product, *numbers
            product = normalised(product, *numbers) * gamma_h
        gates[rows] += product
        i, f, g, o = (gates[rows, k * hidden : (k + 1) * hidden] for k in range(4))
        i[...], f[...], g[...], o[...] = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        m, k_c, k_h = step_factors(variant, order[:n], t, hidden, xs.dtype)
        new = f * c_before + i * (m * g)
        state_c[:n] = k_c * new + (1 - k_c) * c_before
        if has_norm:
            numbers = row_statistics(new, variant.eps)
            if cell is not None:
                cell[rows], mean[2, rows], rstd[2, rows] = new, *numbers
            new = normalised(new, *numbers) * gamma_c + beta_c
        tanh_now = np.tanh(new).astype(xs.dtype)
        if c is not None:
            c[rows], tanh_c[rows] = state_c[:n], tanh_now
        state_h[:n] = h[rows] = k_h * (o * tanh_now) + (1 - k_h) * h_before
    end.h[order], end.c[order] = state_h, state_c


def lstm_variant_backward(upstream, xs, weights, start, batch, variant, saved, gradients):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero."""
    dh, dh_n, dc_n = upstream
    w_ih, w_hh, _, gamma_x, gamma_h, gamma_c, _ = weights
    gates, c, tanh_c, h, u, v, cell, mean, rstd = saved
    dz, du, dv, dn, dxs, (dw_ih, dw_hh, db, *dnorms), dstart, squares = gradients
    order, offsets, _ = batch
    hidden, has_norm = start.c.shape[1], gamma_x is not None
    state_dh = np.zeros_like(start.h) if dh_n is None else dh_n[order]
    state_dc = np.zeros_like(start.c) if dc_n is None else dc_n[order]
    h_before, c_before = rows_before(h, start.h, batch), rows_before(c, start.c, batch)
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden].copy() for k in range(4))
    dz_i, dz_f, dz_g, dz_o = (dz[:, k * hidden : (k + 1) * hidden] for k in range(4))
    dh_whole = np.empty_like(c)
    if has_norm:
        uhat, vhat, cellhat = (normalised(a, *numbers) for a, *numbers in zip((u, v, cell), mean, rstd, strict=True))
    for t in reversed(steps(batch)):
        rows, n = slice(offsets[t], offsets[t + 1]), offsets[t + 1] - offsets[t]
        m, k_c, k_h = step_factors(variant, order[:n], t, hidden, xs.dtype)
        dh_t = state_dh[:n] if dh is None else state_dh[:n] + dh[rows]
        dh_whole[rows] = dh_t
        dr, dc = k_h * dh_t, state_dc[:n]
        dz_o[rows] = dr * tanh_c[rows] * o[rows] * (1 - o[rows])
        dcell = dr * o[rows] * (1 - tanh_c[rows] ** 2)
        if has_norm:
            dn[rows] = dcell
            dcell = norm_gradient(dn[rows], gamma_c, cellhat[rows], rstd[2, rows])
        dcell = k_c * dc + dcell
        dz_i[rows] = dcell * m * g[rows] * i[rows] * (1 - i[rows])
        dz_f[rows] = dcell * c_before[rows] * f[rows] * (1 - f[rows])
        dz_g[rows] = dcell * i[rows] * m * (1 - g[rows] ** 2)
        if has_norm:
            du[rows] = norm_gradient(dz[rows], gamma_x, uhat[rows], rstd[0, rows])
            dv[rows] = norm_gradient(dz[rows], gamma_h, vhat[rows], rstd[1, rows])
        state_dc[:n] = dcell * f[rows] + (1 - k_c) * dc
        state_dh[:n] = dv[rows] @ w_hh.T + (1 - k_h) * dh_t
    if dxs is not None:
        dxs[...] = du @ w_ih.T
    dw_ih[...], dw_hh[...] = xs.T @ du, h_before.T @ dv
    if db is not None:
        db[...] = dz.sum(axis=0, dtype=np.float64)
    if has_norm:
        sums = (
            (dz * uhat).sum(axis=0),
            (dz * vhat).sum(axis=0),
            (dn * cellhat).sum(axis=0),
            dn.sum(axis=0, dtype=np.float64),
        )
        for gradient, total in zip(dnorms, sums, strict=True):
            gradient[...] = total
    if squares is not None:
        squares[...] = (dh_whole.astype(np.float64) ** 2).sum(axis=1)
    dstart.h[order], dstart.c[order] = state_dh, state_dc


def step_factors(variant, sequences, t, hidden, dtype):
    """m, k_c and k_h of the sequences at step t, (n, H) each."""
    results = []
    for kind, (factor, limit) in enumerate(variant.factors):
        keys = random_at(3 * sequences + kind, variant.key or 0)
        numbers = random_at(t * hidden + np.arange(hidden), keys[:, None])
        results.append(np.where(numbers >= np.uint64(limit), factor, 0).astype(dtype))
    return results


def row_statistics(a, eps):
    """mean and rstd of each row, float64, from its first value as in layer_norm.py."""
    first = a[:, 0].astype(np.float64)
    mean = first + (a - first[:, None]).mean(axis=1)
    return mean, 1 / np.sqrt(((a - mean[:, None]) ** 2).mean(axis=1) + eps)


def normalised(a, mean, rstd):
    """(a - mean) rstd, float64."""
    return (a - mean[:, None]) * rstd[:, None]


def norm_gradient(dy, gamma, xhat, rstd):
    """dLN: the gradient of what is normalised, from that of xhat gamma + beta."""
    g = dy.astype(np.float64) * gamma
    return rstd[:, None] * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))
