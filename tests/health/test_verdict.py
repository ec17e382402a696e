"""What a health report tells of nets that are ill, with which cures, and of healthy ones."""

import contextlib

import numpy as np
import pytest
from health_reports import cures, data, illnesses, trained

import fastgrad as fg
from fastgrad.cli import health as experiment
from fastgrad.nn import LSTM, Dense, DenseChain, Residual, Sequential
from fastgrad.optim import SGD, Adam

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


def test_vanishing_is_told(in_force):
    x, y = data()
    report = trained(DenseChain([12, *[16] * 6, 5], "sigmoid", init=("normal", 0.01), seed=0), x, y).health()
    assert illnesses(report)[0] == "vanishing"
    assert "BatchNorm" in report.verdicts["layers.0"].cure
    assert "0.001 times the last layer's" in report.verdicts["layers.0"].cause
    assert "layers.0 and" in str(report)


def test_exploding_is_told(in_force):
    x, y = data()
    report = trained(DenseChain([12, *[16] * 6, 5], "leaky_relu", init=("normal", 3.0), seed=0), x, y).health()
    assert set(illnesses(report)) == {"exploding"}
    report = trained(DenseChain([12, 16, 5], "tanh", seed=0), x, y, optimizer=SGD(100.0)).health()
    assert "exploding" in illnesses(report)
    assert "learning rate" in str(report)


@pytest.mark.parametrize("kind", ["chain", "layers"])
def test_dead_units_are_told(in_force, kind):
    x, y = data()
    net = (
        DenseChain([12, 16, 5], seed=0) if kind == "chain" else Sequential(Dense(12, 16, "relu"), Dense(16, 5), seed=0)
    )
    net.parameters()["0.b"][:9] = -100
    report = trained(net, x, y).health()
    assert report.as_dict()["layers.0/dead"] == 9 / 16
    assert illnesses(report) == ["dead", "healthy"]


@pytest.mark.parametrize(
    ("activation", "bias"), [("sigmoid", 40.0), ("sigmoid", -40.0), ("tanh", 40.0), ("elu", -40.0)]
)
def test_units_past_their_slope_are_dead(in_force, activation, bias):
    x, y = data()
    net = DenseChain([12, 16, 5], activation, seed=0)
    net.biases[0][:4] = bias
    assert trained(net, x, y).health().as_dict()["layers.0/dead"] == 4 / 16


def test_saturation_is_told(in_force):
    x, y = data()
    report = trained(DenseChain([12, 16, 5], "tanh", init=("normal", 10.0), seed=0), x, y).health()
    assert illnesses(report)[0] == "saturated"
    assert report.as_dict()["layers.0/saturated"] > 0.9


@pytest.mark.parametrize(
    ("activation", "at", "past"),
    [
        ("sigmoid", -4.7, 4.7),
        ("tanh", -2.7, 2.7),
        ("relu", -0.1, 0.1),
        ("relu6", -0.1, 6.1),
        ("elu", -4.7, 0.1),
        ("selu", -4.7, 0.1),
    ],
)
def test_what_is_within_a_hundredth_of_a_limit_is_saturated(in_force, activation, at, past):
    net = DenseChain([1, 1, 2], [activation, "identity"], init="constant", seed=0)
    net.weights[0][...] = 1
    both = activation in ("sigmoid", "tanh", "relu6")
    for value, expected in ((at, 1.0), (past, float(both)), (at * 0.9 + 0.11, 0.0)):
        trainer = trained(net, np.full((4, 1), value, "f4"), np.zeros(4, np.int64), optimizer=SGD(0.0))
        assert trainer.health().as_dict()["layers.0/saturated"] == expected, value


@pytest.mark.emulated(0)
def test_healthy_nets_are_healthy(in_force):
    x, y = experiment.digits()
    for options in ({"activation": "tanh", "init": "xavier_uniform"}, {"activation": "relu", "init": "he_normal"}):
        report = trained(experiment.net(10, 64, **options), x[:256], y[:256], 3).health()
        assert set(illnesses(report)) == {"healthy"}, str(report)


def deep(activation, init, batch_norm=False, residual=False, steps=3, lr=1e-3, **options):
    """The report of 50 layers, and whether the loss went down."""
    x, y = experiment.digits()
    model = experiment.net(50, 64, activation, init, batch_norm, residual)
    trainer = fg.Trainer(model, optimizer=Adam(lr), health=True, **options)
    losses = []
    with contextlib.suppress(FloatingPointError):
        for rows in experiment.batches(len(x), steps, 128, 0):
            losses.append(trainer.step(x[rows], y[rows]))
    return trainer.health(), len(losses) == steps and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("activation", "init"), [("sigmoid", "normal:0.01"), ("sigmoid", "normal:0.0001"), ("relu", "normal:1")]
)
def test_batch_norm_and_residuals_together_are_healthy_at_50_layers(cpu, activation, init):
    """Their layers' gradients differ by far more than a thousand from the last layer's, which is of another kind."""
    report, trains = deep(activation, init, True, True, steps=20)
    assert trains
    assert set(illnesses(report)) == {"healthy"}, str(report)


