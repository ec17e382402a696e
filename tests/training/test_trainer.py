"""Steps, epochs, history: one arithmetic over every way to run it, and nothing changed by an error."""

import sys
import threading

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out
from error_messages import refuses
from tolerances import assert_close
from trainers import data, model

import fastgrad as fg
from fastgrad.nn import Dense, DenseChain, Sequential
from fastgrad.optim import SGD, Adam
from fastgrad.training.history import History

OPTIMIZERS = {
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True),
    "adam": Adam(0.01, betas=(0.8, 0.99), weight_decay=0.01),
}
# loss, last activation
LOSSES = [
    ("cross_entropy", "softmax"),
    ("cross_entropy", "identity"),
    ("binary_cross_entropy", "sigmoid"),
    ("binary_cross_entropy", "identity"),
    ("mse", "identity"),
    ("mse", "softmax"),
    ("poisson_nll", "identity"),
]


def state_of(trainer):
    """All that a failed call must leave alone."""
    random = trainer.rng.bit_generator.state["state"]
    return bits(trainer.model.params), bits(trainer.state), trainer.step_count, tuple(random.values())


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_a_step_is_the_loss_its_gradient_and_an_update(in_force, dtype, form, loss, output):
    net = model(form, output, dtype)
    x, y = data(loss, dtype)
    logits = (loss, output) in (("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid"))
    out, backward = net.forward(x, logits=logits)
    expected, dy = getattr(fg, loss)(out, y)
    backward(dy)
    before, gradient = net.params.copy(), net.grads.copy()
    value = fg.Trainer(net, loss, SGD(0.5)).step(x, y)
    assert isinstance(value, float)
    assert value == pytest.approx(expected, rel=1e-5)
    assert_close("train_gradient", net.grads, gradient, size=1)
    assert_close("train_gradient", net.params, before - 0.5 * gradient, size=1)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_chain_and_its_layers_train_alike(in_force, dtype, optimizer, clip_norm):
    x, y = data(dtype=dtype)
    chain, layers = (
        fg.Trainer(model(form, dtype=dtype), optimizer=OPTIMIZERS[optimizer], clip_norm=clip_norm)
        for form in ("chain", "sequential")
    )
    for _ in range(20):
        assert chain.step(x, y) == pytest.approx(layers.step(x, y), rel=1e-4)
    assert_close("100_steps", chain.model.params, layers.model.params, size=1)
    assert_close("100_steps", chain.state, layers.state, size=1)


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_fit_is_steps_in_the_order_of_the_seed(in_force, dtype, form):
    x, y = data(dtype=dtype)
    fitted, stepped = (fg.Trainer(model(form, dtype=dtype), optimizer=Adam(0.01), seed=3) for _ in range(2))
    history = fitted.fit(x, y, epochs=2, batch_size=8)
    rng = np.random.Generator(np.random.PCG64(3))
    losses = []
    for _ in range(2):
        order = np.arange(20)
        rng.shuffle(order)
        batches = [order[i : i + 8] for i in range(0, 20, 8)]
        losses.append(sum(len(rows) * stepped.step(x[rows], y[rows]) for rows in batches) / 20)
    assert fitted.step_count == stepped.step_count == 6
    assert bits(fitted.model.params) == bits(stepped.model.params)
    assert bits(fitted.state) == bits(stepped.state)
    assert history.loss == pytest.approx(losses, rel=1e-6)
    assert len(history.grad_norm) == len(history.seconds) == 2
    assert min(history.grad_norm) > 0


def test_fit_goes_on_where_the_last_one_stopped(in_force):
    x, y = data()
    once, twice = (fg.Trainer(model(), seed=3) for _ in range(2))
    whole = once.fit(x, y, epochs=4, batch_size=8)
    parts = [twice.fit(x, y, epochs=n, batch_size=8) for n in (3, 1)]
    assert bits(once.model.params) == bits(twice.model.params)
    assert whole.loss == parts[0].loss + parts[1].loss
    other = fg.Trainer(model(), seed=4)
    other.fit(x, y, epochs=4, batch_size=8)
    assert bits(other.model.params) != bits(once.model.params)


