"""Chains of dense layers: a cuBLAS product and one or two launches a layer; formulas: kernels/reference/dense.py.

Forward, a layer: a GEMM, then one launch for bias, residual and activation. Backward, a layer: one or two launches for dz and the bias'
gradient, and two GEMMs. GEMMs read strided arrays in place where cuBLAS can. Kernels work on C-contiguous arrays: others are copied.
"""

from ..reference.dense import layer_views
from ..types import Chain, ChainSaved
from .activation import activate_matrix, differentiate_matrix
from .engine import device
from .engine.device import flat, written


def dense_chain_forward(chain, saved):
    """saved.outputs[l] = a_{l+1}, saved.zs[l] = z_l, or outputs[l] where the activation does not need its input."""
    a, weights, biases, activations, residual = chain
    last = len(weights) - 1
    for layer, (w, b, activation, z, y) in enumerate(zip(weights, biases, activations, *saved, strict=True)):
        added = flat(residual) if layer == last else None
        device.xp.matmul(a, w, out=z)
        activate_matrix(z, flat(b), added, y, activation, keep=z is not y)
        a = y


def dense_chain_backward(dy, chain, saved, gradients):
    """gradients are overwritten."""
    x, weights, _, activations, _ = chain
    zs, outputs = saved
    dzs, dx, dweights, dbiases = gradients
    matmul = device.xp.matmul
    da = flat(dy)
    for layer in reversed(range(len(weights))):
        dz, activation = dzs[layer], activations[layer]
        kept = zs[layer] if activation.needs_input else outputs[layer]
        differentiate_matrix(da, kept, dz, dbiases[layer], activation)
        matmul((outputs[layer - 1] if layer else x).T, dz, out=dweights[layer])
        if layer:
            # into the dz of the layer below, which its derivative then works on in place
            da = matmul(dz, weights[layer].T, out=dzs[layer - 1])
        elif dx is not None:
            matmul(dz, weights[0].T, out=dx)


def dense_chain_infer(x, table, parameters, params, out):
    """out (N, K_L) = y, over flat params laid out as in training_step.py; keeps nothing."""
    weights, biases, activations = layer_views(table, parameters, params)
    outputs = [device.xp.empty((len(x), w.shape[1]), x.dtype) for w in weights[:-1]]
    with written(out) as y:
        outputs.append(y)
        # a z is needed by backward only: every activation runs in place
        dense_chain_forward(Chain(x, weights, biases, activations, None), ChainSaved(outputs, outputs))
