"""Operators in autograd as PyTorch's layers are: what may be written to, what is saved and let go, and which modes are refused."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

DOUBLE = torch.float64
LAYERS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    ("leaky_relu", 0.1): nn.LeakyReLU(0.1),
    "relu6": nn.ReLU6(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def operators(activation, layer):
    """Of each operator: ours, PyTorch's own, and the inputs."""
    x, w, b = draw(5, 4), draw(3, 4, seed=1), draw(3, seed=2)
    image, filters, gamma, beta = draw(2, 4, 5, 5), draw(3, 4, 3, 3, seed=1), draw(4, seed=3), draw(4, seed=4)
    f, r = nn.functional, draw(2, 4, 5, 5, seed=5)
    return {
        "dense_chain": (
            lambda x, w, b: fgt.dense_chain(x, [w], [b], activation),
            lambda x, w, b: layer(f.linear(x, w, b)),
            (x, w, b),
        ),
        "two layers": (
            lambda x, w, v: fgt.dense_chain(x, [w, v], None, ["gelu", activation]),
            lambda x, w, v: layer(f.linear(f.gelu(f.linear(x, w)), v)),
            (x, w, draw(6, 3)),
        ),
        "conv2d": (
            lambda x, w, b: fgt.conv2d(x, w, b, activation=activation),
            lambda x, w, b: layer(f.conv2d(x, w, b)),
            (image, filters, b),
        ),
        "batch_norm": (
            lambda x, g, b: fgt.batch_norm(x, g, b, activation=activation),
            lambda x, g, b: layer(f.batch_norm(x, None, None, g, b, True)),
            (image, gamma, beta),
        ),
        "layer_norm": (
            lambda x, g, b: fgt.layer_norm(x, g, b, activation=activation),
            lambda x, g, b: layer(f.layer_norm(x, (4,), g, b)),
            (x, gamma, beta),
        ),
        "batch_norm with a residual": (
            lambda x, g, b, r: fgt.batch_norm(x, g, b, activation=activation, residual=r),
            lambda x, g, b, r: layer(f.batch_norm(x, None, None, g, b, True) + r),
            (image, gamma, beta, r),
        ),
    }


def outcome(function, inputs, last):
    """Gradients after y was written to, or that autograd has found it out."""
    inputs = [a.detach().contiguous(memory_format=torch.channels_last) if last and a.dim() == 4 else a for a in inputs]
    inputs = [a.detach().requires_grad_() for a in inputs]
    y = function(*inputs)
    y.mul_(2).relu_()
    try:
        return torch.autograd.grad(y, inputs, torch.ones_like(y).cumsum(-1))
    except RuntimeError:
        return None


@pytest.mark.parametrize("activation", LAYERS)
def test_what_pytorchs_layers_do_not_save_may_be_written_to(in_force, activation):
    for name, (ours, theirs, inputs) in operators(activation, LAYERS[activation]).items():
        for last in (False, True):
            results, expected = (outcome(f, inputs, last) for f in (ours, theirs))
            # a convolution of images that are not channels last returns a copy, which may be written to anyhow
            if expected is not None or last or inputs[0].dim() == 2:
                assert (results is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("cell", "settings"),
    [
        ("LSTM", {}), ("LSTM", {"bidirectional": True}), ("LSTM", {"proj_size": 2, "num_layers": 2}),
        ("GRU", {}), ("GRU", {"bidirectional": True, "num_layers": 2}),
    ],
)  # fmt: skip
def test_outputs_of_recurrent_modules_may_be_written_to(cell, settings):
    modules = [getattr(package, cell)(3, 4, dtype=DOUBLE, **settings) for package in (nn, fgt)]
    modules[1].load_state_dict(modules[0].state_dict())
    results = []
    for module in modules:
        x = draw(5, 2, 3)
        y, ends = module(x)
        ends = ends if cell == "LSTM" else (ends,)
        for state in (y, *ends):
            state.mul_(2)
        loss = y.sum() + ends[0].cos().sum() + ends[-1].sin().sum()
        results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)