def test_fit_in_the_given_order_and_with_one_batch(in_force):
    x, y = data()
    fitted, stepped = fg.Trainer(model()), fg.Trainer(model())
    fitted.fit(x, y, batch_size=8, shuffle=False)
    for i in range(0, 20, 8):
        stepped.step(x[i : i + 8], y[i : i + 8])
    assert bits(fitted.model.params) == bits(stepped.model.params)
    fitted.fit(x, y, batch_size=1000, shuffle=False)
    stepped.step(x, y)
    assert bits(fitted.model.params) == bits(stepped.model.params)


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_validation_is_loss_and_accuracy_of_the_trained_model(in_force, form, loss, output):
    x, y = data(loss, n=3000)
    trainer = fg.Trainer(model(form, output), loss)
    history = trainer.fit(x[:20], y[:20], epochs=2, validation=(x, y))
    assert len(history.val_loss) == 2
    expected, accuracy = trainer.evaluate(x, y)
    assert history.val_loss[-1] == expected
    fused = (loss, output) in (("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid"))
    out = trainer.model.predict(x, logits=fused)
    assert expected == pytest.approx(getattr(fg, loss)(out, y)[0], rel=1e-5)
    if loss in ("mse", "poisson_nll"):
        assert accuracy is None
        assert history.val_accuracy == []
        return
    right = out.argmax(axis=1) == y if loss == "cross_entropy" else (out > 0) == (y > 0)
    assert accuracy == history.val_accuracy[-1] == pytest.approx(right.mean())


def test_labels_of_other_kinds_train_alike(in_force):
    x, y = data()
    expected = fg.Trainer(model())
    expected.step(x, y)
    for labels in (y.astype(np.int32), y.astype(np.uint8), np.asfortranarray(np.eye(3, dtype=np.float32)[y])):
        trainer = fg.Trainer(model())
        trainer.step(x, labels)
        assert_close("train_gradient", trainer.model.params, expected.model.params, size=1)
        assert trainer.evaluate(x, labels)[1] == expected.evaluate(x, y)[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, layout):
    x, y = data("mse")
    expected, trainer = fg.Trainer(model(), "mse"), fg.Trainer(model(), "mse")
    changed_x, changed_y = laid_out(x, layout), laid_out(y, layout)
    for _ in range(2):
        assert trainer.step(changed_x, changed_y) == expected.step(x, y)
    trainer.fit(changed_x, changed_y, batch_size=8)
    expected.fit(x, y, batch_size=8)
    assert bits(trainer.model.params) == bits(expected.model.params)
    assert (bits(changed_x), bits(changed_y)) == (bits(x), bits(y))


def test_batches_of_any_size_may_follow_each_other(in_force):
    x, y = data(n=40)
    trainer, fresh = fg.Trainer(model(), optimizer=SGD(0.1)), fg.Trainer(model(), optimizer=SGD(0.1))
    for n in (8, 40, 1, 8):
        # a trainer that only ever saw this size
        fresh = fg.Trainer(fresh.model, optimizer=SGD(0.1))
        assert trainer.step(x[:n], y[:n]) == fresh.step(x[:n], y[:n])
        fresh.model.params[...] = trainer.model.params


def test_scratch_is_reserved_anew_after_a_take_over(in_force):
    x, y = data(n=2000)
    chain = model()
    trainer = fg.Trainer(chain)
    trainer.step(x, y)
    Sequential(chain)
    trainer.fit(x[:4], y[:4])
    trainer.step(x, y)
    trainer.step(x[:10], y[:10])
    assert trainer.step_count == 4


