"""Options of losses, sample_weight and class_weight of a Trainer, and the accuracy in the history: PyTorch, scikit-learn, a chain
against layers, checkpoints and copies.
"""

import copy
import pickle

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses

import fastgrad as fg
from fastgrad.loss import BinaryCrossEntropy, CrossEntropy, Huber

WEIGHTS = [1.0, 0.5, 3.0]
LOSSES = {
    "weights": CrossEntropy(weights=WEIGHTS),
    "smoothing": CrossEntropy(label_smoothing=0.2),
    "all": CrossEntropy(weights=WEIGHTS, ignore_index=-100, label_smoothing=0.1),
    "ignored": CrossEntropy(ignore_index=1),
    "binary": BinaryCrossEntropy(pos_weight=[2.0, 0.5, 1.0]),
    "one pos_weight": BinaryCrossEntropy(pos_weight=3.0),
    "huber": Huber(delta=0.5),
    "mae": "mae",
}


def chain(dtype="float32"):
    return fg.nn.DenseChain([4, 6, 3], "tanh", seed=1, dtype=dtype)


def layers(dtype="float32"):
    """The chain's layers, with a dropout of nothing between them, so that no chain is planned."""
    model = fg.nn.Sequential(
        fg.nn.Dense(4, 6, "tanh", dtype=dtype), fg.nn.Dropout(0.0), fg.nn.Dense(6, 3, dtype=dtype), seed=2
    )
    model.params[...] = chain(dtype).params
    return model


def data(name, rows=40, dtype=np.float32):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, 4)).astype(dtype)
    if name == "binary" or name == "one pos_weight":
        return x, rng.integers(0, 2, (rows, 3)).astype(dtype)
    if name in ("huber", "mae"):
        return x, rng.standard_normal((rows, 3)).astype(dtype)
    y = rng.integers(0, 3, rows)
    if name == "all":
        y[::4] = -100
    return x, y


def sample_weight(rows=40):
    weights = np.random.default_rng(4).random(rows)
    weights[::5] = 0
    return weights


