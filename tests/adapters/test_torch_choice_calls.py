"""fgt.accelerate's choice at special calls: those that are watched or traced, checkpoints, calls of threads, and calls that fail."""

import contextlib
import copy
import threading

import pytest

torch = pytest.importorskip("torch")

from choice_clock import Alone, Clock, entries  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_models import Block, dense, images, input_of  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import acceleration, choice, timing  # noqa: E402

# whose fixture holds it to one thread: on more than a busy machine has, small operators take a hundred times as long
pytestmark = pytest.mark.usefixtures("torch")


@pytest.fixture
def clock(monkeypatch):
    # as if no forward could be recorded
    monkeypatch.setattr(acceleration, "graphs_of", lambda module: {})
    return Clock(monkeypatch)


class Mode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Backward(torch.autograd.Function):
    """Calls the net in the backward pass."""

    @staticmethod
    def forward(ctx, x, net):
        ctx.net, ctx.x = net, x.detach()
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        with torch.enable_grad():
            ctx.net(ctx.x)
        return dy, None


def under(context):
    def call(net, x):
        with context():
            net(x)

    return call


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CALLS = {
    "autocast": under(lambda: torch.autocast("cpu")),
    "anomaly": under(torch.autograd.detect_anomaly),
    "deterministic": under(deterministic),
    "saved tensors": under(lambda: torch.autograd.graph.saved_tensors_hooks(lambda a: a, lambda a: a)),
    "dispatch mode": under(Mode),
    "profiler": under(torch.autograd.profiler.profile),
    "checkpoint": lambda net, x: checkpoint(net, x.requires_grad_(), use_reentrant=False).sum().backward(),
    "backward": lambda net, x: Backward.apply(x.clone().requires_grad_(), net).sum().backward(),
    "compiled": lambda net, x: torch.compile(net, backend="eager")(x),
    "traced": lambda net, x: torch.jit.trace(net, x, check_trace=False),
    "transformed": lambda net, x: torch.func.vmap(net.eval())(x[None]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("make", [dense, images, Block, Alone])
def test_calls_that_are_watched_or_traced_are_not_timed(make, name, clock):
    net, x = make().float(), input_of(make).float()
    report = fgt.accelerate(net)
    torch._dynamo.reset()
    with contextlib.suppress(NotImplementedError):
        CALLS[name](net, x)
    assert clock.timed == 0
    assert not entries(report)


def test_a_checkpoint_goes_the_same_way_twice_whatever_is_chosen_in_between(clock):
    """PyTorch counts the tensors that both forwards save."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4), nn.SiLU()).double()
    ours, x = copy.deepcopy(theirs), input_of(dense).requires_grad_()
    fgt.accelerate(ours)
    clock.fused = 2.0
    gradients = []
    for net in (theirs, ours):
        y = net(checkpoint(net, x, use_reentrant=False))
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))
    assert clock.timed == 1
    torch.testing.assert_close(*gradients)


def test_threads_may_call_at_once_and_one_of_them_times(clock, monkeypatch):
    theirs, x = dense(), input_of(dense)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    inside, most = [], []
    reached, finished = threading.Event(), threading.Event()

    def slow(unit, args, times):
        inside.append(1)
        most.append(len(inside))
        reached.set()
        assert finished.wait(60)
        ratio = timing.speed_ratio(unit, args, times)
        inside.pop()
        return ratio

    monkeypatch.setattr(choice, "speed_ratio", slow)
    results = []
    threads = [threading.Thread(target=lambda: results.append(ours(x))) for _ in range(2)]
    threads[0].start()
    assert reached.wait(60)
    threads[1].start()
    threads[1].join(60)
    assert len(results) == 1
    finished.set()
    threads[0].join(60)
    assert most == [1]
    assert len(entries(report)) == 1
    for y in results:
        torch.testing.assert_close(y, theirs(x))


def test_a_call_that_fails_raises_its_own_error_and_chooses_nothing(clock):
    net = images()
    report = fgt.accelerate(net)
    with pytest.raises((RuntimeError, ValueError)):
        net(torch.ones(2, 5, 8, 8, dtype=torch.float64))
    assert not entries(report)
    net(input_of(images))
    assert len(entries(report)) == 1