def test_bad_input_of_a_step_changes_nothing(in_force):
    trainer = fg.Trainer(model())
    x, y = data()
    trainer.step(x, y)
    before = state_of(trainer)
    step = trainer.step
    refuses(ValueError, "Trainer.step: x must be (N, C) = (_, 4), got (20, 3)", step, x[:, :3], y)
    refuses(ValueError, "Trainer.step: x must have at least one row, got (0, 4)", step, x[:0], y[:0])
    refuses(
        TypeError,
        "Trainer.step: x must be float32 like the model, got float64; astype(np.float32), or dtype='float64' for the model",
        step,
        x.astype("f8"),
        y,
    )
    message = "Trainer.step: x must be float32 or float64 in native byte order, got int64"
    refuses(TypeError, message, step, x.astype(int), y)
    message = "Trainer.step: x must be a NumPy array, got list; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, step, x.tolist(), y)
    message = "Trainer.step: y must be a NumPy array, got list; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, step, x, y.tolist())
    message = "Trainer.step: y must be integers (20,) or float32 (20, 3), got integers (19,)"
    refuses(ValueError, message, step, x, y[:-1])
    message = "Trainer.step: y must be integers (N,) or float32 (N, C), got bool (20,)"
    refuses(TypeError, message, step, x, y > 0)
    fresh = fg.Trainer(model())
    message = "Trainer.step: x must be (N, C) = (_, 4), got ()"
    refuses(ValueError, message, fresh.step, np.array(1, np.float32), np.array(1))
    assert state_of(trainer) == before
    mse = fg.Trainer(model(), "mse")
    refuses(ValueError, "Trainer.step: y must be (N, K) = (20, 3), got (20,)", mse.step, x, x[:, 0])
    refuses(TypeError, "Trainer.step: y must be float32 or float64 in native byte order, got int64", mse.step, x, y)


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_changes_nothing(in_force, form, label):
    trainer = fg.Trainer(model(form))
    x, y = data()
    # twice: the first call is checked in full, later ones are the kernel's to refuse
    for _ in range(2):
        trainer.step(x, y)
        before = state_of(trainer)
        bad = y.copy()
        bad[5:7] = label
        refuses(ValueError, f"Trainer.step: y must be in 0..2, got {label} at index 5", trainer.step, x, bad)
        refuses(ValueError, f"Trainer.fit: y must be in 0..2, got {label} at index 5", trainer.fit, x, bad)
        assert state_of(trainer) == before


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_names_its_parameters(in_force, form, bad):
    trainer = fg.Trainer(model(form, "identity"), "mse", SGD(0.1, momentum=0.9), clip_norm=1.0)
    x, y = data("mse")
    trainer.step(x, y)
    before = state_of(trainer)
    broken = y.copy()
    broken[3, 1] = bad
    message = "Trainer.step: the gradient is not finite in 0.w, 0.b, 1.w, 1.b; no update was made"
    refuses(FloatingPointError, message, trainer.step, x, broken)
    assert state_of(trainer) == before
    broken_x = x.copy()
    broken_x[3, 1] = np.nan
    with pytest.raises(FloatingPointError):
        trainer.step(broken_x, y)
    assert state_of(trainer) == before
    trainer.step(x, y)
    assert trainer.step_count == 2


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_only_the_parameters_whose_gradient_is_not_finite_are_named(in_force, form):
    trainer = fg.Trainer(model(form, "identity"), "mse", SGD(0.1))
    x, y = data("mse")
    x[0, 0] = np.inf
    before = state_of(trainer)
    # tanh ends the infinity: only x^T dz meets it, and inf * 0
    message = "Trainer.step: the gradient is not finite in 0.w; no update was made"
    refuses(FloatingPointError, message, trainer.step, x, y)
    assert state_of(trainer) == before