def test_what_no_gradient_reads_may_be_written_to_before_it():
    """As a generator's step between a discriminator's forward and its way back."""
    for x_wants, w_wants in ((True, False), (False, True)):
        results = []
        for f in (lambda x, w: fgt.dense_chain(x, [w], None, "identity"), nn.functional.linear):
            x, w = draw(5, 4).detach().requires_grad_(x_wants), draw(3, 4).detach().requires_grad_(w_wants)
            y = f(x, w)
            with torch.no_grad():
                (w if w_wants else x).fill_(7)
            results += torch.autograd.grad(y, x if x_wants else w, torch.ones_like(y))
        torch.testing.assert_close(*results)


def chain_of_layers():
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16)).double()


SEGMENTS = {
    "dense_chain": lambda: (chain_of_layers(), draw(32, 16)),
    "lstm": lambda: (fgt.LSTM(16, 16, dtype=DOUBLE), draw(6, 4, 16)),
    "gru": lambda: (fgt.GRU(16, 16, dtype=DOUBLE), draw(6, 4, 16)),
    "norm": lambda: (fgt.BatchNorm2d(3, activation="silu", dtype=DOUBLE), draw(4, 3, 6, 6)),
    "conv2d": lambda: (fgt.ResidualBlock(3, 4, dtype=DOUBLE), draw(2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_what_is_saved_goes_through_hooks_and_nothing_else_holds_it(name):
    """A checkpoint's first pass leaves no array of NumPy's in the graph; the second one finds the same gradients."""
    module, x = SEGMENTS[name]()
    if name == "dense_chain":
        fgt.accelerate(module)

    def run(x):
        y = module(x)
        return y[0] if isinstance(y, tuple) else y

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    expected = gradients(run(x))
    y = checkpoint(run, x, use_reentrant=False)
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        assert not {"arrays", "layer"} & set(getattr(node, "__dict__", {}))
    torch.testing.assert_close(gradients(y), expected, rtol=1e-12, atol=1e-13)
    with torch.autograd.graph.save_on_cpu():
        y = run(x)
    torch.testing.assert_close(gradients(y), expected, rtol=1e-12, atol=1e-13)
    # twice, and without hooks the second time
    y = run(x)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), first)


OPERATORS = {
    "dense_chain": lambda x: fgt.dense_chain(x, [torch.ones(3, 4, dtype=DOUBLE)]),
    "batch_norm": lambda x: fgt.batch_norm(x, torch.ones(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE)),
    "conv2d": lambda x: fgt.conv2d(x[None, None], torch.ones(1, 1, 2, 2, dtype=DOUBLE)),
    "cross_entropy": lambda x: fgt.cross_entropy(x, torch.zeros(5, dtype=torch.long)),
    "lstm": lambda x: fgt.LSTM(4, 2, dtype=DOUBLE)(x)[0],
    "gru": lambda x: fgt.GRU(4, 2, dtype=DOUBLE)(x)[0],
}


# PyTorch's own table of decompositions is compiled by torch.jit at the first dual tensor
SCRIPTED = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@SCRIPTED
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode_is_refused_and_no_tangent_is_lost(name, recorded):
    x = draw(5, 4).detach()
    with torch.set_grad_enabled(recorded), forward_ad.dual_level():
        OPERATORS[name](x)
        with pytest.raises(NotImplementedError, match=f"{name}: there is no forward-mode derivative"):
            OPERATORS[name](forward_ad.make_dual(x, torch.ones_like(x)))


@SCRIPTED
def test_tangents_of_weights_and_of_what_is_packed_are_seen():
    w = draw(3, 4).detach()
    x = draw(2, 5, 4).detach()
    with torch.no_grad(), forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            fgt.dense_chain(x, [forward_ad.make_dual(w, torch.ones_like(w))])
        # PyTorch's own has none either
        with pytest.raises(NotImplementedError, match="forward AD with _pack_padded_sequence"):
            fgt.pack_padded_sequence(forward_ad.make_dual(x, 2 * x), [5, 3], True)


@pytest.mark.parametrize("name", OPERATORS)
def test_inference_mode_computes_the_same(name):
    x = draw(5, 4)
    torch.manual_seed(0)
    expected = OPERATORS[name](x)
    torch.manual_seed(0)
    with torch.inference_mode():
        results = OPERATORS[name](x)
    torch.testing.assert_close(results, expected.detach())


def test_a_norm_made_in_inference_mode_moves_its_statistics():
    with torch.inference_mode():
        mine, theirs = fgt.BatchNorm1d(3), nn.BatchNorm1d(3)
        x = torch.randn(4, 3)
        torch.testing.assert_close(mine(x), theirs(x))
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
