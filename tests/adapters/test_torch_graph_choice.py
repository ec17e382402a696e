"""The choices of a graph: of the whole, by the time of whole calls, and of each product of its convolutions."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_models import own_replacement  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import choice, timing  # noqa: E402
from fastgrad.torch.graph_replacement import GraphReplacement  # noqa: E402
from fastgrad.torch.ops.conv_products import OF_INPUT, OF_WEIGHT, OUTPUT, Product  # noqa: E402

# whose fixture holds it to one thread: on more than a busy machine has, small operators take a hundred times as long
pytestmark = pytest.mark.usefixtures("torch")
PRODUCTS = OUTPUT, OF_INPUT, OF_WEIGHT
GRAPH = "the graph of (the model)"


class Bottleneck(nn.Module):
    """Two of its convolutions have the same settings."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.last, self.drop = nn.Conv2d(3, 4, 1), nn.Dropout(0.5)
        self.double()

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + x)
        return self.drop(self.last(y).mean((2, 3)))


def image():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Clock:
    """Time that goes on when units run: the graph and products, fused and as PyTorch's, by so many seconds."""

    def __init__(self, monkeypatch):
        self.now, self.timed = 0.0, []
        self.seconds = {("graph", "fused"): 1.0, ("graph", "original"): 3.0}
        monkeypatch.setattr(timing, "clock", lambda: self.now)
        monkeypatch.setattr(choice, "speed_ratio", self.ratio)
        for kind in (GraphReplacement, Product):
            for way in ("fused", "original"):
                monkeypatch.setattr(kind, way, self.counted(getattr(kind, way), way))

    def counted(self, method, way):
        def run(unit, x):
            result = method(unit, x)
            name = unit.name if isinstance(unit, Product) else "graph"
            self.now += self.seconds.get((name, way), 1.0)
            return result

        return run

    def ratio(self, unit, args, times):
        self.timed.append(unit.name if isinstance(unit, Product) else "graph")
        return timing.speed_ratio(unit, args, times)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def step(net, x, seed=0):
    torch.manual_seed(seed)
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    state = torch.get_rng_state()
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in net.parameters()), *(b.clone() for b in net.buffers()), state]


@pytest.mark.parametrize("is_graph_faster", [True, False])
@pytest.mark.parametrize("ours", [(), (OUTPUT,), (OF_INPUT, OF_WEIGHT), PRODUCTS])
def test_the_graph_and_each_product_go_the_faster_way(ours, is_graph_faster, clock):
    torch.manual_seed(0)
    theirs, x = Bottleneck(), image()
    net = copy.deepcopy(theirs)
    report = fgt.accelerate(net)
    clock.seconds["graph", "original"] = 3.0 if is_graph_faster else 0.5
    clock.seconds.update({(name, "fused"): 0.5 if name in ours else 2.0 for name in PRODUCTS})
    for seed in range(3):
        torch.testing.assert_close(step(net, x, seed), step(theirs, x, seed), rtol=1e-9, atol=1e-9)
    # the first convolution has an image of another layout; convolutions before the whole, and all once
    assert clock.timed == [*PRODUCTS * 3, "graph"]
    ways = report.to_dict()
    assert {entry["way"] for entry in ways.pop(GRAPH).values()} == {"fastgrad" if is_graph_faster else "PyTorch"}
    assert len(ways) == 2
    for name, entries in ways.items():
        assert name.endswith(f"channels, in {GRAPH}")
        for key, entry in entries.items():
            assert entry["way"] == ("fastgrad" if any(name in key for name in ours) else "PyTorch")
    title = "replaced:" if is_graph_faster else "left:"
    text = str(report)[str(report).index(title) :]
    assert "conv1 to bn1: convolution and batch norm and relu, in the graph" in text
    assert "    convolution 3x3 from 3 to 3 channels: " in text


def test_a_stored_report_is_followed_without_a_clock(clock, tmp_path):
    torch.manual_seed(0)
    net, x = Bottleneck(), image()
    clock.seconds[OUTPUT, "original"] = 0.1
    report = fgt.accelerate(net)
    step(net, x)
    report.save(tmp_path / "ways.json")
    other = Bottleneck()
    clock.timed.clear()
    again = fgt.accelerate(other, choose=tmp_path / "ways.json")
    step(other, x)
    assert clock.timed == []
    assert again.to_dict() == report.to_dict()


