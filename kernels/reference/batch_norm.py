"""Batch normalisation over rows x (M, C), channels last, then residual and activation (Ioffe & Szegedy 2015).

    mean = sum x / M        var = sum (x - mean)^2 / M        rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) rstd        z = xhat gamma + beta + residual        y = f(z)

In training mean and var are those of the batch, otherwise the running statistics.

Backwards, with dz = dy f'(z), which is dresidual too:

    dbeta = sum dz        dgamma = sum dz xhat
    dx = gamma rstd (dz - (dbeta + xhat dgamma) / M)        where mean and var are the batch's, else gamma rstd dz

mean, var and rstd (C,) are float64 whatever x is: a mean of 1e6 rounded to float32 would be off by 0.03. The other arrays are of one
dtype and contiguous. Saved for backward: x, mean, rstd, and y, or z where f' is taken from it.
"""

import numpy as np

from .activation import activation_backward, activation_forward


def batch_norm_statistics(x, running, training, eps, statistics):
    """Write statistics, mean and rstd (C,), float64: of x (M, C) in training, else from the running mean and var.

    In training the running mean and var (C,), unless None, move by momentum towards the batch's; var unbiased or not. With no rows mean is
    0, rstd is that of var 1, and nothing moves.

    Two passes in float64, from the first row, so that a constant channel has exactly 0 for its var. A running var beyond the dtype is
    stored as the largest finite value, so that it can fall again.
    """
    (mean, rstd), count, var = statistics, len(x), 1.0
    mean[...] = 0
    if not training:
        mean[...], var = running.mean, running.var.astype(np.float64)
    elif count:
        from_first = x.astype(np.float64) - x[0]
        mean[...] = x[0] + from_first.mean(axis=0)
        var = ((x - mean) ** 2).mean(axis=0)
        if running.mean is not None:
            new_var = var * count / (count - 1) if running.unbiased else var
            for old, batch_value in ((running.mean, mean), (running.var, new_var)):
                value = (1 - running.momentum) * old.astype(np.float64) + running.momentum * batch_value
                old[...] = np.where(np.isfinite(value), np.minimum(value, np.finfo(x.dtype).max), value)
    rstd[...] = 1 / np.sqrt(var + eps)


def batch_norm_forward(x, statistics, affine, residual, activation, saved):
    """Write saved: z, which is the array y where the activation does not need z, and y (M, C); residual (M, C) may be None."""
    (mean, rstd), (gamma, beta), (z, y) = statistics, affine, saved
    z[...] = (x - mean) * rstd * gamma + beta
    if residual is not None:
        z += residual
    activation_forward(z, y, activation)


def batch_norm_backward(dy, x, statistics, affine, activation, batch_statistics, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,).

    batch_statistics: whether mean and rstd are the batch's.
    """
    (mean, rstd), (dz, dx, dgamma, dbeta) = statistics, gradients
    if dz is None:
        dz = np.empty_like(dy)
    activation_backward(dy, *saved, dz, activation)
    xhat = (x - mean) * rstd
    sum_dz, sum_dz_xhat = dz.sum(axis=0, dtype=np.float64), (dz * xhat).sum(axis=0)
    dbeta[...], dgamma[...] = sum_dz, sum_dz_xhat
    if dx is not None:
        from_statistics = (sum_dz + xhat * sum_dz_xhat) / max(len(x), 1) if batch_statistics else 0
        dx[...] = affine.gamma * rstd * (dz - from_statistics)
