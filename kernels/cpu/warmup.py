"""Tasks that compile every kernel and driver of the CPU backend, or load them from the cache, for `python -m fastgrad warmup`."""

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
from .loss import loss_gradient
from .lstm import lstm_backward, lstm_forward
from .optim import update_arrays
from .packing import gather_rows
from .pruning import prune_smallest
from .sparse import compressed
from .training_step import dense_chain_gradients, dense_chain_step


def warmup_tasks():
    """(label, task) pairs that together compile everything, or load it from the cache."""
    tasks = [("launchers", thread_pool.start)]
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        tasks += [
            (f"{k.function.__name__} {dtype}", partial(k.address, dtype)) for k in compile.KERNELS + compile.ROUTINES
        ]
        tasks.append((f"drivers {dtype}", partial(_call_drivers, dtype)))
    return tasks


def _call_drivers(dtype):
    """Every function that Python calls, on the smallest arrays."""
    one, flat, none = np.ones((1, 1), dtype), np.zeros(2, dtype), np.zeros((0, 2), dtype)
    table, parameters = np.array([[1, 1, 0, 1, types.IDENTITY]]), np.zeros(1)
    net = types.Net(table, parameters, types.Loss(types.CROSS_ENTROPY), flat, flat.copy(), np.empty(16, dtype))
    rule = types.UpdateRule(types.SGD, none, np.zeros(7), np.inf, None, None)
    for target in (one, np.zeros(1, np.int64)):
        dense_chain_step(one, target, net, rule, 0, np.empty(2))
        dense_chain_gradients(one, target, net, np.empty(1))
    update_arrays([one], [one.copy()], rule._replace(state=none[:, :1].copy()), 1, np.empty(1))
    compressed(one, 1.0)
    dense_chain_infer(one, table, parameters, flat, one.copy())
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
    # a chain of one layer has a driver of its own
    for weights, biases in (([one], [one[0]]), ([one, one], [None, None])):
        chain = types.Chain(one, weights, biases, [identity] * len(weights), None)
        y, dz, dw = ([one.copy() for _ in weights] for _ in range(3))
        dense_chain_forward(chain, types.ChainSaved(y, y))
        dense_chain_backward(
            one, chain, types.ChainSaved(y, y), types.ChainGradients(dz, None, dw, [None] * len(weights))
        )
    gemm.matmul(one, one, one.copy())
    loss_gradient(one, one, types.Loss(types.MSE), one.copy(), one.copy())
    statistics, affine = types.Statistics(np.zeros(1), np.ones(1)), types.Affine(flat[:1].copy(), flat[:1].copy())
    saved, gradients = types.LayerSaved(one.copy(), one.copy()), types.NormGradients(None, one.copy(), *affine)
    batch_norm_statistics(one, types.Running(None, None, 0.1, True), True, 1e-5, statistics)
    batch_norm_forward(one, statistics, affine, None, identity, saved)
    batch_norm_backward(one, one, statistics, affine, identity, True, saved, gradients)
    # conv.py; two channels, each with a kernel of its own, for depthwise.py; enough of everything for winograd.py
    for size, width, channels, outputs in ((1, 1, 1, 1), (1, 1, 1, 2), (3, 4, 8, 8)):
        image, w = np.ones((1, width, width, outputs), dtype), np.ones((size, size, channels, outputs), dtype)
        geometry = types.Geometry((1, 1), (size // 2,) * 4, (1, 1))
        saved = types.LayerSaved(image.copy(), image.copy())
        conv2d_forward(image, w, None, geometry, None, identity, saved)
        gradients = types.ConvGradients(image.copy(), image.copy(), w.copy(), None)
        conv2d_backward(image, image, w, geometry, identity, saved, gradients)
    batch, w = types.PackedBatch(np.zeros(1, np.int64), np.arange(2)), np.ones((1, 4), dtype)
    weights, start = types.LSTMWeights(w, w, w[0]), types.States(one, one)
    saved = types.LSTMSaved(w.copy(), one.copy(), one.copy(), one.copy())
    lstm_forward(one, weights, start, batch, saved, types.States(one.copy(), one.copy()))
    dweights, dstart = types.LSTMWeights(w.copy(), w.copy(), w[0].copy()), types.States(one.copy(), one.copy())
    dlstm = types.LSTMGradients(w.copy(), one.copy(), dweights, dstart, None)
    lstm_backward(types.LSTMUpstream(one, None, None), one, weights, start, batch, saved, dlstm, False)
    gather_rows(one[None], batch, one.copy())
