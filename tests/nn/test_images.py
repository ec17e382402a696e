"""Layers of images: nets of convolutions, batch norms, pools and residual blocks against central differences and PyTorch."""

import copy
import math
import pickle

import numpy as np
import pytest
from arrays import LAYOUTS, assert_is_gradient, bits, laid_out
from error_messages import refuses
from tolerances import assert_close

import fastgrad as fg
from fastgrad.functional.geometry import PADDINGS
from fastgrad.nn import (
    LSTM,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    DenseChain,
    Flatten,
    GlobalAvgPool2d,
    MaxPool2d,
    Residual,
    Sequential,
)
from fastgrad.optim import SGD, Adam


def batch(dtype="float64", n=4, shape=(7, 6, 2)):
    return np.random.default_rng(2).standard_normal((n, *shape)).astype(dtype)


def labels(n=4):
    return np.arange(n) % 3


def projected(dtype):
    body = Sequential(
        Conv2d(4, 6, 3, stride=2, padding=1, bias=False, dtype=dtype),
        BatchNorm(6, "relu", dtype=dtype),
        Conv2d(6, 6, 3, padding=1, bias=False, dtype=dtype),
        BatchNorm(6, dtype=dtype),
    )
    return body, Sequential(Conv2d(4, 6, 1, stride=2, bias=False, dtype=dtype), BatchNorm(6, dtype=dtype))


def net(dtype="float64", activation="relu", head="softmax", seed=3):
    """Every layer of images: 2 channels of 7 x 6 pixels, 3 classes."""
    pre_activation = Sequential(
        BatchNorm(6, activation, dtype=dtype), Conv2d(6, 6, 3, padding="same", groups=2, dtype=dtype)
    )
    return Sequential(
        Conv2d(2, 4, 3, padding=1, bias=False, dtype=dtype),
        BatchNorm(4, activation, momentum=0.3, dtype=dtype),
        AvgPool2d(2, stride=1),
        Residual(*projected(dtype), activation),
        Residual(pre_activation),
        Residual(Sequential(Conv2d(6, 6, 1, activation="tanh", dtype=dtype)), activation="silu"),
        MaxPool2d(2, stride=1, padding=((1, 0), 1)),
        GlobalAvgPool2d(),
        Residual(DenseChain([6, 5, 6], activation, dtype=dtype), Dense(6, 6, dtype=dtype), "tanh"),
        BatchNorm(6, unbiased=False, dtype=dtype),
        Dense(6, 3, head, dtype=dtype),
        seed=seed,
    )


def blocks(dtype="float64"):
    """A block of every kind, and the shape of its images or rows."""
    conv = {"padding": 1, "dtype": dtype}
    return {
        "conv": (Residual(Conv2d(2, 2, 3, **conv), activation="relu"), (5, 6, 2)),
        "norm": (
            Residual(Sequential(Conv2d(2, 2, 3, **conv), BatchNorm(2, dtype=dtype)), activation="gelu"),
            (5, 6, 2),
        ),
        "activated": (Residual(Conv2d(2, 2, 3, activation="tanh", **conv), activation="silu"), (5, 6, 2)),
        "pool": (Residual(AvgPool2d(3, stride=1, padding=1), activation="tanh"), (5, 6, 2)),
        "projected": (Residual(Conv2d(2, 3, 3, stride=2, **conv), Conv2d(2, 3, 1, stride=2, dtype=dtype)), (5, 6, 2)),
        "nested": (Residual(Residual(Conv2d(2, 2, 3, **conv)), Sequential(Conv2d(2, 2, 1, dtype=dtype))), (5, 6, 2)),
        "flat": (Residual(Flatten(8), Flatten()), (2, 2, 2)),
        "dense": (Residual(Sequential(Sequential(Dense(3, 5, "tanh", dtype=dtype)), Dense(5, 3, dtype=dtype))), (3,)),
        "steps": (Residual(Dense(3, 3, dtype=dtype), activation="sigmoid"), (4, 3)),
        "softmax": (Residual(Dense(3, 3, dtype=dtype), activation="softmax"), (3,)),
    }


def randomise(model):
    """Parameters and running statistics that no layer starts with."""
    rng = np.random.default_rng(8)
    model.params[...] = 0.5 * rng.standard_normal(model.params.shape)
    for name, a in model.statistics().items():
        a[...] = rng.uniform(0.5, 2, a.shape) if name.endswith("var") else rng.standard_normal(a.shape)
    return model


