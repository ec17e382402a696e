"""PyTorch, eager: fused Adam, foreach clipping."""

import torch
from torch import nn

from bench.peers import Runner


def setup(threads):
    torch.set_num_threads(threads)


def build(net):
    """The layers of a net, with its first weights."""
    layers = []
    for w, b in net.parameters():
        linear = nn.Linear(*w.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w.T))
            linear.bias.copy_(torch.from_numpy(b))
        layers += [linear, nn.ReLU() if net.activation == "relu" else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Step(Runner):
    def __init__(self, net):
        self.inputs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in net.batches()]
        model = build(net)
        criterion = nn.CrossEntropyLoss() if net.loss == "cross_entropy" else nn.BCEWithLogitsLoss()
        self.parameters = list(model.parameters())
        self.first = [p.detach().clone() for p in self.parameters]
        kind = torch.optim.Adam if net.optimizer == "adam" else torch.optim.SGD
        self.make_optimizer = lambda: kind(self.parameters, lr=net.lr, fused=True)
        self.loss = self.prepare(lambda x, y: criterion(model(x), y))
        self.clip_norm = net.clip_norm

    def prepare(self, loss):
        return loss

    def restart(self):
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.first)
        self.optimizer = self.make_optimizer()

    def call(self, x, y):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, y)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()
        return loss

    def fetch(self, loss):
        return loss.detach().numpy()


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(torch.from_numpy(x),) for x, _ in net.batches()]
        self.model = self.prepare(nn.Sequential(build(net), nn.Softmax(-1)).eval())

    def prepare(self, model):
        return model

    def run(self, count):
        with torch.inference_mode():
            return super().run(count)

    def call(self, x):
        return self.model(x)


class Gemm(Runner):
    def __init__(self, gemm):
        a, b = map(torch.from_numpy, gemm.operands())
        self.inputs = [(a, b)]
        self.out = torch.empty(gemm.m, gemm.n)

    def call(self, a, b):
        return torch.mm(a, b, out=self.out)
