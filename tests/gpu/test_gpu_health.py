"""Gradient health on a GPU, which is fakegpu.py's: the numbers of the CPU, what waits, and how many launches looking takes."""

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.health import history
from fastgrad.health import layers as layer_health
from fastgrad.nn import LSTM, BatchNorm, Conv2d, Dense, DenseChain, GlobalAvgPool2d, MaxPool2d, Residual, Sequential

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

ROWS, COLUMNS, CLASSES = 20, 6, 3


def data(*shape):
    rng = np.random.default_rng(1)
    return rng.standard_normal((ROWS, *(shape or (COLUMNS,))), np.float32), rng.integers(0, CLASSES, ROWS)


def chain():
    return DenseChain([COLUMNS, 5, 4, CLASSES], "tanh", "softmax", seed=0)


def layers(depth=1):
    hidden = [Residual(Dense(5, 5, "relu")) for _ in range(depth)]
    return Sequential(Dense(COLUMNS, 5, "tanh"), BatchNorm(5, "relu"), *hidden, Dense(5, CLASSES, "softmax"), seed=0)


def images():
    parts = Conv2d(3, 4, 3, padding=1, activation="relu"), BatchNorm(4), MaxPool2d(2), GlobalAvgPool2d()
    return Sequential(*parts, Dense(4, CLASSES, "softmax"), seed=0)


def sequences():
    return Sequential(LSTM(3, 4, bidirectional=True, pool="last"), Dense(8, CLASSES, "softmax"), seed=0)


SHAPES = {chain: (), layers: (), images: (4, 4, 3), sequences: (5, 3)}


def pair(make, **options):
    """Two trainers of the same: on the CPU and on the GPU."""
    return [fg.Trainer(make().to(place), **{"health": True, **options}) for place in ("cpu", "cuda")]


def alike(here, fake_gpu):
    """What two trainers tell is the same."""
    expected, found = (trainer.health() for trainer in (here, fake_gpu))
    assert found.layers == expected.layers
    assert found.activations == expected.activations
    assert found.step == expected.step
    np.testing.assert_array_equal(found.steps, expected.steps)
    for ours, wanted in ((found.values, expected.values), (found.history, expected.history)):
        assert type(ours) is np.ndarray
        np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=1e-6)
    return found


@pytest.mark.parametrize(("make", "every"), [(chain, 1), (layers, 3), (images, 2), (sequences, 1)])
def test_steps_and_epochs_leave_what_they_leave_on_the_cpu(fake_gpu, cpu, make, every):
    x, y = data(*SHAPES[make])
    trainers = pair(make, health=every, clip_norm=0.5)
    for trainer in trainers:
        for _ in range(2):
            trainer.step(x, y)
        # what is read before does not change what comes after
        trainer.health()
        trainer.fit(x, y, batch_size=8, shuffle=False)
        trainer.step(x, y)
    report = alike(*trainers)
    assert len(report.steps) == len(range(0, 6, every))
    assert np.isfinite(report.values[:, layer_health.GRADIENTS]).all()


@pytest.mark.parametrize("make", [chain, layers])
def test_training_has_the_same_bits_with_health(fake_gpu, make):
    x, y = data()
    found = []
    for every in (False, 2):
        trainer = fg.Trainer(make().to("cuda"), health=every, optimizer=fg.optim.SGD(0.1, 0.9), clip_norm=0.5)
        trainer.step(x, y)
        trainer.fit(x, y, batch_size=8)
        found.append([trainer.model.params.get().tobytes(), trainer.state.get().tobytes()])
    assert found[0] == found[1]


@pytest.mark.parametrize("make", [chain, layers])
def test_a_step_that_is_looked_at_waits_for_nothing_and_a_report_for_all_of_them_at_once(fake_gpu, make):
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(make().to("cuda"), health=2, clip_norm=1.0)
    for _ in range(2):
        trainer.step(x, y)
    with fake_gpu.counted() as counts:
        for _ in range(3):
            trainer.step(x, y)
    assert counts["waits"] == counts["copies"] == 0
    with fake_gpu.counted() as counts:
        assert trainer.health().step == 4
    # the rows, and how their steps ended
    assert counts["waits"] == 2
    with fake_gpu.counted() as counts:
        trainer.health()
    assert counts["waits"] == 0


@pytest.mark.parametrize("make", [chain, layers])
def test_an_epoch_waits_once_more_for_what_it_has_looked_at(fake_gpu, make):
    x, y = (fake_gpu.array(a) for a in data())
    waits = []
    for every in (False, True):
        trainer = fg.Trainer(make().to("cuda"), health=every)
        with fake_gpu.counted() as counts:
            trainer.fit(x, y, batch_size=7)
        waits.append(counts["waits"])
    assert waits[1] == waits[0] + 1


LOOKING = ["add_changes", "chunk_health", "join_arrays", "join_groups", "join_outputs", "update_ratios"]


