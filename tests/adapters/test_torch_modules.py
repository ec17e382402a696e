"""Modules beside PyTorch's own: state_dict both ways, every option of LSTM and GRU, training, processes."""

import copy
import inspect
import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

import fastgrad as fg  # noqa: E402
import fastgrad.torch as fgt  # noqa: E402

DOUBLE = torch.float64
ACTIVATIONS = {
    "relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "silu": nn.SiLU(), "gelu_tanh": nn.GELU("tanh"),
    ("leaky_relu", 0.2): nn.LeakyReLU(0.2), ("elu", 0.5): nn.ELU(0.5),
}  # fmt: skip
CELLS = "LSTM", "GRU"
# every third of each cell's options
OPTIONS = [
    (cell, *options)
    for cell in CELLS
    for i, options in enumerate(
        itertools.product(
            [1, 2], [True, False], [True, False], [0, 3] if cell == "LSTM" else [0], [True, False], [0.0, 0.4]
        )
    )
    if (options[0] == 2 or not options[-1]) and i % 3 == 0
]
INPUTS = "sequences", "one", "packed", "sorted"


def modules_of(cell, *sizes, **options):
    """PyTorch's module and ours, with the same parameters."""
    theirs, ours = (getattr(package, cell)(*sizes, **options) for package in (nn, fgt))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors_of(states):
    return [] if states is None else [states] if torch.is_tensor(states) else [*states]


def gradients(module, x, hx, flat):
    """y, the end states and the gradients of inputs, states and parameters, in one list."""
    torch.manual_seed(3)
    y, ends = module(x, hx)
    y, (h, *c) = y.data if isinstance(y, PackedSequence) else y, tensors_of(ends)
    loss = (y * torch.arange(y.numel()).reshape(y.shape).cos()).sum() + (1.3 * h).sum() + sum((a * a).sum() for a in c)
    return [y, h, *c, *torch.autograd.grad(loss, [flat, *tensors_of(hx), *module.parameters()])]


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_recurrent_modules_are_pytorchs(options, kind):
    """Dropout too: it draws the same values from the same seed."""
    cell, layers, both, first, projected, bias, dropout = options
    settings = {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias, "dropout": dropout}
    if cell == "LSTM":
        settings["proj_size"] = projected
    modules = modules_of(cell, 4, 5, dtype=DOUBLE, **settings)
    modules[0].load_state_dict(modules[1].state_dict())
    torch.manual_seed(0)
    if kind in ("packed", "sorted"):
        sequences = [torch.randn(k, 4, dtype=DOUBLE) for k in ((2, 6, 1, 4) if kind == "packed" else (6, 4, 2, 1))]
        x, n = pack_sequence(sequences, enforce_sorted=kind == "sorted"), (4,)
        flat = x.data.requires_grad_()
    else:
        x = flat = torch.randn(*((3,) if kind == "sequences" else ()), 6, 4, dtype=DOUBLE).requires_grad_()
        n = (3 if first else 6,) if kind == "sequences" else ()
    count = layers * (2 if both else 1)
    h, c = (torch.randn(count, *n, width, dtype=DOUBLE).requires_grad_() for width in (projected or 5, 5))
    for hx in (None, (h, c) if cell == "LSTM" else h):
        for expected, results in zip(*(gradients(module, x, hx, flat) for module in modules), strict=True):
            torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = modules[0](x)[1]
        torch.manual_seed(3)
        torch.testing.assert_close(modules[1](x)[1], expected, rtol=1e-10, atol=1e-11)


