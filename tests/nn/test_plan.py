"""What a Sequential calls of its layers: runs of dense layers as one chain, over the same memory and with the same bits."""

import copy
import pickle

import numpy as np
import pytest
from arrays import bits

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Dense, DenseChain, Dropout, Residual, Sequential
from fastgrad.nn.context import ForwardContext


class OwnDense(Dense):
    """A layer of a user's own."""


def data(n=20, columns=4):
    return np.random.default_rng(0).standard_normal((n, columns), np.float32)


def net():
    """A run with and without biases, one within another Sequential, and one behind a norm."""
    first = Sequential(Dense(4, 6, "relu"), Dense(6, 5, "tanh", bias=False))
    return Sequential(first, DenseChain([5, 4, 3], "gelu"), BatchNorm(3), Dense(3, 3), Dense(3, 2, "softmax"), seed=1)


def widths(model):
    return [getattr(step, "sizes", None) for step in model._plan]


def one_by_one(model, x, training):
    """(y, gradients, dx) of the layers in turn."""
    backwards = []
    for layer in model.layers:
        inner = layer.layers if isinstance(layer, Sequential) else [layer]
        for leaf in inner:
            x, _, backward = leaf._forward(x, ForwardContext(training))
            backwards.append(backward)
    dx = np.ones_like(x)
    for backward in reversed(backwards):
        dx = backward(dx)
    return x, model.grads.copy(), dx


def test_runs_of_dense_layers_are_one_chain():
    assert widths(net()) == [(4, 6, 5, 4, 3), None, (3, 3, 2)]
    assert widths(Sequential(Dense(2, 3), OwnDense(3, 3), Dense(3, 2))) == [(2, 3), (3, 3), (3, 2)]
    assert widths(Sequential(Dense(2, 3), Dropout(0.1), Dense(3, 2))) == [(2, 3), None, (3, 2)]
    whole = Sequential(Dense(2, 3), Sequential(DenseChain([3, 4, 2])))
    assert whole._chain.sizes == (2, 3, 4, 2)
    assert whole._chain is whole._plan[0]
    assert net()._chain is None
    assert Sequential(OwnDense(2, 3))._chain is None


@pytest.mark.parametrize("training", [False, True])
def test_a_run_has_the_bits_of_its_layers(in_force, training):
    x = data()
    model, other = net(), net()
    y, backward = model.forward(x, training)
    dx = backward(np.ones_like(y))
    expected, grads, expected_dx = one_by_one(other, x, training)
    assert (bits(y), bits(model.grads), bits(dx)) == (bits(expected), bits(grads), bits(expected_dx))
    assert all(
        bits(a) == bits(b) for a, b in zip(model.statistics().values(), other.statistics().values(), strict=True)
    )
    assert bits(model.predict(x)) == bits(model.predict(x, 7))


def test_a_sequential_of_dense_layers_trains_as_a_chain(in_force):
    chain = DenseChain([4, 6, 5, 3], "tanh", "softmax", seed=3)
    layers = Sequential(Dense(4, 6, "tanh"), Dense(6, 5, "tanh"), Dense(5, 3, "softmax"), seed=3)
    x, y = data(), np.arange(20) % 3
    trainers = [fg.Trainer(model, clip_norm=0.5, health=2) for model in (chain, layers)]
    losses = [(trainer.step(x, y), trainer.fit(x, y, epochs=2, batch_size=8).loss) for trainer in trainers]
    assert losses[0] == losses[1]
    assert bits(chain.params) == bits(layers.params)
    assert bits(trainers[0].health().history) == bits(trainers[1].health().history)
    assert bits(chain.predict(x)) == bits(layers.predict(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copys_plan_is_over_its_own_memory(in_force, copied):
    x, model = data(), net()
    twin = copied(model)
    for other in (model, twin):
        assert all(np.shares_memory(step.params, other.params) for step in other._plan)
    twin.params[...] = 0
    assert bits(twin.predict(x)) != bits(model.predict(x))
    model.layers[0].layers[0].w[...] = 0
    model.parameters()["1.0.w"][...] = 0
    model.layers[1].biases[0][...] = 0
    assert not model.layers[1].predict(model.layers[0].predict(x)).any()


def test_a_plan_follows_its_model_into_another(in_force, tmp_path):
    x, inner = data(), Sequential(Dense(4, 5, "relu"), Dense(5, 4))
    expected = bits(inner.predict(x))
    whole = Sequential(Residual(inner), Dense(4, 2), seed=None)
    assert np.shares_memory(inner._chain.params, whole.params)
    fg.save(tmp_path / "model", whole)
    whole.params[...] = 0
    fg.load(tmp_path / "model", whole)
    assert whole.params.any()
    inner.params[...] = whole.params[: inner.params.size]
    h = np.maximum(x @ inner.layers[0].w + inner.layers[0].b, 0) @ inner.layers[1].w + inner.layers[1].b
    np.testing.assert_allclose(whole.layers[0].predict(x), x + h, rtol=1e-5, atol=1e-6)
    assert expected is not None


def test_a_pruned_sequential_stays_pruned(in_force):
    x, y = data(), np.arange(20) % 2
    model = Sequential(Dense(4, 6, "relu"), Dense(6, 2), seed=0)
    trainer = fg.Trainer(model)
    trainer.step(x, y)
    masks = fg.prune(model, 0.5)
    trainer.fit(x, y, epochs=2, batch_size=8)
    assert not model.parameters()["0.w"][~masks["0.w"]].any()
    assert model.parameters()["0.w"][masks["0.w"]].all()


def test_states_are_those_of_layers_though_runs_are_one_step(in_force):
    x = np.random.default_rng(0).standard_normal((3, 5, 4), np.float32)
    model = Sequential(Dense(4, 4), Dense(4, 4, "relu"), LSTM(4, 3), Dense(3, 3), Dense(3, 2), seed=0)
    whole, state = model.run(x)
    assert [s is None for s in state] == [True, True, False, True, True]
    first, middle = model.run(x[:, :2])
    second, _ = model.run(x[:, 2:], middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-6)
