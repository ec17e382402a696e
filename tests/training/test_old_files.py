"""Files that version 0.1.0 saved: what is loaded from them predicts, and trains on, as it did there."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, DenseChain, Dropout, Sequential
from fastgrad.optim import SGD, Adam

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def results():
    """The inputs, what 0.1.0 predicted of them, and the loss of its next step."""
    return load_file(DATA / "results_0.1.0.safetensors")


def sequential():
    return Sequential(LSTM(3, 4, peephole=True), BatchNorm(4), Dropout(0.25), Dense(4, 3))


def chain():
    return DenseChain([4, 6, 3], "tanh", "softmax", dtype="float64")


def test_a_trainer_of_layers(in_force, results):
    trainer = fg.Trainer(sequential(), optimizer=Adam(0.01))
    fg.load(DATA / "sequential_0.1.0.safetensors", trainer)
    np.testing.assert_allclose(trainer.model.predict(results["x"]), results["sequential"], rtol=1e-5, atol=1e-6)
    assert trainer.step_count == 4
    # with the generator of its dropout
    loss = trainer.step(results["x"], np.arange(30).reshape(6, 5) % 3)
    np.testing.assert_allclose(loss, results["sequential_loss"], rtol=1e-5)


def test_a_trainer_of_a_pruned_chain(in_force, results):
    trainer = fg.Trainer(chain(), optimizer=SGD(0.1, 0.9))
    fg.load(DATA / "pruned_chain_0.1.0.safetensors", trainer)
    np.testing.assert_allclose(trainer.model.predict(results["rows"]), results["chain"], rtol=1e-12)
    # of the weights, and of the biases
    assert sorted(mask.mean() for mask in trainer.model.masks().values()) == [0.5, 0.5, 1, 1]
    np.testing.assert_allclose(trainer.step(results["rows"], np.arange(8) % 3), results["chain_loss"], rtol=1e-12)


def test_a_model_from_the_file_of_its_trainer(in_force, results):
    model = sequential()
    fg.load(DATA / "sequential_0.1.0.safetensors", model)
    np.testing.assert_allclose(model.predict(results["x"]), results["sequential"], rtol=1e-5, atol=1e-6)
