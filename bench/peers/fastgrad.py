"""fastgrad on its CPU kernels."""

import numpy as np

import fastgrad as fg
from bench.peers import Runner


def setup(threads):
    fg.use_backend("cpu")
    fg.set_num_threads(threads)


def build(net):
    output = "softmax" if net.loss == "cross_entropy" else "sigmoid"
    model = fg.nn.DenseChain(net.sizes, activation=net.activation, output=output, dtype=net.dtype, seed=0)
    write(model, net)
    return model


def write(model, net):
    for w, b, (first_w, first_b) in zip(model.weights, model.biases, net.parameters(), strict=True):
        w[...], b[...] = first_w, first_b


class Step(Runner):
    def __init__(self, net):
        self.net = net
        self.inputs = net.batches()
        self.model = build(net)

    def restart(self):
        net = self.net
        write(self.model, net)
        optimizer = fg.optim.Adam(net.lr) if net.optimizer == "adam" else fg.optim.SGD(net.lr)
        self.trainer = fg.Trainer(self.model, loss=net.loss, optimizer=optimizer, clip_norm=net.clip_norm)
        self.call = self.trainer.step


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
