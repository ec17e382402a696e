"""fgt.accelerate: the same numbers, parameters, names and hooks; what it says; and the way back."""

import contextlib
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import buffers, runs  # noqa: E402
from fastgrad.torch.replacement import replacement_of  # noqa: E402


class Block(nn.Module):
    """torchvision's BasicBlock; with `other` one that only looks like it."""

    def __init__(self, n_in, n_out, stride=1, other=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu, self.downsample, self.other = nn.ReLU(inplace=True), None, other
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out) + shortcut if self.other else self.relu(out + shortcut)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16, other=True))
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.0), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 4)
        )
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        z = self.blocks(self.stem(x)).flatten(2).transpose(1, 2)
        return self.last(self.head(self.lstm(z)[0][:, -1]))


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in model.parameters())]


def test_a_model_keeps_its_numbers_parameters_and_names():
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    plain = copy.deepcopy(net)
    parameters, names = list(net.parameters()), list(net.state_dict())
    state = torch.random.get_rng_state()
    report = fgt.accelerate(net)
    assert torch.equal(state, torch.random.get_rng_state())
    assert report.replaced == [
        ("stem.0 to stem.2", "convolution and batch norm and relu"),
        ("blocks.0", "a residual block"),
        ("blocks.1", "a residual block"),
        ("lstm", "fgt.LSTM"),
        ("head.0 to head.1", "a dense layer with its activation"),
        ("head.3 to head.5", "a chain of dense layers"),
        ("the graph of (the model)", "10 fused steps of 18"),
        *(
            (layers, f"{what}, in the graph of (the model)")
            for layers, what in [
                ("stem.0 to stem.1", "convolution and batch norm and relu"),
                ("blocks.0.conv1 to blocks.0.bn1", "convolution and batch norm and relu"),
                ("blocks.0.conv2 to blocks.0.bn2", "convolution and batch norm and relu"),
                ("blocks.1.downsample.0 to blocks.1.downsample.1", "convolution and batch norm"),
                ("blocks.1.conv1 to blocks.1.bn1", "convolution and batch norm and relu"),
                ("blocks.1.conv2 to blocks.1.bn2", "convolution and batch norm and relu"),
                ("blocks.2.conv1 to blocks.2.bn1", "convolution and batch norm and relu"),
                ("blocks.2.conv2 to blocks.2.bn2", "convolution and batch norm and relu"),
                ("head.0", "a dense layer with its activation"),
                ("head.3 to last", "a chain of dense layers"),
            ]
        ),
    ]
    assert report.left == [
        ("stem.3", "MaxPool2d stays PyTorch's"),
        ("head.2", "Dropout stays PyTorch's"),
    ]
    assert all(p is q for p, q in zip(net.parameters(), parameters, strict=True))
    assert list(net.state_dict()) == names
    for expected, results in zip(gradients(plain, x), gradients(net, x), strict=True):
        torch.testing.assert_close(results, expected)
    torch.testing.assert_close(net.state_dict(), plain.state_dict())
    expected = plain.eval()(x)
    for other in (net, copy.deepcopy(net), torch.compile(net, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(other.eval()(x), expected)
    again = fgt.accelerate(net)
    assert not again.replaced
    assert ("stem", "is accelerated already") in again.left
    report.undo()
    report.undo()
    assert type(net.lstm) is nn.LSTM
    assert not any("forward" in module.__dict__ for module in net.modules())
    torch.testing.assert_close(net(x), expected)


def test_an_optimizer_made_before_goes_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    models, x, target = (net, copy.deepcopy(net)), torch.randn(20, 6), torch.randint(3, (20,))
    losses = []
    for model in models:
        optimizer, results = torch.optim.Adam(model.parameters(), 1e-2), []
        for step in range(30):
            if model is net and step == 10:
                fgt.accelerate(model)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            results.append(loss.item())
        losses.append(results)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_hooks_are_kept_or_what_has_them_is_left():
    seen = []
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    net.register_forward_hook(lambda module, inputs, output: seen.append("net"))
    handle = net[2].register_forward_hook(lambda module, inputs, output: seen.append("layer"))
    report = fgt.accelerate(net)
    assert report.replaced == [("0 to 1", "a dense layer with its activation")]
    assert report.left == [("2", "has hooks")]
    net(torch.ones(2, 4))
    assert seen == ["layer", "net"]
    handle.remove()
    net[0].register_forward_pre_hook(lambda module, inputs: seen.append("later"))
    net(torch.ones(2, 4))
    assert seen == ["layer", "net", "later", "net"]


def test_an_exchanged_layer_is_met():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    fgt.accelerate(net)
    net[2] = nn.Linear(5, 2)
    assert net(torch.ones(1, 4)).shape == (1, 2)
    net[0].weight = nn.Parameter(torch.zeros(5, 4))
    torch.testing.assert_close(net(torch.ones(1, 4)), net(torch.zeros(1, 4)))


def test_a_layer_that_is_free_again_is_fused_again():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    fgt.accelerate(net)
    handle = net[0].register_forward_hook(lambda module, inputs, output: None)
    net(torch.ones(1, 4))
    assert len(net.forward.__self__.plan.steps) == 3
    handle.remove()
    net(torch.ones(1, 4))
    assert len(net.forward.__self__.plan.steps) == 1


def test_weights_that_lie_elsewhere_or_otherwise_are_met():
    """Each call after another change: values, memory, order in memory at the same place, dtype."""
    nets = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fgt.accelerate(nets[0])
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))

    def turn(net):
        w = net[0].weight
        w.data = w.data.t()

    def replace(net):
        net[2].bias.data = net[2].bias.data * 2

    def write(net):
        with torch.no_grad():
            net[2].weight.mul_(2)

    changes = [lambda net: None, turn, replace, write, lambda net: net.double(), lambda net: net.float()]
    for change in changes:
        gradients = []
        for net in nets:
            change(net)
            net.zero_grad()
            y = net(x.to(net[0].weight.dtype))
            y.square().sum().backward()
            gradients.append([y, *(p.grad for p in net.parameters())])
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def pair():
    """A net as it was, and the same one accelerated; of its layers one saves its input too."""
    nets = [nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    fgt.accelerate(nets[1])
    return nets


@pytest.mark.parametrize(
    "kept",
    [torch.Tensor.detach, lambda a: a.detach().numpy(), lambda a: a.detach()[..., 0]],
    ids=["a", "numpy", "view"],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_what_is_kept_of_a_call_stays_as_it_was(kept, recorded):
    """Calls write into arrays of earlier ones whose results are gone: here one thing alone made of a result is held."""
    results = []
    for net in pair():
        torch.manual_seed(0)
        rows = []
        for n in (7, 7, 2, 7, 7, 2, 7):
            with torch.set_grad_enabled(recorded):
                y = net(torch.randn(n, 4))
            rows.append(kept(y))
            if recorded:
                y.square().sum().backward()
                rows += [kept(p.grad) for p in net.parameters()]
                net.zero_grad()
            del y
        results.append(rows)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooked", [False, True])
def test_graphs_that_are_kept_are_not_written_by_other_calls(hooked):
    """Two forwards before their ways back, one of which is gone twice, other calls in between; saved as it is, or copied by a hook."""
    results = []
    for net in pair():
        torch.manual_seed(0)
        xs = torch.randn(4, 7, 4)
        hooks = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, lambda a: a)
        with hooks if hooked else contextlib.nullcontext():
            first, second = (net(x).square().sum() for x in xs[:2])
        rows = []
        for loss, again in ((first, True), (second, False), (first, False)):
            net(xs[2]).sum().backward()
            net.zero_grad()
            with torch.no_grad():
                net(xs[3])
            loss.backward(retain_graph=again)
            rows += [p.grad for p in net.parameters()]
            net.zero_grad()
        results.append(rows)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_threads_that_call_one_net_write_each_into_its_own_arrays():
    theirs, ours = pair()
    xs = torch.randn(8, 64, 4, generator=torch.Generator().manual_seed(0))
    expected = [torch.autograd.grad(theirs(x).square().sum(), theirs[0].weight)[0] for x in xs]

    def gradients(x):
        return [torch.autograd.grad(ours(x).square().sum(), ours[0].weight)[0] for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        for results, wanted in zip(pool.map(gradients, xs), expected, strict=True):
            for grad in results:
                torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


def test_a_buffer_set_is_used_again_once_its_arrays_are_free_and_unless_it_is_large(monkeypatch):
    class Buffers(buffers.BufferSet):
        def __init__(self, rows):
            self.results, self.size = [np.zeros(rows)], rows * 8

    pool = buffers.BufferPool()
    entry = pool.take(Buffers, 3)
    pool.give_back(entry)
    assert pool.take(Buffers, 3)[1] is entry[1]
    pool.give_back(entry)
    assert pool.take(Buffers, 4)[1] is not entry[1]
    held = torch.from_numpy(entry[1].results[0])
    assert pool.take(Buffers, 3)[1] is not entry[1]
    del held
    assert pool.take(Buffers, 3)[1] is entry[1]
    monkeypatch.setattr(buffers, "MAX_BYTES", 23)
    pool.give_back(entry)
    assert pool.take(Buffers, 3)[1] is not entry[1]


def test_inputs_are_checked_at_every_call():
    """What is known of the layers is not known of the next input."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    fgt.accelerate(net)
    x = torch.ones(2, 4)
    expected = net(x)
    with pytest.raises(TypeError, match=r"dense_chain: weights\[0\] must be float64, got float32"):
        net(x.double())
    with pytest.raises(ValueError, match=r"dense_chain: weights\[0\] must be \(K_out, K_in\) = \(_, 3\), got \(4, 4\)"):
        net(x[:, :3])
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules_alone_are_replaced_and_undone(kind):
    torch.manual_seed(0)
    plain, x = kind(4, 5, 2, bidirectional=True, dtype=torch.float64), torch.randn(6, 3, 4, dtype=torch.float64)
    net = copy.deepcopy(plain)
    report = fgt.accelerate(net, choose=False)
    assert report.replaced == [("", f"fgt.{kind.__name__}")]
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    packed = nn.utils.rnn.pack_padded_sequence(x, [6, 4, 1])
    for model in (net, compiled, pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(net(packed)[0].data, plain(packed)[0].data)
    assert type(net(packed)[0].data.grad_fn).__name__ == "_RecurrentBackward"
    report.undo()
    assert type(net) is kind
    assert type(net(packed)[0].data.grad_fn).__name__ != "_RecurrentBackward"


def test_a_pickled_model_stays_accelerated():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    fgt.accelerate(net)
    again = pickle.loads(pickle.dumps(net))
    assert isinstance(again.forward.__self__, runs.SequentialReplacement)
    torch.testing.assert_close(again(torch.ones(2, 4)), net(torch.ones(2, 4)))


class DroppedOut(nn.Module):
    """Dropout that depends on the flag of the module, and a factor of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.factor = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 2.0

    def forward(self, x):
        return functional.dropout(functional.relu(self.norm(self.conv(x))), 0.5, self.training) * self.factor


@pytest.mark.parametrize("choose", [False, True])
def test_a_shallow_copy_is_accelerated_for_itself(choose):
    theirs, x = DroppedOut(), torch.randn(2, 3, 6, 6)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours, choose=choose)
    replacement = ours.forward.__self__
    copies = copy.copy(ours), copy.copy(theirs)
    report = fgt.accelerate(copies[0], choose=choose)
    assert replacement_of(copies[0]).module is copies[0]
    for net in copies:
        net.training, net.factor = False, 5.0
    torch.testing.assert_close(copies[0](x), copies[1](x))
    report.undo()
    assert "forward" not in vars(copies[0])
    # the original goes on
    assert ours.forward.__self__ is replacement
    assert not replacement.stopped
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("model", "name", "why"),
    [
        (nn.Sequential(nn.Embedding(3, 4), nn.GELU()), "0", "Embedding stays PyTorch's"),
        (nn.Linear(3, 4), "", "has no neighbour in an nn.Sequential to be fused with"),
        (nn.RNN(3, 4), "", "RNN stays PyTorch's"),
        (nn.LSTM(3, 4).half(), "", "its parameters are torch.float16"),
        (nn.Sequential(nn.Linear(3, 4, device="meta"), nn.ReLU()), "0", "its parameters are on meta"),
        (fgt.MLP([3, 4]), "", "is fastgrad's already"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()), "0",
         "has no neighbour in an nn.Sequential to be fused with"),
    ],
)  # fmt: skip
def test_a_model_in_which_nothing_can_be_replaced_is_told(model, name, why):
    before = dict(model.__dict__)
    report = fgt.accelerate(model)
    assert report.left == [(name, why)]
    assert str(report) == f"replaced: nothing\nleft:\n  {name or '(the model)'}: {why}"
    assert dict(model.__dict__) == before


def test_only_modules_are_accelerated():
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch\.nn\.Module, got list"):
        fgt.accelerate([nn.Linear(3, 4)])
