"""Training steps of a dense chain: forward, mean loss, backward, clip by global norm, optimiser.

    g = grads min(1, clip_norm / (norm + 1e-6)), norm = |grads|_2 over all parameters       (Pascanu et al. 2013, PyTorch)

layers int64 (L, 5) holds n_in, n_out, w_offset, b_offset (-1: no bias) and activation code of each layer, parameters
float64 (L,) the activations' parameters: a layer's w (n_in, n_out) and b (n_out,) are views into params (P,), and its
gradients into grads (P,). x (N, C); target int64 (N,) class numbers, or (N, K_L) of x's dtype.
cross_entropy after a softmax layer, and binary_cross_entropy after a sigmoid layer, are taken from that layer's z;
after any other activation the output itself is the logits. The mean is over the N rows for cross_entropy and over all
N K_L elements for the others, and 0 over an empty batch. grads keep the gradient before clipping.
masks bool (P,), laid out as params, or None, and constraint, over w and b of each layer in turn, or None, are those of optim.py.
`work` is the scratch of the compiled backends; NumPy makes its own.
"""

import math

import numpy as np

from .. import names
from .dense import dense_chain_backward, dense_chain_forward, layer_views
from .loss import binary_cross_entropy, cross_entropy, mse
from .optim import bury, hold, norm_of, update

FUSED = {names.CROSS_ENTROPY: names.SOFTMAX, names.BINARY_CROSS_ENTROPY: names.SIGMOID}


def dense_chain_step(
    x, target, layers, parameters, loss, params, grads, work, optimizer, state, hyper, clip_norm, masks, constraint,
    step, record,
):  # fmt: skip
    """The update after `step` others; record (2,) = mean loss and norm.

    Returns OK, or BAD_LABEL or NONFINITE (a norm that is not finite), which leave params and state untouched.
    """
    weights, biases, activations = layer_views(layers, parameters, params)
    dweights, dbiases, _ = layer_views(layers, parameters, grads)
    if FUSED.get(loss) == activations[-1].code:
        activations[-1] = names.ACTIVATIONS["identity"]
    outputs = [np.empty((len(x), w.shape[1]), x.dtype) for w in weights]
    zs = [np.empty_like(y) if f.needs_input else y for f, y in zip(activations, outputs, strict=True)]
    dzs = [np.empty_like(y) for y in outputs]
    dy = np.empty_like(outputs[-1])

    if target.ndim == 1 and not np.all((target >= 0) & (target < dy.shape[1])):
        return names.BAD_LABEL
    dense_chain_forward(x, weights, biases, activations, None, zs, outputs)
    scale = 1 / max(len(x) if loss == names.CROSS_ENTROPY else dy.size, 1)
    match loss:
        case names.CROSS_ENTROPY:
            total = cross_entropy(outputs[-1], target, np.empty(len(x), x.dtype), dy, scale)
        case names.BINARY_CROSS_ENTROPY:
            total = binary_cross_entropy(outputs[-1], target, np.empty_like(dy), dy, scale)
        case names.MSE:
            total = mse(outputs[-1], target, np.empty_like(dy), dy, scale)
    dense_chain_backward(dy, x, weights, activations, zs, outputs, dzs, None, dweights, dbiases)

    norm = norm_of([grads])
    record[:] = total * scale, norm
    if not math.isfinite(norm):
        return names.NONFINITE
    update(params, grads, optimizer, state, hyper, step + 1, min(1.0, clip_norm / (norm + 1e-6)))
    bury(params, state, masks)
    hold([a for pair in zip(weights, biases, strict=True) for a in pair if a is not None], constraint)
    return names.OK


def dense_chain_epoch(
    x, target, order, batch_size, rates, layers, parameters, loss, params, grads, work, optimizer, state, hyper,
    clip_norm, masks, constraint, step, record,
):  # fmt: skip
    """A step on each batch of rows order[i : i + batch_size], the last one perhaps short; record (n_batches, 2).

    Each is made at its rate of rates (n_batches,), float64, which goes before hyper's.
    Returns (status, batches done); the batch that fails is the last one looked at.
    """
    starts = range(0, len(order), batch_size)
    for batch, start in enumerate(starts):
        rows = order[start : start + batch_size]
        settings = np.array([rates[batch], *hyper[1:]])
        net = layers, parameters, loss, params, grads, work, optimizer, state, settings, clip_norm, masks, constraint
        status = dense_chain_step(x[rows], target[rows], *net, step + batch, record[batch])
        if status != names.OK:
            return status, batch
    return names.OK, len(starts)
