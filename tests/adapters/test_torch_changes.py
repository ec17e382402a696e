"""Accelerated models that are changed before or afterwards: what is not exactly PyTorch's own runs as PyTorch's."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch_models import (  # noqa: E402
    DOUBLE,
    Block,
    Recurrent,
    assert_the_same,
    dense,
    identity_block,
    images,
    input_of,
)

import fastgrad.torch as fgt  # noqa: E402


def twice(module, inputs, output):
    return output * 2


def rounded(layer):
    layer.forward = lambda x: F.linear(x, layer.weight.round(), layer.bias)


CHANGES = {
    "slope": (dense, lambda m: setattr(m[1], "negative_slope", 0.5)),
    "slope below 0": (dense, lambda m: setattr(m[1], "negative_slope", -0.5)),
    "alpha": (dense, lambda m: setattr(m[3], "alpha", 0.2)),
    "axis of the softmax": (dense, lambda m: setattr(m[5], "dim", 0)),
    "weight_norm": (dense, lambda m: parametrizations.weight_norm(m[0])),
    "weight_norm by hooks": (dense, lambda m: nn.utils.weight_norm(m[0])),
    "pruned bias": (dense, lambda m: prune.l1_unstructured(m[0], "bias", 0.5)),
    "weight that is no parameter": (
        dense, lambda m: [m[0]._parameters.pop("weight"), setattr(m[0], "weight", torch.ones(6, 4, dtype=DOUBLE))]),
    "another class": (
        dense, lambda m: setattr(m[1], "__class__", type("Mine", (nn.LeakyReLU,), {"forward": lambda s, x: 3 * x}))),
    "patched forward": (dense, lambda m: rounded(m[0])),
    "patched call": (dense, lambda m: setattr(m[0], "_call_impl", lambda x: 2 * x @ m[0].weight.t())),
    "wrapped forward": (dense, lambda m: setattr(m, "forward", lambda x: nn.Sequential.forward(m, x) * 2)),
    "stride": (images, lambda m: setattr(m[3], "stride", (2, 2))),
    "padding": (images, lambda m: setattr(m[0], "padding", (2, 2))),
    "padding_mode": (images, lambda m: [
        setattr(m[0], "padding_mode", "circular"), setattr(m[0], "_reversed_padding_repeated_twice", [1] * 4)]),
    "patched _conv_forward": (
        images, lambda m: setattr(m[0], "_conv_forward", lambda x, w, b: F.conv2d(x, w.round(), b, padding=1))),
    "bound of relu6": (images, lambda m: setattr(m[4], "max_val", 0.3)),
    "eps": (images, lambda m: setattr(m[1], "eps", 0.3)),
    "momentum": (images, lambda m: setattr(m[1], "momentum", None)),
    "track_running_stats": (images, lambda m: setattr(m[1], "track_running_stats", False)),
    "norm without weight": (images, lambda m: setattr(m[1], "weight", None)),
    "norm without bias": (images, lambda m: setattr(m[1], "bias", None)),
    "exchanged norm": (images, lambda m: m.__setitem__(1, nn.GroupNorm(2, 4).double())),
    "removed norm": (images, lambda m: m.__delitem__(1)),
    "spectral_norm by hooks": (images, lambda m: nn.utils.spectral_norm(m[0])),
    "pruned norm": (images, lambda m: prune.l1_unstructured(m[1], "weight", 0.5)),
    "assigned state": (images, lambda m: m.load_state_dict({k: v / 2 for k, v in m.state_dict().items()}, assign=True)),
    "block, hook": (Block, lambda m: m.conv2.register_forward_hook(twice)),
    "block, hook of the shortcut": (Block, lambda m: m.downsample.register_forward_hook(twice)),
    "block, hook within the shortcut": (Block, lambda m: m.downsample[1].register_forward_hook(twice, always_call=True)),
    "block, hook before": (Block, lambda m: m.bn2.register_forward_pre_hook(
        lambda s, a, k: ((a[0] * 2,), k), with_kwargs=True)),
    "block, hook backward": (Block, lambda m: m.conv2.register_full_backward_hook(lambda s, dx, dy: (dx[0] * 2,))),
    "block, hook before backward": (Block, lambda m: m.conv2.register_full_backward_pre_hook(lambda s, dy: (dy[0] * 2,))),
    "block, exchanged norm": (Block, lambda m: setattr(m, "bn1", nn.GroupNorm(2, 4).double())),
    "block, exchanged convolution": (Block, lambda m: setattr(m, "conv1", nn.Conv2d(3, 4, 5, 2, 2).double())),
    "block, known activation": (Block, lambda m: setattr(m, "relu", nn.SiLU())),
    "block, other activation": (Block, lambda m: setattr(m, "relu", nn.Hardswish())),
    "block, activation as a function": (Block, lambda m: [delattr(m, "relu"), setattr(m, "relu", torch.tanh)]),
    "block, shortcut of x": (identity_block, lambda m: setattr(m, "downsample", nn.Sequential())),
    "block, later shortcut": (
        identity_block, lambda m: setattr(m, "downsample", nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).double())),
    "block, part of the shortcut": (Block, lambda m: m.downsample.__delitem__(1)),
    "block, pruned": (Block, lambda m: prune.l1_unstructured(m.conv1, "weight", 0.5)),
    "block, spectral_norm": (Block, lambda m: parametrizations.spectral_norm(m.downsample[0])),
    "block, wrapped forward": (Block, lambda m: setattr(m, "forward", lambda x: Block.forward(m, x) * 2)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_longer_what_it_was_runs_as_pytorchs(name, when):
    make, change = CHANGES[name]
    torch.manual_seed(0)
    theirs = make()
    ours = copy.deepcopy(theirs)
    if when == "after":
        fgt.accelerate(ours)
        ours(input_of(make))
        theirs(input_of(make))
    for model in (theirs, ours):
        torch.manual_seed(1)
        change(model)
    if when == "before":
        fgt.accelerate(ours)
    assert_the_same(theirs, ours, input_of(make))


def test_subclasses_of_activations_keep_their_own_forward():
    for kind in (nn.GELU, nn.LeakyReLU, nn.ELU, nn.Softmax, nn.ReLU):
        own = type("Own", (kind,), {"forward": lambda self, x: x * torch.sigmoid(1.7 * x)})
        theirs = nn.Sequential(nn.Linear(4, 4), own(), nn.Linear(4, 2)).double()
        ours = copy.deepcopy(theirs)
        report = fgt.accelerate(ours)
        assert ("1", "Own stays PyTorch's") in report.left
        assert_the_same(theirs, ours, input_of(dense))


def test_a_sequential_that_goes_through_its_layers_otherwise_is_left():
    class Reversed(nn.Sequential):
        def __iter__(self):
            return reversed(self._modules.values())

    net = Reversed(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    expected = net(input_of(dense))
    assert not fgt.accelerate(net).replaced
    torch.testing.assert_close(net(input_of(dense)), expected)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(dense, nn.Linear), (dense, nn.Sequential), (images, nn.ReLU6), (Block, nn.BatchNorm2d), (Block, Block)],
)
def test_a_class_that_is_patched_is_seen(make, kind, monkeypatch):
    net, x = make(), input_of(make)
    fgt.accelerate(net)
    for name in ("forward", "__call__"):
        seen, of = [], getattr(kind, name)
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, lambda self, x, of=of, seen=seen: (seen.append(self), of(self, x))[1])
            net(x)
        assert seen


@pytest.mark.parametrize("make", [dense, images, Block])
def test_hooks_on_all_modules_see_every_layer(make):
    net, seen = make(), set()
    fgt.accelerate(net)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.add(module))
    net(input_of(make))
    handle.remove()
    assert seen == set(net.modules())


RECURRENT_CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_ih_l0"),
    "weight_norm by hooks": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    "exchanged": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.ones_like(m.weight_hh_l0))),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RECURRENT_CHANGES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_module_that_is_changed_runs_as_pytorchs_and_can_be_undone(kind, name):
    torch.manual_seed(0)
    theirs, x = Recurrent(kind), input_of(Recurrent)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    for model in (theirs, ours):
        torch.manual_seed(1)
        RECURRENT_CHANGES[name](model.lstm)
    assert_the_same(theirs, ours, x, 1)
    report.undo()
    assert_the_same(theirs, ours, x, 1)
    if parametrize.is_parametrized(ours.lstm):
        assert type(ours.lstm).__bases__ == (kind,)
        parametrize.remove_parametrizations(ours.lstm, next(iter(ours.lstm.parametrizations)))
    assert type(ours.lstm) is kind


COMPILED = ["slope", "weight_norm", "patched forward", "exchanged norm", "block, hook", "block, exchanged norm"]


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_call_sees_what_was_changed_before_it(name):
    make, change = CHANGES[name]
    torch.manual_seed(0)
    theirs, x = make().eval(), input_of(make)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    for model in (theirs, ours):
        torch.manual_seed(1)
        change(model)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), theirs(x))


@pytest.mark.parametrize("make", [dense, Block])
def test_a_compiled_call_sees_a_layer_that_is_exchanged_after_it(make):
    theirs, x = make().eval(), input_of(make)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    graph = torch._dynamo.explain(ours)(x).graphs[0].graph
    assert "fastgrad" in str(graph)
    for model in (theirs, ours):
        setattr(model, "1" if make is dense else "bn1", nn.Identity())
    torch.testing.assert_close(compiled(x), theirs(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: parametrizations.spectral_norm(m[0]),
        lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
        lambda m: m[0].register_forward_hook(twice),
        lambda m: m.__setitem__(1, nn.Hardswish()),
        lambda m: m.append(nn.Softmax(0)),
    ],
)
def test_layers_of_an_mlp_can_be_changed(change):
    torch.manual_seed(0)
    ours = fgt.MLP([4, 6, 3], ("leaky_relu", 0.1), dtype=DOUBLE)
    theirs = nn.Sequential(*copy.deepcopy(list(ours)))
    for model in (theirs, ours):
        torch.manual_seed(1)
        change(model)
    assert_the_same(theirs, ours, input_of(dense))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv2.register_forward_hook(twice),
        lambda m: setattr(m, "bn1", nn.GroupNorm(2, 4).double()),
        lambda m: parametrizations.spectral_norm(m.conv1),
    ],
)
def test_layers_of_our_residual_block_can_be_changed(change):
    torch.manual_seed(0)
    ours, theirs = fgt.ResidualBlock(3, 4, 2, dtype=DOUBLE), Block()
    theirs.load_state_dict(ours.state_dict())
    for model in (theirs, ours):
        torch.manual_seed(1)
        change(model)
    assert_the_same(theirs, ours, input_of(Block))


def in_a_row():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU()
    ).double()


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
        self.double()

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x)))))


def first_convolutions(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][:2]


def set_numbers(model):
    """Numbers in the place of pairs."""
    conv, other = first_convolutions(model)
    conv.stride, conv.padding, other.dilation = 1, 1, 1


def pad_beyond_the_window(model):
    conv, _ = first_convolutions(model)
    conv.padding = 3, 1


def cut_channels(model):
    """Weights of other sizes than the settings say, as of channels that are pruned."""
    norm = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    conv, following = first_convolutions(model)
    for layer in (conv, norm):
        layer.weight, layer.bias = (nn.Parameter(p.detach()[:2].clone()) for p in (layer.weight, layer.bias))
    norm.running_mean, norm.running_var = norm.running_mean[:2].clone(), norm.running_var[:2].clone()
    following.weight = nn.Parameter(following.weight.detach()[:, :2].clone())


def cut_data(model):
    """The same, of parameters that stay."""
    conv, following = first_convolutions(model)
    conv.weight.data, conv.bias.data = conv.weight.data[:2].clone(), conv.bias.data[:2].clone()
    norm = next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    for values in (*norm.parameters(), norm.running_mean, norm.running_var):
        values.data = values.data[:2].clone()
    following.weight.data = following.weight.data[:, :2].clone()


def cut_windows(model):
    conv, _ = first_convolutions(model)
    conv.weight = nn.Parameter(conv.weight.detach()[:, :, 1:2, 1:2].clone())


@pytest.mark.parametrize("choose", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("make", [in_a_row, Written])
@pytest.mark.parametrize("change", [set_numbers, pad_beyond_the_window, cut_channels, cut_data, cut_windows])
def test_convolutions_that_are_set_to_what_kernels_do_not_know_run_as_pytorchs(change, make, when, choose):
    theirs = make()
    ours, x = copy.deepcopy(theirs), input_of(in_a_row)
    if when == "before":
        change(ours)
    fgt.accelerate(ours, choose=choose)
    if when == "after":
        assert_the_same(theirs, ours, x)
        change(ours)
    change(theirs)
    assert_the_same(theirs, ours, x)
