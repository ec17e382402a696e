"""Accelerated nets with the structures of torchvision's: their training is PyTorch's."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_models import Block, assert_identical, attributes, input_of  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402


def conv_norm(n_in, n_out, size=3, groups=1, activation=nn.ReLU, stride=1):
    layers = [nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class Inverted(nn.Module):
    """MobileNetV3's: expansion, depthwise convolution, squeeze-and-excitation, projection, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.expand, self.depth = conv_norm(4, 8, 1, 1, nn.Hardswish), conv_norm(8, 8, 3, 8, nn.Hardswish)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 8, 1), nn.Hardsigmoid()
        )
        self.project = conv_norm(8, 4, 1, 1, None)

    def forward(self, x):
        h = self.depth(self.expand(x))
        h = self.project(h * self.gate(h))
        if self.training:
            h = h * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.3)
        return x + h


class Dense(nn.Module):
    """DenseNet's: norms before convolutions, and concatenation."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(inplace=True), nn.Conv2d(n, 2, 3, padding=1, bias=False))
            for n in (4, 6)
        )
        self.end = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1), nn.AvgPool2d(1))

    def forward(self, x):
        for part in self.parts:
            x = torch.cat([x, part(x)], 1)
        return self.end(x)


class Shuffled(nn.Module):
    """ShuffleNet's: two halves of the channels, and their shuffle."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(*conv_norm(2, 2, 1), *conv_norm(2, 2, 3, 2, None), *conv_norm(2, 2, 1))

    def forward(self, x):
        kept, h = x.chunk(2, 1)
        h = torch.cat((kept, self.branch(h)), 1)
        n, channels, height, width = h.shape
        return h.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)


class Vision(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.stem, self.middle = conv_norm(3, 4), middle
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4 * 16, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, x):
        x = self.relu(self.middle(self.stem(x)))
        x = nn.functional.dropout(nn.functional.max_pool2d(x, 2), 0.2, self.training)
        return self.head(x.view(x.size(0), -1))


def basic():
    return nn.Sequential(Block(4, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("middle", [Inverted, Dense, Shuffled, basic])
def test_nets_like_torchvisions_train_as_they_did(middle):
    torch.manual_seed(0)
    theirs = Vision(middle()).double()
    ours, x, target = copy.deepcopy(theirs), input_of(Block), torch.tensor([0, 2])
    before = attributes(ours)
    report = fgt.accelerate(ours)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (theirs, ours)]
    for step in range(3):
        results = []
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=False)
            y = model(x)
            nn.functional.cross_entropy(y, target).backward()
            results.append([y, *(p.grad.clone() for p in model.parameters())])
            optimizer.step()
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)
    report.undo()
    ours.train()
    assert_identical(attributes(ours), before)