def test_a_norm_that_overflows_is_said_to(in_force):
    trainer = fg.Trainer(DenseChain([1, 1], output="identity", dtype="float64", seed=0), "mse", SGD(0.1))
    before = state_of(trainer)
    message = "Trainer.step: the gradient's norm overflows; no update was made"
    refuses(FloatingPointError, message, trainer.step, np.ones((1, 1)), np.full((1, 1), 1e200))
    assert state_of(trainer) == before


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_fit_stops_before_the_update_that_is_not_finite(in_force, form):
    x, y = data("mse")
    y[13] = np.nan
    fitted, stepped = (fg.Trainer(model(form), "mse") for _ in range(2))
    with pytest.raises(FloatingPointError, match=r"Trainer.fit: epoch 1, batch 4: the gradient is not finite in 0.w"):
        fitted.fit(x, y, epochs=3, batch_size=4, shuffle=False)
    for i in range(0, 12, 4):
        stepped.step(x[i : i + 4], y[i : i + 4])
    assert fitted.step_count == 3
    assert bits(fitted.model.params) == bits(stepped.model.params)
    assert bits(fitted.state) == bits(stepped.state)


def test_bad_input_of_fit_and_evaluate_changes_nothing(in_force):
    trainer = fg.Trainer(model())
    x, y = data()
    before = state_of(trainer)
    fit = trainer.fit
    refuses(ValueError, "Trainer.fit: epochs must be an integer of at least 1, got 0", fit, x, y, epochs=0)
    refuses(TypeError, "Trainer.fit: batch_size must be an integer, got float", fit, x, y, batch_size=2.0)
    refuses(ValueError, "Trainer.fit: x must have at least one row, got (0, 4)", fit, x[:0], y[:0])
    message = "Trainer.fit: validation: y must be in 0..2, got 3 at index 0"
    refuses(ValueError, message, fit, x, y, validation=(x, np.full(20, 3)))
    refuses(TypeError, "Trainer.fit: validation must be a list or tuple, got ndarray", fit, x, y, validation=x)
    refuses(ValueError, "Trainer.evaluate: x must be (N, C) = (_, 4), got (20, 2)", trainer.evaluate, x[:, :2], y)
    assert state_of(trainer) == before


def test_bad_settings():
    net = model()
    message = (
        "Trainer: loss must be one of cross_entropy, binary_cross_entropy, mse, poisson_nll, mae, huber; got 'hinge'"
    )
    refuses(ValueError, message, fg.Trainer, net, "hinge")
    refuses(TypeError, "Trainer: model must be a layer of fastgrad.nn, got list", fg.Trainer, [net])
    refuses(TypeError, "Trainer: optimizer must be one of fastgrad.optim, got str", fg.Trainer, net, optimizer="adam")
    refuses(ValueError, "Trainer: clip_norm must be above 0 and finite, got 0", fg.Trainer, net, clip_norm=0)
    refuses(ValueError, "SGD: lr must be at least 0 and finite, got -1", SGD, -1)
    refuses(ValueError, "SGD: nesterov needs a momentum above 0", SGD, 0.1, nesterov=True)
    refuses(ValueError, "SGD: momentum must be at least 0 and finite, got inf", SGD, 0.1, momentum=np.inf)
    refuses(ValueError, "Adam: betas[1] must be at least 0 and below 1, got 1.0", Adam, betas=(0.9, 1.0))
    refuses(ValueError, "Adam: betas must have length 2, got 1", Adam, betas=(0.9,))
    refuses(TypeError, "Adam: eps must be a number, got str", Adam, eps="1e-8")
    refuses(ValueError, "Adam: weight_decay must be at least 0 and finite, got nan", Adam, weight_decay=np.nan)


def test_predict_gives_probabilities_for_the_trained_logits(in_force):
    for loss, output in LOSSES[:4]:
        x, y = data(loss)
        trainer = fg.Trainer(model(output=output), loss, Adam(0.05))
        trainer.fit(x, y, epochs=100)
        p = trainer.predict(x, batch_size=7)
        if output == "softmax":
            assert_close("dense_chain", p.sum(axis=1), np.ones(len(x)))
            assert -np.log(p[np.arange(20), y]).mean() == pytest.approx(trainer.evaluate(x, y)[0], rel=1e-4)
        elif output == "sigmoid":
            assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_concurrent_steps_are_serialised(in_force, form):
    x, y = data()
    trainer = fg.Trainer(model(form), optimizer=SGD(0.01))

    def train():
        with fg.use_backend(in_force):
            for _ in range(50):
                trainer.step(x, y)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = fg.Trainer(model(form), optimizer=SGD(0.01))
    for _ in range(200):
        alone.step(x, y)
    assert trainer.step_count == 200
    assert bits(trainer.model.params) == bits(alone.model.params)