def assert_gradients_are_central_differences(model, x, training, logits=False):
    before = {name: a.copy() for name, a in model.statistics().items()}

    def forward():
        for name, a in model.statistics().items():
            a[...] = before[name]
        return model.forward(x, training, logits=logits)

    y, backward = forward()
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = backward(dy).copy()
    analytic = model.grads.copy()

    def objective():
        return float((dy * forward()[0]).sum())

    assert_is_gradient(analytic, objective, model.params)
    assert_is_gradient(dx, objective, x)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_a_net_are_central_differences(in_force, training):
    model = randomise(net(activation="silu", head="tanh"))
    assert_gradients_are_central_differences(model, batch(n=3), training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", blocks())
def test_gradients_of_a_block_are_central_differences(in_force, name, training):
    block, shape = blocks()[name]
    assert_gradients_are_central_differences(randomise(block), batch(n=3, shape=shape), training)


@pytest.mark.parametrize("name", blocks())
def test_a_block_is_its_body_plus_its_shortcut(in_force, dtype, name):
    block, shape = blocks(dtype)[name]
    randomise(block)
    x = batch(dtype, 3, shape)
    given = bits(x)
    total = block.body(x) + (x if block.shortcut is None else block.shortcut(x))
    exact = total.astype(np.float64).reshape(-1, total.shape[-1])
    expected = np.empty_like(exact)
    from fastgrad.kernels import reference

    reference.activation_forward(exact, expected, block.output)
    for y in (block(x), block.forward(x)[0], block.predict(x, 2)):
        assert y.dtype == dtype
        assert_close("conv", y, expected.reshape(total.shape), size=16)
    assert bits(x) == given


def test_logits_leave_out_the_last_activation_of_a_block(in_force):
    block, shape = blocks()["softmax"]
    x = batch(shape=shape)
    for logits in (block.predict(x, logits=True), block.forward(x, logits=True)[0]):
        e = np.exp(logits)
        assert_close("dense_chain", block(x), e / e.sum(axis=1, keepdims=True), size=4)
    conv = Conv2d(2, 3, 1, activation="sigmoid", dtype="float64", seed=1)
    x = batch()
    assert_close("conv", conv(x), 1 / (1 + np.exp(-conv.predict(x, logits=True))), size=4)


def torch_net(torch, model):
    """The same net in PyTorch, float64, images (N, C, H, W)."""
    nn = torch.nn
    options = {"dtype": torch.float64}

    class Add(nn.Module):
        def __init__(self, body, shortcut, activation):
            super().__init__()
            self.body, self.shortcut, self.activation = body, shortcut, activation

        def forward(self, x):
            return self.activation(self.body(x) + self.shortcut(x))

    def conv(*arguments, **more):
        return nn.Conv2d(*arguments, **more, **options)

    def norm(n, cls=nn.BatchNorm2d, **more):
        return cls(n, **more, **options)

    body = nn.Sequential(
        conv(4, 6, 3, stride=2, padding=1, bias=False), norm(6), nn.ReLU(), conv(6, 6, 3, padding=1, bias=False), norm(6)
    )  # fmt: skip
    shortcut = nn.Sequential(conv(4, 6, 1, stride=2, bias=False), norm(6))
    chain = nn.Sequential(nn.Linear(6, 5, **options), nn.ReLU(), nn.Linear(5, 6, **options))
    twin = nn.Sequential(
        conv(2, 4, 3, padding=1, bias=False),
        norm(4, momentum=0.3),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=1),
        Add(body, shortcut, nn.ReLU()),
        Add(nn.Sequential(norm(6), nn.ReLU(), conv(6, 6, 3, padding="same", groups=2)), nn.Identity(), nn.Identity()),
        Add(nn.Sequential(conv(6, 6, 1), nn.Tanh()), nn.Identity(), nn.SiLU()),
        nn.Sequential(nn.ConstantPad2d((1, 1, 1, 0), -math.inf), nn.MaxPool2d(2, stride=1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Add(chain, nn.Linear(6, 6, **options), nn.Tanh()),
        norm(6, nn.BatchNorm1d),
        nn.Linear(6, 3, **options),
    )
    ours, theirs = model.parameters(), list(twin.parameters())
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for a, p in zip(ours.values(), theirs, strict=True):
            a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
            p[...] = torch.tensor(a.copy())
    return twin


def test_steps_are_those_of_pytorch(in_force, torch):
    """20 steps of SGD with momentum from the same weights; parameters and running statistics after them."""
    model = net()
    twin = torch_net(torch, model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    trainer = fg.Trainer(model, optimizer=SGD(0.05, momentum=0.9, weight_decay=0.01), clip_norm=1.0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.standard_normal((5, 7, 6, 2)), rng.integers(0, 3, 5)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())), torch.tensor(y))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        assert trainer.step(x, y) == pytest.approx(loss.item(), rel=1e-10)
    for (name, ours), theirs in zip(model.parameters().items(), twin.parameters(), strict=True):
        theirs = theirs.detach().numpy()
        theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-11, err_msg=name)
    running = {name: a.numpy() for name, a in twin.named_buffers() if not name.endswith("tracked")}
    assert len(running) == len(model.statistics())
    for (name, ours), (their_name, theirs) in zip(model.statistics().items(), running.items(), strict=True):
        if name == "9.running_var":
            # biased; twins differ from the first step on, by 5/4 in what was added
            theirs = 0.9**20 + (theirs - 0.9**20) * 4 / 5
        assert name.rpartition(".")[2] == their_name.rpartition(".")[2]
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-11, err_msg=name)
    twin.eval()
    x = rng.standard_normal((3, 7, 6, 2))
    # only the ninth layer's variance differs
    twin[11].running_var[...] = torch.tensor(model.statistics()["9.running_var"])
    with torch.no_grad():
        expected = torch.softmax(twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())), 1)
    np.testing.assert_allclose(model.predict(x), expected.numpy(), rtol=1e-9)


