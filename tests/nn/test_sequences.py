"""Training on sequences: dense layers over every step, lengths, losses of every step, windows, and memory."""

import tracemalloc

import numpy as np
import pytest
from arrays import LAYOUTS, assert_is_gradient, bits, laid_out
from error_messages import refuses
from tolerances import assert_close

import fastgrad as fg
from fastgrad.core.backend import kernels
from fastgrad.nn import LSTM, Dense, DenseChain, Sequential
from fastgrad.optim import SGD, Adam

N, STEPS, COLUMNS, CLASSES = 20, 7, 3, 4
ENDS = np.random.default_rng(8).integers(0, STEPS + 1, N)
# loss, last activation
LOSSES = [
    ("cross_entropy", "softmax"),
    ("cross_entropy", "identity"),
    ("binary_cross_entropy", "sigmoid"),
    ("mse", "tanh"),
]


def model(pool=None, output="softmax", dtype="float32", seed=7, **options):
    lstm = LSTM(COLUMNS, 6, pool=pool, dtype=dtype, **options)
    return Sequential(lstm, DenseChain([lstm.n_out, 5, CLASSES], "tanh", output, dtype=dtype), seed=seed)


def data(loss="cross_entropy", every=True, dtype="float32", n=N):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, STEPS, COLUMNS)).astype(dtype)
    shape = (n, STEPS) if every else (n,)
    if loss == "cross_entropy":
        return x, rng.integers(0, CLASSES, shape)
    return x, rng.integers(0, 2, (*shape, CLASSES)).astype(dtype)


def state_of(trainer):
    """All that a failed call must leave alone."""
    drawn = [tuple(g.bit_generator.state["state"].values()) for g in (trainer.rng, *trainer.model._generators())]
    return bits(trainer.model.params), bits(trainer.state), trainer.step_count, drawn


def own_steps(a, ends):
    """The sequences' own steps, one after the other."""
    return np.concatenate([row[:end] for row, end in zip(a, ends, strict=True)])


def time_major(x):
    return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)


def expected_step(net, loss, fused, x, y, ends):
    """(loss, gradient) from forward, the functional loss over the sequences' own steps, and backward."""
    out, backward = net.forward(x, logits=fused, lengths=ends)
    if out.ndim == 2:
        value, dy = getattr(fg, loss)(out, y)
    else:
        ends = np.full(len(x), x.shape[1]) if ends is None else ends
        value, rows = getattr(fg, loss)(own_steps(out, ends), own_steps(y, ends))
        dy, first = np.zeros_like(out), 0
        for n, end in enumerate(ends):
            dy[n, :end] = rows[first : first + end]
            first += end
    backward(dy)
    return value, net.grads.copy()


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", ["time_major", *LAYOUTS])
@pytest.mark.parametrize("training", [False, True])
def test_dense_layers_are_applied_to_every_step(in_force, dtype, training, layout):
    chain = DenseChain([COLUMNS, 5, CLASSES], "tanh", "softmax", dtype=dtype, seed=0)
    x, _ = data(dtype=dtype)
    rows = x.reshape(-1, COLUMNS)
    y, backward = chain.forward(rows)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    expected = [y, backward(dy), chain.grads.copy(), chain.predict(rows), chain.predict(rows, logits=True)]
    dy = dy.reshape(N, STEPS, CLASSES)
    if layout == "time_major":
        x, dy = (time_major(a) for a in (x, dy))
    else:
        x, dy = laid_out(x, layout), laid_out(dy, layout)
    y, backward = chain.forward(x, training)
    found = [y, backward(dy), chain.grads, chain.predict(x), chain.predict(x, 3, logits=True)]
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.shape == (*x.shape[:2], wanted.shape[-1]) or actual is chain.grads
        assert_close("dense_chain", actual.reshape(wanted.shape), wanted, size=10, terms=N * STEPS)


