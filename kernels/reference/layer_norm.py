"""Layer normalisation of rows x (M, C), then residual and activation (Ba, Kiros & Hinton 2016).

    mean = sum x / C        var = sum (x - mean)^2 / C        rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) rstd        z = xhat gamma + beta + residual        y = f(z)

The sums for mean and var go over a row's C values: each row has its own, and no row depends on another.

Backwards, with dz = dy f'(z), which is dresidual too, and g = dz gamma:

    dbeta = sum dz        dgamma = sum dz xhat        over the rows
    dx = rstd (g - (sum g + xhat sum g xhat) / C)        with sums over the row

mean, var and rstd (M,) are float64 whatever x is, as in batch_norm.py. The other arrays are of one dtype and contiguous. Saved for
backward: x, mean, rstd, and y, or z where f' is taken from it.
"""

import numpy as np

from .activation import activation_backward, activation_forward


def layer_norm_forward(x, affine, eps, residual, activation, statistics, saved):
    """Write statistics, mean and rstd (M,), float64, and saved: z, which is the array y where the activation does not need z, and y.

    x, z and y (M, C), C at least 1; residual (M, C) may be None. Two passes in float64, from a row's first value, so that a constant row
    has exactly 0 for its var.
    """
    (mean, rstd), (gamma, beta), (z, y) = statistics, affine, saved
    first = x[:, 0].astype(np.float64)
    mean[...] = first + (x - first[:, None]).mean(axis=1)
    from_mean = x - mean[:, None]
    rstd[...] = 1 / np.sqrt((from_mean**2).mean(axis=1) + eps)
    z[...] = from_mean * rstd[:, None] * gamma + beta
    if residual is not None:
        z += residual
    activation_forward(z, y, activation)


def layer_norm_backward(dy, x, statistics, affine, activation, saved, gradients):
    """Overwrite gradients: dz (M, C), the gradient of the residual, None without a residual; dx (M, C) or None; dgamma and dbeta (C,)."""
    (mean, rstd), (dz, dx, dgamma, dbeta) = statistics, gradients
    if dz is None:
        dz = np.empty_like(dy)
    activation_backward(dy, *saved, dz, activation)
    xhat = (x - mean[:, None]) * rstd[:, None]
    dbeta[...], dgamma[...] = dz.sum(axis=0, dtype=np.float64), (dz * xhat).sum(axis=0)
    if dx is not None:
        g = dz.astype(np.float64) * affine.gamma
        from_statistics = g.mean(axis=1, keepdims=True) + xhat * (g * xhat).mean(axis=1, keepdims=True)
        dx[...] = rstd[:, None] * (g - from_statistics)