def test_evaluation_takes_the_running_statistics(in_force):
    model = randomise(net())
    x = batch()
    before = {name: bits(a) for name, a in model.statistics().items()}
    y, training = model.predict(x), model.forward(x, True)[0].copy()
    assert any(before[name] != bits(a) for name, a in model.statistics().items())
    assert np.abs(y - training).max() > 1e-3
    model = randomise(net())
    # a sample alone, too: no batch is needed
    together = np.concatenate([model.predict(x[i : i + 1]) for i in range(len(x))])
    assert_close("conv", together, y, size=4)
    assert_close("conv", model.forward(x)[0], y, size=4)
    assert_close("conv", model.predict(x, 3), y, size=4)
    assert {name: bits(a) for name, a in model.statistics().items()} == before


def state_of(trainer):
    """All that a failed call must leave alone."""
    statistics = {name: bits(a) for name, a in trainer.model.statistics().items()}
    return bits(trainer.model.params), bits(trainer.state), trainer.step_count, statistics


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_apart(in_force, copied):
    model = randomise(net())
    twin = copied(model)
    x, before = batch(), bits(model(batch()))
    assert bits(twin(x)) == before
    fg.Trainer(twin).step(x, labels())
    assert bits(twin(x)) != before
    assert bits(model(x)) == before
    fg.Trainer(model).step(x, labels())
    assert state_of(fg.Trainer(model)) == state_of(fg.Trainer(twin))
    for a, flat in ((twin.layers[0].w, twin.params), (twin.layers[3].body.layers[1].gamma, twin.params)):
        assert np.shares_memory(a, flat)


@pytest.mark.parametrize("kind", ["model", "trainer"])
def test_saved_and_loaded(in_force, tmp_path, dtype, kind):
    model = randomise(net(dtype))
    trainer, other = fg.Trainer(model), fg.Trainer(net(dtype, seed=9))
    x, y = batch(dtype), labels()
    trainer.step(x, y)
    fg.save(tmp_path / "net", trainer if kind == "trainer" else model)
    if kind == "trainer":
        fg.load(tmp_path / "net", other)
        assert state_of(other) == state_of(trainer)
        assert other.fit(x, y, 2, 2).loss == trainer.fit(x, y, 2, 2).loss
        assert state_of(other) == state_of(trainer)
    else:
        fg.load(tmp_path / "net", other.model)
        assert bits(other.predict(x)) == bits(model.predict(x))