def test_a_trainer_follows_a_model_that_a_sequential_takes_over(in_force):
    x, y = data()
    chain, alone = model(), model()
    trainer, expected = fg.Trainer(chain), fg.Trainer(alone)
    trainer.step(x, y)
    whole = Sequential(chain)
    trainer.step(x, y)
    trainer.fit(x, y)
    expected.step(x, y)
    expected.step(x, y)
    expected.fit(x, y)
    assert bits(whole.params) == bits(alone.params)


def test_progress_is_shown_when_asked_for(in_force, capfd):
    x, y = data()
    trainer = fg.Trainer(model())
    trainer.fit(x, y, epochs=2)
    trainer.fit(x, y, epochs=2, progress=False)
    assert capfd.readouterr().err == ""
    trainer.fit(x, y, epochs=2, validation=(x, y), progress=True)
    shown = capfd.readouterr().err
    assert "2/2" in shown
    assert "val_accuracy" in shown


def test_history_plots(in_force, tmp_path):
    pytest.importorskip("matplotlib")
    x, y = data()
    history = fg.Trainer(model()).fit(x, y, epochs=3, validation=(x, y))
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    drawn = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()}
    assert drawn == {
        name: getattr(history, name) for name in ("loss", "val_loss", "accuracy", "val_accuracy", "grad_norm")
    }
    assert len(fg.Trainer(model()).fit(x, y).plot().axes) == 3


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'History.plot needs matplotlib: pip install "fastgrad\[plot\]"'):
        History().plot()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_saved_trainer_goes_on_as_if_nothing_had_been(in_force, tmp_path, dtype, optimizer):
    x, y = data(dtype=dtype)
    path = tmp_path / "trainer"
    trainer = fg.Trainer(model(dtype=dtype), optimizer=OPTIMIZERS[optimizer], seed=1)
    trainer.fit(x, y, epochs=2, batch_size=8)
    fg.save(path, trainer)
    other = fg.Trainer(model(dtype=dtype, seed=8), optimizer=OPTIMIZERS[optimizer], seed=2)
    fg.load(path, other)
    assert state_of(other) == state_of(trainer)
    for each in (trainer, other):
        each.fit(x, y, epochs=2, batch_size=8)
    assert state_of(other) == state_of(trainer)
    alone = model(dtype=dtype, seed=8)
    fg.load(path, alone)
    fg.load(path, trainer)
    assert bits(alone.params) == bits(trainer.model.params)


def test_a_failed_load_of_a_trainer_changes_nothing(in_force, tmp_path):
    trainer = fg.Trainer(model())
    trainer.step(*data())
    before = state_of(trainer)
    path = tmp_path / "file"
    fg.save(path, model())
    refuses(ValueError, f"load: {path}: the file has no optimizer.state, optimizer.step", fg.load, path, trainer)
    fg.save(path, fg.Trainer(model(), optimizer=SGD(0.1, momentum=0.9)))
    message = f"load: {path}: optimizer.state must be (2, 51), got (1, 51)"
    refuses(ValueError, message, fg.load, path, trainer)
    assert state_of(trainer) == before


def test_a_state_of_another_optimizer_is_refused(in_force, tmp_path):
    path, trainer = tmp_path / "file", fg.Trainer(model(), optimizer=SGD(0.1, momentum=0.9))
    trainer.step(*data())
    before = state_of(trainer)
    fg.save(path, fg.Trainer(model(), optimizer=fg.optim.Adagrad()))
    message = f"load: {path}: the state of Adagrad, but the trainer's optimizer is SGD"
    refuses(ValueError, message, fg.load, path, trainer)
    assert state_of(trainer) == before