def torch_loss(torch, name, loss, z, y, weights):
    """PyTorch's mean of the loss, with the rows' weights as in the docstring of the Trainer's step."""
    F, r = torch.nn.functional, torch.tensor(weights)
    if isinstance(loss, CrossEntropy):
        w = None if loss.weights is None else torch.tensor(loss.weights, dtype=z.dtype)
        ignored = -100 if loss.ignore_index is None else loss.ignore_index
        options = {"weight": w, "ignore_index": ignored, "label_smoothing": loss.label_smoothing}
        each = F.cross_entropy(z, y, reduction="none", **options)
        counted = y != ignored
        count = torch.where(counted, torch.ones(3, dtype=z.dtype)[y * counted] if w is None else w[y * counted], 0)
        return (each * r).sum() / (count * r).sum()
    if name in ("binary", "one pos_weight"):
        w = torch.tensor(loss.pos_weight, dtype=z.dtype)
        each = F.binary_cross_entropy_with_logits(z, y, pos_weight=w, reduction="none")
    else:
        each = F.huber_loss(z, y, delta=0.5, reduction="none") if name == "huber" else F.l1_loss(z, y, reduction="none")
    return (each.mean(dim=1) * r).sum() / r.sum()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [chain, layers])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_has_pytorchs_loss_and_gradient(in_force, make, name, weighted, torch):
    x, y = data(name, dtype=np.float64)
    weights = sample_weight() if weighted else np.ones(40)
    trainer = fg.Trainer(make("float64"), LOSSES[name], fg.optim.SGD(1.0))
    before, z = trainer.model.params.copy(), torch.tensor(trainer.model.predict(x), requires_grad=True)
    expected = torch_loss(torch, name, LOSSES[name], z, torch.tensor(y), weights)
    expected.backward()
    evaluated, _ = trainer.evaluate(x, y, sample_weight=weights)
    assert evaluated == pytest.approx(expected.item(), rel=1e-9)
    found = trainer.step(x, y, sample_weight=weights if weighted else None)
    assert found == pytest.approx(expected.item(), rel=1e-9)
    # the last bias' gradient is the sum of the output's
    np.testing.assert_allclose(
        before[-3:] - trainer.model.params[-3:], z.grad.sum(dim=0).numpy(), rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_chain_and_layers_agree_in_fit(in_force, name, dtype):
    x, y = data(name, dtype=dtype)
    histories = []
    for make in (chain, layers):
        trainer = fg.Trainer(make(dtype), LOSSES[name], fg.optim.Adam(0.01))
        options = {"epochs": 3, "batch_size": 16, "validation": (x, y, None, sample_weight())}
        histories.append(trainer.fit(x, y, sample_weight=sample_weight(), **options))
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        first, second = (getattr(history, key) for history in histories)
        assert first == pytest.approx(second, rel=2e-4 if dtype == "float32" else 1e-9)
        assert len(first) == (0 if "accuracy" in key and name in ("huber", "mae") else 3)


@pytest.mark.parametrize("make", [chain, layers])
def test_ignored_rows_count_as_rows_that_are_not_there(in_force, make):
    x, y = data("all")
    kept = y != -100
    results = []
    for rows in (slice(None), kept):
        trainer = fg.Trainer(make(), LOSSES["all"], fg.optim.Adam(0.01))
        loss = trainer.step(x[rows], y[rows])
        results.append([loss, *trainer.evaluate(x[rows], y[rows]), *trainer.model.params[:5]])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("make", [chain, layers])
def test_nothing_to_learn_has_loss_0_and_gradient_0(in_force, make):
    x, _ = data("all")
    trainer = fg.Trainer(make(), CrossEntropy(ignore_index=-100), fg.optim.SGD(1.0))
    before, nothing = bits(trainer.model.params), np.full(40, -100)
    assert trainer.step(x, nothing) == 0
    assert trainer.step(x, np.zeros(40, int), sample_weight=np.zeros(40)) == 0
    history = trainer.fit(x, nothing, batch_size=16)
    assert history.loss == history.grad_norm == [0]
    assert bits(trainer.model.params) == before
    loss, accuracy = trainer.evaluate(x, nothing)
    assert loss == 0
    assert np.isnan(accuracy)


@pytest.mark.parametrize("make", [chain, layers])
def test_the_accuracy_in_the_history_is_that_of_evaluate(in_force, make):
    """At a rate of 0 the model of every batch is that of the end."""
    for name in ("all", "weights", "binary"):
        x, y = data(name)
        trainer = fg.Trainer(make(), LOSSES[name], fg.optim.SGD(0.0))
        history = trainer.fit(x, y, batch_size=16, sample_weight=sample_weight())
        expected = trainer.evaluate(x, y, sample_weight=sample_weight())
        assert (history.loss[0], history.accuracy[0]) == pytest.approx(expected, rel=1e-5)


def test_accuracy_weighs_rows_as_the_loss_does(in_force):
    model = chain()
    x, y = data("all")
    right = model.predict(x).argmax(axis=1) == y
    weights = np.where(y == -100, 0, np.array(WEIGHTS)[y % 3]) * sample_weight()
    _, accuracy = fg.Trainer(model, LOSSES["all"]).evaluate(x, y, sample_weight=sample_weight())
    assert accuracy == pytest.approx((right * weights).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("make", [chain, layers])
def test_class_weight_is_the_weight_of_its_rows(in_force, make):
    x, y = data("weights")
    params = []
    for options in (
        {"class_weight": {1: 0.5, 2: 3}},
        {"class_weight": [1, 0.5, 3]},
        {"class_weight": np.array([1, 0.5, 3])},
        {"sample_weight": np.array(WEIGHTS)[y]},
    ):
        trainer = fg.Trainer(make())
        trainer.fit(x, y, epochs=2, batch_size=16, **options)
        params.append(bits(trainer.model.params))
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 40, 16)]
    weighted = [(*batch, None, np.array(WEIGHTS)[batch[1]]) for batch in batches]
    for batch_list, options in ((batches, {"class_weight": WEIGHTS}), (weighted, {})):
        trainer = fg.Trainer(make())
        trainer.fit(batch_list, **options)
        params.append(bits(trainer.model.params))
    assert len({*params[:4]}) == len({*params[4:]}) == 1


def test_balanced_classes_are_scikit_learns(in_force):
    from sklearn.utils.class_weight import compute_class_weight

    x, y = data("weights")
    y[y == 1] = 2
    of_class = dict(zip([0, 2], compute_class_weight("balanced", classes=np.array([0, 2]), y=y), strict=True))
    one_hot = np.eye(3, dtype=np.float32)[y]
    params = []
    for target, class_weight in ((y, "balanced"), (y, of_class), (one_hot, "balanced")):
        trainer = fg.Trainer(chain())
        trainer.fit(x, target, class_weight=class_weight)
        params.append(trainer.model.params)
    np.testing.assert_allclose(params[0], params[1], rtol=1e-5)
    np.testing.assert_allclose(params[0], params[2], rtol=1e-3, atol=1e-5)
    # of one output, and without the labels that are ignored
    binary = (y[:, None] == 2).astype(np.float32)
    trainers = [fg.Trainer(fg.nn.Dense(4, 1, seed=0), "binary_cross_entropy") for _ in range(2)]
    trainers[0].fit(x, binary, class_weight="balanced")
    trainers[1].fit(x, binary, class_weight=list(of_class.values()))
    np.testing.assert_allclose(trainers[0].model.params, trainers[1].model.params, rtol=1e-5)
    trainers = [fg.Trainer(chain(), CrossEntropy(ignore_index=0)) for _ in range(2)]
    trainers[0].fit(x, y, class_weight="balanced")
    trainers[1].fit(x, y)
    np.testing.assert_allclose(trainers[0].model.params, trainers[1].model.params, rtol=1e-5)


