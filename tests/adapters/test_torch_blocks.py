"""Residual blocks that fgt.accelerate knows by their forward's code, and those that compute something else."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_models import DOUBLE, Block, assert_the_same, input_of  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

FLAG = True


# a residual block's forward, with something else in it that a try may not see


def gate(self, x):
    h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
    return torch.relu(h * torch.sigmoid(self.fc(h.mean((2, 3))))[..., None, None] + x)


def scale(self, x):
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) * self.scale + x)


def stochastic_depth(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    if self.training and self.rate > 0:
        h = h * (torch.rand(len(x), 1, 1, 1, dtype=h.dtype) >= self.rate)
    return self.relu(h + x)


def by_a_module(self, x):
    return self.relu(self.drop(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))) + x)


def by_a_flag(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if self.flag else h + x


def by_a_global(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if FLAG else h + x


def by_the_values(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if x.sum() > 0 else h + x


def into_x(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    x += h
    return self.relu(x)


def norm_in_vain(self, x):
    self.bn1(x)
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def one_norm(self, x):
    return self.relu(self.bn1(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def past_hooks(self, x):
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1.forward(x))))) + x)


def of_the_middle(self, x):
    h = self.relu(self.bn1(self.conv1(x)))
    return self.relu(self.bn2(self.conv2(h)) + h)


def change_of(forward):
    def change(model):
        nn.init.ones_(model.bn2.weight)
        nn.init.constant_(model.scale, 0.5)
        model.rate, model.drop.p, model.flag = 0.5, 0.5, False
        globals()["FLAG"] = False

    return change


@pytest.mark.parametrize(
    "forward",
    [gate, scale, stochastic_depth, by_a_module, by_a_flag, by_a_global, by_the_values, into_x, norm_in_vain, one_norm,
     past_hooks, of_the_middle],
)  # fmt: skip
def test_a_block_that_computes_something_else_does_so(forward):
    """Its last norm starts at 0, its scale at 1, its rate at 0, so that numbers would not tell."""
    kind = type("Other", (Block,), {"forward": forward})
    torch.manual_seed(0)
    theirs = kind(3, 3, 1)
    theirs.fc, theirs.scale = nn.Linear(3, 3).double(), nn.Parameter(torch.ones(1, dtype=DOUBLE))
    theirs.drop, theirs.rate = nn.Dropout(0.0), 0.0
    nn.init.zeros_(theirs.bn2.weight)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    assert forward is by_a_flag or "a residual block" not in dict(report.replaced).values()
    try:
        for model in (theirs, ours):
            change_of(forward)(model)
        for training in (True, False):
            results = []
            for model in (theirs, ours):
                model.train(training).zero_grad()
                torch.manual_seed(3)
                x = input_of(Block)
                with torch.set_grad_enabled(forward is not into_x):  # which autograd refuses
                    y = model(x)
                if y.requires_grad:
                    y.square().sum().backward()
                results.append([x, y, *(p.grad for p in model.parameters()), *model.buffers()])
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    finally:
        globals()["FLAG"] = True


def in_one_line(self, x):
    return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))), inplace=True)


def by_methods(self, x):
    h = torch.relu(self.bn1(self.conv1(x)))
    return torch.add(self.bn2(self.conv2(h)), x).relu_()


def by_a_layer(self, x):
    out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    out += self.shortcut(x)
    return F.relu(out)


@pytest.mark.parametrize("forward", [in_one_line, by_methods, by_a_layer])
def test_a_block_is_known_however_it_is_written(forward):
    theirs = type("Written", (Block,), {"forward": forward})(3, 3, 1)
    theirs.shortcut = nn.Sequential()
    ours = copy.deepcopy(theirs)
    assert fgt.accelerate(ours).replaced == [("", "a residual block")]
    assert_the_same(theirs, ours, input_of(Block))


def test_a_block_takes_its_input_by_name_too():
    net = Block()
    fgt.accelerate(net)
    torch.testing.assert_close(net(x=input_of(Block)), net(input_of(Block)))
