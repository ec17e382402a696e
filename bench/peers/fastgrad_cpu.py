"""fastgrad on its CPU kernels."""

import importlib
import warnings

import numpy as np

import fastgrad as fg
from bench.peers import Runner
from bench.workloads import residual
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import ACTIVATIONS, ConvGradients, Geometry, LayerSaved


def setup(threads):
    fg.use_backend("cpu")
    fg.set_num_threads(threads)


def build(net):
    output = "softmax" if net.loss == "cross_entropy" else "sigmoid"
    model = fg.nn.DenseChain(net.sizes, activation=net.activation, output=output, dtype=net.dtype, seed=0)
    for w, b, (first_w, first_b) in zip(model.weights, model.biases, net.parameters(), strict=True):
        w[...], b[...] = first_w, first_b
    return model


class Step(Runner):
    build = staticmethod(build)
    health = False

    def __init__(self, net):
        self.net = net
        self.inputs = net.batches()
        self.model = self.build(net)
        self.changed = [self.model.params, *self.model.statistics().values()]
        self.first = [array.copy() for array in self.changed]

    def restart(self):
        net = self.net
        for array, first in zip(self.changed, self.first, strict=True):
            array[...] = first
        optimizer = fg.optim.Adam(net.lr) if net.optimizer == "adam" else fg.optim.SGD(net.lr, net.momentum)
        self.trainer = fg.Trainer(
            self.model, loss=net.loss, optimizer=optimizer, clip_norm=net.clip_norm, health=self.health
        )
        self.call = self.trainer.step


class Fit(Runner):
    def __init__(self, fit):
        # only these workloads need scikit-learn
        from fastgrad.sklearn import MLPClassifier

        self.fit, self.rows, self.kind = fit, fit.rows(), MLPClassifier

    def call(self):
        with warnings.catch_warnings():
            # so few epochs do not converge
            warnings.simplefilter("ignore")
            return self.kind(**self.fit.settings()).fit(*self.rows).loss_curve_


def sequential(layers, dtype):
    return fg.nn.Sequential(*(layer_of(layer, dtype) for layer in layers))


def layer_of(layer, dtype):
    match layer:
        case residual.Dense():
            return fg.nn.Dense(layer.n_in, layer.n_out, dtype=dtype)
        case residual.Conv():
            settings = {"stride": layer.stride, "padding": layer.padding, "bias": False, "dtype": dtype}
            return fg.nn.Conv2d(layer.n_in, layer.n_out, layer.size, **settings)
        case residual.BatchNorm():
            return fg.nn.BatchNorm(layer.n, "relu" if layer.relu else "identity", dtype=dtype)
        case residual.Mean():
            return fg.nn.GlobalAvgPool2d()
        case residual.Residual():
            shortcut = sequential(layer.shortcut, dtype) if layer.shortcut else None
            return fg.nn.Residual(sequential(layer.body, dtype), shortcut, "relu" if layer.relu else "identity")


class Blocks(Step):
    @staticmethod
    def build(net):
        model = sequential(net.layers, net.dtype)
        for parameter, array in zip(model.parameters().values(), net.parameters(), strict=True):
            parameter[...] = array
        return model

    def fetch(self, loss):
        return self.net.outcome(loss, self.model.statistics().values())


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(x,) for x, _ in net.batches()]
        self.call = build(net).predict


class Gemm(Runner):
    def __init__(self, gemm):
        from fastgrad.kernels.cpu.gemm import matmul

        self.inputs = [(*gemm.operands(), np.empty((gemm.m, gemm.n), gemm.dtype))]
        self.call = matmul

    def fetch(self, _):
        return self.inputs[0][2]


class Lstm(Runner):
    def __init__(self, lstm):
        x, self.dy = lstm.sequences()
        self.inputs = [(x,)]
        self.lengths = lstm.lengths()
        self.model = self.build(lstm)
        arrays = [array for layer in lstm.parameters() for direction in layer for array in direction]
        for parameter, array in zip(self.model.parameters().values(), arrays, strict=True):
            parameter[...] = array
        self.outcome = lstm.outcome

    @staticmethod
    def build(lstm):
        options = {"proj_size": lstm.proj_size, "dtype": lstm.dtype, "seed": 0}
        return fg.nn.LSTM(lstm.n_in, lstm.hidden, lstm.layers, lstm.bidirectional, **options)

    def call(self, x):
        y, backward = self.model.forward(x, training=True, lengths=self.lengths)
        return y, backward(self.dy)

    def fetch(self, result):
        return self.outcome(*result, self.model.gradients().values())


class Gru(Lstm):
    @staticmethod
    def build(gru):
        return fg.nn.GRU(gru.n_in, gru.hidden, gru.layers, gru.bidirectional, dtype=gru.dtype, seed=0)


class LayerNormLstm(Lstm):
    @staticmethod
    def build(lstm):
        return fg.nn.LSTM(lstm.n_in, lstm.hidden, layer_norm=True, dtype=lstm.dtype, seed=0)


class LstmForward(Lstm):
    def call(self, x):
        return self.model.predict(x, lengths=self.lengths)

    def fetch(self, y):
        return self.outcome(y)


