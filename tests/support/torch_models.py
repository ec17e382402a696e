"""Small PyTorch models to be accelerated, and comparisons of what they compute and of all their attributes."""

import torch
from torch import nn

from fastgrad.torch.model_replacement import ModelReplacement

DOUBLE = torch.float64


def dense():
    return nn.Sequential(
        nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6), nn.ELU(0.7), nn.Linear(6, 3), nn.Softmax(-1)
    ).double()


def images():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 5, 3), nn.ReLU6(),
        nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4),
    ).double()  # fmt: skip


def row_norms():
    return nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Dropout(0.0), nn.LayerNorm(6, bias=False), nn.Linear(6, 3)
    ).double()


class Block(nn.Module):
    """torchvision's BasicBlock, line by line."""

    def __init__(self, n_in=3, n_out=4, stride=2):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu, self.downsample, self.flag = nn.ReLU(inplace=True), None, True
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.double()

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.lstm = kind(4, 5, 2, batch_first=True, bidirectional=True, dtype=DOUBLE)
        self.head = nn.Sequential(nn.Linear(10, 3), nn.Tanh()).double()

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def identity_block():
    return Block(3, 3, 1)


def input_of(make):
    shape = {dense: (5, 4), row_norms: (5, 4), Recurrent: (3, 6, 4)}.get(make, (2, 3, 8, 8))
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))


def own_replacement(model):
    """What takes the place of an accelerated model's forward, beneath what compares the model as a whole."""
    replacement = model.forward.__self__
    return replacement.inner if isinstance(replacement, ModelReplacement) else replacement


def assert_the_same(theirs, ours, x, steps=2):
    """Outputs, gradients and buffers, in training and in evaluation."""
    for training in (True, False):
        for _ in range(steps):
            results = []
            for model in (theirs, ours):
                model.train(training).zero_grad()
                torch.manual_seed(0)
                inputs = x.clone().requires_grad_()
                y = model(inputs)
                (y * torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos()).sum().backward()
                results.append([y, inputs.grad, *(p.grad for p in model.parameters()), *model.buffers()])
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def attributes(model):
    """All that modules have, with the dictionaries' own contents."""
    return [
        (type(module), [(k, dict(v) if isinstance(v, dict) else v) for k, v in vars(module).items()])
        for module in model.modules()
    ]


def assert_identical(results, expected):
    for (kind, own), (kind_before, before) in zip(results, expected, strict=True):
        assert kind is kind_before
        assert [name for name, _ in own] == [name for name, _ in before]
        for (_, value), (_, old) in zip(own, before, strict=True):
            if isinstance(old, dict):
                assert list(value) == list(old)
                assert all(value[key] is old[key] for key in old)
            else:
                assert value is old or value == old
