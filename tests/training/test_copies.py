"""Trainers copied by copy.deepcopy and by pickle: they go on with the same bits, apart from the first, with all of their settings."""

import copy
import pickle

import numpy as np
import pytest
from arrays import bits

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, DenseChain, Dropout, Sequential

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
RNG = np.random.default_rng(0)
ROWS, SEQUENCES = RNG.standard_normal((40, 4), np.float32), RNG.standard_normal((40, 5, 4), np.float32)
LABELS = RNG.integers(0, 3, 40)


def chain():
    return DenseChain([4, 8, 3], seed=1), ROWS, {"constraint": fg.optim.MaxNorm(1.0)}


def layers():
    model = Sequential(Dense(4, 8, "relu"), BatchNorm(8), Dropout(0.3), Dense(8, 3), seed=1)
    pruning = fg.GradualPruning(final=0.5, begin=2, end=20, every=3)
    return model, ROWS, {"pruning": pruning, "health": True}


def sequences():
    model = Sequential(LSTM(4, 6, 2, dropout=0.2, pool="mean"), Dense(6, 3, "softmax"), seed=1)
    return model, SEQUENCES, {"clip_norm": 0.5}


def everything(trainer):
    model = trainer.model
    arrays = {**model.parameters(), **model.statistics(), **model.masks(), "state": trainer.state}
    generators = [g.bit_generator.state for g in (trainer.rng, *model._generators())]
    return {name: bits(a) for name, a in arrays.items()}, generators, trainer.step_count, trainer.val_losses


def train(trainer, x, epochs=2):
    history = trainer.fit(x, LABELS, epochs, 8, validation=(x[:10], LABELS[:10]))
    losses = [trainer.step(x[:7], LABELS[:7]) for _ in range(3)]
    return history.loss, history.val_loss, history.grad_norm, losses


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("net", [chain, layers, sequences])
def test_a_copy_goes_on_with_the_same_bits_and_apart(in_force, net, copied):
    model, x, options = net()
    adam = fg.optim.Adam(fg.schedule.ReduceOnPlateau(0.01, patience=0))
    trainer = fg.Trainer(model, optimizer=adam, seed=3, **options)
    train(trainer, x)
    before = everything(trainer)
    other = COPIES[copied](trainer)
    assert everything(other) == before
    assert not np.shares_memory(other.model.params, trainer.model.params)
    found = train(other, x)
    assert everything(trainer) == before
    assert found == train(trainer, x)
    assert everything(other) == everything(trainer) != before
    assert bits(other.predict(x)) == bits(trainer.predict(x))
    if "health" in options:
        assert str(other.health()) == str(trainer.health())
    assert repr(other) == repr(trainer)


@pytest.mark.parametrize("copied", COPIES)
def test_settings_of_a_copy_are_its_own(numpy_backend, copied):
    trainer = fg.Trainer(DenseChain([4, 3], seed=0), "mse", fg.optim.SGD(0.1, 0.9), 2.0, seed=5, reduce=np.negative)
    other = COPIES[copied](trainer)
    assert (other.loss, other.optimizer, other.clip_norm, other.seed) == ("mse", trainer.optimizer, 2.0, 5)
    assert other.reduce is np.negative
    other.optimizer, other.loss, other.reduce = fg.optim.SGD(0.0, 0.9), "cross_entropy", None
    assert (trainer.loss, trainer.optimizer.lr) == ("mse", 0.1)
    before = other.model.params.copy()
    other.step(ROWS, LABELS)
    np.testing.assert_array_equal(other.model.params, before)
    assert (trainer.step_count, other.step_count) == (0, 1)


@pytest.mark.parametrize("copied", COPIES)
def test_a_model_that_is_copied_beside_its_trainer_is_still_its_model(numpy_backend, copied):
    trainer = fg.Trainer(DenseChain([4, 3], seed=0))
    other, model = COPIES[copied]((trainer, trainer.model))
    assert other.model is model
    other.step(ROWS, LABELS)
    assert bits(model.params) != bits(trainer.model.params)


@pytest.mark.parametrize("copied", COPIES)
def test_no_copy_is_made_in_the_middle_of_a_step(numpy_backend, copied):
    errors = []

    def reduce(values):
        try:
            COPIES[copied](trainer)
        except RuntimeError as error:
            errors.append(str(error))

    trainer = fg.Trainer(DenseChain([4, 3], seed=0), reduce=reduce)
    trainer.step(ROWS, LABELS)
    assert errors[0].startswith("Trainer: a copy or a pickle: the trainer is in the middle of a step or a fit")


@pytest.mark.parametrize("copied", COPIES)
def test_an_updater_is_copied_with_its_arrays(numpy_backend, copied):
    updater = fg.Updater([np.ones(3), np.ones((2, 2))], fg.optim.Adam(0.1), clip_norm=1.0)
    gradients = [np.arange(3.0), np.eye(2)]
    updater.step(gradients)
    other = COPIES[copied](updater)
    other.step(gradients)
    assert bits(other.params[0]) != bits(updater.params[0])
    updater.step(gradients)
    assert [bits(a) for a in other.params] == [bits(a) for a in updater.params]
    assert bits(other.state) == bits(updater.state)