# many sequences, few, and few steps: kernels read the weights in three ways; 37 columns of x end within a panel
@pytest.mark.parametrize(("n", "steps"), [(20, 6), (3, 9), (5, 2)])
@pytest.mark.parametrize("wants_dx", [True, False])
@pytest.mark.parametrize(("cell", "options"), [("LSTM", {}), ("LSTM", {"proj_size": 7}), ("GRU", {})])
def test_modules_have_the_bits_of_the_function_whose_weights_lie_the_other_way(cpu, n, steps, wants_dx, cell, options):
    torch.manual_seed(5)
    module = getattr(fgt, cell)(37, 19, batch_first=True, **options)
    x, dy = torch.randn(n, steps, 37, requires_grad=wants_dx), torch.randn(n, steps, options.get("proj_size", 19))
    y = module(x)[0]
    results = torch.autograd.grad(y, [*([x] if wants_dx else []), *module.parameters()], dy)
    w_ih, w_hh, b_ih, b_hh, *w_hr = (p.detach() for p in module.parameters())
    arrays = [np.ascontiguousarray(w.t().numpy()) for w in (w_ih, w_hh)]
    if cell == "LSTM":
        w_proj = np.ascontiguousarray(w_hr[0].t().numpy()) if w_hr else None
        (expected, *_), backward = fg.lstm(x.detach().numpy(), *arrays, (b_ih + b_hh).numpy(), w_proj=w_proj)
    else:
        b_hn, b = b_hh[38:].numpy(), torch.cat([(b_ih + b_hh)[:38], b_ih[38:]]).numpy()
        (expected, _), backward = fg.gru(x.detach().numpy(), *arrays, b, b_hn)
    assert np.array_equal(y.detach().numpy(), expected)
    dx, dw_ih, dw_hh, db, *others = backward(dy.numpy())
    db_hh = db if cell == "LSTM" else np.append(db[:38], others.pop())
    expected = [*([dx] if wants_dx else []), dw_ih.T, dw_hh.T, db, db_hh, *(d.T for d in others)]
    for mine, theirs in zip(results, expected, strict=True):
        assert np.array_equal(mine.numpy(), theirs)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_modules_refuse_what_they_cannot_take(cell):
    module, op = getattr(fgt, cell)(4, 5), cell.lower()
    packed = pack_sequence([torch.ones(3, 4), torch.ones(2, 4)])
    with pytest.raises(TypeError, match=f"{op}: input must be on the CPU, got meta"):
        module(packed.to("meta"))
    with pytest.raises(TypeError, match=f"{op}: sorted_indices of the PackedSequence must be on the CPU, got meta"):
        module(PackedSequence(packed.data, packed.batch_sizes, torch.arange(2, device="meta")))
    with pytest.raises(TypeError, match=f"{op}: weight_ih must be float64, got float32"):
        module(torch.ones(2, 3, 4, dtype=DOUBLE))
    with pytest.raises(ValueError, match=rf"{op}: input must have 4 channels, got \(2, 3, 5\)"):
        module(torch.ones(2, 3, 5))
    with pytest.raises(
        ValueError, match="proj_size has to be smaller" if cell == "LSTM" else "gru: there is no proj_size"
    ):
        getattr(fgt, cell)(4, 5, proj_size=5)


STATES = {
    "two directions for one": ({}, lambda h, c: (h.repeat(2, 1, 1), c.repeat(2, 1, 1))),
    "one layer for two": ({"num_layers": 2}, lambda h, c: (h[:1], c[:1])),
    "one direction for two": ({"bidirectional": True}, lambda h, c: (h[:1], c[:1])),
    "another batch": ({}, lambda h, c: (h[:, :1], c[:, :1])),
    "another width": ({}, lambda h, c: (h[..., :2], c[..., :2])),
    "c alone": ({"num_layers": 2}, lambda h, c: (h, torch.cat([c, c]))),
    "c of the projection's width": ({"proj_size": 2}, lambda h, c: (h, c[..., :2])),
    "no batch": ({}, lambda h, c: (h[:, 0], c[:, 0])),
    "h alone": ({}, lambda h, c: (h, None)),
    "one tensor": ({}, lambda h, c: torch.stack([h, c])),
    "three": ({}, lambda h, c: (h, c, c)),
}
# of a GRU h alone is changed
WRONG_STATES = [("LSTM", case) for case in STATES] + [("GRU", case) for case in [*[*STATES][:5], "no batch", "h alone"]]


def message_of(function, *arguments):
    """Of the error that a call raises, or ""."""
    try:
        function(*arguments)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("cell", "case"), WRONG_STATES)
def test_states_of_a_wrong_shape_are_refused_as_by_pytorch(cell, case):
    """Batched, without a batch, packed: never cut."""
    settings, change = STATES[case]
    theirs, ours = modules_of(cell, 4, 5, **settings)
    count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    h, c = torch.zeros(count, 3, settings.get("proj_size", 5)), torch.zeros(count, 3, 5)
    packed = pack_sequence([torch.ones(3, 4), torch.ones(2, 4), torch.ones(1, 4)])
    for x in (torch.ones(2, 3, 4), packed, torch.ones(2, 4)):
        wrong = change(h, c)
        if torch.is_tensor(x) and x.dim() == 2:
            # one tensor is two states there
            if case in ("another batch", "no batch", "one tensor", "three"):
                continue
            wrong = change(h[:, :1], c[:, :1])
            wrong = wrong[:, :, 0] if torch.is_tensor(wrong) else tuple(s if s is None else s[:, 0] for s in wrong)
        if cell == "GRU" and case != "h alone":
            wrong = wrong[0]
        with pytest.raises(RuntimeError) as caught:
            ours(x, wrong)
        message = message_of(theirs, x, wrong)
        # PyTorch itself cuts c of packed rows
        assert message or isinstance(x, PackedSequence)
        if message.startswith(("Expected", "For")) and torch.is_tensor(x):
            assert str(caught.value) == message
    y, _ = ours(torch.ones(2, 3, 4), [h, c] if cell == "LSTM" else h)
    assert y.shape[:2] == (2, 3)


