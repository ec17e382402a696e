"""Accelerated models that are other than they look, or are changed afterwards: what is not exactly PyTorch's own runs as PyTorch's."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

DOUBLE = torch.float64
FLAG = True


def dense():
    return nn.Sequential(
        nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6), nn.ELU(0.7), nn.Linear(6, 3), nn.Softmax(-1)
    ).double()


def images():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 5, 3), nn.ReLU6(),
        nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4),
    ).double()  # fmt: skip


class Block(nn.Module):
    """torchvision's BasicBlock, line by line."""

    def __init__(self, n_in=3, n_out=4, stride=2):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu, self.downsample, self.flag = nn.ReLU(inplace=True), None, True
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.double()

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dtype=DOUBLE)
        self.head = nn.Sequential(nn.Linear(10, 3), nn.Tanh()).double()

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def same():
    return Block(3, 3, 1)


def input_of(make):
    shape = {dense: (5, 4), Recurrent: (3, 6, 4)}.get(make, (2, 3, 8, 8))
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))


def assert_the_same(theirs, ours, x, steps=2):
    """Outputs, gradients and buffers, in training and in evaluation."""
    for training in (True, False):
        for _ in range(steps):
            found = []
            for model in (theirs, ours):
                model.train(training).zero_grad()
                torch.manual_seed(0)
                given = x.clone().requires_grad_()
                y = model(given)
                (y * torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos()).sum().backward()
                found.append([y, given.grad, *(p.grad for p in model.parameters()), *model.buffers()])
            torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


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
    "block, shortcut of x": (same, lambda m: setattr(m, "downsample", nn.Sequential())),
    "block, later shortcut": (
        same, lambda m: setattr(m, "downsample", nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).double())),
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


# a residual block's forward, with something else in it that a try may not see


def gate(self, x):
    h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
    return torch.relu(h * torch.sigmoid(self.fc(h.mean((2, 3))))[..., None, None] + x)


def scale(self, x):
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) * self.scale + x)


def stochastic_depth(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    if self.training and self.rate > 0:
        h = h * (torch.rand(len(x), 1, 1, 1, dtype=h.dtype) >= self.rate)
    return self.relu(h + x)


def by_a_module(self, x):
    return self.relu(self.drop(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))) + x)


def by_a_flag(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if self.flag else h + x


def by_a_global(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if FLAG else h + x


def by_the_values(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(h + x) if x.sum() > 0 else h + x


def into_x(self, x):
    h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    x += h
    return self.relu(x)


def norm_in_vain(self, x):
    self.bn1(x)
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def one_norm(self, x):
    return self.relu(self.bn1(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def past_hooks(self, x):
    return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1.forward(x))))) + x)


def of_the_middle(self, x):
    h = self.relu(self.bn1(self.conv1(x)))
    return self.relu(self.bn2(self.conv2(h)) + h)


def change_of(forward):
    def change(model):
        nn.init.ones_(model.bn2.weight)
        nn.init.constant_(model.scale, 0.5)
        model.rate, model.drop.p, model.flag = 0.5, 0.5, False
        globals()["FLAG"] = False

    return change


@pytest.mark.parametrize(
    "forward",
    [gate, scale, stochastic_depth, by_a_module, by_a_flag, by_a_global, by_the_values, into_x, norm_in_vain, one_norm,
     past_hooks, of_the_middle],
)  # fmt: skip
def test_a_block_that_computes_something_else_does_so(forward):
    """Its last norm starts at 0, its scale at 1, its rate at 0, so that numbers would not tell."""
    kind = type("Other", (Block,), {"forward": forward})
    torch.manual_seed(0)
    theirs = kind(3, 3, 1)
    theirs.fc, theirs.scale = nn.Linear(3, 3).double(), nn.Parameter(torch.ones(1, dtype=DOUBLE))
    theirs.drop, theirs.rate = nn.Dropout(0.0), 0.0
    nn.init.zeros_(theirs.bn2.weight)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    assert forward is by_a_flag or "a residual block" not in dict(report.replaced).values()
    try:
        for model in (theirs, ours):
            change_of(forward)(model)
        for training in (True, False):
            found = []
            for model in (theirs, ours):
                model.train(training).zero_grad()
                torch.manual_seed(3)
                x = input_of(Block)
                with torch.set_grad_enabled(forward is not into_x):  # which autograd refuses
                    y = model(x)
                if y.requires_grad:
                    y.square().sum().backward()
                found.append([x, y, *(p.grad for p in model.parameters()), *model.buffers()])
            torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    finally:
        globals()["FLAG"] = True


def in_one_line(self, x):
    return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))), inplace=True)


def by_methods(self, x):
    h = torch.relu(self.bn1(self.conv1(x)))
    return torch.add(self.bn2(self.conv2(h)), x).relu_()


