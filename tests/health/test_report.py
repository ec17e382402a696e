"""Gradient health: the numbers are PyTorch's and NumPy's, each illness is told of a net that has it, and trends are those of the theory."""

import sys

import numpy as np
import pytest
from arrays import bits
from health_reports import data, illnesses, trained
from tolerances import assert_close

import fastgrad as fg
from fastgrad.cli import health as experiment
from fastgrad.health.history import CAPACITY
from fastgrad.nn import LSTM, BatchNorm, Conv2d, Dense, DenseChain, GlobalAvgPool2d, Residual, Sequential
from fastgrad.optim import SGD

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


# trainers


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
def test_a_chain_looks_as_in_pytorch(in_force, dtype, torch, activation):
    x, y = data(dtype=dtype)
    sizes = [12, 16, 9, 5]
    model = DenseChain(sizes, activation, "softmax", dtype=dtype, seed=1, init="xavier_normal")
    wanted = getattr(torch.nn, {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid", "gelu": "GELU"}[activation])
    layers = []
    for w, b in zip(model.weights, model.biases, strict=True):
        linear = torch.nn.Linear(*w.shape, dtype=getattr(torch, dtype.name))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w.T.copy()))
            linear.bias.copy_(torch.from_numpy(b.copy()))
        layers.append(linear)
    outputs = []
    after = [layer for linear in layers[:-1] for layer in (linear, wanted())] + [layers[-1]]
    for layer in (*after[1:-1:2], after[-1]):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().double()))
    net = torch.nn.Sequential(*after)
    torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    gradients = [torch.cat([p.grad.reshape(-1) for p in linear.parameters()]).double() for linear in layers]
    weights = [torch.cat([p.detach().reshape(-1) for p in linear.parameters()]).double() for linear in layers]
    torch.optim.SGD(net.parameters(), 0.1).step()
    moved = [
        (torch.cat([p.detach().reshape(-1) for p in linear.parameters()]).double() - w).norm() / w.norm()
        for linear, w in zip(layers, weights, strict=True)
    ]
    report = trained(model, x, y, optimizer=SGD(0.1)).health()
    close = {"rel": 1e-5, "abs": 1e-7} if dtype == np.float32 else {"rel": 1e-11, "abs": 1e-13}
    for values, gradient, out, ratio in zip(report.values, gradients, outputs, moved, strict=True):
        found = dict(zip(report.columns, values, strict=True))
        assert found["grad_norm"] == pytest.approx(gradient.norm().item(), **close)
        assert found["largest"] == pytest.approx(gradient.abs().max().item(), **close)
        assert found["zeros"] == pytest.approx((gradient == 0).double().mean().item())
        assert found["nonfinite"] == 0
        assert found["mean"] == pytest.approx(out.mean().item(), **close)
        assert found["spread"] == pytest.approx(out.std(correction=0).item(), **close)
        assert found["update_ratio"] == pytest.approx(ratio.item(), rel=1e-4)
    if activation == "relu":
        dead = [(out == 0).all(0).double().mean().item() for out in outputs]
        np.testing.assert_allclose(report.values[:, 7], dead)