@pytest.mark.parametrize("make", [chain, layers, lambda: layers(5)])
def test_looking_takes_seven_launches_whatever_the_number_of_layers(fake_gpu, monkeypatch, make):
    # of the CPU alone
    monkeypatch.setattr(layer_health, "IN_CACHE", 10)
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(make().to("cuda"), health=2, clip_norm=1.0)
    launched = []
    for _ in range(4):
        fake_gpu.launches.clear()
        trainer.step(x, y)
        launched.append(sorted(name for name, _ in fake_gpu.launches))
    looked, plain = launched[2:]
    assert sorted([*plain, *LOOKING, "output_moments"]) == looked


@pytest.mark.parametrize("make", [chain, layers])
def test_a_gradient_that_is_not_finite_is_reported_with_its_layer(fake_gpu, make):
    x, y = data()
    model = make().to("cuda")
    trainer = fg.Trainer(model, health=True)
    trainer.step(x, y)
    kept = model.params.get()
    list(model.parameters().values())[-2][1, 1] = np.nan
    loss = trainer.step(x, y)
    with pytest.raises(FloatingPointError, match=r"no update was made; health\(\) of the trainer tells of every layer"):
        float(loss)
    report = trainer.health()
    assert report.step == 1
    assert report.verdicts[report.layers[-1]].illness == "exploding"
    assert np.isnan(report.values[:, layer_health.RATIO]).all()
    # it is told, and not kept
    np.testing.assert_array_equal(report.steps, [0])
    model.params[...] = fake_gpu.array(kept)
    trainer.step(x, y)
    assert trainer.health().step == 2
    assert trainer.health().steps.tolist() == [0, 2]


def test_a_step_with_a_label_of_no_class_is_not_told_of(fake_gpu):
    x, y = data()
    trainer = fg.Trainer(chain().to("cuda"), health=True)
    trainer.step(x, y + 7)
    with pytest.raises(RuntimeError, match="no step has run"):
        trainer.health()
    trainer.step(x, y)
    trainer.step(x, y + 7)
    assert trainer.health().step == 1


@pytest.mark.parametrize("make", [chain, layers])
@pytest.mark.parametrize(("every", "step"), [(1, 3), (2, 2)])
def test_an_epoch_tells_of_the_batch_that_failed_and_of_none_after_it(fake_gpu, cpu, make, every, step):
    x, y = data()
    x[13] = np.inf
    trainers = pair(make, health=every)
    for trainer in trainers:
        with pytest.raises(FloatingPointError, match="epoch 1, batch 4"):
            trainer.fit(x, y, batch_size=4, shuffle=False)
    report = alike(*trainers)
    assert report.step == step
    np.testing.assert_array_equal(report.steps, range(0, 3, every))


@pytest.mark.parametrize("make", [chain, layers])
def test_the_history_of_steps_is_bounded_without_waiting(fake_gpu, cpu, monkeypatch, make):
    monkeypatch.setattr(history, "CAPACITY", 4)
    x, y = data()
    trainers = pair(make)
    with fake_gpu.counted() as counts:
        for _ in range(9):
            for trainer in trainers:
                trainer.step(x, y)
    assert counts["waits"] == 0
    assert alike(*trainers).steps.tolist() == [0, 4, 8]


@pytest.mark.parametrize("make", [chain, layers])
def test_a_long_epoch_goes_in_parts(fake_gpu, cpu, monkeypatch, make):
    monkeypatch.setattr(layer_health, "CAPACITY", 3)
    x, y = data()
    trainers = pair(make, health=2)
    histories = [trainer.fit(x, y, batch_size=3, shuffle=False) for trainer in trainers]
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=1e-4)
    report = alike(*trainers)
    assert report.steps.tolist() == [0, 2, 4, 6]
    assert np.isfinite(report.history).all()


def test_windows_are_updates_of_their_own(fake_gpu, cpu, monkeypatch):
    """Also where a batch has more of them than a part has rows, and where its sequences end early."""
    monkeypatch.setattr(layer_health, "CAPACITY", 2)
    x, _ = data(7, 3)
    y = np.random.default_rng(2).integers(0, CLASSES, (ROWS, 7))
    lengths = np.arange(ROWS) % 4 + 4 * (np.arange(ROWS) < 10)

    def make():
        return Sequential(LSTM(3, 4), Dense(4, CLASSES, "softmax"), seed=0)

    trainers = pair(make)
    for trainer in trainers:
        trainer.fit(x, y, batch_size=10, shuffle=False, lengths=lengths, window=2)
    assert trainers[0].step_count == trainers[1].step_count == 6
    assert alike(*trainers).steps.tolist() == list(range(6))


def test_health_follows_its_model(fake_gpu, cpu):
    x, y = data()
    trainer, other = fg.Trainer(layers(), health=True), fg.Trainer(layers(), health=True)
    for place in ("cpu", "cuda", "cpu"):
        trainer.model.to(place)
        trainer.step(x, y)
        other.step(x, y)
    assert alike(other, trainer).steps.tolist() == [0, 1, 2]


def test_health_of_what_a_trainer_moves_where_cuda_is_in_force(fake_gpu):
    x, y = data()
    with fg.use_backend("cuda"):
        trainer = fg.Trainer(layers(), health=True)
        trainer.fit(x, y, batch_size=10)
    assert np.isfinite(trainer.health().values).all()
