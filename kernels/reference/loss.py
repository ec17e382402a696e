"""Losses, each with its gradient in the same pass.

    cross_entropy         l_i = -sum_c q_ic log softmax(z_i)_c                dz_ij = softmax(z_i)_j sum_c q_ic - q_ij
    binary_cross_entropy  l   = p t log(1 + exp(-z)) + (1 - t) log(1 + exp(z))   dz = sigmoid(z) u - p t,   u = 1 + (p - 1) t
    mse                   l   = (y - t)^2                                     dy    = 2 (y - t)
    poisson_nll           l   = exp(z) - z t                                  dz    = exp(z) - t
    mae                   l   = |y - t|                                       dy    = sign(y - t)
    huber                 l   = d^2 / 2 if |d| < delta, else delta (|d| - delta / 2)   dy = d held to -delta .. delta,   d = y - t

The first two are the negative log-likelihoods of p = softmax(z) and p = sigmoid(z), computed from the logits z so that no p underflows
(Goodfellow et al. 2016, 6.2.2). poisson_nll is that of counts t with the rate exp(z), without the term log t!. A target of exactly 0
adds nothing to the loss, whatever log p is: 0 log 0 = 0.

cross_entropy. Logits (N, C); labels are int64 class numbers (N,), or probabilities t (N, C). With the weights w_c of classes (1 without)
and the label smoothing s (Szegedy et al. 2016, 7) a label k is q_ic = (1 - s) w_k [c = k] + s w_c / C, and a row t_i is
q_ic = w_c ((1 - s) t_ic + s / C). A row of the label ignore_index has the loss 0 and the gradient 0; a class number outside 0..C - 1 makes
its row NaN. p is the weight of binary_cross_entropy's positive targets, 1 without.

The mean, as PyTorch has it: sum(r_i l_i) / sum(v_i), over rows of the weights r_i (row_weights, 1 without). v_i = r_i w_k for a label k, 0
for one that is ignored, and r_i for all other targets; of losses of single values it is also over the columns. It is 0 where the v_i sum
to 0. A row is right where the largest logit, the first of them, is at the label, or at the largest target; of binary_cross_entropy
as far as logits and targets are on the same side of 0 and of 1/2. A row of a NaN loss is not right.
"""

import numpy as np

from .. import types
from .activation import sigmoid


def loss_gradient(y, target, loss, losses, dy, *, row_weights=None, mean=True):
    """losses, r_i l_i, (N,) of cross_entropy or (N, K), and dy (N, K), the gradient of their mean or sum, are written.

    Returns (3,), float64: the mean or the sum of the losses, the sum of the v_i, and that of the v_i of the right rows.
    """
    rows, columns = y.shape
    weights = np.ones(rows, y.dtype) if row_weights is None else row_weights
    counted, right = weights, np.zeros(rows)
    if loss.code == types.CROSS_ENTROPY:
        counted, right = _cross_entropy(y, target, loss, losses, dy)
        counted, columns = weights * counted, 1
        losses *= weights
    else:
        _VALUES[loss.code](y, target, loss, losses, dy)
        losses *= weights[:, None]
    if loss.code == types.BINARY_CROSS_ENTROPY:
        right = (((y > 0) == (target > 0.5)) & ~np.isnan(losses)).sum(axis=1)
    weight, scale = counted.sum(dtype=np.float64), 1.0
    if mean:
        scale = 1 / (weight * columns) if weight * columns else 0.0
    dy *= weights[:, None]
    dy *= scale
    right_weight = (counted * right).sum(dtype=np.float64) / max(columns, 1)
    return np.array([losses.sum(dtype=np.float64) * scale, weight, right_weight])


def is_ignored(labels, ignore_index):
    """Which labels are left out. NO_LABEL as a label, which NaN becomes as an integer, is a bad one."""
    return (labels == ignore_index) & (labels != types.NO_LABEL)


def _cross_entropy(logits, labels, loss, losses, dlogits):
    """Write l_i and dz_ij; returns w_k or 1 of each row, 0 where it is ignored, and whether it is right."""
    _, smoothing, weights, ignore_index = loss
    rows, classes = logits.shape
    dtype = logits.dtype.type
    weights = np.ones(classes, logits.dtype) if weights is None else weights
    counted, ignored, known = np.ones(rows, logits.dtype), np.zeros(rows, np.bool_), np.ones(rows, np.bool_)
    if labels.ndim == 1:
        # read once: another thread may write to them
        labels = labels.copy()
        ignored = is_ignored(labels, ignore_index)
        known = ignored | (labels == np.clip(labels, 0, classes - 1))
        labels[ignored | ~known] = 0
        counted = np.where(ignored, dtype(0), weights[labels]) if classes else counted
        q = np.zeros(logits.shape, logits.dtype) + dtype(smoothing / max(classes, 1)) * weights
        q[np.arange(rows), labels] += dtype(1 - smoothing) * weights[labels]
    else:
        q = labels if smoothing == 0 else dtype(1 - smoothing) * labels + dtype(smoothing / max(classes, 1))
        q = weights * q
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    losses[...] = _times(q, np.log(total) - shifted).sum(axis=1)
    dlogits[...] = e / total * q.sum(axis=1, keepdims=True) - q
    losses[~known] = dlogits[~known] = np.nan
    losses[ignored] = dlogits[ignored] = 0
    if not classes:
        return counted, np.zeros(rows)
    right = logits.argmax(axis=1) == (labels if labels.ndim == 1 else labels.argmax(axis=1))
    return counted, right & ~np.isnan(losses)


def _binary_cross_entropy(logits, targets, loss, losses, dlogits):
    p = logits.dtype.type(1) if loss.weights is None else loss.weights
    u = 1 + (p - 1) * targets
    # u log(1 + exp(-|z|)) and the rest, which is linear in |z|, without a difference of infinities
    losses[...] = _times(np.where(logits > 0, 1 - targets, p * targets), np.abs(logits))
    losses += u * np.log1p(np.exp(-np.abs(logits)))
    dlogits[...] = sigmoid(logits) * u - p * targets


def _poisson_nll(z, target, loss, losses, dz):
    rate = np.exp(z)
    losses[...] = rate - _times(target, z)
    dz[...] = rate - target


def _mse(y, target, loss, losses, dy):
    losses[...] = np.square(y - target)
    dy[...] = 2 * (y - target)


def _mae(y, target, loss, losses, dy):
    losses[...] = np.abs(y - target)
    dy[...] = np.sign(y - target)


def _huber(y, target, loss, losses, dy):
    difference, delta = y - target, y.dtype.type(loss.parameter)
    size = np.abs(difference)
    losses[...] = np.where(size < delta, difference * difference / 2, delta * (size - delta / 2))
    dy[...] = np.clip(difference, -delta, delta)


_VALUES = {
    types.BINARY_CROSS_ENTROPY: _binary_cross_entropy,
    types.MSE: _mse,
    types.POISSON_NLL: _poisson_nll,
    types.MAE: _mae,
    types.HUBER: _huber,
}


def _times(t, log_p):
    """t log_p, where 0 times an infinity is 0, and 0 times NaN is NaN."""
    return np.where((t == 0) & np.isinf(log_p), log_p.dtype.type(0), t * log_p)