def by_a_layer(self, x):
    out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    out += self.shortcut(x)
    return F.relu(out)


@pytest.mark.parametrize("forward", [in_one_line, by_methods, by_a_layer])
def test_a_block_is_known_however_it_is_written(forward):
    theirs = type("Written", (Block,), {"forward": forward})(3, 3, 1)
    theirs.shortcut = nn.Sequential()
    ours = copy.deepcopy(theirs)
    assert fgt.accelerate(ours).replaced == [("", "a residual block")]
    assert_the_same(theirs, ours, input_of(Block))


def test_a_block_takes_its_input_by_name_too():
    net = Block()
    fgt.accelerate(net)
    torch.testing.assert_close(net(x=input_of(Block)), net(input_of(Block)))


@pytest.mark.parametrize("make", [dense, images, Block])
def test_parameters_that_are_given_for_a_call_are_used(make):
    torch.manual_seed(0)
    theirs, x = make().eval(), input_of(make)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    given = {name: value / 2 for name, value in theirs.state_dict().items()}
    torch.testing.assert_close(*(torch.func.functional_call(net, given, (x,)) for net in (ours, theirs)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_and_tangents_go_through_pytorchs_layers():
    theirs, x = dense(), input_of(dense)
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours)
    parameters = dict(theirs.named_parameters())

    def gradients(net):
        return torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,)).square().sum())(parameters)

    def tangent(net):
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            y = net(torch.autograd.forward_ad.make_dual(x, x))
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    for of in (lambda net: torch.func.vmap(net)(x), gradients, tangent):
        torch.testing.assert_close(of(ours), of(theirs))


@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_other_dtypes_and_devices_run_as_pytorchs(make):
    net, x = make(), input_of(make)
    fgt.accelerate(net)
    assert net.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
    assert net.float().to("meta")(x.float().to("meta")).is_meta


def attributes(model):
    """All that modules have, with the dictionaries' own contents."""
    return [
        (type(module), [(k, dict(v) if isinstance(v, dict) else v) for k, v in vars(module).items()])
        for module in model.modules()
    ]


def assert_identical(found, expected):
    for (kind, own), (kind_before, before) in zip(found, expected, strict=True):
        assert kind is kind_before
        assert [name for name, _ in own] == [name for name, _ in before]
        for (_, value), (_, old) in zip(own, before, strict=True):
            if isinstance(old, dict):
                assert list(value) == list(old)
                assert all(value[key] is old[key] for key in old)
            else:
                assert value is old or value == old


@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_undo_leaves_nothing_behind(make):
    net, x = make(), input_of(make)
    before = attributes(net)
    report = fgt.accelerate(net)
    net(x).sum().backward()
    report.undo()
    assert_identical(attributes(net), before)


def test_what_was_put_over_a_fused_forward_is_left_there():
    net, x = dense(), input_of(dense)
    report = fgt.accelerate(net)
    fused = net.forward
    net.forward = lambda x: fused(x) * 2
    expected = net(x)
    report.undo()
    torch.testing.assert_close(net(x), expected)
    del net.forward
    assert vars(net).keys() == vars(dense()).keys()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.parametrize("make", [dense, images, Block, Recurrent])
def test_a_copy_is_its_own_and_can_be_undone(make, copied):
    net, x = make().eval(), input_of(make)
    kinds = [type(module) for module in net.modules()]
    fgt.accelerate(net)
    expected, other = net(x), copied(net)
    torch.testing.assert_close(other(x), expected)
    report = fgt.accelerate(other)
    assert not report.replaced
    assert "is accelerated already" in dict(report.left).values()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    assert torch.equal(net(x), expected)
    changed = other(x)
    report.undo()
    torch.testing.assert_close(other(x), changed)
    assert [type(module) for module in other.modules()] == kinds
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(other.modules(), make().modules(), strict=True))
    assert torch.equal(net(x), expected)


def test_replicas_for_other_devices_run_pytorchs_forward():
    for make in (dense, Block):
        net = make()
        fgt.accelerate(net)
        assert vars(net._replicate_for_data_parallel()).keys() - vars(make()).keys() == {"_is_replica"}
        torch.testing.assert_close(nn.DataParallel(net.eval())(input_of(make)), net(input_of(make)))


LSTM_CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_ih_l0"),
    "weight_norm by hooks": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    "exchanged": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.ones(20, 5, dtype=DOUBLE))),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", LSTM_CHANGES)