def test_a_file_without_running_statistics_is_refused(tmp_path):
    path = tmp_path / "net"
    fg.save(path, Sequential(Dense(4, 3)))
    other = Sequential(Dense(4, 3), BatchNorm(3))
    message = f"load: {path}: the file has no 1.gamma, 1.beta, 1.running_mean, 1.running_var"
    refuses(ValueError, message, fg.load, path, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_failed_step_leaves_the_running_statistics(in_force, bad):
    trainer = fg.Trainer(net())
    x, y = batch(), labels()
    trainer.step(x, y)
    before = state_of(trainer)
    broken = x.copy()
    broken[1, 2, 3, 0] = bad
    with pytest.raises(FloatingPointError, match=r"the gradient is not finite in 0\.w"):
        trainer.step(broken, y)
    assert state_of(trainer) == before
    refuses(ValueError, "Trainer.step: y must be in 0..2, got 3 at index 0", trainer.step, x, y + 3)
    assert state_of(trainer) == before
    # the first batch norm has seen the image when the last one, of one row, refuses
    message = "Sequential.layers[9]: BatchNorm: x must have more than one value a channel in training, got (1, 6)"
    refuses(ValueError, message, trainer.step, x[:1], y[:1])
    assert state_of(trainer) == before
    refuses(ValueError, message, trainer.model.forward, x[:1], True)
    assert state_of(trainer) == before
    trainer.step(x, y)
    assert trainer.step_count == 2


def test_fit_is_steps_in_the_order_of_the_seed(in_force, dtype):
    x, y = batch(dtype, 10), labels(10)
    fitted, stepped = (fg.Trainer(net(dtype), optimizer=Adam(0.01), seed=3) for _ in range(2))
    history = fitted.fit(x, y, epochs=2, batch_size=4, validation=(x[:4], y[:4]))
    rng = np.random.Generator(np.random.PCG64(3))
    for _ in range(2):
        order = np.arange(10)
        rng.shuffle(order)
        for i in range(0, 10, 4):
            stepped.step(x[order[i : i + 4]], y[order[i : i + 4]])
    assert state_of(fitted) == state_of(stepped)
    loss, accuracy = fitted.evaluate(x[:4], y[:4])
    assert (history.val_loss[-1], history.val_accuracy[-1]) == (loss, accuracy)
    p = fitted.predict(x[:4])
    assert_close("dense_chain", p.sum(axis=1), np.ones(4))
    assert loss == pytest.approx(-np.log(p[np.arange(4), y[:4]]).mean(), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, layout):
    x, y = batch("float32"), labels()
    expected, trainer = fg.Trainer(net("float32")), fg.Trainer(net("float32"))
    laid = laid_out(x, layout)
    for _ in range(2):
        assert trainer.step(laid, y) == expected.step(x, y)
    trainer.fit(laid, y, batch_size=2)
    expected.fit(x, y, batch_size=2)
    assert state_of(trainer) == state_of(expected)
    assert bits(trainer.predict(laid)) == bits(expected.predict(x))
    assert bits(laid) == bits(x)


def test_names_shapes_and_initial_values():
    model = net()
    names = list(model.parameters())
    assert names[:3] == ["0.w", "1.gamma", "1.beta"]
    assert names[3:9] == [f"3.body.{name}" for name in ("0.w", "1.gamma", "1.beta", "2.w", "3.gamma", "3.beta")]
    assert names[9:12] == ["3.shortcut.0.w", "3.shortcut.1.gamma", "3.shortcut.1.beta"]
    assert names[12:16] == ["4.body.0.gamma", "4.body.0.beta", "4.body.1.w", "4.body.1.b"]
    assert model.parameters()["4.body.1.w"].shape == (3, 3, 3, 6)
    assert list(model.statistics())[:3] == ["1.running_mean", "1.running_var", "3.body.1.running_mean"]
    assert (model.n_in, model.n_out) == (2, 3)
    layer = BatchNorm(3)
    assert [a.tolist() for a in (layer.gamma, layer.beta, layer.running_mean, layer.running_var)] == [
        [1] * 3, [0] * 3, [0] * 3, [1] * 3,
    ]  # fmt: skip
    assert Conv2d(2, 4, (3, 5), bias=False).b is None
    assert Conv2d(2, 4, (3, 5)).w.shape == (3, 5, 2, 4)


def test_initial_weights_of_convolutions_count_their_windows():
    w = Conv2d(16, 32, 3, groups=2, init="he_normal", seed=1).w
    assert w.std() == pytest.approx(np.sqrt(2 / (9 * 8)), rel=0.05)
    w = Conv2d(16, 32, (3, 5), init="xavier_uniform", seed=1).w
    assert 0.99 * np.sqrt(6 / (15 * (16 + 32))) < np.abs(w).max() <= np.sqrt(6 / (15 * (16 + 32)))


def test_one_seed_gives_one_net():
    assert bits(net(seed=4).params) == bits(net(seed=4).params) != bits(net(seed=5).params)
    conv = Conv2d(2, 4, 3, seed=6)
    kept = conv.w.copy()
    Sequential(Residual(Sequential(conv, Conv2d(4, 2, 3))))
    assert bits(conv.w) == bits(kept)


@pytest.mark.parametrize("layer", [Conv2d(3, 4, 3, padding=((0, 1), (0, 1))), MaxPool2d(3, padding=((1, 0), (1, 0)))])
def test_equal_paddings_of_unequal_sides_are_printed_whole(layer):
    assert eval(repr(layer)).padding == layer.padding


def test_pools_to_the_end_of_images_and_paddings_of_sides_are_pytorchs(torch):
    x = batch("float32", shape=(7, 6, 3))
    sides = (2, 1), (0, 1)
    conv = Conv2d(3, 4, 3, padding=sides, seed=0)
    layers = conv, MaxPool2d(2, stride=3, ceil_mode=True), AvgPool2d(2, padding=1, ceil_mode=True)
    model = copy.deepcopy(Sequential(*layers))
    assert repr(model.layers[0]) == "Conv2d(3, 4, 3, padding=((2, 1), (0, 1)))"
    assert repr(model.layers[1]) == "MaxPool2d(2, stride=3, ceil_mode=True)"
    theirs = torch.nn.functional
    w, b = (torch.tensor(a) for a in (conv.w.transpose(3, 2, 0, 1), conv.b))
    y = theirs.conv2d(theirs.pad(torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 2, 1)), w, b)
    y = theirs.avg_pool2d(theirs.max_pool2d(y, 2, 3, ceil_mode=True), 2, padding=1, ceil_mode=True)
    np.testing.assert_allclose(model.predict(x), y.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5)