def test_false_times_nothing_and_fuses_all(clock, monkeypatch):
    theirs, x = Bottleneck(), image()
    net = copy.deepcopy(theirs)
    report = fgt.accelerate(net, choose=False)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", None)
    y = step(net, x)
    monkeypatch.undo()
    torch.testing.assert_close(y, step(theirs, x), rtol=1e-9, atol=1e-9)
    assert clock.timed == []
    assert report.to_dict() == {}


def deterministic(net, x):
    torch.use_deterministic_algorithms(True)
    try:
        return net(x)
    finally:
        torch.use_deterministic_algorithms(False)


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)


@pytest.mark.parametrize("call", [deterministic, autocast, lambda net, x: checkpoint(net, x, use_reentrant=False)])
def test_calls_that_are_watched_are_not_timed(call, clock):
    net, x = Bottleneck().eval(), image().requires_grad_()
    plain = copy.deepcopy(net)
    report = fgt.accelerate(net)
    ours, theirs = (call(model, x) for model in (net, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for y in (ours, theirs):
        y.sum().backward()
    assert clock.timed == []
    assert report.to_dict() == {}


def test_code_of_others_is_not_called_to_be_timed(clock):
    """The graph runs, and convolutions choose in the call itself."""
    calls = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
            self.act.register_forward_hook(lambda *args: calls.append(1))

        def forward(self, x):
            return self.act(self.bn(self.conv(x)))

    net, x = Net().double(), image()
    report = fgt.accelerate(net)
    net(x)
    assert calls == [1]
    assert set(clock.timed) == {OUTPUT, OF_WEIGHT}
    assert GRAPH not in report.to_dict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_what_was_chosen(copied, clock):
    net, x = Bottleneck(), image()
    report = fgt.accelerate(net)
    step(net, x)
    other = copied(net)
    clock.timed.clear()
    step(other, x)
    assert clock.timed == []
    again = fgt.accelerate(other)
    assert again.to_dict() == report.to_dict()
    again.undo()
    assert not hasattr(vars(other).get("forward"), "__self__")


def test_a_product_does_not_keep_what_it_was_timed_with(clock):
    net = Bottleneck()
    fgt.accelerate(net)
    step(net, image())
    for node in own_replacement(net).graphs[True].fused:
        assert all(product._dz is None for product in node.layer._products)


class IntoInput(nn.Module):
    """It writes to its input, or to what shares memory with it."""

    def __init__(self, is_view):
        super().__init__()
        self.conv, self.bn, self.is_view = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), is_view
        self.double()

    def forward(self, x):
        h = F.relu(self.bn(self.conv(x)))
        if self.is_view:
            return h + x[:, :, 1:].mul_(2).sum()
        x += h
        return x


class IntoParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.scale = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Parameter(torch.ones(3, 1, 1))
        self.double()

    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) * self.scale.mul_(2)


@pytest.mark.parametrize("make", [lambda: IntoInput(False), lambda: IntoInput(True), IntoParameter])
def test_what_writes_to_its_input_or_a_parameter_is_not_called_to_be_timed(make, clock):
    torch.manual_seed(0)
    theirs = make()
    net, results = copy.deepcopy(theirs), []
    report = fgt.accelerate(net)
    for model in (theirs, net):
        x = image()
        with torch.no_grad():
            results.append([model(x), x, *model.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    assert isinstance(own_replacement(net), GraphReplacement)
    assert "graph" not in clock.timed
    assert GRAPH not in report.to_dict()


class IntoInputFirst(IntoInput):
    def forward(self, x):
        x += 1
        return F.relu(self.bn(self.conv(x)))


def test_an_input_with_gradient_may_be_written_to(clock):
    torch.manual_seed(0)
    theirs = IntoInputFirst(False)
    net, results = copy.deepcopy(theirs), []
    fgt.accelerate(net)
    for model in (theirs, net):
        x = image().requires_grad_()
        model(x * 1).square().sum().backward()
        results.append([x.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)
    assert isinstance(own_replacement(net), GraphReplacement)
