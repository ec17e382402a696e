"""Schedules against PyTorch's, and trainers that take each update's rate from them."""

import math
import re

import numpy as np
import pytest
from arrays import bits

import fastgrad as fg
from fastgrad.optim import SGD, Adam
from fastgrad.schedule import Cosine, Exponential, Rates, ReduceOnPlateau, Schedule, Steps, WarmUp


def rates_of(torch, make, steps):
    """The rates of PyTorch's scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warm_up(schedulers, optimizer):
    first = schedulers.LinearLR(optimizer, 0.25, total_iters=7)
    return schedulers.SequentialLR(optimizer, [first, schedulers.CosineAnnealingLR(optimizer, 13)], [7])


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    ("schedule", "make", "steps"),
    [
        (Steps(0.1, 7, 0.5), lambda s, o: s.StepLR(o, 7, 0.5), 40),
        (Exponential(0.1, 0.9), lambda s, o: s.ExponentialLR(o, 0.9), 40),
        (Cosine(0.1, 30), lambda s, o: s.CosineAnnealingLR(o, 30), 30),
        (Cosine(0.1, 30, 0.01), lambda s, o: s.CosineAnnealingLR(o, 30, 0.01), 30),
        (WarmUp(7, 0.1, 0.25), lambda s, o: s.LinearLR(o, 0.25, total_iters=7), 20),
        (WarmUp(7, Cosine(0.1, 13), 0.25), warm_up, 20),
    ],
)
def test_rates_match_pytorch(schedule, make, steps, torch):
    ours = [schedule.rate(step, ()) for step in range(steps)]
    np.testing.assert_allclose(ours, rates_of(torch, make, steps), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_reduce_on_plateau_matches_pytorch(patience, rng, torch):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, patience, 0.01, min_lr=1e-3)
    ours, losses = ReduceOnPlateau(0.1, 0.5, patience, 0.01, 1e-3), []
    for loss in [*(2 / np.arange(1, 20) + rng.random(19) / 10).tolist(), math.nan, 0.01, math.inf, *[0.0] * 6]:
        assert ours.rate(0, losses) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        losses.append(loss)
        theirs.step(loss)
    assert ours.rate(0, losses) < 0.1


def test_cosine_stays_at_its_end():
    assert [Cosine(0.1, 3, 0.02).rate(step, ()) for step in (3, 4, 100)] == [0.02] * 3


def data(n=20):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, 5)).astype(np.float32), rng.integers(0, 3, n)


def net(form):
    chain = fg.nn.DenseChain([5, 4, 3], activation="tanh", seed=0)
    return chain if form == "chain" else fg.nn.Sequential(fg.nn.Dense(5, 4, activation="tanh"), fg.nn.Dense(4, 3))


@pytest.mark.parametrize("form", ["chain", "layers"])
def test_steps_and_fit_take_each_updates_rate(in_force, form):
    """To the bit as with an optimiser of that rate for every update; twenty rows in batches of 8 are three updates an epoch."""
    x, y = data()
    rates = [0.5 / (i + 1) for i in range(9)]
    fitted, stepped = (fg.Trainer(net(form), optimizer=SGD(Rates(rates), 0.9)) for _ in range(2))
    fitted.fit(x, y, epochs=2, batch_size=8, shuffle=False)
    fitted.fit(x, y, epochs=1, batch_size=8, shuffle=False)
    by_hand = fg.Trainer(net(form), optimizer=SGD(rates[0], 0.9))
    for i, rate in enumerate(rates):
        rows = slice(8 * (i % 3), 8 * (i % 3) + 8)
        stepped.step(x[rows], y[rows])
        by_hand._rule.hyper[0] = rate
        by_hand.step(x[rows], y[rows])
    assert bits(stepped.model.params) == bits(by_hand.model.params)
    assert bits(fitted.model.params) == bits(by_hand.model.params)
    assert bits(fitted.state) == bits(by_hand.state)


def test_a_plateau_is_seen_by_fit(in_force):
    x, y = data()
    trainer = fg.Trainer(net("chain"), optimizer=SGD(ReduceOnPlateau(1e-7, 0.5, 0, 0.5)))
    history = trainer.fit(x, y, epochs=4, validation=(x, y))
    assert trainer.val_losses == history.val_loss
    assert trainer.optimizer.rate(0, trainer.val_losses) == 1e-7 / 8
    message = r"Trainer.fit: ReduceOnPlateau needs validation"
    with pytest.raises(ValueError, match=message):
        trainer.fit(x, y)
    warm = fg.Trainer(net("chain"), optimizer=SGD(WarmUp(2, ReduceOnPlateau(0.1))))
    with pytest.raises(ValueError, match=r"Trainer.fit: WarmUp needs validation"):
        warm.fit(x, y)


def test_training_goes_on_from_a_file_with_the_same_bits(in_force, tmp_path):
    x, y = data()

    def trainer(seed):
        schedule = WarmUp(4, ReduceOnPlateau(1e-2, 0.5, 0, 0.2), 0.5)
        return fg.Trainer(net("chain"), optimizer=Adam(schedule, amsgrad=True), seed=seed)

    def fit(trainer):
        trainer.fit(x, y, epochs=3, batch_size=8, validation=(x, y))

    whole, first, second = trainer(1), trainer(1), trainer(2)
    fit(whole)
    fit(first)
    fg.save(tmp_path / "file", first)
    fg.load(tmp_path / "file", second)
    for each in (whole, second):
        fit(each)
    assert second.val_losses == whole.val_losses
    assert second.step_count == whole.step_count
    assert bits(second.model.params) == bits(whole.model.params)
    assert bits(second.state) == bits(whole.state)


class Bad(Schedule):
    def rate(self, step, losses):
        return -1.0 if step > 4 else 0.1


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (Rates([0.1] * 5), "Rates: rates must have one for every update, got 5, none for update 6"),
        (Bad(), "Bad: the rate of update 6 must be at least 0 and finite, got -1.0"),
    ],
)
def test_a_schedule_without_a_rate_changes_nothing(in_force, lr, message):
    x, y = data()
    trainer = fg.Trainer(net("chain"), optimizer=SGD(lr))
    before, shuffling = bits(trainer.model.params), trainer.rng.bit_generator.state
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.fit(x, y, epochs=2, batch_size=8)
    assert bits(trainer.model.params) == before
    assert trainer.rng.bit_generator.state == shuffling
    for _ in range(5):
        trainer.step(x, y)
    before = bits(trainer.model.params)
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.step(x, y)
    assert bits(trainer.model.params) == before
    assert trainer.step_count == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda number, count: Steps(number(0.1), count(7), number(0.5)),
        lambda number, count: Exponential(number(0.1), number(0.9)),
        lambda number, count: Cosine(number(0.1), count(100), number(0.01)),
        lambda number, count: WarmUp(count(100), number(0.1), number(0.25)),
        lambda number, count: ReduceOnPlateau(number(0.1), number(0.5), count(1), number(0.01), number(0.001)),
        lambda number, count: Rates([number(0.1)] * 501),
        lambda number, count: SGD(number(0.1)),
    ],
)
def test_numbers_of_numpy_are_those_of_python(make):
    """An int8 holds no step above 127, and a float32 power has 24 bits."""
    ours, theirs = make(np.float32, np.int8), make(lambda value: float(np.float32(value)), int)
    assert ours == theirs
    for step in (0, 60, 500):
        rate = ours.rate(step, [1.0] * 5)
        assert type(rate) is float
        assert rate == theirs.rate(step, [1.0] * 5)


@pytest.mark.parametrize("number", [float, np.float64, int])
@pytest.mark.parametrize("make", [lambda n: Exponential(n(1), n(2)), lambda n: Steps(n(1), 1, n(2))])
def test_a_rate_that_overflows_is_named(make, number):
    """Warnings are errors here, those of NumPy's numbers too."""
    for schedule in (make(number), WarmUp(3, make(number))):
        with pytest.raises(ValueError, match=r"the rate of update \d+ must be at least 0 and finite, got inf"):
            SGD(schedule).rate(5000)