def test_steps_of_sequences_have_weights(in_force):
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((6, 5, 4)).astype(np.float32), rng.integers(0, 3, (6, 5))
    lengths, weights = np.array([5, 3, 1, 4, 2, 5]), rng.random((6, 5))
    results = []
    for options in (
        {"sample_weight": weights[:, 0], "lengths": lengths},
        {"sample_weight": np.repeat(weights[:, :1], 5, axis=1), "lengths": lengths},
        {"sample_weight": weights[:, :1] * (np.arange(5) < lengths[:, None])},
    ):
        model = fg.nn.Sequential(fg.nn.LSTM(4, 6, seed=1), fg.nn.Dense(6, 3, seed=1))
        trainer = fg.Trainer(model, optimizer=fg.optim.SGD(0.1))
        history = trainer.fit(x, y, epochs=2, batch_size=4, **options)
        results.append([*history.loss, *history.accuracy, *trainer.evaluate(x, y, **options)])
    assert results[0] == results[1]
    assert results[0] == pytest.approx(results[2], rel=1e-5)
    padded = np.where(np.arange(5) < lengths[:, None], weights, np.nan)
    losses = [trainer.evaluate(x, y, lengths, sample_weight=w) for w in (weights, padded)]
    assert losses[0] == losses[1]
    trainer.fit(x, y, window=2, sample_weight=padded, lengths=lengths)
    assert np.isfinite(trainer.model.params).all()


@pytest.mark.parametrize("make", [chain, layers])
@pytest.mark.parametrize("name", ["all", "binary", "huber"])
def test_copies_and_resumed_fits_go_on_with_the_same_bits(in_force, make, name, tmp_path):
    x, y = data(name)
    options = {"batch_size": 16, "sample_weight": sample_weight()}

    def trained(trainer, epochs=4, **more):
        trainer.fit(x, y, epochs=epochs, **options, **more)
        return bits(trainer.model.params)

    def new():
        return fg.Trainer(make(), LOSSES[name], fg.optim.Adam(0.01))

    path = tmp_path / "trainer.safetensors"
    trainer = new()
    trained(trainer, 2, checkpoint=path)
    copies = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))]
    assert all(c.loss == trainer.loss for c in copies)
    found = {trained(trainer, 2), *(trained(c, 2) for c in copies), trained(new(), 4, checkpoint=path, resume=True)}
    assert found == {trained(new())}


@pytest.mark.parametrize("make", [chain, layers])
def test_nan_as_a_label_is_not_an_ignored_one(in_force, make):
    """NaN becomes the smallest integer on most processors."""
    x, y = data("weights")
    y[3] = np.iinfo(np.int64).min
    for loss in ("cross_entropy", CrossEntropy(ignore_index=-100)):
        trainer = fg.Trainer(make(), loss)
        for call in (trainer.step, trainer.fit, trainer.evaluate):
            with pytest.raises(ValueError, match=r"y must be in 0\.\.2, got -9223372036854775808 at index 3"):
                call(x, y)
        # after a step of such arrays their values are not checked again
        trainer.step(x, np.zeros(40, int))
        with pytest.raises(ValueError, match=r"y must be in 0\.\.2, got -9223372036854775808 at index 3"):
            trainer.step(x, y)


def test_the_loss_may_be_assigned(in_force):
    x, y = data("all")
    trainer = fg.Trainer(chain())
    refuses(ValueError, "Trainer.step: y must be in 0..2, got -100 at index 0", trainer.step, x, y)
    trainer.loss = LOSSES["all"]
    trainer.step(x, y)
    assert "CrossEntropy(weights=(1.0, 0.5, 3.0), ignore_index=-100, label_smoothing=0.1)" in repr(trainer)
    assert trainer.loss == CrossEntropy(np.array(WEIGHTS), -100, 0.1)


