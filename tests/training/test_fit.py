"""Callback, early stopping, checkpoints and resume of fit: what it reports, which weights it leaves, and the bits of one that goes on."""

import json
import math
import os
import sys
import types

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from safetensors import safe_open
from safetensors.numpy import save_file
from trainers import data, model

import fastgrad as fg
from fastgrad.nn import BatchNorm, Dense, Dropout, Sequential
from fastgrad.training.fit import fit as fit_function

SCHEDULES = {
    "constant": 0.05,
    "cosine": fg.schedule.Cosine(0.1, 60),
    "plateau": fg.schedule.ReduceOnPlateau(0.1, patience=1),
}


def layers(dtype="float32"):
    first, last = Dense(4, 8, dtype=dtype), Dense(8, 3, dtype=dtype)
    return Sequential(first, BatchNorm(8, "relu", dtype=dtype), Dropout(0.3), last, seed=7)


def weights_of(net):
    return [bits(a) for a in (net.params, *net.statistics().values(), *net.masks().values())]


def state_of(trainer):
    """All that goes on in the next fit."""
    generators = [g.bit_generator.state for g in (trainer.rng, *trainer.model._generators())]
    return weights_of(trainer.model), bits(trainer.state), trainer.step_count, trainer.val_losses, generators


def values_of(history):
    return {name: values for name, values in vars(history).items() if name != "seconds"}


def set_val_losses(monkeypatch, losses):
    """Validation has these losses in place of the true ones."""
    left = iter(losses)
    monkeypatch.setattr(sys.modules[fit_function.__module__], "evaluate", lambda *arguments: (next(left), None))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_callback_gets_the_numbers_of_each_epoch(in_force, loss):
    x, y = data(loss)
    trainer, results = fg.Trainer(model(output="identity"), loss, fg.optim.SGD(SCHEDULES["cosine"])), []
    history = trainer.fit(x, y, epochs=3, batch_size=8, validation=(x, y), callback=results.append)
    assert [result.epoch for result in results] == [1, 2, 3]
    for name, values in vars(history).items():
        assert [getattr(result, name) for result in results] == (values or [None] * 3)
    assert bool(history.val_accuracy) == (loss == "cross_entropy")
    # the last update of an epoch of 3
    assert history.learning_rate == [SCHEDULES["cosine"].rate(step, []) for step in (2, 5, 8)]


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_that_returns_true_stops(in_force, answer):
    trainer = fg.Trainer(model())
    history = trainer.fit(*data(), epochs=9, callback=lambda result: answer if result.epoch == 2 else 1)
    assert len(history.loss) == 2
    assert history.best_epoch is None


def test_a_callback_may_change_the_rate_and_not_the_loss(in_force):
    x, y = data("binary_cross_entropy")
    one, other = (fg.Trainer(model(output="sigmoid"), "binary_cross_entropy", fg.optim.SGD(0.1)) for _ in range(2))

    def slower(result):
        one.optimizer = fg.optim.SGD(0.1 / 2**result.epoch)

    history = one.fit(x, y, epochs=3, callback=slower)
    assert history.learning_rate == [0.1, 0.05, 0.025]
    for lr in history.learning_rate:
        other.optimizer = fg.optim.SGD(lr)
        other.fit(x, y)
    assert weights_of(one.model) == weights_of(other.model)
    with pytest.raises(RuntimeError, match="the callback changed the loss"):
        one.fit(x, y, epochs=2, callback=lambda result: setattr(one, "loss", "cross_entropy"))