class LstmCell(Runner):
    def __init__(self, lstm):
        x, dy = (np.ascontiguousarray(array.transpose(1, 0, 2)) for array in lstm.sequences())
        self.dy = dy
        self.inputs = [(x,)]
        ((self.weights,),) = lstm.parameters()
        self.state = np.zeros((lstm.batch, lstm.hidden), lstm.dtype)
        self.outcome = lstm.outcome

    def call(self, x):
        h = c = self.state
        ys, backwards = [], []
        for x_t in x:
            (h, c), backward = fg.lstm_cell(x_t, h, c, *self.weights)
            ys.append(h)
            backwards.append(backward)
        dxs, gradients = [], [np.zeros_like(w) for w in self.weights]
        dh = dc = self.state
        for dy_t, backward in zip(self.dy[::-1], reversed(backwards), strict=True):
            dx, dh, dc = backward(dh + dy_t, dc, gradients=gradients)
            dxs.append(dx)
        return np.stack(ys, axis=1), np.stack(dxs[::-1], axis=1), gradients

    def fetch(self, result):
        return self.outcome(*result)


class Conv(Runner):
    def __init__(self, conv):
        x, self.w, self.dy = conv.arrays()
        self.inputs = [(x,)]
        self.conv = conv
        self.options = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}

    def call(self, x):
        y, backward = fg.conv2d(x, self.w, **self.options)
        return y, *backward(self.dy)

    def fetch(self, result):
        return self.conv.outcome(*result)


class ConvForward(Conv):
    def call(self, x):
        return fg.conv2d(x, self.w, **self.options)[:1]


class ConvInputs(Conv):
    """The kernel itself: the public backward makes all gradients."""

    needs = "dx"

    def __init__(self, conv):
        super().__init__(conv)
        (x,) = self.inputs[0]
        self.gradients = {"dx": np.empty_like(x), "dw": np.empty_like(self.w)}
        self.dz = np.empty_like(self.dy)

    def call(self, x):
        dx, dw = (self.gradients[name] if name == self.needs else None for name in ("dx", "dw"))
        geometry = Geometry((self.conv.stride,) * 2, (self.conv.padding,) * 4, (1, 1))
        saved, gradients = LayerSaved(self.dy, self.dy), ConvGradients(self.dz, dx, dw, None)
        kernels().conv2d_backward(self.dy, x, self.w, geometry, ACTIVATIONS["identity"], saved, gradients)
        return (self.gradients[self.needs],)


class ConvWeights(ConvInputs):
    needs = "dw"


class Clip(Runner):
    def __init__(self, clip):
        self.clip, self.first = clip, clip.arrays()

    def restart(self):
        self.gradients, self.calls = [g.copy() for g in self.first], 0

    def call(self):
        self.calls += 1
        return fg.clip_grad_norm(self.gradients, self.clip.max_norm(self.calls)).norm

    def fetch(self, norm):
        return self.clip.outcome(norm, self.gradients)


class Update(Runner):
    def __init__(self, update):
        self.update, self.gradients = update, update.arrays()

    def restart(self):
        self.params = [np.zeros_like(g) for g in self.gradients]
        self.updater = fg.Updater(self.params, fg.optim.Adam(self.update.lr), self.update.max_norm())

    def call(self):
        return self.updater.step(self.gradients)

    def fetch(self, norm):
        return self.update.outcome(self.params)


class BatchNorm(Runner):
    def __init__(self, norm):
        (x, residual, self.dy), self.factors = norm.arrays()
        self.residual = residual if norm.adds else None
        self.inputs = [(x,)]
        self.norm = norm

    def call(self, x):
        y, backward = fg.batch_norm(x, *self.factors, activation="relu", residual=self.residual)
        return y, *backward(self.dy)[:3]

    def fetch(self, result):
        return self.norm.outcome(*result)


class LayerNorm(BatchNorm):
    def call(self, x):
        y, backward = fg.layer_norm(x, *self.factors, activation="relu", residual=self.residual)
        return y, *backward(self.dy)[:3]


class HeNormal(Runner):
    def __init__(self, weights):
        self.weights = weights
        self.rng = np.random.default_rng(0)

    def call(self):
        return fg.init.he_normal(self.weights.shape, self.rng, self.weights.dtype)

    def fetch(self, w):
        return self.weights.outcome(w)


class Call(Runner):
    """The call without an adapter."""

    def __init__(self, call):
        self.call_of, self.dy = call, call.dy()
        self.inputs = [(x,) for x, _ in call.batches()]
        self.weights, self.biases = (list(arrays) for arrays in zip(*call.parameters(), strict=True))
        self.activations = call.activations

    def call(self, x):
        return fg.dense_chain(x, self.weights, self.biases, self.activations)[:1]

    def fetch(self, result):
        return self.call_of.outcome(*result)


class CallBack(Call):
    def call(self, x):
        y, backward = fg.dense_chain(x, self.weights, self.biases, self.activations)
        return y, backward(self.dy)[1]


def __getattr__(name):
    """Runners of the PyTorch adapter: the others are timed without PyTorch in their process."""
    if not name.startswith("Torch"):
        raise AttributeError(name)
    return getattr(importlib.import_module("bench.peers.fastgrad_torch_cpu"), name)