def test_options_that_cannot_be_are_refused(in_force):
    refuses(
        ValueError,
        "CrossEntropy: label_smoothing must be at least 0 and at most 1, got 1.1",
        CrossEntropy,
        label_smoothing=1.1,
    )
    refuses(
        ValueError,
        "CrossEntropy: label_smoothing must be at least 0 and at most 1, got nan",
        CrossEntropy,
        label_smoothing=np.nan,
    )
    refuses(
        ValueError, "CrossEntropy: weights must be at least 0 and finite, got nan at index 1", CrossEntropy, [1, np.nan]
    )
    refuses(
        ValueError, "CrossEntropy: weights must be at least 0 and finite, got -1.0 at index 0", CrossEntropy, [-1, 1]
    )
    refuses(TypeError, "CrossEntropy: weights must be numbers (C,), got str", CrossEntropy, "balanced")
    refuses(TypeError, "CrossEntropy: ignore_index must be an integer, got float", CrossEntropy, ignore_index=1.0)
    refuses(
        ValueError, "BinaryCrossEntropy: pos_weight must be at least 0 and finite, got inf", BinaryCrossEntropy, np.inf
    )
    refuses(ValueError, "Huber: delta must be above 0 and finite, got 0", Huber, 0)
    message = "Trainer: the weights of CrossEntropy must be (K,), one for each output = (3,), got (2,)"
    refuses(ValueError, message, fg.Trainer, chain(), CrossEntropy([1, 2]))
    x, y = data("weights")
    trainer = fg.Trainer(chain(), CrossEntropy(ignore_index=5))
    one_hot = np.eye(3, dtype=np.float32)[y]
    message = "Trainer.step: ignore_index is for class numbers, and y are probabilities (40, 3)"
    refuses(ValueError, message, trainer.step, x, one_hot)
    assert trainer.step_count == 0


@pytest.mark.parametrize("make", [chain, layers])
def test_weights_that_cannot_be_are_refused_and_change_nothing(in_force, make):
    x, y = data("weights")
    trainer = fg.Trainer(make())
    before = bits(trainer.model.params)
    bad = np.ones(40)
    bad[3] = -1
    for op, call in (("step", trainer.step), ("fit", trainer.fit), ("evaluate", trainer.evaluate)):
        op = f"Trainer.{op}: sample_weight must be"
        refuses(ValueError, f"{op} (N,) = (40,), got (39,)", call, x, y, sample_weight=np.ones(39))
        refuses(ValueError, f"{op} at least 0 and finite, got -1.0 at index 3", call, x, y, sample_weight=bad)
        refuses(ValueError, f"{op} at least 0 and finite, got nan at index 0", call, x, y, sample_weight=bad * np.nan)
        refuses(TypeError, f"{op} numbers (N,), got str", call, x, y, sample_weight="balanced")
    fit = trainer.fit
    refuses(ValueError, "Trainer.fit: class_weight must be (C,) = (3,), got (2,)", fit, x, y, class_weight=[1, 2])
    refuses(ValueError, "Trainer.fit: class_weight must have classes in 0..2, got 3", fit, x, y, class_weight={3: 1})
    refuses(ValueError, "Trainer.fit: class_weight must be one of balanced; got 'auto'", fit, x, y, class_weight="auto")
    message = "Trainer.fit: class_weight must be at least 0 and finite, got -1.0 at index 1"
    refuses(ValueError, message, fit, x, y, class_weight={1: -1})
    message = 'Trainer.fit: class_weight "balanced" is for arrays; of an iterable the labels are not known'
    refuses(ValueError, message, fit, [(x, y)], class_weight="balanced")
    assert trainer.step_count == 0
    assert bits(trainer.model.params) == before


def test_class_weight_is_for_classes(in_force):
    message = (
        "Trainer.fit: class_weight is for cross_entropy, and for binary_cross_entropy of one output; "
        "fg.loss.BinaryCrossEntropy has pos_weight"
    )
    for name in ("mae", "binary"):
        refuses(ValueError, message, fg.Trainer(chain(), LOSSES[name]).fit, *data(name), class_weight=WEIGHTS)


def test_weights_and_ignored_rows_are_those_of_all_processes(in_force):
    """A process and itself: the mean is its own, whatever the weights."""
    for name in ("all", "binary"):
        x, y = data(name)
        params = []
        for reduce in (None, lambda a: a.__imul__(2)):
            trainer = fg.Trainer(chain(), LOSSES[name], fg.optim.SGD(0.1), reduce=reduce)
            history = trainer.fit(x, y, batch_size=16, sample_weight=sample_weight())
            params.append([*trainer.model.params, *history.loss, *history.accuracy])
        np.testing.assert_allclose(params[0], params[1], rtol=1e-4, atol=1e-6)