def test_bad_settings_of_layers():
    refuses(ValueError, "Conv2d: n_in must be an integer of at least 1, got 0", Conv2d, 0, 3, 3)
    refuses(ValueError, "Conv2d: size must be an integer of at least 1, got 0", Conv2d, 2, 3, 0)
    refuses(ValueError, "Conv2d: groups must divide n_out, 3, got 2", Conv2d, 4, 3, 3, groups=2)
    message = "Conv2d: padding must be smaller than the kernel's reach (3, 3), got (3, 3)"
    refuses(ValueError, message, Conv2d, 4, 3, 3, padding=3)
    message = f"Conv2d: padding must be {PADDINGS}, got 'full'"
    refuses(ValueError, message, Conv2d, 4, 3, 3, padding="full")
    refuses(ValueError, "MaxPool2d: padding must be at most half of size (3, 3), got (2, 2)", MaxPool2d, 3, padding=2)
    refuses(ValueError, "AvgPool2d: stride must be an integer of at least 1, got 0", AvgPool2d, 3, stride=0)
    refuses(ValueError, "BatchNorm: momentum must be at least 0 and at most 1, got 2", BatchNorm, 3, momentum=2)
    refuses(ValueError, "BatchNorm: eps must be at least 0 and finite, got -1", BatchNorm, 3, eps=-1)
    refuses(ValueError, "BatchNorm: dtype must be float32 or float64, got 'float16'", BatchNorm, 3, dtype="float16")
    refuses(ValueError, "Flatten: n_out must be an integer of at least 1, got 0", Flatten, 0)


