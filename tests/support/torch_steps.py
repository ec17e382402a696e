"""A net, its batches, and a pair of it for fgt.training_step and for PyTorch's own loop."""

import copy

import numpy as np
import torch
from tolerances import relative
from torch import nn
from torch.nn import functional as F

import fastgrad.torch as fgt

SGD, ADAM, ADAMW, RMSPROP = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop
OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd, decay": (SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (ADAM, {"lr": 0.01}),
    "adam, decay": (ADAM, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "fused": True}),
    "amsgrad": (ADAM, {"lr": 0.01, "amsgrad": True}),
    "adamw": (ADAMW, {"lr": 0.01, "weight_decay": 0.2, "foreach": True}),
    "rmsprop": (RMSPROP, {"lr": 1e-3, "alpha": 0.9, "weight_decay": 0.01}),
    "rmsprop, momentum": (RMSPROP, {"lr": 1e-3, "momentum": 0.8}),
}


def network(activation=None, last=(), dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layers = nn.Linear(6, 9), activation or nn.Tanh(), nn.Linear(9, 7, bias), copy.deepcopy(activation or nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(7, 4), *last).to(dtype)


def batches(count, loss="cross_entropy", dtype=torch.float64, rows=17):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(rows, 6, dtype=dtype, generator=generator)
        y = torch.rand(rows, 4, dtype=dtype, generator=generator)
        if loss == "cross_entropy":
            y = torch.randint(0, 4, (rows,), generator=generator)
        yield x, y.softmax(1) if loss == "probabilities" else y


class Pair:
    """A model and its copy, each with an optimizer: one for the step, one for PyTorch's loop."""

    def __init__(self, model, kind, options, loss=None, clip_norm=None, groups=list):
        self.loss, self.clip_norm = loss or nn.CrossEntropyLoss(), clip_norm
        self.models = model, copy.deepcopy(model)
        self.optimizers = [kind(groups(m.parameters()), **options) for m in self.models]
        own = {fgt.Adam: ADAM, fgt.AdamW: ADAMW}.get(kind, kind)
        self.optimizers[1] = own(groups(self.models[1].parameters()), **options)
        self.step = fgt.training_step(model, self.loss, self.optimizers[0], clip_norm)
        self.losses = [], []

    def pytorch(self, x, y, which=1):
        model, optimizer = self.models[which], self.optimizers[which]
        optimizer.zero_grad()
        loss = self.loss(model(x), y)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        optimizer.step()
        return loss.item()

    def run(self, data, between=lambda: None):
        for x, y in data:
            self.losses[0].append(self.step(x, y))
            self.losses[1].append(self.pytorch(x, y))
            between()

    def check(self):
        ours, theirs = (list(m.parameters()) for m in self.models)
        rel = relative("100_steps", ours[0].detach().numpy().dtype)
        close = {"rtol": rel, "atol": rel, "equal_nan": True}
        np.testing.assert_allclose(*self.losses, **close)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **close)
        states = [o.state_dict() for o in self.optimizers]
        assert [g["params"] for g in states[0]["param_groups"]] == [g["params"] for g in states[1]["param_groups"]]
        assert states[0]["state"].keys() == states[1]["state"].keys()
        for key, entry in states[1]["state"].items():
            assert states[0]["state"][key].keys() == entry.keys()
            for name, value in entry.items():
                torch.testing.assert_close(states[0]["state"][key][name], value, **close)


class Written(nn.Module):
    """A forward as people write it."""

    def __init__(self):
        super().__init__()
        self.first, self.body = nn.Linear(6, 9), nn.Sequential(nn.Linear(9, 7), nn.GELU())
        self.last, self.slope = nn.Linear(7, 4), 0.1

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = F.leaky_relu(self.first(x), self.slope)
        return self.last(self.body(x)).tanh()
