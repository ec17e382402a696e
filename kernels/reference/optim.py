"""Optimisers over one flat array of parameters p, in place, as PyTorch defines them; with form 1 as Keras does.

    g = grad_scale grads + weight_decay p,  or decoupled: p = (1 - lr weight_decay) p         (Loshchilov & Hutter 2019)
    sgd      v = g at step 1, else momentum v + g                                             (Sutskever et al. 2013)
             p -= lr v, or with form 1, nesterov, p -= lr (g + momentum v)
    adam     m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2                      (Kingma & Ba 2015, alg. 1)
             p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
             with form 1, as Keras does, / ((sqrt(v) + eps) / sqrt(1 - beta2^t)): the paper's epsilon hat
             with a third row of state the largest v so far instead of v: AMSGrad             (Reddi et al. 2018)
    adagrad  v = v + g^2,  p -= lr g / root                                                   (Duchi et al. 2011)
    rmsprop  v = beta2 v + (1 - beta2) g^2,  p -= lr g / root                                 (Tieleman & Hinton 2012)
             with a second row of state  m = momentum m + g / root,  p -= lr m
             root = sqrt(v) + eps, or with form 1 sqrt(v + eps)

hyper is float64 (7,): lr, momentum or beta1, beta2, eps, weight_decay, form (0 or 1), decoupled (0 or 1); or a row for each group of
arrays, (G, 7).
state is (S, P), the rows in the order m, v, largest v; sgd without momentum has none. step counts from 1.

After the update p and all its state are set to 0 where masks is False, so a pruned value stays pruned. Then the constraint limits p:

    MAX_VALUE       -limit <= p <= limit
    MAX_NORM        p *= limit / n where n, the norm of all arrays together, is above the limit
    MAX_NORM_EACH   the same for each unit of clip.py, in rows of `widths` values

An update is not applied, and its status is NONFINITE, if it would turn a value with finite p, state and gradient into a p or state that is
not finite: a second moment that has overflowed would stay infinite.
"""

import math

import numpy as np

from ..types import ADAGRAD, ADAM, FROZEN, MAX_NORM, MAX_VALUE, NONFINITE, OK, SGD
from .clip import array_norms, clamp_arrays, joint_norm, scale_arrays
from .health import change


def update(params, grads, optimizer, state, hyper, step, grad_scale):
    """Update number `step` of params (P,) and state (S, P) from grads * grad_scale."""
    # python floats, since a float64 scalar of numpy would widen float32 arrays
    lr, beta1, beta2, eps, weight_decay, form, decoupled = hyper.tolist()
    g = grads * float(grad_scale)
    if decoupled:
        params *= 1 - lr * weight_decay
    elif weight_decay:
        g += weight_decay * params
    if optimizer == ADAM:
        m, v, *largest = state
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g * g
        for largest_v in largest:
            np.maximum(largest_v, v, out=largest_v)
            v = largest_v
        correction = math.sqrt(1 - beta2**step)
        params -= lr / (1 - beta1**step) * m / (np.sqrt(v) / correction + (eps / correction if form else eps))
    elif optimizer != SGD:
        *momenta, v = state
        v[...] = v + g * g if optimizer == ADAGRAD else beta2 * v + (1 - beta2) * g * g
        g /= np.sqrt(v + eps) if form else np.sqrt(v) + eps
        for m in momenta:
            m[...] = beta1 * m + g
            g = m
        params -= lr * g
    elif len(state):
        (v,) = state
        v[...] = g if step == 1 else beta1 * v + g
        params -= lr * (g + beta1 * v if form else v)
    else:
        params -= lr * g


def update_arrays(params, grads, rule, step, record, *, moved=None, updates=None, only_if=None):
    """Update number `step` of a list of C-contiguous params from grads of the same shapes, times min(1, clip_norm / (norm + 1e-6)).

    The rule's state (S, P) and masks: the values of all arrays in their order. record (1,) = norm of the grads of all arrays that are not
    frozen; without it nothing is clipped. moved (n, 2), or None: for each array the sum of squares of the change, by the optimiser and
    masks but not by a constraint, and of the values before it. updates (1,), int64, or None: a counter, to which one is added with the
    update. only_if, or None: the status of another call; where it is not OK nothing is updated or counted, and that status is returned.
    Returns OK, or NONFINITE for a norm that is not finite, or for an update that would turn finite values into infinity or NaN; then
    nothing is updated.
    """
    if only_if is not None and only_if != OK:
        return only_if
    optimizer, state, hyper, clip_norm, masks, constraint, groups = rule
    hyper, scale = hyper.reshape(-1, 7), 1.0
    groups = [0] * len(params) if groups is None else groups
    if record is not None:
        record[0] = norm = norm_of([g for g, group in zip(grads, groups, strict=True) if group != FROZEN])
        if not math.isfinite(norm):
            return NONFINITE
        scale = min(1.0, clip_norm / (norm + 1e-6))
    copies, at = [a.copy() for a in (*params, state)], 0
    for a, (p, g, group) in enumerate(zip(params, grads, groups, strict=True)):
        rows, p = slice(at, at + p.size), p.reshape(-1)
        before = None if moved is None else p.copy()
        if group != FROZEN:
            update(p, g.reshape(-1), optimizer, state[:, rows], hyper[group], step, scale)
            zero_pruned(p, state[:, rows], None if masks is None else masks[rows])
        if moved is not None:
            moved[a] = change(before, p)
        at += p.size
    apply_constraint(params, constraint, groups)
    if not is_sound(params, grads, state, copies):
        return NONFINITE
    if updates is not None:
        updates += 1
    return OK


def is_sound(params, grads, state, copies):
    """Whether all values that were finite still are; if not, params and state are restored from copies (params, then state)."""
    *params_were_finite, state_was_finite = (np.isfinite(a) for a in copies)
    were_finite = _flat(params_were_finite) & _flat(np.isfinite(g) for g in grads) & state_was_finite.all(axis=0)
    sound = not (were_finite & ~(_flat(np.isfinite(p) for p in params) & np.isfinite(state).all(axis=0))).any()
    if not sound:
        for a, copy in zip((*params, state), copies, strict=True):
            a[...] = copy
    return sound


def _flat(arrays):
    return np.concatenate([a.reshape(-1) for a in arrays])


def zero_pruned(params, state, masks):
    """Set pruned values and their state to 0."""
    if masks is not None:
        params[~masks] = 0
        state[:, ~masks] = 0


def apply_constraint(params, constraint, groups):
    """Scale or clamp updated weights to a constraint. Arrays or units whose norm is NaN stay as they are."""
    if constraint is None:
        return
    kind, limit, widths = constraint
    if kind == MAX_VALUE:
        clamp_arrays([p for p, group in zip(params, groups, strict=True) if group != FROZEN], limit)
        return
    limited = [p for p, width in zip(params, widths, strict=True) if width]
    widths = widths[widths > 0]
    norms, counts = np.empty(widths.sum()), np.empty(len(limited), np.int64)
    array_norms(limited, widths, 2.0, norms, counts)
    if kind == MAX_NORM:
        norms[:] = joint_norm(norms, 2.0)
    scale_arrays(limited, widths, np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit))


def norm_of(arrays):
    """The square root of the sum of all squares, in float64."""
    return math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))