def test_bad_parts_of_models():
    conv = Conv2d(2, 3, 3)
    refuses(TypeError, "Residual: body must be a layer of fastgrad.nn, got str", Residual, "relu")
    message = "Residual: body makes 3 columns and shortcut 2; a layer as shortcut makes them equal"
    refuses(ValueError, message, Residual, conv)
    refuses(ValueError, "Residual: body makes 3 columns and shortcut 4", Residual, conv, Conv2d(2, 4, 1))
    refuses(ValueError, "Residual: shortcut must take 2 columns as body, got 1", Residual, conv, Conv2d(1, 3, 1))
    refuses(ValueError, "Residual: body must be without an LSTM or a GRU", Residual, LSTM(3, 3))
    refuses(TypeError, "Residual: shortcut must be float32, got float64", Residual, conv, Conv2d(2, 3, 1, dtype="f8"))
    message = "Residual: shortcut is part of a Residual already; a layer belongs to one"
    refuses(ValueError, message, Residual, conv, conv)
    # none of these has taken it
    Residual(conv, Conv2d(2, 3, 3))
    message = "Sequential: layers[0] is part of a Residual already; a layer belongs to one"
    refuses(ValueError, message, Sequential, conv)
    message = "Sequential: layers[2] must take 3 columns, got 4"
    refuses(ValueError, message, Sequential, Conv2d(2, 3, 3), MaxPool2d(2), BatchNorm(4))
    message = "Sequential: layers[1] must take rows (N, C), for a layer before it pools images"
    refuses(ValueError, message, Sequential, Flatten(), MaxPool2d(2))
    Sequential(Conv2d(2, 3, 3), Flatten(), Dense(12, 4))


def test_bad_input_of_layers(in_force):
    x = batch("float32")
    message = "Conv2d: x must be (N, H, W, C) = (_, _, _, 3), got (4, 7, 6, 2)"
    refuses(ValueError, message, Conv2d(3, 4, 3).forward, x)
    message = "Conv2d: the kernel's reach must be at most the padded image (7, 6), got (7, 7)"
    refuses(ValueError, message, Conv2d(2, 4, 7), x)
    message = "BatchNorm: x must be (..., C) = (4, 7, 6, 3), got (4, 7, 6, 2)"
    refuses(ValueError, message, BatchNorm(3), x)
    message = (
        "BatchNorm: x must be float64 like the model, got float32; astype(np.float64), or dtype='float32' for the model"
    )
    refuses(TypeError, message, BatchNorm(2, dtype="float64"), x)
    refuses(ValueError, "Flatten: n_out must be H W C = 84 of images (4, 7, 6, 2), got 80", Flatten(80), x)
    model = Sequential(Conv2d(2, 3, 3), Flatten(), Dense(12, 4))
    message = "Sequential.layers[2]: Dense.predict: x must be (N, C) = (_, 12), got (4, 60)"
    refuses(ValueError, message, model, x)
    block = Residual(Conv2d(2, 2, 3, activation="relu"))
    message = "Residual: shortcut must be like the body's output = (4, 5, 4, 2), got (4, 7, 6, 2)"
    refuses(ValueError, message, block, x)
    message = "Residual.body: Conv2d: residual must be (N, H', W', K) = (4, 5, 4, 2), got (4, 7, 6, 2)"
    refuses(ValueError, message, Residual(Conv2d(2, 2, 3)), x)
    message = "Residual: lengths and state are for models with an LSTM or a GRU"
    refuses(ValueError, message, block.predict, x, lengths=[1, 2, 3, 4])


def test_bad_input_of_a_trainer():
    trainer = fg.Trainer(net("float32"))
    x, y = batch("float32"), labels()
    before = state_of(trainer)
    message = "Trainer.step: x must be (N, H, W, C) = (_, _, _, 2), got (4, 84)"
    refuses(ValueError, message, trainer.step, x.reshape(4, -1), y)
    message = "Trainer.fit: x must be (N, H, W, C) = (_, _, _, 2), got (4, 2, 7, 6)"
    refuses(ValueError, message, trainer.fit, x.transpose(0, 3, 1, 2), y)
    refuses(ValueError, "Trainer.fit: lengths are for models with an LSTM or a GRU", trainer.fit, x, y, lengths=[1] * 4)
    message = "Trainer.step: y must be integers (4,) or float32 (4, 3), got integers (3,)"
    refuses(ValueError, message, trainer.step, x, y[:-1])
    assert state_of(trainer) == before
    message = (
        "Trainer.step: model must make a row of known length of each image; GlobalAvgPool2d() and Flatten(n_out) do"
    )
    refuses(ValueError, message, fg.Trainer(Conv2d(2, 3, 3)).step, x, y)
    refuses(ValueError, message, fg.Trainer(Sequential(Conv2d(2, 3, 3), Flatten())).step, x, y)
    fg.Trainer(Sequential(Conv2d(2, 3, (7, 6)), Flatten(3))).step(x, y)
