"""Training steps of a dense chain: forward, mean loss, backward, clip by global norm, optimiser.

    g = grads min(1, clip_norm / (norm + 1e-6)), norm = |grads|_2 over all parameters       (Pascanu et al. 2013, PyTorch)

layers int64 (L, 5) holds n_in, n_out, w_offset, b_offset (-1: no bias) and activation code of each layer, parameters
float64 (L,) the activations' parameters: a layer's w (n_in, n_out) and b (n_out,) are views into params (P,), and its
gradients into grads (P,). x (N, C); target int64 (N,) class numbers, or (N, K_L) of x's dtype.
cross_entropy after a softmax layer, and binary_cross_entropy after a sigmoid layer, are taken from that layer's z;
after any other activation the output itself is the logits. The mean is over the N rows for cross_entropy and over all
N K_L elements for the others, and 0 over an empty batch. grads keep the gradient before clipping.
row_weights (N,) of x's dtype make it sum(weight loss) / sum(weight) over the rows, 0 where the weights are; l2 adds
l2 / 2 (sum of squares of every w) / sum(weight), whose gradient is in grads but which is not in the recorded loss.
masks bool (P,), laid out as params, or None, and constraint, over w and b of each layer in turn, or None, are those of optim.py.
`work` is the scratch of the compiled backends; NumPy makes its own.
"""

import math

import numpy as np

from .. import types
from .dense import dense_chain_backward, dense_chain_forward, layer_views
from .health import layer_health, update_health
from .loss import binary_cross_entropy, cross_entropy, mse, poisson_nll
from .optim import apply_constraint, is_sound, norm_of, update, zero_pruned

FUSED = {types.CROSS_ENTROPY: types.SOFTMAX, types.BINARY_CROSS_ENTROPY: types.SIGMOID}


def dense_chain_step(
    x, target, layers, parameters, loss, params, grads, work, optimizer, state, hyper, clip_norm, masks, constraint,
    step, record, row_weights=None, l2=0.0, health=None, updates=None,
):  # fmt: skip
    """The update after `step` others; record (2,) = mean loss and norm, or with l2 (3,), and the sum of squares of every w.

    health: a names.Watch, or None. updates (1,), int64, or None: one is added to it with the update.

    Returns OK, or BAD_LABEL or NONFINITE (a norm that is not finite, or an update that would end in what is not), which leave params
    and state untouched.
    """
    weights, biases, activations = layer_views(layers, parameters, params)
    dweights, dbiases, _ = layer_views(layers, parameters, grads)
    if FUSED.get(loss) == activations[-1].code:
        activations[-1] = types.ACTIVATIONS["identity"]
    outputs = [np.empty((len(x), w.shape[1]), x.dtype) for w in weights]
    zs = [np.empty_like(y) if f.needs_input else y for f, y in zip(activations, outputs, strict=True)]
    dzs = [np.empty_like(y) for y in outputs]
    dy = np.empty_like(outputs[-1])

    if target.ndim == 1 and not np.all((target >= 0) & (target < dy.shape[1])):
        return types.BAD_LABEL
    dense_chain_forward(x, weights, biases, activations, None, zs, outputs)
    weight = float(len(x) if row_weights is None else row_weights.sum(dtype=np.float64))
    columns = 1 if loss == types.CROSS_ENTROPY else dy.shape[1]
    scale = 1 / (weight * columns) if weight * columns else 0.0
    losses = np.empty((len(x), 1) if loss == types.CROSS_ENTROPY else dy.shape, x.dtype)
    match loss:
        case types.CROSS_ENTROPY:
            total = cross_entropy(outputs[-1], target, losses[:, 0], dy, scale)
        case types.BINARY_CROSS_ENTROPY:
            total = binary_cross_entropy(outputs[-1], target, losses, dy, scale)
        case types.MSE:
            total = mse(outputs[-1], target, losses, dy, scale)
        case types.POISSON_NLL:
            total = poisson_nll(outputs[-1], target, losses, dy, scale)
    if row_weights is not None:
        dy *= row_weights[:, None]
        total = float((losses * row_weights[:, None]).sum(dtype=np.float64))
    dense_chain_backward(dy, x, weights, activations, zs, outputs, dzs, None, dweights, dbiases)

    if l2:
        record[2] = norm_of(weights) ** 2
    if l2 and weight:
        for w, dw in zip(weights, dweights, strict=True):
            dw += l2 / weight * w
    norm = norm_of([grads])
    record[:2] = total * scale, norm
    watched = health is not None and step % health.every == 0
    if watched:
        gradients = [[a for a in pair if a is not None] for pair in zip(dweights, dbiases, strict=True)]
        layer_health(health, gradients, outputs, health.rows[0])
    if not math.isfinite(norm):
        return types.NONFINITE
    kept = [params.copy(), state.copy()]
    update(params, grads, optimizer, state, hyper, step + 1, min(1.0, clip_norm / (norm + 1e-6)))
    after = params.copy() if watched else None
    zero_pruned(params, state, masks)
    apply_constraint([a for pair in zip(weights, biases, strict=True) for a in pair if a is not None], constraint)
    if not is_sound([params], [grads], state, kept):
        return types.NONFINITE
    if updates is not None:
        updates += 1
    if watched:
        update_health(layers, kept[0], after, health.rows[0])
    return types.OK


def dense_chain_epoch(
    x, target, order, batch_size, rates, layers, parameters, loss, params, grads, work, optimizer, state, hyper,
    clip_norm, masks, constraint, step, record, row_weights=None, l2=0.0, health=None, updates=None,
):  # fmt: skip
    """A step on each batch of rows order[i : i + batch_size], the last one perhaps short; record (n_batches, 2), or 3 with l2.

    x may be names.Nonzeros; what is 0 in it may then add nothing, whatever it is multiplied with. health: a names.Watch, or None.
    Each is made at its rate of rates (n_batches,), float64, which goes before hyper's. updates (1,), int64, or None: one is added to it
    with each update.
    Returns (status, batches done); the batch that fails is the last one looked at.
    """
    starts = range(0, len(order), batch_size)
    for batch, start in enumerate(starts):
        rows = order[start : start + batch_size]
        settings = np.array([rates[batch], *hyper[1:]])
        net = layers, parameters, loss, params, grads, work, optimizer, state, settings, clip_norm, masks, constraint
        row = None if row_weights is None else row_weights[rows]
        watch = health and health.after(batch)
        status = dense_chain_step(x[rows], target[rows], *net, step + batch, record[batch], row, l2, watch, updates)
        if status != types.OK:
            return status, batch
    return types.OK, len(starts)
