"""Every public entry of fastgrad.torch through two training steps under torch.compile: the numbers of plain calls."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402


class Entry(nn.Module):
    """A module whose forward is one of the functions."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.parameters_ = nn.ParameterList(nn.Parameter(torch.linspace(-1, 1, n).reshape(s)) for n, s in shapes)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        return self.function(self, x, *self.parameters_)


def packed(self, x, w):
    rows = fgt.pack_padded_sequence(x * w, torch.tensor([4, 2]), batch_first=True)
    return fgt.pad_packed_sequence(rows, batch_first=True)[0]


IMAGE, ROWS, SEQUENCE = torch.randn(4, 3, 5, 5), torch.randn(6, 3), torch.randn(2, 4, 3)
NORM = (3, (3,)), (3, (3,))
ENTRIES = {
    "dense_chain": lambda: (Entry(lambda s, x, w: fgt.dense_chain(x, [w], None, "tanh"), (6, (2, 3))), ROWS),
    "conv2d": lambda: (Entry(lambda s, x, w: fgt.conv2d(x, w, activation="relu"), (54, (2, 3, 3, 3))), IMAGE),
    "batch_norm": lambda: (Entry(lambda s, x, g, b: fgt.batch_norm(x, g, b, s.mean, s.var), *NORM), IMAGE),
    "conv_block": lambda: (
        Entry(lambda s, x, w, g, b: fgt.conv_block(x, w, g, b, s.mean, s.var), (81, (3, 3, 3, 3)), *NORM),
        IMAGE,
    ),
    "cross_entropy": lambda: (
        Entry(lambda s, x, w: fgt.cross_entropy(x * w, torch.tensor([0, 1, 2, 0, 1, 2])), (3, (3,))),
        ROWS,
    ),
    "lstm": lambda: (
        Entry(lambda s, x, *weights: fgt.lstm(x, weights, bias=False)[0], (24, (8, 3)), (16, (8, 2))),
        SEQUENCE,
    ),
    "gru": lambda: (
        Entry(lambda s, x, *weights: fgt.gru(x, weights, bias=False)[0], (18, (6, 3)), (12, (6, 2))),
        SEQUENCE,
    ),
    "packing": lambda: (Entry(packed, (3, (3,))), SEQUENCE),
    "MLP": lambda: (fgt.MLP([3, 5, 2], "gelu"), ROWS),
    "LSTM": lambda: (fgt.LSTM(3, 4, 2, batch_first=True), SEQUENCE),
    "LSTM with layer norm": lambda: (fgt.LSTM(3, 4, 2, batch_first=True, layer_norm=True), SEQUENCE),
    "GRU": lambda: (fgt.GRU(3, 4, 2, batch_first=True), SEQUENCE),
    "BatchNorm1d": lambda: (fgt.BatchNorm1d(3, activation="silu"), ROWS),
    "BatchNorm2d": lambda: (fgt.BatchNorm2d(3, activation="relu"), IMAGE),
    "LayerNorm": lambda: (fgt.LayerNorm(3, activation="silu"), ROWS),
    "ResidualBlock": lambda: (fgt.ResidualBlock(3, 4), IMAGE),
    "accelerate": lambda: (accelerated(), IMAGE),
}

# one of those that call the same functions; packing, which no compiler follows, would part the graph
OTHERS = "conv2d", "batch_norm", "BatchNorm1d", "ResidualBlock", "lstm", "gru", "MLP", "packing"
GENERATED = [e for e in ENTRIES if e not in OTHERS]


def accelerated():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4), nn.Tanh())
    fgt.accelerate(net)
    return net


class Together(nn.Module):
    """Several entries in one graph."""

    def __init__(self, entries):
        super().__init__()
        models, self.inputs = zip(*(ENTRIES[entry]() for entry in entries), strict=True)
        self.models = nn.ModuleDict(zip(entries, models, strict=True))

    def forward(self, inputs):
        outputs = [model(x) for model, x in zip(self.models.values(), inputs, strict=True)]
        return torch.cat([(y[0] if isinstance(y, tuple) else y).flatten() for y in outputs])


def trained(model, x, backend=None, *, whole=False):
    """Losses and state after two steps; losses and gradients are compiled, of the whole step clipping and update too."""
    # some gradients are rounding errors: a bias before a norm has none
    optimizer = fgt.AdamW(model.parameters(), 0.1, eps=1e-4)

    def loss_and_gradients():
        y = model(x)
        loss = (y[0] if isinstance(y, tuple) else y).square().mean()
        loss.backward()
        return loss.detach()

    def step():
        optimizer.zero_grad()
        loss = loss_and_gradients()
        norm = fgt.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss, norm

    if backend and whole:
        step = torch.compile(step, backend=backend)
    elif backend:
        loss_and_gradients = torch.compile(loss_and_gradients, backend=backend)
    return [*(step() for _ in range(2)), model.state_dict(), optimizer.state_dict()["state"]]


def check(model, x, backend, **options):
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    torch.testing.assert_close(trained(model, x, backend, **options), trained(other, x), rtol=1e-4, atol=1e-5)
    assert all(b.grad_fn is None for b in model.buffers())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("entry", ENTRIES)
def test_two_compiled_training_steps_are_two_plain_ones(entry):
    torch.manual_seed(0)
    # clipping and the update are the same for all
    check(*ENTRIES[entry](), "eager", whole=entry in ("MLP", "accelerate"))


# the code generator's compiler takes seconds a graph, however small: of all entries there is one
@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("whole", [False, True])
def test_two_training_steps_by_the_code_generator_are_two_plain_ones(whole):
    torch.manual_seed(0)
    model = Together(["MLP"] if whole else GENERATED)
    # its vector instructions would make the headers longer; processes for one file import PyTorch first
    plain = {"cpp.vec_isa_ok": False, "compile_threads": 1}
    with torch._inductor.config.patch(force_disable_caches=True, **plain):
        check(model, model.inputs, "inductor", whole=whole)
