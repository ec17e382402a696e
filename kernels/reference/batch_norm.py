"""Batch normalisation over rows x (M, C), channels last (Ioffe & Szegedy 2015), with what often follows it.

    mean = sum x / M        var = sum (x - mean)^2 / M        rstd = 1 / sqrt(var + eps), of the batch or given
    xhat = (x - mean) rstd        z = xhat gamma + beta + residual        y = f(z)

Backwards, with dz = dy f'(z), which is dresidual too:

    dbeta = sum dz        dgamma = sum dz xhat
    dx = gamma rstd (dz - (dbeta + xhat dgamma) / M)        where mean and var are the batch's, else gamma rstd dz

mean, var and rstd (C,) are float64 whatever x is: a mean of 1e6 rounded to float32 would be off by 0.03. The other arrays are of one
dtype and contiguous. Saved for backward: x, mean, rstd, and y, or z where f' is taken from it.
"""

import numpy as np

from .activation import activation_backward, activation_forward


def batch_norm_statistics(x, running_mean, running_var, training, momentum, eps, unbiased, mean, rstd):
    """mean and rstd (C,), float64: of x (M, C) in training, from which running_mean and running_var (C,), unless None, are moved by
    momentum, with var unbiased or not; else of the running ones. In training without rows 0 and 1, and nothing is moved.

    Two passes in float64, from the first row, so that a constant channel has exactly 0 for its var. A running var that the dtype cannot
    hold is the largest value that it can, from which it comes back.
    """
    count, var = len(x), 1.0
    mean[...] = 0
    if not training:
        mean[...], var = running_mean, running_var.astype(np.float64)
    elif count:
        from_first = x.astype(np.float64) - x[0]
        mean[...] = x[0] + from_first.mean(axis=0)
        var = ((x - mean) ** 2).mean(axis=0)
        if running_mean is not None:
            moved = var * count / (count - 1) if unbiased else var
            for running, batch in ((running_mean, mean), (running_var, moved)):
                value = (1 - momentum) * running.astype(np.float64) + momentum * batch
                running[...] = np.where(np.isfinite(value), np.minimum(value, np.finfo(x.dtype).max), value)
    rstd[...] = 1 / np.sqrt(var + eps)


def batch_norm_forward(x, mean, rstd, gamma, beta, residual, activation, z, y):
    """z, which is y where the activation does not need it, and y (M, C); residual (M, C) may be None."""
    z[...] = (x - mean) * rstd * gamma + beta
    if residual is not None:
        z += residual
    activation_forward(z, y, activation)


def batch_norm_backward(dy, x, mean, rstd, gamma, beta, activation, of_batch, z, y, dz, dx, dgamma, dbeta):
    """dz (M, C), which is dresidual and None where there was no residual, dx (M, C) or None, dgamma and dbeta (C,).

    of_batch: whether mean and rstd are the batch's.
    """
    if dz is None:
        dz = np.empty_like(dy)
    activation_backward(dy, z, y, dz, activation)
    xhat = (x - mean) * rstd
    sum_dz, sum_dz_xhat = dz.sum(axis=0, dtype=np.float64), (dz * xhat).sum(axis=0)
    dbeta[...], dgamma[...] = sum_dz, sum_dz_xhat
    if dx is not None:
        below = (sum_dz + xhat * sum_dz_xhat) / max(len(x), 1) if of_batch else 0
        dx[...] = gamma * rstd * (dz - below)
