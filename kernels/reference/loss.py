"""Losses, each with its gradient times `scale`: the 1 / count of a mean, or 1 for a sum.

    cross_entropy         l_i = sum_c t_ic (log sum_j exp(z_ij) - z_ic)       dz_ij = softmax(z_i)_j sum_c t_ic - t_ij
    binary_cross_entropy  l   = max(z, 0) - z t + log(1 + exp(-|z|))          dz    = sigmoid(z) - t
    mse                   l   = (y - t)^2                                     dy    = 2 (y - t)
    poisson_nll           l   = exp(z) - z t                                  dz    = exp(z) - t

The first two are the negative log-likelihoods of p = softmax(z) and p = sigmoid(z), computed from the logits z so that no p underflows
(Goodfellow et al. 2016, 6.2.2). The last one is that of counts t with the rate exp(z), without the term log t!. Logits (N, C); labels are
int64 class numbers (N,), or t itself (N, C). A target of exactly 0 adds nothing to the loss, whatever log p is: 0 log 0 = 0. A class number
outside 0..C - 1 makes its row NaN.
Each function returns the sum of the losses, added in float64.
"""

import numpy as np

from .activation import sigmoid


def cross_entropy(logits, labels, losses, dlogits, scale):
    """losses (N,) and dlogits (N, C) = scale dz are written."""
    if labels.ndim == 1:
        # read once: another thread may write to them
        known = (labels := labels.copy()) == np.clip(labels, 0, logits.shape[1] - 1)
        labels[~known] = 0
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    minus_log_p = np.log(total) - shifted
    if labels.ndim == 1:
        rows = np.arange(len(labels))
        losses[...] = minus_log_p[rows, labels]
        dlogits[...] = e / total
        dlogits[rows, labels] -= 1
        losses[~known] = dlogits[~known] = np.nan
    else:
        losses[...] = _times(labels, minus_log_p).sum(axis=1)
        dlogits[...] = e / total * labels.sum(axis=1, keepdims=True) - labels
    dlogits *= scale
    return float(losses.sum(dtype=np.float64))


def binary_cross_entropy(logits, targets, losses, dlogits, scale):
    """losses and dlogits = scale dz are written, of the logits' shape."""
    # max(z, 0) - z t, without a difference of infinities
    losses[...] = _times(np.where(logits > 0, 1 - targets, targets), np.abs(logits))
    losses += np.log1p(np.exp(-np.abs(logits)))
    dlogits[...] = (sigmoid(logits) - targets) * scale
    return float(losses.sum(dtype=np.float64))


def poisson_nll(z, target, losses, dz, scale):
    """losses and dz = scale (exp(z) - target) are written, of z's shape."""
    rate = np.exp(z)
    losses[...] = rate - _times(target, z)
    dz[...] = (rate - target) * scale
    return float(losses.sum(dtype=np.float64))


def mse(y, target, losses, dy, scale):
    """losses and dy = 2 scale (y - target) are written, of y's shape."""
    losses[...] = np.square(y - target)
    dy[...] = 2 * (y - target) * scale
    return float(losses.sum(dtype=np.float64))


def _times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return np.where((t == 0) & np.isinf(log_p), log_p.dtype.type(0), t * log_p)
