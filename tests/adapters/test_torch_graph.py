"""Nets as people write them: layers as attributes, activations as functions, sums and concatenations written out."""

import copy
import types

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_models import DOUBLE, assert_the_same, own_replacement  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402
from fastgrad.torch.choice import Choice  # noqa: E402
from fastgrad.torch.graph_replacement import GraphReplacement  # noqa: E402
from fastgrad.torch.ops.conv_norm_layer import ConvNorm  # noqa: E402
from fastgrad.torch.ops.conv_products import OF_INPUT, OF_WEIGHT, OUTPUT  # noqa: E402

pytestmark = pytest.mark.usefixtures("torch")
PRODUCTS = OUTPUT, OF_INPUT, OF_WEIGHT


def attributes(**layers):
    """A class of modules with these layers, and a forward."""

    def make(forward):
        def init(self):
            nn.Module.__init__(self)
            for name, layer in layers.items():
                setattr(self, name, copy.deepcopy(layer))
            self.double()

        return type(forward.__name__, (nn.Module,), {"__init__": init, "forward": forward})

    return make


def conv(n_in=3, n_out=4, size=3, **options):
    return nn.Conv2d(n_in, n_out, size, padding=size // 2, **options)


@attributes(
    conv1=nn.Conv2d(3, 4, 3), conv2=nn.Conv2d(4, 6, 3), drop=nn.Dropout(0.25), fc1=nn.Linear(24, 5), fc2=nn.Linear(5, 3)
)
def mnist(self, x):
    x = F.relu(self.conv1(x))
    x = F.relu(self.conv2(x))
    x = self.drop(F.max_pool2d(x, 2))
    x = torch.flatten(x, 1)
    x = F.dropout(F.relu(self.fc1(x)), training=self.training)
    return F.log_softmax(self.fc2(x), dim=1)


@attributes(
    conv1=conv(3, 2, 1), bn1=nn.BatchNorm2d(2), conv2=conv(2, 2), bn2=nn.BatchNorm2d(2), conv3=conv(2, 3, 1), bn3=nn.BatchNorm2d(3),
    relu=nn.ReLU(inplace=True),
)  # fmt: skip
def bottleneck(self, x):
    out = self.relu(self.bn1(self.conv1(x)))
    out = self.relu(self.bn2(self.conv2(out)))
    out = self.bn3(self.conv3(out))
    out += x
    return self.relu(out)


@attributes(bn1=nn.BatchNorm2d(3), conv1=conv(bias=False), bn2=nn.BatchNorm2d(4), conv2=conv(4, 3, bias=False))
def pre_activation(self, x):
    h = self.conv1(F.relu(self.bn1(x)))
    return x + self.conv2(F.relu(self.bn2(h), inplace=True))


@attributes(conv=conv(3, 4), bn=nn.BatchNorm2d(4), fc1=nn.Conv2d(4, 2, 1), fc2=nn.Conv2d(2, 4, 1), out=conv(4, 3, 1))
def gated(self, x):
    h = F.silu(self.bn(self.conv(x)))
    scale = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(h, 1)))))
    return x + self.out(scale * h)


@attributes(down=conv(3, 4, stride=2), middle=conv(4, 4), up=nn.Upsample(scale_factor=2), last=conv(7, 3))
def u_net(self, x):
    h = F.relu(self.middle(F.relu(self.down(x))))
    return self.last(torch.cat([self.up(h), x], 1))