@pytest.mark.parametrize(
    ("losses", "best", "epochs"),
    [
        ([3, 2, 2, 4, 1], 2, 4),
        ([3, 2, 4, 1, 5, 6], 4, 6),
        ([math.nan, 2, math.nan, math.nan, 1], 2, 4),
        ([math.inf, math.inf, 1, 3, 2], 3, 5),
        ([math.nan, math.nan, 1], None, 2),
    ],
)
@pytest.mark.parametrize("make", [model, layers])
def test_early_stopping_leaves_the_weights_of_the_best_epoch(in_force, monkeypatch, make, losses, best, epochs):
    x, y = data()
    trainer, plain, weights = fg.Trainer(make()), fg.Trainer(make()), {}

    def keep(result):
        weights[result.epoch] = weights_of(plain.model)

    set_val_losses(monkeypatch, losses)
    history = trainer.fit(x, y, epochs=9, batch_size=8, validation=(x, y), patience=2)
    plain.fit(x, y, epochs=epochs, batch_size=8, callback=keep)
    assert len(history.loss) == epochs
    assert history.best_epoch == best
    assert weights_of(trainer.model) == weights[best or epochs]
    # the optimiser goes on from the last epoch
    assert bits(trainer.state) == bits(plain.state)
    assert trainer.step_count == plain.step_count


