"""nn.LayerNorm in an accelerated model: alone, in an nn.Sequential and in a graph, against PyTorch's own."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch import fusion  # noqa: E402
from fastgrad.torch.choice import Choice  # noqa: E402

pytestmark = pytest.mark.usefixtures("torch")
DOUBLE = torch.float64


class Pre(nn.Module):
    """A norm that the code calls alone, and one whose sum and activation follow."""

    def __init__(self, norm, other):
        super().__init__()
        self.norm, self.other, self.count = norm, other, 0

    def forward(self, x):
        h = self.norm(x)
        return F.silu(self.other(h.sin()) + x)


class Printing(Pre):
    """Of which there is no graph."""

    def forward(self, x):
        self.count += 1
        return super().forward(x)


NORMS = {
    "affine": lambda: nn.LayerNorm(6, dtype=DOUBLE),
    "no affine": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "no bias": lambda: nn.LayerNorm(6, bias=False, dtype=DOUBLE),
    "several axes": lambda: nn.LayerNorm((5, 6), dtype=DOUBLE),
    "eps": lambda: nn.LayerNorm(6, eps=0.3, dtype=DOUBLE),
}
MODELS = {
    "graph": lambda norm: Pre(norm(), norm()),
    "layers": lambda norm: Printing(norm(), norm()),
    "sequential": lambda norm: nn.Sequential(norm(), nn.Tanh(), norm(), nn.Flatten(0, 0), norm(), nn.GELU()),
    "alone": lambda norm: norm(),
}


@pytest.fixture
def fused(monkeypatch):
    """Every unit is fused; a list of the shapes that fastgrad has normalised."""
    shapes = []
    layer_norm = fusion.layer_norm

    def counted(x, *args, **options):
        shapes.append(tuple(x.shape))
        return layer_norm(x, *args, **options)

    monkeypatch.setattr(Choice, "fuses", lambda *args, **options: True)
    monkeypatch.setattr(fusion, "layer_norm", counted)
    return shapes


def drawn(*shape, dtype=DOUBLE):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


def results(model, x):
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters())]


def randomise(model):
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.copy_(drawn(*p.shape).cos() + i)
    return model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_results_and_gradients_are_pytorchs(norm, model, fused):
    theirs = randomise(MODELS[model](NORMS[norm]))
    ours, x = copy.deepcopy(theirs), drawn(4, 5, 6)
    names = list(ours.state_dict())
    report = fgt.accelerate(ours)
    for training in (True, False):
        torch.testing.assert_close(
            results(ours.train(training), x), results(theirs.train(training), x), rtol=1e-9, atol=1e-9
        )
    assert len(fused) == 2 * sum(isinstance(layer, nn.LayerNorm) for layer in theirs.modules())
    assert list(ours.state_dict()) == names
    torch.compiler.reset()
    for other in (copy.deepcopy(ours), torch.compile(ours, fullgraph=model != "layers", backend="aot_eager")):
        torch.testing.assert_close(other(x), theirs(x), rtol=1e-9, atol=1e-9)
    report.undo()
    assert not any("forward" in layer.__dict__ for layer in ours.modules())
    fused.clear()
    assert torch.equal(ours(x), theirs(x))
    assert not fused


def test_a_report_names_layer_norms():
    norm = NORMS["affine"]
    assert fgt.accelerate(MODELS["layers"](norm)).replaced == [("norm", "layer norm"), ("other", "layer norm")]
    assert fgt.accelerate(MODELS["sequential"](norm)).replaced == [
        ("0 to 1", "layer norm and tanh"),
        ("2", "layer norm"),
        ("4 to 5", "layer norm and gelu"),
    ]
    assert fgt.accelerate(MODELS["graph"](norm)).replaced == [
        ("norm", "layer norm"),
        ("the graph of (the model)", "1 fused steps of 3"),
        ("other", "layer norm and sum and silu, in the graph of (the model)"),
    ]
    assert not fgt.accelerate(norm(), choose=False).replaced


@pytest.mark.parametrize("model", MODELS)
def test_what_the_kernels_do_not_take_is_pytorchs(model, fused):
    theirs = randomise(MODELS[model](NORMS["affine"]))
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    for x in (drawn(0, 6), drawn(3, 5, 6).bfloat16()):
        if x.dtype is DOUBLE:
            assert ours(x).shape == theirs(x).shape
            continue
        errors = []
        for net in (ours, theirs):
            with pytest.raises(RuntimeError) as error:
                net(x)
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    assert not fused
    for net in (ours, theirs):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            net(drawn(3, 7))
    x = drawn(6, 5, 4).transpose(0, 2)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    assert fused


@pytest.mark.parametrize("model", MODELS)
def test_parameters_of_fewer_axes_are_refused_as_by_pytorch(model, fused):
    net = MODELS[model](NORMS["several axes"])
    fgt.accelerate(net)
    for layer in net.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.weight, layer.bias = (nn.Parameter(torch.ones(6, dtype=DOUBLE)) for _ in range(2))
    with pytest.raises(RuntimeError, match="Expected weight"):
        net(drawn(3, 5, 6))
    assert not fused


@pytest.mark.parametrize("model", MODELS)
def test_a_patched_or_hooked_norm_runs_as_pytorchs(model, fused):
    theirs, x = randomise(MODELS[model](NORMS["affine"])), drawn(4, 6)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    ours(x)
    for net in (ours, theirs):
        for layer in net.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.register_forward_hook(lambda layer, inputs, y: y * 2)
    fused.clear()
    assert torch.equal(ours(x), theirs(x))
    assert not fused


@pytest.mark.parametrize("model", MODELS)
def test_autocast_and_its_dtypes_are_pytorchs(model, fused):
    theirs = randomise(MODELS[model](lambda: nn.LayerNorm(6)))
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    for x in (drawn(4, 6, dtype=torch.float32), drawn(4, 6).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = ours(x), theirs(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)


def test_a_transformer_layer_of_pytorchs(fused):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, dtype=DOUBLE)
    ours, x = copy.deepcopy(theirs), drawn(3, 5, 6)
    report = fgt.accelerate(ours)
    assert {("norm1", "layer norm"), ("norm2", "layer norm")} <= set(report.replaced)
    torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=1e-8, atol=1e-8)
    assert len(fused) == 2
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-8, atol=1e-8)