def _functional(module, x):
    swapped = {n: p.detach().cos().requires_grad_() for n, p in module.named_parameters()}
    y = torch.func.functional_call(module, swapped, (x,))[0]
    return [y, *torch.autograd.grad(y.square().sum(), list(swapped.values()))]


def _trained(change):
    def steps(module, x):
        torch.manual_seed(4)
        change(module)
        results = []
        for _ in range(2):
            module.zero_grad()
            y = module(x)[0]
            y.square().sum().backward()
            results += [y, *(p.grad.clone() for p in module.parameters())]
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.1 * p.grad
        return results

    return steps


SWAPPED = {
    "functional_call": _functional,
    "weight_norm": _trained(lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0")),
    "old weight_norm": _trained(lambda m: nn.utils.weight_norm(m, "weight_hh_l0")),
    # every look at the weight in training moves its vectors, and PyTorch looks more often
    "spectral_norm": _trained(lambda m: nn.utils.parametrizations.spectral_norm(m.eval(), "weight_ih_l0")),
    "pruning": _trained(lambda m: prune.l1_unstructured(m, "weight_hh_l0_reverse", 0.5)),
    "an exchanged parameter": _trained(lambda m: setattr(m, "bias_ih_l0", nn.Parameter(torch.ones_like(m.bias_ih_l0)))),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", SWAPPED)
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_modules_compute_with_the_weights_of_the_moment(cell, case):
    modules = modules_of(cell, 4, 5, bidirectional=True, dtype=DOUBLE)
    results = [SWAPPED[case](module, torch.ones(3, 2, 4, dtype=DOUBLE).cumsum(0)) for module in modules]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-11)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(("cell", "options"), [("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {})])
def test_recurrent_modules_behind_a_linear_layer_train_under_autocast(states, cell, options):
    torch.manual_seed(0)
    linear, modules = nn.Linear(3, 4), modules_of(cell, 4, 5, 2, **options)
    x, results, hx = torch.randn(6, 2, 3), [], None
    if states:
        hx = torch.ones(2, 2, options.get("proj_size", 5))
        hx = (hx, torch.ones(2, 2, 5)) if cell == "LSTM" else hx
    for module in modules:
        with torch.autocast("cpu", torch.bfloat16):
            y, ends = module(linear(x), hx)
        gradients = torch.autograd.grad(y.float().square().sum(), module.parameters())
        results.append([y, *tensors_of(ends), *gradients])
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("cell", CELLS)
def test_an_ensemble_by_vmap_is_refused(cell):
    modules = [getattr(fgt, cell)(4, 5) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(modules)
    with pytest.raises(NotImplementedError, match=rf"{cell.lower()}: torch\.func's transforms"):
        torch.func.vmap(lambda p: torch.func.functional_call(modules[0], (p, buffers), (torch.ones(3, 2, 4),))[0])(
            parameters
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_is_the_sequential_of_pytorch(in_force, activation):
    mine = fgt.MLP([4, 6, 5, 3], activation, "softmax", dtype=DOUBLE)
    layer = ACTIVATIONS[activation]
    theirs = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 5), layer, nn.Linear(5, 3), nn.Softmax(-1)).double()
    theirs.load_state_dict(mine.state_dict())
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 4, dtype=DOUBLE)
    results, expected = mine(x), theirs(x)
    torch.testing.assert_close(results, expected)
    for y, model in ((results, mine), (expected, theirs)):
        y.square().sum().backward()
        assert all(p.grad.is_contiguous() for p in model.parameters())
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"affine": False},
        *([{"bias": False}] if "bias" in inspect.signature(nn.BatchNorm2d).parameters else []),
        {"track_running_stats": False},
        {"momentum": 0.3, "eps": 1e-3},
    ],
)
@pytest.mark.parametrize("images", [True, False])
def test_batch_norms_are_pytorchs(in_force, images, options):
    mine, theirs = (fgt.BatchNorm2d, nn.BatchNorm2d) if images else (fgt.BatchNorm1d, nn.BatchNorm1d)
    mine, theirs = mine(3, activation="relu", dtype=DOUBLE, **options), theirs(3, dtype=DOUBLE, **options)
    x = torch.randn(4, 3, *((5, 2) if images else ()), dtype=DOUBLE)
    for _ in range(3):
        torch.testing.assert_close(mine(x, x), (theirs(x) + x).relu())
        x = x * 2 + 1
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine.eval()(x), theirs.eval()(x).relu())


