"""How results of operators lie in memory: as PyTorch's do, without copies between layers."""

import copy
import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch_inputs import DOUBLE, draw  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "turned": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 5, 4), (1, 3, 5, 4), (2, 3, 1, 1), (2, 3, 5, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_lie_in_memory_as_pytorchs(layout, shape):
    """Strides of what is one long too: from them a next layer tells the layout."""
    x = LAYOUTS[layout](draw(*shape, last=False).detach())
    for size, outputs, last in itertools.product((1, 3), (1, 4), (False, True)):
        if size > min(shape[2:]):
            continue
        w = draw(outputs, shape[1], size, size, last=last)
        assert fgt.conv2d(x, w).stride() == F.conv2d(x, w).stride()
        results = fgt.conv_block(x, w, *(draw(outputs),) * 2) if x.numel() > 30 else None
        assert results is None or results.stride() == F.conv2d(x, w).stride()
    norm, theirs = fgt.BatchNorm2d(shape[1], dtype=DOUBLE).eval(), torch.nn.BatchNorm2d(shape[1], dtype=DOUBLE).eval()
    assert norm(x).stride() == theirs(x).stride()


@pytest.mark.parametrize("last", [False, True])
def test_layers_in_a_row_lie_in_memory_as_pytorchs_and_nothing_is_turned_between(last, monkeypatch):
    def layers():
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Conv2d(6, 4, 3), nn.SiLU()).double()

    theirs = layers()
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    x = torch.randn(2, 1, 9, 8, dtype=DOUBLE)
    if last:
        x, ours, theirs = (a.to(memory_format=torch.channels_last) for a in (x, ours, theirs))
    turned = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self: turned.append(self) or contiguous(self))
    results = []
    for net in (ours, theirs):
        # dropout draws its mask in the order of memory
        torch.manual_seed(0)
        results.append(net(x))
    assert results[0].stride() == results[1].stride()
    torch.testing.assert_close(*results)
    assert len(turned) == (0 if last else 2)
    assert (results[0] if not last else results[0].permute(0, 2, 3, 1)).view(2, -1).shape == (2, 4 * 5 * 4)


def test_sequences_through_a_norm_are_contiguous():
    x = draw(4, 3, 5).detach()
    norm = fgt.BatchNorm1d(3, dtype=DOUBLE)
    for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        assert norm(layout).is_contiguous()


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc, self.last = (
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
        )
        self.double()

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)) + x)
        return F.silu(self.last(torch.tanh(self.fc(h))) + x)


NEGATED = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double(), (6, 4)),
    "images": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double(), (2, 3, 5, 4)),
    "a graph": (Sums, (2, 3, 5, 4)),
    "rows": (lambda: nn.Sequential(nn.LayerNorm(4), nn.ReLU()).double(), (6, 4)),
    "sequences": (lambda: nn.Sequential(nn.GRU(4, 3, batch_first=True, dtype=DOUBLE)), (2, 5, 4)),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", NEGATED)
def test_negated_views_have_their_sign(in_force, name, last):
    """conj().imag is one, and so is the gradient of the imaginary part of what is conjugated."""
    make, shape = NEGATED[name]
    theirs = make()
    ours, x = copy.deepcopy(theirs), torch.randn(shape, dtype=DOUBLE)
    if last and len(shape) == 4:
        x, ours, theirs = (a.to(memory_format=torch.channels_last) for a in (x, ours, theirs))
    fgt.accelerate(ours, choose=False)
    results = []
    for net in (ours, theirs):
        inputs = torch._neg_view(x).requires_grad_()
        y = net(inputs)
        y = y[0] if isinstance(y, tuple) else y
        dy = torch._neg_view(torch.ones_like(y))
        y.backward(dy)
        results.append([y, inputs.grad, *(p.grad for p in net.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