def test_vanishing_at_50_layers_is_told_with_cures_that_are_not_there(cpu):
    report, _ = deep("sigmoid", "normal:0.01")
    assert illnesses(report)[:40] == ["vanishing"] * 40
    for cure in ("activation='tanh'", "nn.BatchNorm", "nn.Residual"):
        assert cure in cures(report)["vanishing"]


def test_gradients_that_explode_are_called_so_whatever_the_outputs(cpu):
    """Of tanh with large weights 7 of 10 outputs are saturated too."""
    report, _ = deep("tanh", "normal:1")
    for values, verdict in zip(report.values, report.verdicts.values(), strict=True):
        assert (verdict.illness == "exploding") == (values[0] > 1000)
    assert report.verdicts["layers.0"].illness == "exploding"
    assert report.verdicts["layers.49"].illness == "saturated"


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("activation", "init", "clip"), [("relu", "he_normal", None), ("relu", "normal:1", 0.5), ("tanh", "normal:1", 5.0)]
)
def test_nothing_is_advised_that_is_there(cpu, activation, init, clip, batch_norm, residual):
    report, _ = deep(activation, init, batch_norm, residual, steps=1, clip_norm=clip)
    for verdict in report.verdicts.values():
        assert "BatchNorm" not in verdict.cure or not batch_norm
        assert "Residual" not in verdict.cure or not residual
        assert "clip_norm=1.0" not in verdict.cure or clip is None
        assert "a smaller clip_norm" not in verdict.cure or clip == 5.0
        assert "leaky_relu" not in verdict.cure or activation == "relu"
        assert (verdict.illness == "healthy") == (not verdict.cure)
    hidden = [v.cure for layer, v in report.verdicts.items() if layer not in ("layers.50", "layers.51")]
    assert init != "he_normal" or not any("init=" in cure for cure in hidden)


def test_an_lstm_is_advised_what_an_lstm_can_have(in_force):
    x, y = np.random.default_rng(0).standard_normal((6, 40, 3)).astype("f4"), np.zeros(6, np.int64)
    for forget_bias in (0.0, 1.0):
        model = Sequential(LSTM(3, 4, 2, pool="last", forget_bias=forget_bias), Dense(4, 2), seed=0)
        model.parameters()["0.1.w_ih"][...] = 1e-6
        report = trained(model, x, y).health()
        assert report.verdicts["layers.0.0"].illness == "vanishing"
        cure = report.verdicts["layers.0.0"].cure
        assert cure == ("fewer layers" if forget_bias else "forget_bias=1.0")
    model.parameters()["1.w"][...] = np.nan
    trainer = fg.Trainer(model, health=True, clip_norm=1.0)
    with pytest.raises(FloatingPointError):
        trainer.step(x, y)
    assert trainer.health().verdicts["layers.0.0"].cure == "a smaller learning rate"


def test_the_layers_of_one_block_are_not_held_against_those_of_another_kind(in_force):
    """A block whose last layer starts at 0 gives the layers before it no gradient at the first step."""
    x, y = data()
    blocks = [Residual(Sequential(Dense(12, 12, "relu"), Dense(12, 12, init="zeros"))) for _ in range(2)]
    report = trained(Sequential(*blocks, Dense(12, 5), seed=0), x, y, optimizer=SGD(0.01)).health()
    assert report.as_dict()["layers.0.body.0/grad_norm"] == 0
    assert set(illnesses(report)) == {"healthy"}


def test_a_net_that_has_learnt_all_is_healthy(in_force):
    x = np.ones((4, 3), "f4")
    net = DenseChain([3, 4, 2], "tanh", init="constant")
    assert set(illnesses(trained(net, x, net.predict(x), loss="mse").health())) == {"healthy"}


def test_weights_that_start_at_0_are_not_dead(in_force):
    x, y = data()
    net = Sequential(Dense(12, 16, "tanh", init="zeros"), Dense(16, 5, init="zeros"))
    net.layers[1].w[...] = np.random.default_rng(0).standard_normal((16, 5))
    report = trained(net, x, y, optimizer=SGD(0.01)).health()
    assert report.as_dict()["layers.0/dead"] == 1
    assert set(illnesses(report)) == {"healthy"}


def test_relus_that_are_dead_are_told_before_their_effect(in_force):
    x, y = data()
    net = DenseChain([12, 16, 16, 5], seed=0)
    net.biases[1][:] = -100
    report = trained(net, x, y).health()
    assert illnesses(report) == ["vanishing", "dead", "healthy"]
    assert (
        report.verdicts["layers.1"].cure
        == "a smaller learning rate, activation='leaky_relu', or nn.BatchNorm before the activation"
    )