@attributes(a=conv(3, 4), b=nn.Conv2d(2, 2, 3, padding=1, groups=2), bn=nn.BatchNorm2d(2), last=conv(4, 3))
def shuffled(self, x):
    kept, h = self.a(x).chunk(2, dim=1)
    h = torch.cat((kept, F.relu6(self.bn(self.b(h)))), 1)
    n, c, height, width = h.size()
    h = h.view(n, 2, c // 2, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)
    return self.last(h)


@attributes(conv=conv(3, 4), bn=nn.BatchNorm2d(4), last=conv(4, 3))
def used_twice(self, x):
    """What an activation in place has written is what the sum gets."""
    h = self.bn(self.conv(x))
    y = F.relu(h, inplace=True)
    return self.last(y + h), h


@attributes(conv=conv(3, 3), bn=nn.BatchNorm2d(3))
def into_x(self, x):
    """The sum is written to what both use."""
    x = x * 2
    h = self.bn(self.conv(x))
    x += h
    return F.relu(x) + h


@attributes(conv=conv(3, 3), bn=nn.BatchNorm2d(3))
def between(self, x):
    """The convolution's input is written to before the norm is called."""
    x = x * 2
    h = self.conv(x.clone() if self.training else x)
    with_one = x.add_(1)
    return F.relu(self.bn(h) + with_one)


@attributes(conv=conv(3, 3), bn=nn.BatchNorm2d(3), gain=conv(3, 3, 1))
def broadcast(self, x):
    """What is added has another shape."""
    return F.relu(self.bn(self.conv(x)) + self.gain(x).mean((2, 3), keepdim=True))


@attributes(conv=conv(3, 4), fc=nn.Linear(4, 4), norm=nn.LayerNorm(4))
def tokens(self, x):
    h = self.conv(x).flatten(2).transpose(1, 2)
    return h + self.norm(F.gelu(self.fc(h)))


@attributes(
    conv=conv(3, 3), first=nn.LayerNorm(8), whole=nn.LayerNorm((3, 8, 8), elementwise_affine=False), last=nn.LayerNorm((8, 8), bias=False)
)  # fmt: skip
def row_norms(self, x):
    """Norms over the last axes of images, one of which nothing follows that is fused."""
    h = F.silu(self.first(self.conv(x)) + x)
    h = h * self.whole(h)
    return F.gelu(self.last(h), approximate="tanh")


@attributes(blocks=nn.ModuleList([conv(3, 3), conv(3, 3)]), heads=nn.ModuleDict({"a": conv(3, 2), "b": conv(3, 1)}))
def lists(self, x):
    for i, block in enumerate(self.blocks):
        x = F.elu(block(x), 0.5) if i else F.leaky_relu(block(x))
    return {name: head(x) for name, head in self.heads.items()}


@attributes(conv=conv(3, 4), bn=nn.BatchNorm2d(4))
def viewed(self, x):
    """What PyTorch's memory format allows is allowed."""
    h = F.relu(self.bn(self.conv(x)))
    return h.view(h.size(0), -1)


@attributes(conv=conv(3, 4), bn=nn.BatchNorm2d(4))
def squared(self, x):
    """An operation takes a value twice."""
    h = F.relu(self.bn(self.conv(x)))
    return h * h + torch.maximum(h, h)


NETS = [
    mnist,
    bottleneck,
    pre_activation,
    gated,
    u_net,
    shuffled,
    used_twice,
    into_x,
    between,
    broadcast,
    tokens,
    row_norms,
    lists,
    viewed,
    squared,
]


COUNT = {used_twice: 2, lists: 2}
# autograd refuses what they write to
WITHOUT_GRADIENTS = {kind.forward for kind in (into_x, between)}


def images(size=8):
    return torch.randn(2, 3, size, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))


def outputs(y):
    return list(y.values()) if isinstance(y, dict) else list(y) if isinstance(y, tuple) else [y]