@pytest.mark.parametrize("shape", [5, (4, 5)])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"bias": False}, {"elementwise_affine": False}])
def test_layer_norms_are_pytorchs(in_force, shape, options):
    mine = fgt.LayerNorm(shape, activation="relu", dtype=DOUBLE, **options)
    theirs = nn.LayerNorm(shape, dtype=DOUBLE, **options)
    for i, (ours, other) in enumerate(zip(mine.parameters(), theirs.parameters(), strict=True)):
        with torch.no_grad():
            ours.copy_(torch.randn_like(ours) + i)
            other.copy_(ours)
    x = torch.randn(3, 4, 5, dtype=DOUBLE)
    torch.testing.assert_close(mine(x, x), (theirs(x) + x).relu())
    torch.testing.assert_close(mine(x), theirs(x).relu())
    assert mine.state_dict().keys() == theirs.state_dict().keys()


class Basic(nn.Module):
    """The block by PyTorch's layers."""

    def __init__(self, like):
        super().__init__()
        for name, layer in like.named_children():
            setattr(self, name, copy.deepcopy(layer))
        self.downsample = copy.deepcopy(like.downsample)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + shortcut).relu()


@pytest.mark.parametrize(("n_out", "stride"), [(4, 1), (6, 2)])
def test_a_residual_block_is_that_of_pytorchs_layers(in_force, n_out, stride):
    mine = fgt.ResidualBlock(4, n_out, stride, dtype=DOUBLE)
    theirs = Basic(mine)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 4, 6, 6, dtype=DOUBLE)
    results, expected = mine(x), theirs(x)
    torch.testing.assert_close(results, expected)
    for y in (results, expected):
        y.square().sum().backward()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def models():
    return {
        "mlp": (fgt.MLP([4, 6, 3]), torch.ones(5, 4)),
        "lstm": (fgt.LSTM(4, 5, 2, batch_first=True), torch.ones(3, 6, 4)),
        "gru": (fgt.GRU(4, 5, 2, batch_first=True), torch.ones(3, 6, 4)),
        "norm": (fgt.BatchNorm2d(4, activation="relu"), torch.arange(72.0).reshape(2, 4, 3, 3)),
        "block": (fgt.ResidualBlock(4, 6, 2), torch.arange(200.0).reshape(2, 4, 5, 5)),
    }


@pytest.mark.parametrize("name", models())
def test_copies_pickles_and_compiled_modules_do_the_same(name):
    model, x = models()[name]

    def run(module):
        y = module.eval()(x)
        return y[0] if isinstance(y, tuple) else y

    expected = run(model)
    torch.testing.assert_close(run(copy.deepcopy(model)), expected)
    torch.testing.assert_close(run(pickle.loads(pickle.dumps(model))), expected)
    torch.testing.assert_close(run(torch.compile(model, fullgraph=True, backend="aot_eager")), expected)


class LastStep(nn.Module):
    """A recurrent module and a linear layer of its last step."""

    def __init__(self, recurrent, head):
        super().__init__()
        self.recurrent, self.head = recurrent, head

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


@pytest.mark.parametrize("kind", ["MLP", *CELLS])
def test_training_finds_the_losses_of_pytorch(kind):
    torch.manual_seed(0)
    x, target = torch.randn(64, 10), torch.randint(4, (64,))
    if kind == "MLP":
        mine = fgt.MLP([10, 32, 32, 4], "tanh")
        theirs = copy.deepcopy(nn.Sequential(*mine))
    else:
        x, head = x.reshape(64, 5, 2), nn.Linear(32, 4)
        theirs, mine = (LastStep(m, copy.deepcopy(head)) for m in modules_of(kind, 2, 32, batch_first=True))
    losses = []
    for model in (mine, theirs):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        results = []
        for _ in range(50):
            optimizer.zero_grad()
            entropy = fgt.cross_entropy if model is mine else nn.functional.cross_entropy
            loss = entropy(model(x), target)
            loss.backward()
            optimizer.step()
            results.append(loss.item())
        losses.append(results)
    assert losses[0][-1] < 0.5 * losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist, fastgrad.torch as fgt
from torch import nn
torch.set_num_threads(1)
# imports take most of the time: the second process is a copy after them
child = os.fork()
rank = int(child == 0)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = fgt.LSTM(4, 6, batch_first=True), fgt.MLP([6, 8, 3], "tanh")
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])
net = Net().double()
x, target = torch.randn(8, 5, 4, dtype=torch.float64), torch.randint(3, (8,))
fgt.cross_entropy(net(x), target).backward()
expected = [p.grad.clone() for p in net.parameters()]
net.zero_grad()
mine = slice(4 * rank, 4 * rank + 4)
parallel = nn.parallel.DistributedDataParallel(net)
fgt.cross_entropy(parallel(x[mine]), target[mine]).backward()
for p, gradient in zip(net.parameters(), expected, strict=True):
    torch.testing.assert_close(p.grad, gradient, rtol=1e-12, atol=1e-14)
dist.destroy_process_group()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(tmp_path):
    command = [sys.executable, "-c", DISTRIBUTED, str(tmp_path / "store")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
