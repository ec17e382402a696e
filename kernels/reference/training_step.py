"""Training steps of a dense chain: forward, mean loss, backward, clip by global norm, optimiser.

    g = grads min(1, clip_norm / (norm + 1e-6)), norm = |grads|_2 over all parameters       (Pascanu et al. 2013, PyTorch)

Layout. A net's table, int64 (L, 5), has for each layer n_in, n_out, w_offset, b_offset (-1: no bias) and the code of its activation;
parameters, float64 (L,), are those of the activations. A layer's w (n_in, n_out) and b (n_out,) are views into params (P,), and their
gradients into grads (P,). x (N, C); target int64 (N,), class numbers, or (N, K_L) of x's dtype. masks, bool (P,), are laid out as params,
or None. A constraint and groups are over w and b of each layer in turn, or None. All are those of optim.py. `work` is scratch for
the compiled backends; this one allocates.

Loss. net.loss is a Loss of loss.py, whose mean it is. cross_entropy after a softmax layer, and binary_cross_entropy after a sigmoid layer,
are computed from that layer's z; after any other activation the layer's output is the logits. row_weights (N,) of x's dtype are r_i. l2
adds l2 / 2 (sum of squares of every w) / sum(v_i) to the loss: its gradient is in grads, but the recorded loss does not have it. grads keep
the gradient before clipping. counts (2,), or None: the sum of the v_i, and that of the right rows, are written.
"""

import math

import numpy as np

from .. import types
from ..types import Chain, ChainGradients
from .dense import dense_chain_backward, dense_chain_forward, layer_views
from .health import layer_health, update_health
from .loss import is_ignored, loss_gradient
from .optim import apply_constraint, is_sound, norm_of, update, zero_pruned


def dense_chain_gradients(x, target, net, record, *, row_weights=None, l2=0.0, mean=True, counts=None):
    """grads = the gradient of the mean loss, or of the sum: a step without its update.

    record (1,) = the loss, or with l2 (2,), and the sum of squares of every w. x may be Nonzeros, as in an epoch.
    Returns OK, or BAD_LABEL, after which grads are undefined. Gradients that are not finite are no error here; the update reports them.
    """
    gradients = _gradients(x[:] if isinstance(x, types.Nonzeros) else x, target, net, row_weights, l2, mean, counts)
    if gradients is None:
        return types.BAD_LABEL
    record[0], squares, *_ = gradients
    if l2:
        record[1] = squares
    return types.OK


def _gradients(x, target, net, row_weights, l2, mean, counts):
    """Fill grads; returns (loss, sum of squares of all w, outputs), or None if a label is no class."""
    table, parameters, loss, params, grads, _ = net
    weights, biases, activations = layer_views(table, parameters, params)
    dweights, dbiases, _ = layer_views(table, parameters, grads)
    if loss.is_fused_with(activations[-1]):
        activations[-1] = types.ACTIVATIONS["identity"]
    saved = types.chain_buffers(len(x), table[:, 1].tolist(), activations, np.empty, x.dtype)
    y, dzs = saved.outputs[-1], [np.empty_like(y) for y in saved.outputs]
    dy = np.empty_like(y)

    known = (target >= 0) & (target < dy.shape[1]) | is_ignored(target, loss.ignore_index)
    if target.ndim == 1 and not np.all(known):
        return None
    chain = Chain(x, weights, biases, activations, None)
    dense_chain_forward(chain, saved)
    losses = np.empty(len(x) if loss.by_row else dy.shape, x.dtype)
    mean_loss, weight, right = loss_gradient(y, target, loss, losses, dy, row_weights=row_weights, mean=mean)
    if counts is not None:
        counts[...] = weight, right
    dense_chain_backward(dy, chain, saved, ChainGradients(dzs, None, dweights, dbiases))
    if l2 and weight:
        for w, dw in zip(weights, dweights, strict=True):
            dw += (l2 / weight if mean else l2) * w
    return float(mean_loss), norm_of(weights) ** 2 if l2 else 0.0, saved.outputs


def dense_chain_step(
    x, target, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """Training step number `step`, counted from 0; record (2,) = mean loss and norm, or with l2 (3,), and the sum of squares of every w.

    updates (1,), int64, or None: a counter, to which one is added with the update.

    Returns OK, or BAD_LABEL or NONFINITE (a norm that is not finite, or an update that would turn finite values into infinity or NaN),
    which leave params and state untouched.
    """
    table, parameters, _, params, grads, _ = net
    optimizer, state, hyper, clip_norm, masks, constraint, groups = rule
    parts = _parts_by_layer(table)
    hyper, groups = hyper.reshape(-1, 7), [0] * len(parts) if groups is None else groups
    trained = [(part, group) for part, group in zip(parts, groups, strict=True) if group != types.FROZEN]
    gradients = _gradients(x, target, net, row_weights, l2, True, counts)
    if gradients is None:
        return types.BAD_LABEL
    loss, squares, outputs = gradients
    norm = norm_of([grads[part] for part, _ in trained])
    record[:2] = loss, norm
    if l2:
        record[2] = squares
    measured = watch is not None and step % watch.every == 0
    if measured:
        layer_health(watch, _arrays_by_layer(table, parameters, grads), outputs, watch.rows[0])
    if not math.isfinite(norm):
        return types.NONFINITE
    copies = [params.copy(), state.copy()]
    scale = min(1.0, clip_norm / (norm + 1e-6))
    for part, group in trained:
        update(params[part], grads[part], optimizer, state[:, part], hyper[group], step + 1, scale)
        zero_pruned(params[part], state[:, part], None if masks is None else masks[part])
    params_after = params.copy() if measured else None
    apply_constraint([a for layer in _arrays_by_layer(table, parameters, params) for a in layer], constraint, groups)
    if not is_sound([params], [grads], state, copies):
        return types.NONFINITE
    if updates is not None:
        updates += 1
    if measured:
        update_health(table, copies[0], params_after, watch.rows[0])
    return types.OK


def _parts_by_layer(table):
    """Where w, and b if there is one, of each layer in turn lie in flat arrays."""
    parts = []
    for n_in, n_out, w, b, _ in table.tolist():
        parts += [slice(w, w + n_in * n_out)] + [slice(b, b + n_out)] * (b >= 0)
    return parts


def _arrays_by_layer(table, parameters, flat):
    """A list for each layer: [w], or [w, b] if it has a bias."""
    weights, biases, _ = layer_views(table, parameters, flat)
    return [[a for a in pair if a is not None] for pair in zip(weights, biases, strict=True)]


def dense_chain_epoch(
    x, target, batches, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """A step on each of the batches; record (n_batches, 2), or 3 with l2; counts (n_batches, 2), or None.

    x may be Nonzeros; its zeros may then add nothing, even times infinity or NaN. The rate of a batch replaces the rule's.
    updates (1,), int64, or None: one is added to it with each update.
    Returns (status, batches done); a batch that fails is the last one that is run.
    """
    order, batch_size, rates = batches
    starts, hyper = range(0, len(order), batch_size), rule.hyper.reshape(-1, 7).copy()
    for batch, start in enumerate(starts):
        rows = order[start : start + batch_size]
        hyper[:, 0] = rates[batch]
        status = dense_chain_step(
            x[rows], target[rows], net, rule._replace(hyper=hyper), step + batch, record[batch],
            row_weights=None if row_weights is None else row_weights[rows], l2=l2, watch=watch and watch.after(batch), updates=updates,
            counts=None if counts is None else counts[batch],
        )  # fmt: skip
        if status != types.OK:
            return status, batch
    return types.OK, len(starts)