def test_steps_that_lie_in_order_are_not_copied(in_force, monkeypatch):
    chain = DenseChain([COLUMNS, CLASSES], seed=0)
    x, _ = data()
    seen = []
    fused = chain._forward_residual
    monkeypatch.setattr(
        chain, "_forward_residual", lambda rows, *arguments: seen.append(rows) or fused(rows, *arguments)
    )
    for sequences in (x, time_major(x)):
        DenseChain.forward(chain, sequences)
        assert np.shares_memory(seen[-1], sequences)


def test_bad_sequences_of_dense_layers(in_force):
    chain = DenseChain([COLUMNS, CLASSES], seed=0)
    x, _ = data()
    refuses(ValueError, "DenseChain: x must be (N, T, C) = (_, _, 3), got (20, 7, 2)", chain.forward, x[:, :, :2])
    refuses(
        ValueError, "DenseChain.predict: x must be (N, T, C) = (_, _, 3), got (20, 7, 2)", chain.predict, x[:, :, :2]
    )
    _, backward = chain.forward(x)
    refuses(ValueError, "DenseChain: dy must be like the output = (20, 7, 4), got (20, 7, 3)", backward, x)
    assert chain.predict(x[:0]).shape == (0, STEPS, CLASSES)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pool", [None, "last", "mean"])
def test_gradients_of_a_whole_net_are_central_differences(in_force, pool, training):
    net = model(pool, dtype="float64", num_layers=2, bidirectional=True)
    x, _ = data(dtype="float64", n=3)
    y, backward = net.forward(x, training, lengths=[4, 7, 0])
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = backward(dy).copy()
    analytic = net.grads.copy()

    def objective():
        return float((dy * net.forward(x, training, lengths=[4, 7, 0])[0]).sum())

    assert_is_gradient(analytic, objective, net.params)
    assert_is_gradient(dx, objective, x)


