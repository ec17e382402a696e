"""Optimisers over one flat array of parameters p, in place, as PyTorch defines them.

    g = grad_scale grads + weight_decay p
    sgd   v = g at step 1, else momentum v + g                            (Sutskever et al. 2013)
          p -= lr v, or with nesterov p -= lr (g + momentum v)
    adam  m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2     (Kingma & Ba 2015, alg. 1)
          p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

hyper is float64 (6,): lr, momentum or beta1, beta2, eps, weight_decay, nesterov (0 or 1).
state is (S, P): v for sgd with momentum, nothing (S = 0) without, m and v for adam. step counts from 1.
"""

import math

import numpy as np

from ..names import ADAM


def update(params, grads, optimizer, state, hyper, step, grad_scale):
    """Update number `step` of params (P,) and state (S, P) from grads * grad_scale."""
    # python floats, since a float64 scalar of numpy would widen float32 arrays
    lr, beta1, beta2, eps, weight_decay, nesterov = hyper.tolist()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        g = grads * float(grad_scale)
        if weight_decay:
            g += weight_decay * params
        if optimizer == ADAM:
            m, v = state
            m[...] = beta1 * m + (1 - beta1) * g
            v[...] = beta2 * v + (1 - beta2) * g * g
            params -= lr / (1 - beta1**step) * m / (np.sqrt(v) / math.sqrt(1 - beta2**step) + eps)
        elif len(state):
            (v,) = state
            v[...] = g if step == 1 else beta1 * v + g
            params -= lr * (g + beta1 * v if nesterov else v)
        else:
            params -= lr * g


def squared_norm(values):
    """The sum of squares in float64."""
    with np.errstate(over="ignore"):
        return float(np.square(values, dtype=np.float64).sum())