def results(model, x):
    """Outputs, gradients and buffers."""
    torch.manual_seed(0)
    model.zero_grad()
    if type(model).forward in WITHOUT_GRADIENTS:
        with torch.no_grad():
            return [*outputs(model(x)), *(b.clone() for b in model.buffers())]
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    ys = outputs(model(x))
    sum((y * torch.arange(y.numel(), dtype=DOUBLE).reshape(y.shape).cos()).sum() for y in ys).backward()
    return [*ys, x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("ways", [{}, dict.fromkeys(PRODUCTS, False)], ids=["fastgrad", "PyTorch"])
@pytest.mark.parametrize("kind", NETS, ids=[kind.__name__ for kind in NETS])
def test_a_net_computes_what_it_did(kind, ways, last, monkeypatch):
    """ways: those of convolutions; the rest is fused."""
    monkeypatch.setattr(Choice, "fuses", lambda self, unit, x, more="": ways.get(more, True))
    torch.manual_seed(0)
    theirs = kind()
    ours, x = copy.deepcopy(theirs), images()
    if last:
        if kind in (viewed, shuffled):
            pytest.skip("its views are of contiguous images")
        x = x.contiguous(memory_format=torch.channels_last)
    report = fgt.accelerate(ours)
    assert report.replaced
    assert isinstance(own_replacement(ours), GraphReplacement)
    for training in (True, False, True):
        expected, y = (results(model.train(training), x) for model in (theirs, ours))
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        assert own_replacement(ours).graphs[training] is not None
        assert [a.stride() for a in y[: COUNT.get(kind, 1)]] == [a.stride() for a in expected[: COUNT.get(kind, 1)]]
    with torch.no_grad():
        torch.testing.assert_close(outputs(ours.eval()(x)), outputs(theirs.eval()(x)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    report.undo()
    assert vars(ours).keys() == vars(theirs).keys()


def counts(self, x):
    self.calls += 1
    return F.relu(self.bn(self.conv(x)))


def prints(self, x):
    print("a call")
    return F.relu(self.bn(self.conv(x)))


def branches(self, x):
    h = self.bn(self.conv(x))
    return F.relu(h) if h.sum() > 0 else h


def catches(self, x):
    try:
        return F.relu(self.bn(self.conv(x)))
    finally:
        LOG.append(1)


def logs(self, x):
    LOG.append(x.shape)
    return F.relu(self.bn(self.conv(x)))


def draws(self, x):
    if torch.rand(1) > 0.5:
        x = x * 2
    return F.relu(self.bn(self.conv(x)))


def without_gradients(self, x):
    with torch.no_grad():
        h = self.bn(self.conv(x))
    return F.relu(h) + self.conv(x)


def appends(self, x):
    self.kept.append(1)
    return F.relu(self.bn(self.conv(x)))


LOG: list = []


@pytest.mark.parametrize("forward", [counts, prints, branches, catches, logs, draws, without_gradients, appends])
def test_code_that_does_more_than_compute_is_not_recorded(forward, capsys):
    kind = attributes(conv=conv(), bn=nn.BatchNorm2d(4))(forward)
    torch.manual_seed(0)
    theirs = kind()
    theirs.calls, theirs.kept = 0, []
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours, choose=False)
    LOG.clear()
    assert not capsys.readouterr().out
    assert ours.calls == len(ours.kept) == 0
    assert not isinstance(getattr(ours.forward, "__self__", None), GraphReplacement)
    x = images()
    torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=1e-9, atol=1e-9)
    assert ours.calls == theirs.calls
    assert len(ours.kept) == len(theirs.kept)


def test_a_child_that_is_not_recorded_is_called():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.bn = conv(3, 3), nn.BatchNorm2d(3)
            self.child = attributes(conv=conv(3, 3), bn=nn.BatchNorm2d(3))(counts)()
            self.child.calls = 0

        def forward(self, x):
            return F.relu(self.child(F.relu(self.bn(self.first(x)))))

    theirs = Net().double()
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours, choose=False)
    assert isinstance(own_replacement(ours), GraphReplacement)
    assert ours.child.calls == 0
    assert_the_same(theirs, ours, images())
    assert ours.child.calls == theirs.child.calls > 0


SCALE = 1.5


def helper(x):
    return F.relu(x) * SCALE


def by_settings(self, x):
    h = self.bn(self.conv(x))
    h = helper(h) if self.mode == "helper" else torch.tanh(h)
    for weight in self.weights:
        h = h * weight
    return h if self.last is None else self.last(h)


def set_global(name, value):
    def change(model):
        globals()[name] = value

    return change


CHANGES = {
    "mode": lambda m: setattr(m, "mode", "tanh"),
    "list": lambda m: m.weights.append(3.0),
    "last": lambda m: setattr(m, "last", nn.Conv2d(4, 2, 1).double()),
    "global": set_global("SCALE", 2.5),
    "function": set_global("helper", lambda x: x.abs()),
    "hook": lambda m: m.conv.register_forward_hook(lambda module, args, y: y * 2),
    "hook before": lambda m: m.bn.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "hook backward": lambda m: m.conv.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 2,)),
    "stride": lambda m: setattr(m.conv, "stride", (2, 2)),
    "eps": lambda m: setattr(m.bn, "eps", 0.3),
    "momentum": lambda m: setattr(m.bn, "momentum", None),
    "evaluation of a layer": lambda m: m.bn.eval(),
    "no weight": lambda m: setattr(m.bn, "weight", None),
    "no statistics": lambda m: setattr(m.bn, "track_running_stats", False),
    "exchanged": lambda m: setattr(m, "bn", nn.GroupNorm(2, 4).double()),
    "patched": lambda m: setattr(m.conv, "forward", lambda x: F.conv2d(x, m.conv.weight.round())),
    "class": lambda m: setattr(m.bn, "__class__", type("Mine", (nn.BatchNorm2d,), {"forward": lambda self, x: x * 3})),
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m.conv),
    "frozen": lambda m: m.conv.requires_grad_(False),
    "assigned": lambda m: m.load_state_dict({k: v / 2 for k, v in m.state_dict().items()}, assign=True),
    "method": lambda m: setattr(m, "forward", types.MethodType(lambda self, x: self.conv(x), m)),
    "code": lambda m: setattr(type(m), "forward", mnist_like),
}