@pytest.mark.emulated(0)
def test_convolutions_batch_norm_and_lstms_look_as_in_pytorch(in_force, torch):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((6, 7, 8, 3)).astype("f4"), rng.integers(0, 4, 6)
    model = Sequential(Conv2d(3, 5, 3, padding=1), BatchNorm(5, "relu"), GlobalAvgPool2d(), Dense(5, 4), seed=0)
    conv, norm, _, _ = model.layers
    w, b = (torch.tensor(a.copy()) for a in (conv.w, conv.b))
    z = torch.nn.functional.conv2d(torch.tensor(images).permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, padding=1)
    y = torch.relu(torch.nn.functional.batch_norm(z, None, None, training=True))
    found = trained(model, images, labels).health()
    assert found.layers == ["layers.0", "layers.1", "layers.3"]
    for row, out in zip(found.values, (z, y), strict=False):
        expected = [out.mean(), out.std(correction=0), (out <= 0).float().mean() if out is y else 0]
        np.testing.assert_allclose(row[4:7], [float(v) for v in expected], rtol=1e-4, atol=1e-6)
    for row, layer in zip(found.values, (conv, norm, model.layers[3]), strict=True):
        assert row[0] == pytest.approx(np.linalg.norm(layer.grads), rel=1e-5)

    x = rng.standard_normal((6, 9, 3)).astype("f4")
    model = Sequential(LSTM(3, 4, bidirectional=True, pool="last"), Dense(8, 4), seed=0)
    lstm = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for way, suffix in (("0.", "_l0"), ("0.reverse.", "_l0_reverse")):
            parameters = model.layers[0].parameters()
            getattr(lstm, "weight_ih" + suffix).copy_(torch.tensor(parameters[way + "w_ih"].T.copy()))
            getattr(lstm, "weight_hh" + suffix).copy_(torch.tensor(parameters[way + "w_hh"].T.copy()))
            getattr(lstm, "bias_ih" + suffix).copy_(torch.tensor(parameters[way + "b"].copy()))
            getattr(lstm, "bias_hh" + suffix).zero_()
        out, _ = lstm(torch.tensor(x))
    found = trained(model, x, labels).health()
    assert found.layers == ["layers.0.0", "layers.0.0.reverse", "layers.1"]
    for row, part in zip(found.values, (out[..., :4], out[..., 4:]), strict=False):
        np.testing.assert_allclose(row[4:6], [float(part.mean()), float(part.std(correction=0))], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_a_chain_and_its_layers_look_alike(in_force, dtype, activation):
    x, y = data(dtype=dtype)
    chain = DenseChain([12, 16, 9, 5], activation, "softmax", dtype=dtype, seed=1)
    layers = Sequential(
        *(Dense(*w.shape, f, dtype=dtype) for w, f in zip(chain.weights, [activation] * 2 + ["softmax"], strict=True))
    )
    layers.params[...] = chain.params
    reports = [trained(model, x, y, 3).health() for model in (chain, layers)]
    assert reports[0].layers == reports[1].layers
    assert_close("100_steps", reports[0].values.astype(dtype), reports[1].values, size=1)
    assert np.isfinite(reports[1].values).all()


@pytest.mark.emulated(0)
@pytest.mark.parametrize("kind", ["chain", "layers"])
def test_fit_leaves_what_steps_leave_and_trains_as_without(in_force, kind):
    x, y = data(300)

    def model():
        if kind == "chain":
            return DenseChain([12, 9, 5], "tanh", "softmax", seed=2)
        return Sequential(Dense(12, 9, "tanh"), Residual(Dense(9, 9)), Dense(9, 5, "softmax"), seed=2)

    plain, watched, stepped = (fg.Trainer(model(), clip_norm=0.1, **o) for o in ({}, {"health": 3}, {"health": 3}))
    for trainer in (plain, watched):
        trainer.fit(x, y, epochs=2, batch_size=30, shuffle=False)
    for _ in range(2):
        for start in range(0, 300, 30):
            stepped.step(x[start : start + 30], y[start : start + 30])
    assert bits(plain.model.params) == bits(watched.model.params) == bits(stepped.model.params)
    reports = watched.health(), stepped.health()
    assert reports[0].step == reports[1].step == 18
    np.testing.assert_array_equal(reports[0].steps, range(0, 20, 3))
    assert bits(reports[0].history) == bits(reports[1].history)
    assert bits(reports[0].values) == bits(reports[0].history[-1])


@pytest.mark.emulated(0)
def test_history_is_bounded_and_covers_the_whole_run(in_force):
    x, y = data(4)
    trainer = fg.Trainer(DenseChain([12, 3, 5], seed=0), health=True)
    trainer.fit(x, y, epochs=5 * CAPACITY // 2, batch_size=2)
    report = trainer.health()
    assert CAPACITY // 2 <= len(report.steps) == len(report.history) <= CAPACITY
    np.testing.assert_array_equal(report.steps, np.arange(len(report.steps)) * (report.steps[1] - report.steps[0]))
    assert report.step == 5 * CAPACITY - 1
    assert report.steps[-1] > 5 * CAPACITY - 20


def test_history_goes_on_where_the_count_of_updates_was_set_back(in_force, monkeypatch):
    monkeypatch.setattr("fastgrad.health.history.CAPACITY", 4)
    x, y = data(4)
    trainer = fg.Trainer(DenseChain([12, 3, 5], seed=0), health=2)
    trainer.fit(x, y, epochs=10, batch_size=2)
    trainer.step_count = 10
    trainer.fit(x, y, epochs=1, batch_size=2)
    steps = trainer.health().steps
    # what came after update 10 is of another run
    assert 0 < len(steps) <= 3
    assert (np.diff(steps) > 0).all()
    assert steps[-1] <= 11
    for _ in range(6):
        trainer.step_count = 0
        trainer.step(x, y)
    np.testing.assert_array_equal(trainer.health().steps, [0])
    trainer.fit(x, y, epochs=3, batch_size=2)
    np.testing.assert_array_equal(trainer.health().steps, [0, 2, 4, 6])


@pytest.mark.parametrize("kind", ["chain", "layers"])
def test_a_gradient_that_is_not_finite_is_reported_with_its_layer(in_force, kind):
    x, y = data()
    net = DenseChain([12, 9, 5], seed=0) if kind == "chain" else Sequential(Dense(12, 9, "relu"), Dense(9, 5), seed=0)
    trainer = trained(net, x, y)
    list(net.parameters().values())[2][3, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"no update was made; health\(\) of the trainer tells of every layer"):
        trainer.step(x, y)
    report = trainer.health()
    assert report.step == 1
    assert report.as_dict()["layers.1/nonfinite"] > 0
    assert report.verdicts["layers.1"].illness == "exploding"
    assert "NaN or infinite" in str(report)
    assert np.isnan(report.values[:, -1]).all()
    np.testing.assert_array_equal(report.steps, [0])
    with pytest.raises(ValueError, match="y must be in"):
        trainer.step(x, y + 7)
    assert trainer.health().step == 1
    assert bits(trainer.health().values) == bits(report.values)


def test_what_cannot_be_told_is_an_error(in_force):
    x, y = data()
    trainer = fg.Trainer(DenseChain([12, 5], seed=0))
    trainer.step(x, y)
    with pytest.raises(RuntimeError, match="must be made with health=True"):
        trainer.health()
    with pytest.raises(RuntimeError, match="no step has run"):
        fg.Trainer(DenseChain([12, 5], seed=0), health=True).health()
    with pytest.raises(ValueError, match="Trainer: health must be an integer of at least 0, got -1"):
        fg.Trainer(DenseChain([12, 5], seed=0), health=-1)
    with pytest.raises(TypeError, match="Trainer: health must be an integer, got str"):
        fg.Trainer(DenseChain([12, 5], seed=0), health="yes")
    with pytest.raises(ValueError, match=r"health\.of: names must have length 1, got 2"):
        fg.health.of([np.zeros(3)], ["a", "b"])
    with pytest.raises(TypeError, match=r"health.of: grads\[1\] must be float64, got float32"):
        fg.health.of([np.zeros(3), np.zeros(3, "f4")])


def test_gradients_of_other_code_are_reported(in_force):
    report = fg.health.of([np.full((2, 2), 1e-9), np.array([np.nan, 1.0]), np.ones(4)], ["a", "b", "c"])
    assert report.as_dict()["a/grad_norm"] == pytest.approx(2e-9)
    assert np.isnan(report.as_dict()["a/mean"])
    assert illnesses(report) == ["vanishing", "exploding", "healthy"]
    assert fg.health.of(np.ones(4)).layers == ["0"]


# reports


def test_the_report_is_a_table_and_a_dict(in_force):
    x, y = data()
    report = trained(DenseChain([12, 9, 5], "tanh", init=("normal", 0.3), seed=0), x, y, optimizer=SGD(0.01)).health()
    title, *lines = str(report).splitlines()
    assert title.split()[0] == "layer"
    assert [line.split()[0] for line in lines] == ["layers.0", "layers.1"]
    assert all(line.endswith("healthy") for line in lines)
    assert max(map(len, [title, *lines])) <= 120
    found = report.as_dict()
    assert len(found) == 2 * 9
    assert all(type(value) is float for value in found.values())
    assert found["layers.0/grad_norm"] == report.values[0, 0]


@pytest.mark.emulated(0)
def test_a_report_does_not_change_with_later_steps(in_force):
    x, y = data()
    trainer = trained(DenseChain([12, 9, 5], seed=0), x, y)
    report = trainer.health()
    before = bits(report.values), bits(report.history)
    trainer.fit(x, y, epochs=3)
    assert (bits(report.values), bits(report.history)) == before


@pytest.mark.emulated(0)
def test_plot_writes_a_picture(in_force, tmp_path):
    pytest.importorskip("matplotlib")
    x, y = data()
    trainer = trained(DenseChain([12, 9, 9, 5], seed=0), x, y, 5)
    figure = trainer.health().plot(tmp_path / "health.png")
    assert (tmp_path / "health.png").stat().st_size > 1000
    by_layer, over_time = figure.axes
    np.testing.assert_allclose(by_layer.lines[-1].get_ydata(), trainer.health().values[:, 0])
    assert len(over_time.lines) == 3
    fg.health.of([np.zeros(3)]).plot()


def test_plot_shows_a_gradient_of_0_as_0():
    pytest.importorskip("matplotlib")
    by_layer, _ = fg.health.of([np.zeros(3), np.ones(3), np.full(3, 1e-9)]).plot().axes
    zero, *_ = by_layer.get_yticks()
    assert by_layer.get_yticklabels()[0].get_text() == "0"
    assert by_layer.lines[-1].get_ydata()[0] == zero < 1e-9
    assert list(by_layer.lines[-1].get_xdata()) == [1, 2, 3]


def test_plot_has_a_line_for_each_kind_of_layer():
    pytest.importorskip("matplotlib")
    x, y = data()
    layers = Dense(12, 9), BatchNorm(9, "relu"), Dense(9, 9), BatchNorm(9, "relu"), Dense(9, 5)
    by_layer, _ = trained(Sequential(*layers, seed=0), x, y).health().plot().axes
    drawn = {line.get_label(): list(line.get_xdata()) for line in by_layer.lines}
    assert drawn == {"Dense before a batch norm": [1, 3], "BatchNorm": [2, 4], "Dense": [5]}


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        fg.health.of([np.ones(3)]).plot()


# the theory: how the gradient of weights goes from the last hidden layer to the first


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    x, y = experiment.digits()
    return x[:128], y[:128]


def norms(digits, depth, activation, init, **cures):
    trainer = fg.Trainer(experiment.net(depth, 64, activation, init, **cures), health=True)
    trainer.step(*digits)
    found = trainer.health().as_dict()
    return np.array([v for k, v in found.items() if k.endswith("/grad_norm")])[:-1]


def growth(found):
    """Powers of ten from the last layer to the first, by a straight line."""
    return np.polyfit(np.arange(len(found)), np.log10(found[::-1]), 1)[0] * (len(found) - 1)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_small_normal_weights_vanish(cpu, digits, activation):
    found = norms(digits, 8, activation, "normal:0.01")
    # the first hidden layers see digits, whose size is not theirs
    assert (np.diff(found[1:]) > 0).all()
    assert growth(found) < -5


@pytest.mark.parametrize("init", ["normal:0.01:1", "normal:1"])
def test_large_weights_explode(cpu, digits, init):
    found = norms(digits, 8, "relu", init)
    assert found[0] > 1e5
    if init == "normal:1":
        assert growth(norms(digits, 20, "identity", init)[2:]) > 0 or found[0] > 1e5


@pytest.mark.parametrize(
    ("activation", "good", "bad"), [("tanh", "xavier_normal", "normal:0.01"), ("relu", "he_normal", "xavier_normal")]
)
def test_the_right_initial_weights_hold(cpu, digits, activation, good, bad):
    held, lost = (norms(digits, 50, activation, init) for init in (good, bad))
    assert abs(growth(held)) < 2
    assert 1e-3 < held[0] < 1e2
    assert lost[0] < held[0] / 1e3


def test_batch_norm_and_residuals_hold_at_depth_100(cpu, digits):
    lost = norms(digits, 100, "relu", "xavier_normal")
    for cures in ({"batch_norm": True, "residual": True}, {"residual": True}):
        init = "xavier_normal" if "batch_norm" in cures else "normal:0.01"
        held = norms(digits, 100, "relu", init, **cures)
        assert np.isfinite(held).all()
        assert abs(growth(held)) < 2
        assert held[0] > 1e3 * lost[0]
    # batch norm alone keeps gradients of tanh and sigmoid alive
    alone = norms(digits, 100, "tanh", "normal:0.01", batch_norm=True)
    assert alone[0] > 1e-3


# the command
