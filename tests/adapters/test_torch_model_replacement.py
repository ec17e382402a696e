"""fgt.accelerate's last check: the model as a whole goes the way whose steps, forward and backward, are shorter in use."""

import copy
import pickle
import warnings

import numpy as np
import pytest

from fastgrad.core import allocator

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import timing  # noqa: E402
from fastgrad.torch.model_replacement import MOST_CALLS, ModelReplacement  # noqa: E402
from fastgrad.torch.report import WHOLE  # noqa: E402
from fastgrad.torch.runs import Run  # noqa: E402


class Net(nn.Module):
    """Two units, and a norm of which none is made."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Sequential(nn.Linear(6, 3), nn.Tanh())
        self.double()

    def forward(self, x, scale=1.0):
        return {"y": self.head(self.norm(self.body(x))) * scale}


class Backward(torch.autograd.Function):
    """The identity; its backward takes time."""

    @staticmethod
    def forward(ctx, y, ways):
        ctx.ways = ways
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        ctx.ways.now += ctx.ways.backward
        return dy, None


class Ways:
    """The ways that runs go, and a clock: alone all runs are faster fused, in the model by `fused` and `original` seconds."""

    def __init__(self, monkeypatch):
        self.now, self.fused, self.original, self.backward, self.taken = 0.0, 1.0, 1.0, 0.0, []
        monkeypatch.setattr(timing, "clock", lambda: self.now)
        monkeypatch.setattr("fastgrad.torch.choice.speed_ratio", self.ratio)
        for way in ("fused", "original"):
            monkeypatch.setattr(Run, way, self.timed(getattr(Run, way), way))

    def ratio(self, unit, args, times):
        for own, seconds in zip(times, (2.0, 1.0), strict=True):
            own += [seconds, seconds]
        return 2.0

    def timed(self, method, way):
        def run(unit, x):
            y = method(unit, x)
            self.now += getattr(self, way)
            self.taken.append(way)
            return Backward.apply(y, self) if y.requires_grad else y

        return run


@pytest.fixture
def ways(monkeypatch):
    return Ways(monkeypatch)


def calls(net, count, ways, x=None, backward=True):
    """The ways of each of some calls."""
    x, result = torch.ones(5, 4, dtype=torch.float64) if x is None else x, []
    for _ in range(count):
        ways.taken.clear()
        y = net(x)["y"]
        if backward:
            y.sum().backward()
        result.append("".join(way[0] for way in ways.taken))
    return result


TURNS = ["ff", "ff", "oo", "oo", "ff"]


@pytest.mark.parametrize(("original", "then"), [(0.25, "oo"), (4.0, "ff"), (1.06, "ff"), (1.04, "oo"), (0.99, "oo")])
def test_the_model_goes_the_way_that_is_faster_in_the_whole(original, then, ways):
    net = Net()
    report = fgt.accelerate(net)
    ways.original = original
    is_clear = not 0.6 < original < 1.6
    taken = calls(net, 20, ways)
    assert taken[: len(TURNS)] == TURNS
    # where it is less clear, there are more turns
    assert taken[len(TURNS) if is_clear else 10 :] == [then] * (15 if is_clear else 10)
    (entry,) = report.to_dict()[WHOLE].values()
    assert entry == {"way": "fastgrad" if then == "ff" else "PyTorch", "ratio": pytest.approx(original)}
    (line,) = str(report).partition("in the whole:\n")[2].splitlines()
    faster = "" if then == "ff" else f"PyTorch's is {'faster' if original < 1 else 'as fast'}: "
    assert line.startswith(f"  {faster}{original:.2f}x on 5 x 4, float64")


def test_once_chosen_free_memory_goes_back_to_the_system(ways):
    net, ways.original = Net(), 0.25
    report = fgt.accelerate(net)
    allocator.empty((1 << 20,), np.dtype(np.float64))
    while WHOLE not in report.to_dict():
        assert allocator._memory.listed >= 8 << 20
        calls(net, 1, ways)
    assert allocator._memory.listed < 8 << 20


def test_the_time_of_the_backward_pass_counts(ways):
    net = Net()
    fgt.accelerate(net)
    forward = net.forward.__self__.fused

    def slow_backward(*args, **kwargs):
        ways.backward = 0.0 if net.forward.__self__.choice.is_original() else 5.0
        return forward(*args, **kwargs)

    net.forward.__self__.fused = slow_backward
    assert calls(net, 6, ways)[-1] == "oo"


def test_each_kind_of_call_is_compared_once(ways):
    net = Net()
    report = fgt.accelerate(net)
    ways.original = 0.25
    other = torch.ones(7, 4, dtype=torch.float64)
    assert calls(net, 6, ways) == [*TURNS, "oo"]
    assert calls(net, 6, ways, other) == [*TURNS, "oo"]
    assert calls(net, 2, ways) == ["oo", "oo"]
    net.eval()
    with torch.no_grad():
        assert calls(net, 6, ways, backward=False) == [*TURNS, "oo"]
    net.train()
    assert calls(net, 2, ways, other) == ["oo", "oo"]
    assert len(report.to_dict()[WHOLE]) == 3


def test_a_call_in_which_a_unit_is_timed_does_not_count(ways, monkeypatch):
    net = Net()
    fgt.accelerate(net)
    ways.original = 0.25
    # its two shortest times are never near each other
    monkeypatch.setattr("fastgrad.torch.choice.are_settled", lambda times: False)
    taken = calls(net, 12, ways)
    # the units choose at their fourth call
    assert taken == ["ff", "ff", "oo", "oo", "ff", "ff", "oo", "oo", "ff", "ff", "oo", "oo"]


def test_calls_without_a_backward_decide_nothing_and_end(ways):
    net = Net()
    report = fgt.accelerate(net)
    ways.original = 0.25
    taken = calls(net, MOST_CALLS + 3, ways, backward=False)
    assert taken[-2:] == ["ff", "ff"]
    (entry,) = report.to_dict()[WHOLE].values()
    assert entry == {"way": "fastgrad", "ratio": None}


def test_several_calls_before_one_backward_and_graphs_that_are_kept(ways):
    net, x = Net(), torch.ones(5, 4, dtype=torch.float64)
    report = fgt.accelerate(net)
    ways.original = 0.25
    for _ in range(4):
        loss = net(x)["y"].sum() + net(x)["y"].sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert [entry["way"] for entry in report.to_dict()[WHOLE].values()] == ["PyTorch"]


def test_nothing_of_a_timed_call_is_seen(ways):
    net, plain, x = Net(), Net(), torch.ones(5, 4, dtype=torch.float64)
    plain.load_state_dict(net.state_dict())
    fgt.accelerate(net)
    for _ in range(8):
        results = []
        for model in (net, plain):
            model.zero_grad()
            y = model(x, scale=2.0)["y"]
            assert not y._backward_hooks
            y.square().sum().backward()
            results.append([y, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(*results)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_inside_the_model_goes_one_way(reentrant, ways):
    class Checkpointed(Net):
        def forward(self, x):
            return {"y": self.head(checkpoint(lambda x: self.norm(self.body(x)), x, use_reentrant=reentrant))}

    net = Checkpointed()
    plain = copy.deepcopy(net)
    fgt.accelerate(net)
    x = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    for _ in range(8):
        gradients = []
        for model in (net, plain):
            x.grad = None
            model(x)["y"].sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients)


def test_a_call_that_raises_leaves_no_trace(ways):
    net, x = Net(), torch.ones(5, 4, dtype=torch.float64)
    fgt.accelerate(net)
    ways.original = 0.25
    for _ in range(8):
        with pytest.raises((RuntimeError, ValueError)):
            net(x[:, :3])
    assert not net.forward.__self__.choice.is_original()
    assert calls(net, 6, ways, torch.ones(5, 4, dtype=torch.float64))[-1] == "oo"


def test_stored_choices_hold_for_the_whole_too(ways, tmp_path):
    net = Net()
    report = fgt.accelerate(net)
    ways.original = 0.25
    calls(net, 6, ways)
    report.save(tmp_path / "ways.json")
    for given in (report, report.to_dict(), tmp_path / "ways.json"):
        other = Net()
        fgt.accelerate(other, choose=given)
        assert calls(other, 2, ways) == ["oo", "oo"]


def test_copies_go_on_and_parts_do_not_drag_the_model_along(ways):
    net = Net()
    fgt.accelerate(net)
    ways.original = 0.25
    calls(net, 6, ways)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert calls(other, 2, ways) == ["oo", "oo"]
        report = fgt.accelerate(other)
        assert report.to_dict().keys() == {WHOLE, "body.0 to body.1", "head.0 to head.1"}
        report.undo()
        assert not any("forward" in module.__dict__ for module in other.modules())
        ways.taken.clear()
        other(torch.ones(5, 4, dtype=torch.float64))
        assert ways.taken == []
    assert len(pickle.dumps(net.head)) < len(pickle.dumps(net)) / 1.5
    # a part that is called alone goes its own way
    ways.taken.clear()
    net.body(torch.ones(5, 4, dtype=torch.float64))
    assert ways.taken == ["fused"]


def test_a_model_that_becomes_part_of_another_is_compared_with_that(ways):
    inner = Net()
    first = fgt.accelerate(inner)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.tail = inner, nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double()

        def forward(self, x):
            return {"y": self.tail(self.inner(x)["y"])}

    outer = Outer()
    second = fgt.accelerate(outer)
    ways.original = 0.25
    assert calls(outer, 6, ways) == [3 * way[0] for way in [*TURNS, "oo"]]
    second.undo()
    first.undo()
    assert not any("forward" in module.__dict__ for module in outer.modules())


def test_only_a_model_of_more_than_one_unit_is_compared():
    for model in (nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.LSTM(3, 4), nn.Sequential(nn.Dropout(0.1))):
        fgt.accelerate(model)
        assert not isinstance(getattr(model.forward, "__self__", None), ModelReplacement)
    for choose in (True, False):
        model = Net()
        fgt.accelerate(model, choose=choose)
        assert isinstance(getattr(model.forward, "__self__", None), ModelReplacement) == choose


def test_a_compiled_model_is_not_compared(ways):
    net, x = Net(), torch.ones(5, 4, dtype=torch.float64)
    report = fgt.accelerate(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        for _ in range(3):
            torch.testing.assert_close(compiled(x)["y"], net.head(net.norm(net.body(x))))
    assert WHOLE not in report.to_dict()