def test_an_lstm_that_is_changed_runs_as_pytorchs_and_can_be_undone(name):
    torch.manual_seed(0)
    theirs, x = Recurrent(), input_of(Recurrent)
    ours = copy.deepcopy(theirs)
    report = fgt.accelerate(ours)
    for model in (theirs, ours):
        torch.manual_seed(1)
        LSTM_CHANGES[name](model.lstm)
    assert_the_same(theirs, ours, x, 1)
    report.undo()
    assert_the_same(theirs, ours, x, 1)
    if parametrize.is_parametrized(ours.lstm):
        assert type(ours.lstm).__bases__ == (nn.LSTM,)
        parametrize.remove_parametrizations(ours.lstm, next(iter(ours.lstm.parametrizations)))
    assert type(ours.lstm) is nn.LSTM


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [dense, Block, Recurrent])
def test_traces_and_exports_are_of_pytorchs_operators(make):
    net, x = make().eval(), input_of(make)
    expected = net(x).detach()
    fgt.accelerate(net)
    trace = torch.jit.trace(net, x)
    assert "fastgrad::" not in str(trace.inlined_graph)
    exported = torch.export.export(net, (x,))
    assert "fastgrad" not in str(exported.graph)
    for other in (trace, exported.module()):
        torch.testing.assert_close(other(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_an_onnx_file_is_of_onnx_operators():
    onnx = pytest.importorskip("onnx")
    net, x = images().float().eval(), input_of(images).float()
    fgt.accelerate(net)
    file = io.BytesIO()
    torch.onnx.export(net, (x,), file, dynamo=False)
    assert {node.domain for node in onnx.load_from_string(file.getvalue()).graph.node} == {""}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [dense, Block, Recurrent])
def test_torchscript_is_told_to_undo_first(make):
    net, x = make().eval(), input_of(make)
    expected = net(x)
    report = fgt.accelerate(net)
    for model in (net, nn.Sequential(net)):
        with pytest.raises(RuntimeError, match=r"call undo\(\) of its report first"):
            torch.jit.script(model)
    report.undo()
    torch.testing.assert_close(torch.jit.script(net)(x), expected)


def test_torch_fx_sees_the_layers():
    for make in (dense, Block):
        net, x = make().eval(), input_of(make)
        fgt.accelerate(net)
        traced = torch.fx.symbolic_trace(net)
        assert "fastgrad" not in str(traced.graph)
        torch.testing.assert_close(traced(x), net(x))
    net = Recurrent()
    fgt.accelerate(net)
    with pytest.raises(RuntimeError, match=r"call undo\(\) of its report first"):
        torch.fx.symbolic_trace(net)


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


# nets with the structures of torchvision's


def conv_norm(n_in, n_out, size=3, groups=1, activation=nn.ReLU, stride=1):
    layers = [nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class Inverted(nn.Module):
    """MobileNetV3's: expansion, depthwise convolution, squeeze-and-excitation, projection, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.expand, self.depth = conv_norm(4, 8, 1, 1, nn.Hardswish), conv_norm(8, 8, 3, 8, nn.Hardswish)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 8, 1), nn.Hardsigmoid()
        )
        self.project = conv_norm(8, 4, 1, 1, None)

    def forward(self, x):
        h = self.depth(self.expand(x))
        h = self.project(h * self.gate(h))
        if self.training:
            h = h * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.3)
        return x + h


class Dense(nn.Module):
    """DenseNet's: norms before convolutions, and concatenation."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(inplace=True), nn.Conv2d(n, 2, 3, padding=1, bias=False))
            for n in (4, 6)
        )
        self.end = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1), nn.AvgPool2d(1))

    def forward(self, x):
        for part in self.parts:
            x = torch.cat([x, part(x)], 1)
        return self.end(x)


class Shuffled(nn.Module):
    """ShuffleNet's: two halves of the channels, and their shuffle."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(*conv_norm(2, 2, 1), *conv_norm(2, 2, 3, 2, None), *conv_norm(2, 2, 1))

    def forward(self, x):
        kept, h = x.chunk(2, 1)
        h = torch.cat((kept, self.branch(h)), 1)
        n, channels, height, width = h.shape
        return h.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)


class Vision(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.stem, self.middle = conv_norm(3, 4), middle
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4 * 16, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, x):
        x = self.relu(self.middle(self.stem(x)))
        x = nn.functional.dropout(nn.functional.max_pool2d(x, 2), 0.2, self.training)
        return self.head(x.view(x.size(0), -1))


def basic():
    return nn.Sequential(Block(4, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("middle", [Inverted, Dense, Shuffled, basic])
def test_nets_like_torchvisions_train_as_they_did(middle):
    torch.manual_seed(0)
    theirs = Vision(middle()).double()
    ours, x, target = copy.deepcopy(theirs), input_of(Block), torch.tensor([0, 2])
    before = attributes(ours)
    report = fgt.accelerate(ours)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (theirs, ours)]
    for step in range(3):
        found = []
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=False)
            y = model(x)
            nn.functional.cross_entropy(y, target).backward()
            found.append([y, *(p.grad.clone() for p in model.parameters())])
            optimizer.step()
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)
    report.undo()
    ours.train()
    assert_identical(attributes(ours), before)