@pytest.mark.parametrize("source", ["arrays", "batches"])
@pytest.mark.parametrize(("lengths", "updates"), [([2, 1, 2, 2], 2), ([8, 1, 2, 0], 5), ([8, 7, 3, 0], 6)])
def test_windows_need_a_rate_for_each_update_and_no_more(numpy_backend, source, lengths, updates):
    """Windows of 2 steps: a batch of two sequences has as many as the longer one, not as the padding."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((4, 8, 4)).astype(np.float32), np.zeros((4, 8, 3), np.float32)
    kwargs = {"window": 2}
    if source == "arrays":
        kwargs |= {"y": y, "lengths": lengths, "batch_size": 2, "shuffle": False}
    else:
        x = [(x[i : i + 2], y[i : i + 2], lengths[i : i + 2]) for i in (0, 2)]
    trainer = fg.Trainer(fg.nn.LSTM(4, 3, seed=0), "mse", SGD(Rates([0.1] * updates)))
    trainer.fit(x, **kwargs)
    assert trainer.step_count == updates
    trainer = fg.Trainer(fg.nn.LSTM(4, 3, seed=0), "mse", SGD(Rates([0.1] * (updates - 1))))
    with pytest.raises(ValueError, match=f"got {updates - 1}, none for update {updates}"):
        trainer.fit(x, **kwargs)


def test_shuffled_windows_need_the_rates_of_any_order(numpy_backend):
    """The two sequences of four windows may come in one batch or in two."""
    x, y = np.ones((4, 8, 4), np.float32), np.zeros((4, 8, 3), np.float32)
    options = {"lengths": [8, 8, 2, 1], "window": 2, "batch_size": 2, "epochs": 6}
    trainer = fg.Trainer(fg.nn.LSTM(4, 3, seed=0), "mse", SGD(Rates([0.1] * 48)))
    trainer.fit(x, y, **options)
    assert 30 < trainer.step_count < 48
    trainer = fg.Trainer(fg.nn.LSTM(4, 3, seed=0), "mse", SGD(Rates([0.1] * 47)))
    with pytest.raises(ValueError, match="got 47, none for update 48"):
        trainer.fit(x, y, **options)
    assert trainer.step_count == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Steps(0.0, 3), ValueError, "Steps: lr must be above 0 and finite, got 0.0"),
        (lambda: Steps(0.1, 0), ValueError, "Steps: every must be an integer of at least 1, got 0"),
        (lambda: Steps(0.1, 3, math.nan), ValueError, "Steps: factor must be above 0 and finite, got nan"),
        (lambda: Exponential(-0.1, 0.9), ValueError, "Exponential: lr must be above 0 and finite, got -0.1"),
        (lambda: Exponential(0.1, 0), ValueError, "Exponential: factor must be above 0 and finite, got 0"),
        (lambda: Cosine(math.nan, 3), ValueError, "Cosine: lr must be above 0 and finite, got nan"),
        (lambda: Cosine(0.1, 2.5), TypeError, "Cosine: steps must be an integer, got float"),
        (lambda: Cosine(0.1, 3, 0.2), ValueError, "Cosine: least must be at least 0 and at most 0.1, got 0.2"),
        (lambda: WarmUp(3, 0.0), ValueError, "WarmUp: then must be above 0 and finite, got 0.0"),
        (lambda: WarmUp(3, 0.1, 2.0), ValueError, "WarmUp: start must be at least 0 and at most 1, got 2.0"),
        (lambda: ReduceOnPlateau(0.1, 1.0), ValueError, "ReduceOnPlateau: factor must be above 0 and below 1, got 1.0"),
        (lambda: Rates([]), ValueError, "Rates: rates must have length at least 1, got 0"),
        (lambda: Rates([0.1, math.nan]), ValueError, "Rates: rates[1] must be at least 0 and finite, got nan"),
        (lambda: Rates(0.1), TypeError, "Rates: rates must be a list or tuple, got float"),
        (lambda: SGD(math.nan), ValueError, "SGD: lr must be at least 0 and finite, got nan"),
        (
            lambda: SGD([0.1]),
            TypeError,
            "SGD: lr must be a number or one of fastgrad.schedule, got list; Rates takes a list",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error) as found:
        make()
    assert str(found.value) == message


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_plateau_lowers_the_rate_whatever_the_losses_sign(sign):
    schedule = ReduceOnPlateau(1.0, 0.1, 2, 1e-4)
    assert schedule.rate(0, [sign] * 8) == pytest.approx(0.01)
    assert schedule.rate(0, [0.0] * 8) == pytest.approx(0.01)


def test_negative_losses_that_rise_are_no_improvement_and_those_that_fall_are():
    """A Poisson likelihood of counts is negative; PyTorch takes -0.95 for better than -1."""
    schedule = ReduceOnPlateau(1.0, 0.1, 0, 0.1)
    assert schedule.rate(0, [-1.0, -0.95, -0.92, -0.9, -0.88]) == pytest.approx(1e-4)
    assert schedule.rate(0, [-1.0, -1.05]) == pytest.approx(0.1)
    assert schedule.rate(0, [1.0, 0.5, -1.0, -1.2, -1.5]) == 1.0
