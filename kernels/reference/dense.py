"""The dense chain: L layers of a_{l+1} = f_l(z_l), z_l = a_l w_l + b_l, with a_0 = x and y = a_L.

A residual is added to the last z. Backwards, from dy (Rumelhart, Hinton & Williams 1986):

    dz_l = da_{l+1} f_l'(z_l)        dw_l = a_l^T dz_l        db_l = sum over rows of dz_l        da_l = dz_l w_l^T

x (N, C), w_l (K_l, K_{l+1}), b_l (K_{l+1},), residual (N, K_L); any strides. Saved for backward: the outputs
a_1 .. a_L, and z_l where f_l' is taken from it (else zs[l] is outputs[l], which the activation overwrites).
dresidual is dz of the last layer.
"""

import numpy as np

from ..types import Activation, Chain, ChainSaved
from .activation import activation_backward, activation_forward


def dense_chain_forward(chain, saved):
    """saved.outputs[l] = a_{l+1}, saved.zs[l] = z_l, or outputs[l] where the activation does not need its input."""
    a, weights, biases, activations, residual = chain
    last = len(weights) - 1
    for layer, (w, b, activation, z, y) in enumerate(zip(weights, biases, activations, *saved, strict=True)):
        z[...] = a @ w
        if b is not None:
            z += b
        if layer == last and residual is not None:
            z += residual
        activation_forward(z, y, activation)
        a = y


def dense_chain_backward(dy, chain, saved, gradients):
    """gradients are overwritten; each of dweights is C-contiguous, or the transpose of an array that is."""
    x, weights, _, activations, _ = chain
    zs, outputs = saved
    dzs, dx, dweights, dbiases = gradients
    da = dy
    for layer in reversed(range(len(weights))):
        dz = dzs[layer]
        activation_backward(da, zs[layer], outputs[layer], dz, activations[layer])
        a = outputs[layer - 1] if layer else x
        dweights[layer][...] = a.T @ dz
        if dbiases[layer] is not None:
            dbiases[layer][...] = dz.sum(axis=0, dtype=np.float64)
        if layer:
            da = dz @ weights[layer].T
        elif dx is not None:
            dx[...] = dz @ weights[0].T


def dense_chain_infer(x, table, parameters, params, out):
    """out (N, K_L) = y, over flat params laid out as in training_step.py; keeps nothing."""
    weights, biases, activations = layer_views(table, parameters, params)
    outputs = [np.empty((len(x), w.shape[1]), x.dtype) for w in weights[:-1]] + [out]
    # a z is needed by backward only: every activation runs in place
    dense_chain_forward(Chain(x, weights, biases, activations, None), ChainSaved(outputs, outputs))


def layer_views(table, parameters, flat):
    """Weights and biases as views into flat, and activations: a list each, after the table described in training_step.py."""
    weights, biases, activations = [], [], []
    for (n_in, n_out, w_offset, b_offset, code), parameter in zip(table.tolist(), parameters.tolist(), strict=True):
        weights.append(flat[w_offset : w_offset + n_in * n_out].reshape(n_in, n_out))
        biases.append(flat[b_offset : b_offset + n_out] if b_offset >= 0 else None)
        activations.append(Activation(code, parameter))
    return weights, biases, activations