@pytest.mark.parametrize(("losses", "best"), [([3, 1, 2, 4], 2), ([1, 3, 2, 4], 1)])
def test_the_best_weights_come_back_with_their_masks_when_all_epochs_are_made(in_force, monkeypatch, losses, best):
    x, y = data()
    trainer, short = (fg.Trainer(model(), pruning=fg.GradualPruning(0.8, 4, 12, 3)) for _ in range(2))
    set_val_losses(monkeypatch, losses)
    trainer.fit(x, y, epochs=4, batch_size=8, validation=(x, y), patience=4)
    short.fit(x, y, epochs=best, batch_size=8)
    assert weights_of(trainer.model) == weights_of(short.model)
    trainer.fit(x, y, batch_size=8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cut", [1, 3, 4])
@pytest.mark.parametrize("make", [layers, model])
def test_a_fit_that_goes_on_equals_one_that_never_stopped(in_force, tmp_path, monkeypatch, dtype, schedule, cut, make):
    x, y = data(dtype=dtype)
    path, losses = tmp_path / "run.safetensors", [5.0, 4.0, 6.0, 6.0, 4.0, 1.0]
    options = {"epochs": 7, "batch_size": 8, "validation": (x, y), "patience": 3}

    def trainer(seed):
        optimizer, pruning = fg.optim.Adam(SCHEDULES[schedule]), fg.GradualPruning(0.8, 2, 16, 3)
        return fg.Trainer(make(dtype=dtype), optimizer=optimizer, pruning=pruning, seed=seed)

    def crash(result):
        if result.epoch > cut:
            raise MemoryError

    whole, first, second, third = (trainer(seed) for seed in (3, 3, 4, 5))
    set_val_losses(monkeypatch, losses)
    expected = whole.fit(x, y, **options)
    assert (len(expected.loss), expected.best_epoch) == (5, 2)
    set_val_losses(monkeypatch, losses)
    with pytest.raises(MemoryError):
        first.fit(x, y, **options, checkpoint=path, callback=crash)
    set_val_losses(monkeypatch, losses[cut:])
    results = []
    history = second.fit(x, y, **options, checkpoint=path, resume=True, callback=results.append)
    assert [result.epoch for result in results] == list(range(cut + 1, 6))
    assert values_of(history) == values_of(expected)
    assert state_of(second) == state_of(whole)
    # a fit that is over is over
    assert values_of(third.fit(x, y, **options, checkpoint=path, resume=True)) == values_of(expected)
    assert state_of(third) == state_of(whole)


def test_a_checkpoint_is_written_every_so_many_epochs_and_at_the_end(in_force, tmp_path, monkeypatch):
    x, y = data()
    path, written, module = tmp_path / "run", [], sys.modules[fit_function.__module__]
    write = module.write_checkpoint
    monkeypatch.setattr(module, "write_checkpoint", lambda *a: written.append(len(a[3].loss)) or write(*a))
    trainer = fg.Trainer(model())
    trainer.fit(x, y, epochs=7, checkpoint=path, checkpoint_every=3)
    assert written == [3, 6, 7]
    # load reads it too
    loaded, alone = fg.Trainer(model(seed=1)), model(seed=2)
    fg.load(path, loaded)
    fg.load(path, alone)
    assert state_of(loaded) == state_of(trainer)
    assert bits(alone.params) == bits(trainer.model.params)
    trainer.fit(x, y, epochs=7, checkpoint=path, checkpoint_every=5, callback=lambda result: result.epoch == 2)
    assert written[3:] == [2]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_checkpoint_of_a_version_without_accuracy_goes_on(in_force, tmp_path, loss):
    x, y = data()
    y = y if loss == "cross_entropy" else np.eye(3, dtype=np.float32)[y]
    path, old, new, whole = tmp_path / "run", *(fg.Trainer(model(), loss) for _ in range(3))
    old.fit(x, y, epochs=2, checkpoint=path)
    with safe_open(path, "numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    history = json.loads(metadata["fit.history"])
    del history["accuracy"]
    save_file(arrays, path, {**metadata, "fit.history": json.dumps(history)})
    expected = whole.fit(x, y, epochs=4)
    for epochs in (3, 4):
        found = new.fit(x, y, epochs=epochs, checkpoint=path, resume=True)
    assert found.loss == expected.loss
    assert [a == a for a in found.accuracy] == ([False, False, True, True] if loss == "cross_entropy" else [])
    assert found.accuracy[2:] == expected.accuracy[2:]
    assert state_of(new) == state_of(whole)


def test_a_crash_in_the_middle_of_a_write_leaves_the_file_of_before(in_force, tmp_path, monkeypatch):
    x, y = data()
    path, trainer, other = tmp_path / "run", fg.Trainer(model()), fg.Trainer(model(seed=1))
    trainer.fit(x, y, checkpoint=path)
    content = path.read_bytes()

    def crash(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match=r"Trainer\.fit: checkpoint: .*No space left on device"):
            trainer.fit(x, y, epochs=2, checkpoint=path, resume=True)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["run"]
    assert len(other.fit(x, y, checkpoint=path, resume=True).loss) == 1
    assert other.step_count == 1


def test_bad_options_change_nothing(in_force, tmp_path):
    x, y = data()
    trainer = fg.Trainer(model())
    before, fit, path = state_of(trainer), trainer.fit, tmp_path / "saved"
    message = "Trainer.fit: patience needs validation, whose loss tells when to stop"
    refuses(ValueError, message, fit, x, y, patience=2)
    message = "Trainer.fit: patience must be an integer of at least 1, got 0"
    refuses(ValueError, message, fit, x, y, validation=(x, y), patience=0)
    refuses(TypeError, "Trainer.fit: callback must be callable, got int", fit, x, y, callback=3)
    refuses(ValueError, "Trainer.fit: resume needs checkpoint, the file to go on from", fit, x, y, resume=True)
    message = "Trainer.fit: checkpoint_every must be an integer of at least 1, got 0"
    refuses(ValueError, message, fit, x, y, checkpoint=path, checkpoint_every=0)
    message = f"Trainer.fit: checkpoint: there is no folder {os.path.realpath(tmp_path / 'none')}"
    refuses(FileNotFoundError, message, fit, x, y, checkpoint=tmp_path / "none" / "a")
    fg.save(path, trainer)
    message = f"Trainer.fit: {path}: the file was not written by fit, but by fg.save; load it with fg.load"
    refuses(ValueError, message, fit, x, y, checkpoint=path, resume=True)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        fit(x, y, checkpoint=path, resume=True)
    other = fg.Trainer(model())
    for validation in (None, (x, y)):
        other.fit(x, y, checkpoint=path, validation=validation)
        message = f"Trainer.fit: {path}: the file has no best weights, since that fit had no patience"
        refuses(ValueError, message, fit, x, y, checkpoint=path, resume=True, validation=(x, y), patience=2)
    other = fg.Trainer(model(sizes=[4, 5, 3]))
    other.fit(x, y, checkpoint=path, validation=(x, y), patience=2)
    for options in ({}, {"patience": 2}):
        with pytest.raises(ValueError, match=r"best\.params is not of this model|must be"):
            fit(x, y, checkpoint=path, resume=True, validation=(x, y), **options)
    assert state_of(trainer) == before


def test_a_notebook_has_a_bar(monkeypatch):
    from fastgrad.training.progress import has_bar

    monkeypatch.setattr(sys, "stderr", None)
    assert not has_bar(None)
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert has_bar(None)
    assert not has_bar(False)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not has_bar(None)