@pytest.mark.parametrize(
    "make", [lambda: fg.nn.DenseChain([2, 1], "identity"), lambda: fg.nn.Sequential(fg.nn.Dense(2, 1))]
)
def test_a_step_whose_state_float32_cannot_hold_raises_and_changes_nothing(in_force, make):
    trainer = fg.Trainer(make(), "mse", fg.optim.Adam(0.1))
    x, y = np.ones((4, 2), np.float32), np.full((4, 1), 1e21, np.float32)
    before = trainer.model.params.copy()
    with pytest.raises(FloatingPointError, match="would not be finite in float32"):
        trainer.step(x, y)
    with pytest.raises(FloatingPointError, match="would not be finite in float32"):
        trainer.fit(x, y)
    np.testing.assert_array_equal(trainer.model.params, before)
    assert not trainer.state.any()
    assert trainer.step_count == 0
    trainer.step(x, x[:, :1])
    assert trainer.step_count == 1


def normed(*, drop=0.0):
    return Sequential(Dense(4, 6), fg.nn.BatchNorm(6, "relu"), fg.nn.Dropout(drop), Dense(6, 3), seed=0)


def test_fit_says_before_it_starts_that_a_last_batch_is_too_small_for_a_batch_norm(in_force):
    x, y = data()
    trainer = fg.Trainer(normed(drop=0.5))
    statistics = [a.copy() for a in trainer.model.statistics().values()]
    drawn = [g.bit_generator.state for g in trainer.model._generators()]
    before = state_of(trainer)
    small = "Trainer.fit: the last batch has one row, too few for a batch norm; the way out is drop_last=True"
    for batch_size, message in ((19, small), (1, "Trainer.fit: batches have batch_size = 1 row, too few")):
        with pytest.raises(ValueError, match=message):
            trainer.fit(x, y, epochs=2, batch_size=batch_size)
    assert state_of(trainer) == before
    assert all(bits(a) == bits(b) for a, b in zip(trainer.model.statistics().values(), statistics, strict=True))
    assert [g.bit_generator.state for g in trainer.model._generators()] == drawn
    trainer.fit(x, y, epochs=2, batch_size=19, drop_last=True)
    assert trainer.step_count == 2
    # one image has more than one pixel, and one sequence more than one step
    images = Sequential(fg.nn.Conv2d(4, 6, 1), fg.nn.BatchNorm(6), fg.nn.GlobalAvgPool2d(), Dense(6, 3), seed=0)
    fg.Trainer(images).fit(x[:, None, None].repeat(2, axis=1), y, batch_size=19)
    flat = Sequential(fg.nn.Flatten(4), Dense(4, 6), fg.nn.BatchNorm(6), Dense(6, 3), seed=0)
    with pytest.raises(ValueError, match="the last batch has one row"):
        fg.Trainer(flat).fit(x[:, None, None], y, batch_size=19)


def test_fit_says_so_of_windows_of_sequences_too(in_force):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 4, 2)).astype(np.float32), rng.integers(0, 3, (5, 4))
    net = Sequential(fg.nn.LSTM(2, 4), fg.nn.BatchNorm(4), Dense(4, 3), seed=0)
    trainer = fg.Trainer(net)
    trainer.fit(x, y, batch_size=2)
    with pytest.raises(ValueError, match="the last batch has one row"):
        trainer.fit(x, y, batch_size=2, window=3)
    assert trainer.step_count == 3


def test_drop_last_leaves_a_short_batch_out(in_force):
    x, y = data()
    fitted, stepped = fg.Trainer(model()), fg.Trainer(model())
    history = fitted.fit(x, y, batch_size=8, shuffle=False, drop_last=True)
    losses = [stepped.step(x[i : i + 8], y[i : i + 8]) for i in (0, 8)]
    assert bits(fitted.model.params) == bits(stepped.model.params)
    assert history.loss == pytest.approx([np.mean(losses)])
    # fewer rows than a batch are one
    fitted.fit(x, y, batch_size=100, drop_last=True)
    assert fitted.step_count == 3
