"""What `python -m fastgrad warmup` compiles: jobs for all kernels and drivers of the CPU backend, or those of some ops."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import types
from . import gemm, winograd
from .batch_norm import batch_norm_backward, batch_norm_forward, batch_norm_statistics
from .clip import array_norms, joint_norm
from .conv import conv2d_backward, conv2d_forward
from .dense import dense_chain_backward, dense_chain_forward, dense_chain_infer
from .engine import compile, thread_pool
from .engine.array_table import AddressList
from .engine.object_memory import address_of, are_uniform
from .engine.workers import longest_first
from .gru import gru_backward, gru_forward
from .health import array_health, output_health
from .layer_norm import layer_norm_backward, layer_norm_forward
from .loss import loss_gradient
from .lstm import lstm_backward, lstm_forward
from .lstm_variants import lstm_variant_backward, lstm_variant_forward
from .optim import update_arrays
from .packing import gather_rows
from .pool import max_pool2d_forward
from .pruning import prune_smallest
from .sparse import compressed
from .training_step import dense_chain_gradients, dense_chain_step
from .weight_layout import weights_from_taps


class CallJob(NamedTuple):
    """Calls of drivers on the smallest arrays, as a job of workers.py."""

    label: str
    seconds: float
    function: Callable[[np.dtype], None]
    char: str

    def compile(self):
        self.function(np.dtype(self.char))


def _start(dtype):
    thread_pool.start()
    are_uniform([np.ones((1, 1), dtype)])


def _net(dtype):
    """(one value (1, 1), two values, a chain of one layer of one unit)."""
    one, flat = np.ones((1, 1), dtype), np.zeros(2, dtype)
    table, parameters = np.array([[1, 1, 0, 1, types.IDENTITY]]), np.zeros(1)
    return (
        one,
        flat,
        types.Net(table, parameters, types.Loss(types.CROSS_ENTROPY), flat, flat.copy(), np.empty(16, dtype)),
    )


def _rule(state):
    return types.UpdateRule(types.SGD, state, np.zeros(7), np.inf, None, None)


def _step(dtype):
    one, flat, net = _net(dtype)
    dense_chain_step(one, one, net, _rule(np.zeros((0, 2), dtype)), 0, np.empty(2))
    dense_chain_gradients(one, one, net, np.empty(1))
    dense_chain_infer(one, net.table, net.parameters, flat, one.copy())


def _update(dtype):
    one = np.ones((1, 1), dtype)
    update_arrays([one], [one.copy()], _rule(np.zeros((0, 1), dtype)), 1, np.empty(1))
    addresses = AddressList(np.array([address_of(one)]), np.ones(1, np.int64), dtype)
    for arrays in (addresses, [one]):
        array_norms(arrays, None, 2.0, np.empty(1), np.empty(1, np.int64))
    joint_norm(np.zeros(1), 2.0)


def _dense(dtype):
    one = np.ones((1, 1), dtype)
    identity = types.ACTIVATIONS["identity"]
    # a chain of one layer has a driver of its own
    for weights, biases in (([one], [one[0]]), ([one, one], [None, None])):
        chain = types.Chain(one, weights, biases, [identity] * len(weights), None)
        y, dz, dw = ([one.copy() for _ in weights] for _ in range(3))
        dense_chain_forward(chain, types.ChainSaved(y, y))
        gradients = types.ChainGradients(dz, None, dw, [None] * len(weights))
        dense_chain_backward(one, chain, types.ChainSaved(y, y), gradients)
    gemm.matmul(one, one, one.copy())
    loss_gradient(one, one, types.Loss(types.MSE), one.copy(), one.copy())


def _batch_norm(dtype):
    one, identity = np.ones((1, 1), dtype), types.ACTIVATIONS["identity"]
    statistics, affine = types.Statistics(np.zeros(1), np.ones(1)), types.Affine(one[0].copy(), one[0].copy())
    saved, gradients = types.LayerSaved(one.copy(), one.copy()), types.NormGradients(None, one.copy(), *affine)
    batch_norm_statistics(one, types.Running(None, None, 0.1, True), True, 1e-5, statistics)
    batch_norm_forward(one, statistics, affine, None, identity, saved)
    batch_norm_backward(one, one, statistics, affine, identity, True, saved, gradients)


def _layer_norm(dtype):
    one, identity = np.ones((1, 1), dtype), types.ACTIVATIONS["identity"]
    statistics, affine = types.Statistics(np.zeros(1), np.ones(1)), types.Affine(one[0].copy(), one[0].copy())
    saved, gradients = types.LayerSaved(one.copy(), one.copy()), types.NormGradients(None, one.copy(), *affine)
    layer_norm_forward(one, affine, 1e-5, None, identity, statistics, saved)
    layer_norm_backward(one, one, statistics, affine, identity, saved, gradients)


def _conv(dtype):
    identity = types.ACTIVATIONS["identity"]
    # conv.py and conv_weights.py; conv_inputs.py; two channels, each with a kernel of its own, for depthwise.py; enough for winograd.py
    many = winograd.CHANNELS
    for size, width, channels, outputs in ((1, 1, 1, 1), (3, 3, 1, 1), (1, 1, 1, 2), (3, 16, many, many)):
        image, w = np.ones((1, width, width, outputs), dtype), np.ones((size, size, channels, outputs), dtype)
        geometry = types.Geometry((1, 1), (size // 2,) * 4, (1, 1))
        saved = types.LayerSaved(image.copy(), image.copy())
        conv2d_forward(image, w, None, geometry, None, identity, saved)
        gradients = types.ConvGradients(image.copy(), image.copy(), w.copy(), None)
        conv2d_backward(image, image, w, geometry, identity, saved, gradients)
        weights_from_taps(w, w.transpose(3, 2, 0, 1).copy())
    max_pool2d_forward(image, (1, 1), (1, 1), (0,) * 4, image.copy())


def _lstm(dtype):
    one, w = np.ones((1, 1), dtype), np.ones((1, 4), dtype)
    batch = types.PackedBatch(np.zeros(1, np.int64), np.arange(2))
    weights, start = types.LSTMWeights(w, w, w[0]), types.States(one, one)
    saved = types.LSTMSaved(w.copy(), one.copy(), one.copy(), one.copy())
    lstm_forward(one, weights, start, batch, saved, types.States(one.copy(), one.copy()))
    dweights, dstart = types.LSTMWeights(w.copy(), w.copy(), w[0].copy()), types.States(one.copy(), one.copy())
    dlstm = types.LSTMGradients(w.copy(), one.copy(), dweights, dstart, None)
    lstm_backward(types.LSTMUpstream(one, None, None), one, weights, start, batch, saved, dlstm, False)
    gather_rows(one[None], batch, one.copy())


def _lstm_variants(dtype):
    one, w = np.ones((1, 1), dtype), np.ones((1, 4), dtype)
    batch, variant = types.PackedBatch(np.zeros(1, np.int64), np.arange(2)), types.LSTMVariant()
    weights = types.LSTMVariantWeights(w, w, w[0], w[0], w[0], one[0], one[0])
    start, normalised, statistics = types.States(one, one), (w.copy(), w.copy(), one.copy()), np.ones((3, 1))
    saved = types.LSTMVariantSaved(
        w.copy(), one.copy(), one.copy(), one.copy(), *normalised, statistics, statistics.copy()
    )
    lstm_variant_forward(one, weights, start, batch, variant, saved, types.States(one.copy(), one.copy()))
    dweights, dstart = types.LSTMVariantWeights(*map(np.copy, weights)), types.States(one.copy(), one.copy())
    gradients = types.LSTMVariantGradients(
        *(w.copy() for _ in range(3)), one.copy(), one.copy(), dweights, dstart, None
    )
    lstm_variant_backward(types.LSTMUpstream(one, None, None), one, weights, start, batch, variant, saved, gradients)
    gather_rows(one[None], batch, one.copy())


def _gru(dtype):
    one, w = np.ones((1, 1), dtype), np.ones((1, 3), dtype)
    batch, weights = types.PackedBatch(np.zeros(1, np.int64), np.arange(2)), types.GRUWeights(w, w, w[0], one[0])
    saved = types.GRUSaved(w.copy(), one.copy(), one.copy())
    gru_forward(one, weights, one, batch, saved, one.copy(), reset_after=True)
    dweights = types.GRUWeights(w.copy(), w.copy(), w[0].copy(), one[0].copy())
    dgru = types.GRUGradients(w.copy(), one.copy(), dweights, one.copy(), None)
    gru_backward(types.GRUUpstream(one, None), one, weights, one, batch, saved, dgru, False, reset_after=True)
    gather_rows(one[None], batch, one.copy())


def _health(dtype):
    one = np.ones((1, 1), dtype)
    array_health([one], np.empty((1, 4)))
    output_health([one], np.zeros((1, 4)), np.empty((1, 4)))


def _pruning(dtype):
    prune_smallest([np.ones((1, 1), dtype)], np.ones(1, np.bool_), 1)


def _sparse(dtype):
    compressed(np.ones((1, 1), dtype), 1.0)


CONVOLUTIONS = (
    "conv",
    "conv_inputs",
    "conv_weights",
    "depthwise",
    "winograd",
    "winograd_weights",
    "pool",
    "weight_layout",
)
# by what a user asks for: the files whose kernels it needs, and calls of its drivers with the seconds that they compile
GROUPS = {
    "chain": (("training_step", "dense", "dropout"), {_step: 8.0, _dense: 4.0}),
    "lstm": (("lstm", "packing", "recurrence"), {_lstm: 4.0}),
    "lstm_variants": (("lstm_variants", "layer_norm", "packing", "recurrence"), {_lstm_variants: 5.0}),
    "gru": (("gru", "packing", "recurrence"), {_gru: 4.0}),
    "conv": (CONVOLUTIONS, {_conv: 6.0}),
    "batch_norm": (("batch_norm",), {_batch_norm: 3.0}),
    "layer_norm": (("layer_norm",), {_layer_norm: 2.0}),
    "health": (("health",), {_health: 2.0}),
    "pruning": (("pruning",), {_pruning: 1.0}),
    "sparse": (("sparse",), {_sparse: 1.0}),
}
# what several of them need: products, activations, losses, optimisers
COMMON = {_start: 1.0, _update: 4.0}


def warmup_jobs(groups=tuple(GROUPS), chars="fd"):
    """Jobs that compile all kernels and drivers of these groups and of what all need, kernels first, which drivers load."""
    wanted = {name for group in groups for name in GROUPS[group][0]}
    left_out = {name for names, _ in GROUPS.values() for name in names} - wanted
    kernels = [
        compile.KernelJob(kernel.name, char)
        for char in chars
        for kernel in compile.KERNELS + compile.ROUTINES
        if kernel.function.__module__.rpartition(".")[2] not in left_out
    ]
    calls = [COMMON, *(GROUPS[group][1] for group in groups)]
    drivers = [
        CallJob(f"drivers of {function.__name__.strip('_')}", seconds, function, char)
        for char in chars
        for functions in calls
        for function, seconds in functions.items()
    ]
    return [*longest_first(kernels), *longest_first(drivers)]


def count_compiled():
    """(how many kernels are in the cache, how many there are); a kernel counts once a dtype."""
    jobs = [job for job in warmup_jobs() if isinstance(job, compile.KernelJob)]
    return sum(job.is_compiled() for job in jobs), len(jobs)