def mnist_like(self, x):
    return torch.sigmoid(self.conv(x))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_a_call_is_seen(name):
    kind = attributes(conv=conv(), bn=nn.BatchNorm2d(4))(by_settings)
    torch.manual_seed(0)
    theirs, x = kind(), images()
    theirs.mode, theirs.weights, theirs.last = "helper", [0.5, 2.0], None
    ours = copy.deepcopy(theirs)
    fgt.accelerate(ours, choose=False)
    before = SCALE, helper
    try:
        torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=1e-9, atol=1e-9)
        for model in (theirs, ours):
            torch.manual_seed(1)
            CHANGES[name](model)
        for _ in range(2):
            expected, y = results(theirs, x), results(ours, x)
            pairs = [(a, b) for a, b in zip(y, expected, strict=True) if a is not None or b is not None]
            torch.testing.assert_close([a for a, _ in pairs], [b for _, b in pairs], rtol=1e-9, atol=1e-9)
    finally:
        globals()["SCALE"], globals()["helper"] = before


def test_a_hook_that_is_gone_lets_the_layer_be_fused_again():
    net, x = bottleneck(), images()
    fgt.accelerate(net, choose=False)
    graphs = own_replacement(net).graphs
    net(x)
    fused = len(graphs[True].fused)
    handle = net.conv2.register_forward_hook(lambda module, args, y: None)
    net(x)
    assert str(graphs[True].fused[1]) == "batch norm and relu"
    handle.remove()
    net(x)
    assert len(graphs[True].fused) == fused


def test_other_inputs_run_as_pytorchs():
    net, x = mnist().eval(), images()
    plain = copy.deepcopy(net)
    fgt.accelerate(net, choose=False)
    for other in (images()[:0], images()[0].expand(2, 3, 8, 8), images(8)[..., ::1]):
        torch.testing.assert_close(net(other), plain(other))
    for wrong in (x.float(), x[:, :2], x[..., :2, :2]):
        with pytest.raises(RuntimeError):
            net(wrong)
    assert net.bfloat16()(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.filterwarnings("default")
def test_a_compiled_net_is_pytorchs():
    net, x = bottleneck().eval(), images()
    expected = net(x)
    fgt.accelerate(net, choose=False)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


def test_a_setting_that_changes_at_every_call_does_not_make_a_graph_at_every_call(monkeypatch):
    from fastgrad.torch import graph_replacement

    made = []
    real = graph_replacement.graph_of
    net = attributes(conv=conv(), bn=nn.BatchNorm2d(4))(by_settings)()
    net.mode, net.weights, net.last = "tanh", [1.0], None
    fgt.accelerate(net, choose=False)
    monkeypatch.setattr(graph_replacement, "graph_of", lambda module: made.append(1) or real(module))
    plain, x = copy.deepcopy(net), images()
    fgt.accelerate(plain, choose=False).undo()
    for i in range(30):
        for model in (net, plain):
            model.weights = [i / 10]
        torch.testing.assert_close(net(x), plain(x))
    assert 2 < len(made) < 10


@pytest.mark.parametrize(
    ("conv", "is_ours"),
    [
        (nn.Conv2d(3, 4, 1, 2), True),
        (nn.Conv2d(24, 4, 1, (1, 2)), True),
        (nn.Conv2d(32, 4, 1, 2, groups=4), True),
        (nn.Conv2d(32, 4, 1, 2), False),
        (nn.Conv2d(3, 4, 1), False),
        (nn.Conv2d(3, 4, 3, 2, 1), False),
    ],
)
def test_pytorchs_gradient_that_writes_past_its_buffer_is_never_taken(conv, is_ours, monkeypatch):
    """Of a strided window of one pixel over few channels that are last in memory. Its process would crash, or not."""
    monkeypatch.setattr(Choice, "fuses", lambda self, unit, x, more="": False)
    layer = ConvNorm(conv, None, "identity")
    layer.choice = Choice()
    assert layer.ways(torch.zeros(2, conv.in_channels, 6, 6).requires_grad_()) == (False, False, is_ours)


def test_a_convolution_in_a_net_that_would_write_past_its_buffer_gets_contiguous_images(monkeypatch):
    """It is called as it is where the node does not take its input."""
    kind = attributes(first=conv(), second=nn.Conv2d(4, 3, 1, 2, bias=False))(
        lambda self, x: self.second(self.first(x))
    )
    net, x, layouts = kind(), images(), []
    fgt.accelerate(net, choose=False)
    monkeypatch.setattr(ConvNorm, "takes", lambda self, x, residual: self.conv is not net.second)
    expected = net.second(net.first(x))
    monkeypatch.setattr(F, "conv2d", lambda x, *args: layouts.append(x.is_contiguous()) or torch.conv2d(x, *args))
    torch.testing.assert_close(net(x), expected)
    assert layouts == [True]