@pytest.mark.pairwise
@pytest.mark.parametrize("ends", [None, ENDS], ids=["full", "ragged"])
@pytest.mark.parametrize("pool", [None, "last", "mean"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_a_step_is_the_loss_of_the_own_steps_and_an_update(in_force, dtype, loss, output, pool, ends):
    net = model(pool, output, dtype)
    x, y = data(loss, pool is None, dtype)
    fused = output in ("softmax", "sigmoid")
    value, gradient = expected_step(net, loss, fused, x, y, ends)
    before = net.params.copy()
    trainer = fg.Trainer(net, loss, SGD(0.5))
    if ends is not None and pool is None:
        # what lies past the ends is never looked at
        past = np.arange(STEPS) >= ends[:, None]
        x[past] = np.nan
        y[past] = -1 if y.dtype == np.int64 else np.nan
    assert trainer.step(x, y, ends) == pytest.approx(value, rel=1e-5)
    assert_close("train_gradient", net.grads, gradient, size=1)
    assert_close("train_gradient", net.params, before - 0.5 * gradient, size=1)
    assert trainer.step(x, y, ends) < value


def test_probabilities_for_every_step(in_force):
    x, y = data()
    rows = np.eye(CLASSES, dtype=np.float32)[y]
    first, second = fg.Trainer(model()), fg.Trainer(model())
    assert first.step(x, y, ENDS) == pytest.approx(second.step(x, rows, ENDS), rel=1e-5)
    assert_close("train_gradient", first.model.grads, second.model.grads, size=1)
    assert first.evaluate(x, y, ENDS) == pytest.approx(second.evaluate(x, rows, ENDS), rel=1e-5)


@pytest.mark.parametrize("ends", [None, ENDS], ids=["full", "ragged"])
@pytest.mark.parametrize("pool", [None, "mean"])
def test_fit_shuffles_lengths_with_the_rows(in_force, pool, ends):
    x, y = data(every=pool is None)
    fitted, stepped = (fg.Trainer(model(pool), optimizer=Adam(0.01), seed=3) for _ in range(2))
    history = fitted.fit(x, y, epochs=2, batch_size=8, lengths=ends)
    rng = np.random.Generator(np.random.PCG64(3))
    losses = []
    for _ in range(2):
        order = np.arange(N)
        rng.shuffle(order)
        total = count = 0
        for rows in (order[i : i + 8] for i in range(0, N, 8)):
            left = None if ends is None else ends[rows]
            size = len(rows) if pool else len(rows) * STEPS if ends is None else left.sum()
            total += size * stepped.step(x[rows], y[rows], left)
            count += size
        losses.append(total / count)
    assert bits(fitted.model.params) == bits(stepped.model.params)
    assert bits(fitted.state) == bits(stepped.state)
    assert history.loss == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("layout", ["time_major", "padded", "misaligned", "read_only"])
def test_layouts_of_sequences_do_not_matter(in_force, layout):
    x, y = data()
    changed = time_major(x) if layout == "time_major" else laid_out(x, layout)
    first, second = fg.Trainer(model()), fg.Trainer(model())
    for _ in range(2):
        assert first.step(x, y) == pytest.approx(second.step(changed, y), rel=1e-6)
    first.fit(x, y, lengths=ENDS, window=3)
    second.fit(changed, y, lengths=ENDS, window=3)
    assert_close("100_steps", second.model.params, first.model.params, size=1)


@pytest.mark.parametrize("ends", [None, ENDS], ids=["full", "ragged"])
@pytest.mark.parametrize("pool", [None, "last"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_validation_is_loss_and_accuracy_of_the_own_steps(in_force, loss, output, pool, ends):
    net = model(pool, output)
    x, y = data(loss, pool is None)
    trainer = fg.Trainer(net, loss)
    validation = (x, y) if ends is None else (x, y, ends)
    history = trainer.fit(x, y, epochs=2, lengths=ends, validation=validation)
    found = trainer.evaluate(*validation)
    assert (history.val_loss[-1], *history.val_accuracy[-1:]) == (found if loss != "mse" else found[:1])
    fused = output in ("softmax", "sigmoid")
    assert found[0] == pytest.approx(expected_step(net, loss, fused, x, y, ends)[0], rel=1e-5)
    if loss == "cross_entropy":
        out = trainer.predict(x, 3, lengths=ends)
        every = np.full(N, STEPS) if ends is None else ends
        classes, labels = (own_steps(out, every), own_steps(y, every)) if pool is None else (out, y)
        assert found[1] == pytest.approx((classes.argmax(axis=1) == labels).mean())


def test_evaluation_in_parts_is_evaluation_at_once(in_force, monkeypatch):
    x, y = data()
    trainer = fg.Trainer(model())
    expected = trainer.evaluate(x, y, ENDS)
    monkeypatch.setattr("fastgrad.training.evaluate.STEPS", 3 * STEPS)
    assert trainer.evaluate(x, y, ENDS) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr("fastgrad.training.evaluate.STEPS", 1)
    assert trainer.evaluate(x, y, ENDS) == pytest.approx(expected, rel=1e-6)


def test_predict_takes_lengths(in_force):
    x, _ = data()
    for pool in (None, "last"):
        trainer = fg.Trainer(model(pool))
        expected = trainer.model.predict(x, lengths=ENDS)
        assert_close("lstm", trainer.predict(x, lengths=ENDS), expected, size=1)
        assert_close("lstm", trainer.predict(x, 3, lengths=ENDS.tolist()), expected, size=1)
        assert_close("lstm", trainer.predict(x, 3), trainer.model.predict(x), size=1)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("ends", [None, ENDS], ids=["full", "ragged"])
@pytest.mark.parametrize("window", [1, 3, STEPS, 100])
def test_windows_are_a_loop_of_updates_that_passes_states_on(in_force, whole, ends, window):
    """Truncated backpropagation by hand: forward from the last window's state, backward through the window alone."""

    def net():
        if whole:
            return Sequential(LSTM(COLUMNS, 6, 2), Dense(6, 5, "tanh"), LSTM(5, 4), Dense(4, CLASSES), seed=7)
        return LSTM(COLUMNS, CLASSES, 2, seed=7)

    x, y = data("mse")
    fitted, model = net(), net()
    trainer = fg.Trainer(fitted, "mse", SGD(0.5, momentum=0.9), seed=3)
    history = trainer.fit(x, y, epochs=2, batch_size=8, lengths=ends, window=window)
    buf, rng, updates, losses = np.zeros_like(model.params), np.random.Generator(np.random.PCG64(3)), 0, []
    for _ in range(2):
        order = np.arange(N)
        rng.shuffle(order)
        total = count = 0
        for rows in (order[i : i + 8] for i in range(0, N, 8)):
            state = None
            for first in range(0, STEPS, window):
                part = slice(first, first + window)
                bx, by = x[rows, part], y[rows, part]
                left = np.full(len(rows), bx.shape[1])
                if ends is not None:
                    left = np.clip(ends[rows] - first, 0, bx.shape[1])
                if not left.any():
                    break
                # outside training results are independent: the state after this window, before the update
                _, after = model.run(bx, state, left)
                out, backward = model.forward(bx, lengths=left, state=state)
                value, grads = fg.mse(own_steps(out, left), own_steps(by, left))
                dy, at = np.zeros_like(out), 0
                for n, end in enumerate(left):
                    dy[n, :end] = grads[at : at + end]
                    at += end
                backward(dy)
                buf = 0.9 * buf + model.grads
                model.params[...] -= 0.5 * buf
                state, updates = after, updates + 1
                total, count = total + value * left.sum(), count + left.sum()
        losses.append(total / count)
    assert trainer.step_count == updates
    assert_close("100_steps", fitted.params, model.params, size=1)
    assert history.loss == pytest.approx(losses, rel=1e-5)
    assert len(history.grad_norm) == 2


def test_pruning_cuts_an_epoch_of_ragged_windows_at_whole_batches(in_force):
    """There are fewer updates than windows: an epoch runs every batch once all the same."""
    x, y = data("mse")
    counts = []
    for pruning in (None, fg.GradualPruning(final=0.5, begin=2, end=9, every=3)):
        trainer = fg.Trainer(LSTM(COLUMNS, CLASSES, seed=7), "mse", SGD(0.5), pruning=pruning)
        trainer.fit(x, y, epochs=2, batch_size=8, lengths=ENDS, window=3)
        counts.append(trainer.step_count)
    assert counts[0] == counts[1]
    masks = [mask for mask in trainer.model.masks().values() if mask.ndim > 1]
    np.testing.assert_allclose([mask.mean() for mask in masks], 0.5, atol=0.02)


def test_one_window_is_a_step_over_whole_sequences(in_force):
    x, y = data()
    first, second = fg.Trainer(model()), fg.Trainer(model())
    first.fit(x, y, epochs=2, batch_size=8, window=STEPS)
    second.fit(x, y, epochs=2, batch_size=8)
    assert bits(first.model.params) == bits(second.model.params)


def test_loss_goes_down(in_force):
    """Remember the first step's class to the end; the sum of what came so far."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 12, COLUMNS)).astype(np.float32)
    labels = x[:, 0].argmax(axis=1)
    net = Sequential(LSTM(COLUMNS, 16, forget_bias=1.0, pool="last"), Dense(16, COLUMNS, "softmax"), seed=0)
    trainer = fg.Trainer(net, optimizer=Adam(0.02), clip_norm=1.0)
    history = trainer.fit(x, labels, epochs=40, validation=(x, labels))
    assert history.loss[0] > 0.8
    assert history.loss[-1] < 0.2
    assert history.val_accuracy[-1] > 0.9
    net = Sequential(LSTM(COLUMNS, 16), Dense(16, COLUMNS), seed=0)
    trainer = fg.Trainer(net, "mse", Adam(0.02), clip_norm=1.0)
    history = trainer.fit(x, np.tanh(x.cumsum(axis=1)), epochs=20, window=4)
    assert history.loss[-1] < history.loss[0] / 3


def test_a_saved_trainer_goes_on_as_if_nothing_had_been(in_force, tmp_path):
    x, y = data()
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.5}
    trainer = fg.Trainer(model(**options), seed=1)
    trainer.fit(x, y, epochs=2, batch_size=8, lengths=ENDS)
    fg.save(tmp_path / "trainer", trainer)
    other = fg.Trainer(model(seed=8, **options), seed=2)
    fg.load(tmp_path / "trainer", other)
    assert state_of(other) == state_of(trainer)
    for each in (trainer, other):
        each.fit(x, y, epochs=2, batch_size=8, lengths=ENDS)
    assert state_of(other) == state_of(trainer)
    alone = model(seed=8, **options)
    fg.load(tmp_path / "trainer", alone)
    fg.load(tmp_path / "trainer", fg.Trainer(model(num_layers=2, bidirectional=True)))
    fg.save(tmp_path / "plain", fg.Trainer(model(num_layers=2, bidirectional=True)))
    fg.load(tmp_path / "plain", other)


@pytest.mark.parametrize("ends", [None, ENDS], ids=["full", "ragged"])
def test_a_gradient_that_is_not_finite_changes_nothing(in_force, ends):
    x, y = data("mse")
    trainer = fg.Trainer(model(output="identity", num_layers=2, dropout=0.5), "mse", SGD(0.1, momentum=0.9))
    trainer.step(x, y, ends)
    before = state_of(trainer)
    y[ENDS.argmax(), 0, 1] = np.nan
    names = ", ".join(trainer.model.parameters())
    message = f"Trainer.step: the gradient is not finite in {names}; no update was made"
    refuses(FloatingPointError, message, trainer.step, x, y, ends)
    assert state_of(trainer) == before


def test_fit_stops_before_the_window_that_is_not_finite(in_force):
    x, y = data("mse")
    y[13, 4] = np.nan
    trainer = fg.Trainer(model(output="identity"), "mse")
    with pytest.raises(
        FloatingPointError, match=r"Trainer.fit: epoch 1, window 7: the gradient is not finite in 0.0.w_ih"
    ):
        trainer.fit(x, y, batch_size=8, shuffle=False, window=2)
    assert trainer.step_count == 6


def test_a_label_out_of_range_changes_nothing(in_force):
    x, y = data()
    trainer = fg.Trainer(model())
    for _ in range(2):
        trainer.step(x, y)
        before = state_of(trainer)
        bad = y.copy()
        bad[5, 3] = CLASSES
        refuses(ValueError, "Trainer.step: y must be in 0..3, got 4 at index (5, 3)", trainer.step, x, bad)
        refuses(ValueError, "Trainer.fit: y must be in 0..3, got 4 at index (5, 3)", trainer.fit, x, bad, window=2)
        # past the end any label will do
        trainer.evaluate(x, bad, [3] * N)
        assert state_of(trainer) == before


def test_bad_input_changes_nothing(in_force):
    x, y = data()
    trainer = fg.Trainer(model())
    before = state_of(trainer)
    step, fit = trainer.step, trainer.fit
    refuses(ValueError, "Trainer.step: x must be (N, T, C) = (_, _, 3), got (20, 7, 2)", step, x[:, :, :2], y)
    refuses(ValueError, "Trainer.step: x must be (N, T, C) = (_, _, 3), got (20, 7)", step, x[:, :, 0], y)
    refuses(ValueError, "Trainer.step: x must have at least one row, got (0, 7, 3)", step, x[:0], y[:0])
    refuses(ValueError, "Trainer.step: x must have at least one step, got (20, 0, 3)", step, x[:, :0], y[:, :0])
    message = "Trainer.step: x must have at least one step, got (20, 7, 3) and lengths 0"
    refuses(ValueError, message, step, x, y, [0] * N)
    message = "Trainer.step: y must be integers (20, 7) or float32 (20, 7, 4), got integers (20,)"
    refuses(ValueError, message, step, x, y[:, 0])
    message = "Trainer.step: y must be integers (N, T) or float32 (N, T, C), got bool (20, 7)"
    refuses(TypeError, message, step, x, y > 0)
    refuses(ValueError, "Trainer.fit: lengths must be in 0..7, got 8 at index 0", fit, x, y, lengths=[8] * N)
    refuses(ValueError, "Trainer.fit: lengths must be integers (N,) = (20,), got (19,)", fit, x, y, lengths=[1] * 19)
    refuses(ValueError, "Trainer.fit: window must be an integer of at least 1, got 0", fit, x, y, window=0)
    message = "Trainer.fit: validation: lengths must be integers (N,) = (20,), got (2,)"
    refuses(ValueError, message, fit, x, y, validation=(x, y, [1, 2]))
    assert state_of(trainer) == before
    message = "Trainer.fit: window is for models with an LSTM or a GRU that runs forwards only and pools nothing"
    for other in (model("last"), model(bidirectional=True)):
        target = y[:, 0] if other.pools else y
        refuses(ValueError, message, fg.Trainer(other).fit, x, target, window=2)
    rows = fg.Trainer(DenseChain([3, 4]))
    refuses(ValueError, message, rows.fit, x[:, 0], y[:, 0], window=2)
    for call in (rows.step, rows.fit, rows.evaluate):
        name = call.__name__
        message = f"Trainer.{name}: lengths are for models with an LSTM or a GRU"
        refuses(ValueError, message, call, x[:, 0], y[:, 0], lengths=[1] * N)
    message = "Trainer.predict: lengths are for models with an LSTM or a GRU"
    refuses(ValueError, message, rows.predict, x[:, 0], lengths=[1] * N)
    mse = fg.Trainer(model(), "mse")
    refuses(ValueError, "Trainer.step: y must be (N, T, K) = (20, 7, 4), got (20, 7, 3)", mse.step, x, x)


# a batch's rows of 64 columns are 320 kB, what NumPy holds while it casts 64 kB
ROWS, TIME, LARGE = 32, 40, 100_000


@pytest.fixture
def outside_kernels(monkeypatch):
    """Bytes that a call holds at once above what was there before it, but for what kernels make for themselves."""

    def measured(inner):
        def kernel(*arguments, **named):
            peaks.append(tracemalloc.get_traced_memory()[1])
            try:
                return inner(*arguments, **named)
            finally:
                tracemalloc.reset_peak()

        return kernel

    def peak(function):
        # tracing itself keeps a little
        for _ in range(2):
            function()
        peaks.clear()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return max(*peaks, tracemalloc.get_traced_memory()[1]) - before

    peaks = []
    for name in kernels().__all__:
        monkeypatch.setattr(kernels(), name, measured(getattr(kernels(), name)))
    tracemalloc.start()
    yield peak
    tracemalloc.stop()


@pytest.mark.parametrize("ends", [None, "ragged"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}], ids=["one", "all"])
@pytest.mark.parametrize("pool", [None, "last", "mean"])
def test_after_the_first_training_allocates_nothing_large(outside_kernels, pool, options, ends):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3 * ROWS, TIME, 32), np.float32)
    y = rng.integers(0, 10, len(x) if pool else x.shape[:2])
    lengths = None if ends is None else rng.integers(0, TIME + 1, len(x))
    lstm = LSTM(32, 64, pool=pool, **options)
    trainer = fg.Trainer(Sequential(lstm, Dense(lstm.n_out, 10, "softmax"), seed=0), clip_norm=1.0)
    some = None if ends is None else lengths[:ROWS]
    assert outside_kernels(lambda: trainer.step(x[:ROWS], y[:ROWS], some)) < LARGE
    # unshuffled: buffers grow at a batch with more steps in it than any before
    fit = {"batch_size": ROWS, "shuffle": False, "lengths": lengths}
    assert outside_kernels(lambda: trainer.fit(x, y, **fit)) < LARGE + 8 * y.size
    if pool is None and not lstm.bidirectional:
        assert outside_kernels(lambda: trainer.fit(x, y, window=10, **fit)) < LARGE + 8 * y.size


def test_the_measure_sees_an_array(outside_kernels):
    assert outside_kernels(lambda: fg.mse(np.empty(LARGE), np.empty(LARGE))) >= 16 * LARGE
