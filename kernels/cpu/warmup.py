"""Every kernel and driver of the CPU backend compiled ahead of time."""

from functools import partial

import numpy as np

from .. import types
from . import gemm
from .batch_norm import batch_norm_backward, batch_norm_forward, batch_norm_statistics
from .clip import array_norms, joint_norm
from .conv import conv2d_backward, conv2d_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .engine import compile, intrinsics, thread_pool
from .engine.array_table import AddressList
from .engine.object_memory import plain
from .health import array_health, output_health
from .loss import cross_entropy, mse
from .lstm import lstm_backward, lstm_forward
from .optim import update_arrays
from .packing import gather_rows
from .pruning import prune_smallest
from .sparse import compressed
from .training_step import dense_chain_step


def warmup_tasks():
    """(label, task) pairs that together compile everything, or load it from the cache."""
    tasks = [("launchers", thread_pool.start)]
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        tasks += [(f"{k.function.__name__} {dtype}", partial(k.address, dtype)) for k in compile.KERNELS]
        tasks.append((f"drivers {dtype}", partial(_call_drivers, dtype)))
    return tasks


def _call_drivers(dtype):
    """Every function that Python calls, on the smallest arrays."""
    one, flat, none = np.ones((1, 1), dtype), np.zeros(2, dtype), np.zeros((0, 2), dtype)
    layers, parameters = np.array([[1, 1, 0, 1, types.IDENTITY]]), np.zeros(1)
    net = (
        layers,
        parameters,
        types.CROSS_ENTROPY,
        flat,
        flat.copy(),
        np.empty(16, dtype),
        types.SGD,
        none,
        np.zeros(7),
        np.inf,
        None,
        None,
        0,
    )
    for target in (one, np.zeros(1, np.int64)):
        dense_chain_step(one, target, *net, np.empty(2))
    update_arrays([one], [one.copy()], types.SGD, np.zeros((0, 1), dtype), np.zeros(7), 1, 1.0, None, None, np.empty(1))
    compressed(one, 1.0)
    dense_chain_infer(one, layers, parameters, flat, one.copy())
    plain([one])
    array_norms(
        AddressList(np.array([intrinsics.address_of(one)]), np.ones(1, np.int64), dtype),
        None,
        2.0,
        np.empty(1),
        np.empty(1, np.int64),
    )
    prune_smallest([one.copy()], np.ones(1, np.bool_), 1)
    array_norms([one], None, 2.0, np.empty(1), np.empty(1, np.int64))
    joint_norm(np.zeros(1), 2.0)
    array_health([one], np.empty((1, 4)))
    output_health([one], np.zeros((1, 4)), np.empty((1, 4)))
    identity = types.ACTIVATIONS["identity"]
    y, dz = [one.copy()], [one.copy()]
    dense_chain_forward(one, [one], [one[0]], [identity], None, y, y)
    dense_chain_backward(one, one, [one], [identity], y, y, dz, None, [one.copy()], [None])
    y, dz = [one.copy(), one.copy()], [one.copy(), one.copy()]
    dense_chain_forward(one, [one, one], [None, None], [identity, identity], None, y, y)
    dense_chain_backward(
        one, one, [one, one], [identity, identity], y, y, dz, None, [one.copy(), one.copy()], [None, None]
    )
    gemm.matmul(one, one, one.copy())
    mse(one, one, one.copy(), one.copy(), 1.0)
    cross_entropy(one, np.zeros(1, np.int64), flat[:1].copy(), one.copy(), 1.0)
    mean, var = np.zeros(1), np.ones(1)
    batch_norm_statistics(one, None, None, True, 0.1, 1e-5, True, mean, var)
    batch_norm_forward(one, mean, var, flat[:1], flat[:1], None, identity, one.copy(), one.copy())
    gradients = [flat[:1].copy(), flat[:1].copy()]
    batch_norm_backward(one, one, mean, var, *gradients, identity, True, one, one, None, one.copy(), *gradients)
    image, pair, pads = np.ones((1, 1, 1, 1), dtype), (1, 1), (0, 0, 0, 0)
    outputs = image.copy(), image.copy()
    conv2d_forward(image, image, None, pair, pads, pair, None, identity, *outputs)
    conv2d_backward(image, image, image, pair, pads, pair, identity, *outputs, *outputs, image.copy(), None)
    # a channel of two with a kernel of its own, for depthwise.py
    image, w = np.ones((1, 1, 1, 2), dtype), np.ones((1, 1, 1, 2), dtype)
    outputs = image.copy(), image.copy()
    conv2d_forward(image, w, None, pair, pads, pair, None, identity, *outputs)
    conv2d_backward(image, image, w, pair, pads, pair, identity, *outputs, *outputs, w.copy(), None)
    # enough of everything for winograd.py
    image, w = np.ones((1, 4, 4, 8), dtype), np.ones((3, 3, 8, 8), dtype)
    outputs = image.copy(), image.copy()
    conv2d_forward(image, w, None, pair, (1, 1, 1, 1), pair, None, identity, *outputs)
    conv2d_backward(image, image, w, pair, (1, 1, 1, 1), pair, identity, *outputs, *outputs, w.copy(), None)
    batch, w = types.PackedBatch(np.zeros(1, np.int64), np.arange(2)), np.ones((1, 4), dtype)
    weights, start = types.LSTMWeights(w, w, w[0]), types.States(one, one)
    saved = types.LSTMSaved(w.copy(), one.copy(), one.copy(), one.copy())
    lstm_forward(one, weights, start, batch, saved, types.States(one.copy(), one.copy()))
    dweights, dstart = types.LSTMWeights(w.copy(), w.copy(), w[0].copy()), types.States(one.copy(), one.copy())
    dlstm = types.LSTMGradients(w.copy(), one.copy(), dweights, dstart, None)
    lstm_backward(types.LSTMUpstream(one, None, None), one, weights, start, batch, saved, dlstm, False)
    gather_rows(one[None], batch, one.copy())
