"""Signals: what is counted is what was made, a handler may save and never hangs, fit stops soon, and a forked child has fresh locks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import bits

import fastgrad as fg
from fastgrad.core import pace as pacing
from fastgrad.nn import BatchNorm, Dense, DenseChain, Sequential

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no timer's signal and no fork")


def run(name, *arguments):
    """What a script of this folder prints, in a process of its own."""
    command = [sys.executable, Path(__file__).parent.parent / "support" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # an exception that nobody could catch is told there
    assert "Exception ignored" not in done.stderr
    return done.stdout.split()[-1]


@pytest.mark.parametrize("times", ["5", pytest.param("84", marks=pytest.mark.full)])
def test_after_interrupts_as_many_updates_are_counted_as_were_made(times):
    assert run("interrupts.py", times) == "whole"


@pytest.mark.parametrize("times", ["24", pytest.param("150", marks=pytest.mark.full)])
def test_an_interrupted_fit_is_whole_and_goes_on_to_the_same_end(times):
    """Chains and layers with groups, masks, clipping, schedules, iterables, early stopping and checkpoints."""
    assert run("interrupted_fits.py", times) == "whole"


def test_a_handler_saves_whole_updates_and_predicts_and_does_not_step():
    assert run("handlers.py") == "ok"


def test_a_child_forked_while_a_thread_trains_trains_and_saves():
    assert run("forking.py") == "forked"


def data(n=40, dtype="float32"):
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, 4)).astype(dtype), rng.integers(0, 3, n)


def interrupted_after(updates):
    """An all-reduce of one process, out of which an interrupt comes after so many updates."""
    calls = []

    def reduce(values):
        calls.append(values)
        if len(calls) > updates:
            raise KeyboardInterrupt

    return reduce


@pytest.mark.parametrize("form", ["chain", "layers"])
def test_fit_returns_the_whole_epochs_of_an_interrupted_training(in_force, form):
    x, y = data()
    net = DenseChain([4, 6, 3], seed=0) if form == "chain" else Sequential(Dense(4, 6), Dense(6, 3), seed=0)
    trainer = fg.Trainer(net, reduce=interrupted_after(13))
    with pytest.warns(UserWarning, match=r"Training interrupted by user.*2 of 9 epochs.*step_count is 13"):
        history = trainer.fit(x, y, epochs=9, batch_size=8, validation=(x, y))
    assert trainer.step_count == 13
    assert {len(values) for values in vars(history).values()} == {2}
    with pytest.raises(KeyboardInterrupt):
        trainer.step(x, y)
    assert trainer.step_count == 13


@pytest.mark.parametrize("form", ["chain", "layers"])
def test_a_step_of_a_handler_right_after_an_epoch_is_none_of_the_epochs(in_force, form):
    x, y = data()
    net = (
        DenseChain([4, 6, 3], seed=0) if form == "chain" else Sequential(Dense(4, 6), BatchNorm(6), Dense(6, 3), seed=0)
    )
    trainer, steps = fg.Trainer(net), []

    def step_once():
        if trainer.step_count == 5 and not trainer._running and not steps:
            steps.append(trainer.step(x, y))

    trainer._prune = step_once
    history = trainer.fit(x, y, epochs=2, batch_size=8)
    assert len(steps) == 1
    assert trainer.step_count == 11
    assert len(history.loss) == 2


def test_an_interrupt_before_an_epochs_first_update_leaves_the_shuffling(in_force):
    x, y = data()
    trainer = fg.Trainer(DenseChain([4, 6, 3], seed=0), reduce=interrupted_after(0))
    before = trainer.rng.bit_generator.state
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        trainer.fit(x, y, batch_size=8)
    assert trainer.rng.bit_generator.state == before


@pytest.mark.parametrize("health", [False, 3])
def test_an_epoch_in_many_calls_has_the_bits_of_one_in_one(cpu, monkeypatch, health):
    found = []
    x, y = data(100)
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(pacing, "CALL", seconds)
        calls = []
        monkeypatch.setattr(pacing.Pace, "measure", lambda self, batches, calls=calls: calls.append(batches))
        pruning = fg.GradualPruning(0.5, 3, 20, 5)
        trainer = fg.Trainer(DenseChain([4, 6, 3], seed=0), clip_norm=1.0, pruning=pruning, health=health)
        history = trainer.fit(x, y, epochs=3, batch_size=8)
        report = trainer.health().history.tobytes() if health else None
        found.append((bits(trainer.model.params), bits(trainer.state), history.loss, history.grad_norm, report))
        assert set(calls) == {1} if seconds == 0 else max(calls) > 1
    assert found[0] == found[1]


def test_calls_are_as_long_as_batches_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now[0])
    pace = pacing.Pace(10**6)
    assert pace.batches() == 100
    now[0] += 100 * 0.002
    pace.measure(100)
    assert pace.batches() == 50
    now[0] += 50.0
    # a first call compiles
    pace.measure(50)
    assert pace.batches() == 1


def test_a_step_that_reduce_takes_is_refused_and_does_not_hang(in_force):
    x, y = data()
    trainer = fg.Trainer(DenseChain([4, 3], seed=0), reduce=lambda values: trainer.step(x, y) and None)
    with pytest.raises(
        RuntimeError, match=r"Trainer.step: the trainer is in the middle of a step or a fit in this thread"
    ):
        trainer.step(x, y)
    assert trainer.step_count == 0


def test_pruning_that_an_interrupt_kept_back_comes_before_the_next_update(in_force, monkeypatch):
    x, y = data()

    def trainer():
        return fg.Trainer(DenseChain([4, 6, 3], seed=0), pruning=fg.GradualPruning(0.5, 1, 20, 2))

    whole, cut = trainer(), trainer()
    prune = type(cut)._prune
    for _ in range(3):
        whole.step(x, y)
    cut.step(x, y)
    # the third update's pruning does not come, and so the fourth update makes up for it
    cut.step(x, y)
    monkeypatch.setattr(type(cut), "_prune", lambda self: None)
    cut.step(x, y)
    monkeypatch.setattr(type(cut), "_prune", prune)
    for one in (whole, cut):
        one.step(x, y)
    assert bits(whole.model.params) == bits(cut.model.params)
    assert bits(whole.model._mask) == bits(cut.model._mask)


def test_statistics_of_a_step_that_was_interrupted_are_as_before(in_force):
    x, y = data()
    trainer = fg.Trainer(Sequential(Dense(4, 6), BatchNorm(6), Dense(6, 3), seed=0), reduce=interrupted_after(1))
    trainer.step(x, y)
    before = {name: a.copy() for name, a in trainer.model.statistics().items()}
    with pytest.raises(KeyboardInterrupt):
        trainer.step(x, y)
    assert all(bits(a) == bits(before[name]) for name, a in trainer.model.statistics().items())
