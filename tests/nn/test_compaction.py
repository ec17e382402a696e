"""Sequentials without the units that pruning has cut off; and models whose masks are taken off."""

import copy

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses

import fastgrad as fg
from fastgrad.nn import LSTM, BatchNorm, Conv2d, Dense, DenseChain, Dropout, Flatten, Residual, Sequential

X = np.random.default_rng(0).standard_normal((12, 6), np.float32)
LABELS = np.arange(12) % 3


def shapes(model):
    return {name: array.shape for name, array in model.parameters().items() if array.ndim > 1}


def with_biases(model, seed=3):
    """The model with biases that are not 0, so that units without incoming weights have an output."""
    rng = np.random.default_rng(seed)
    for name, array in model.parameters().items():
        if name.endswith("b"):
            array[...] = rng.standard_normal(array.shape)
    return model


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_dense_layers_lose_the_units_that_a_chain_loses(in_force, dtype, activation):
    model = Sequential(
        Dense(6, 10, activation, dtype=dtype),
        DenseChain([10, 8, 9], activation, activation, dtype=dtype),
        Dense(9, 3, dtype=dtype),
        seed=1,
    )
    chain = DenseChain([6, 10, 8, 9, 3], activation, dtype=dtype)
    chain.params[...] = with_biases(model).params
    for whole in (model, chain):
        fg.prune(whole, 0.5, units=True)
    small, expected = model.compact(), chain.compact()
    assert expected.sizes == (6, 5, 4, 5, 3)
    assert bits(small.params) == bits(expected.params)
    assert [type(layer) for layer in small.layers] == [Dense, DenseChain, Dense]
    assert shapes(small) == {"0.w": (6, 5), "1.0.w": (5, 4), "1.1.w": (4, 5), "2.w": (5, 3)}
    x = X.astype(dtype)
    assert bits(small.predict(x)) == bits(expected.predict(x))
    np.testing.assert_allclose(small.predict(x), model.predict(x), rtol=1e-5, atol=1e-5)
    assert not np.shares_memory(small.params, model.params)


def test_dropout_between_dense_layers_does_not_hold_units(numpy_backend):
    model = with_biases(Sequential(Dropout(0.1), Dense(6, 10, "tanh"), Dropout(0.5), Dense(10, 3, bias=False), seed=1))
    model.layers[1].w[:, :4] = 0
    model.layers[3].w[6:] = 0
    small = model.compact()
    assert shapes(small) == {"1.w": (6, 2), "3.w": (2, 3)}
    # the constant outputs of four units
    assert small.layers[3].b is not None
    np.testing.assert_allclose(small.predict(X), model.predict(X), rtol=1e-5, atol=1e-6)
    # the draws go on where they were
    assert [g.bit_generator.state for g in small._generators()] == [g.bit_generator.state for g in model._generators()]
    fg.Trainer(small).fit(X, LABELS, epochs=2, batch_size=4)
    assert Sequential(small, seed=3).predict(X).shape == (12, 3)


def test_units_that_other_layers_read_stay_and_those_layers_are_copied(numpy_backend):
    inner = Sequential(Dense(7, 9, "relu"), Dense(9, 7, "relu"))
    block = Residual(Sequential(Dense(7, 7, "relu"), Dense(7, 7)))
    model = Sequential(Dense(6, 8, "relu"), Dense(8, 7), BatchNorm(7, "relu"), inner, block, Dense(7, 3), seed=1)
    fg.Trainer(model).fit(X, LABELS, epochs=1, batch_size=6)
    fg.prune(model, 0.5, units=True)
    small = model.compact()
    assert shapes(small) == {
        "0.w": (6, 4), "1.w": (4, 7), "3.0.w": (7, 5), "3.1.w": (5, 7), "4.body.0.w": (7, 7), "4.body.1.w": (7, 7), "5.w": (7, 3),
    }  # fmt: skip
    np.testing.assert_allclose(small.predict(X), model.predict(X), rtol=1e-5, atol=1e-6)
    assert bits(small.layers[2].running_var) == bits(model.layers[2].running_var)
    assert not np.shares_memory(small.layers[2].running_var, model.layers[2].running_var)
    before = bits(model.params)
    fg.Trainer(small).fit(X, LABELS, epochs=1, batch_size=6)
    assert bits(model.params) == before


def test_masks_of_what_is_left_stay(numpy_backend):
    model = with_biases(Sequential(Dense(6, 10, "relu"), Dense(10, 3), BatchNorm(3), seed=1))
    fg.prune(model, 0.5, units=True, names=["0.w"])
    fg.prune(model, 0.7, names=["1.w"])
    small = model.compact()
    masks = small.masks()
    for name, array in small.parameters().items():
        assert not array[~masks[name]].any()
    fg.Trainer(small, optimizer=fg.optim.Adam(0.1)).fit(X, LABELS, epochs=2, batch_size=4)
    for name, array in small.parameters().items():
        assert not array[~masks[name]].any()
    assert (~masks["1.w"]).any()
    assert Sequential(Dense(4, 3)).compact().masks() == {}


def test_nets_without_dense_layers_to_compact_are_copies(numpy_backend):
    images = np.random.default_rng(1).standard_normal((2, 5, 5, 2), np.float32)
    model = Sequential(Conv2d(2, 3, 3), Flatten(), Dense(27, 4, "relu"), Dense(4, 2), seed=2)
    fg.prune(model, 0.25, units=True)
    small = model.compact()
    # units of the convolution stay
    assert small.layers[0].w.shape == (3, 3, 2, 3)
    assert small.layers[2].w.shape == (27, 3)
    np.testing.assert_allclose(small.predict(images), model.predict(images), rtol=1e-5, atol=1e-6)
    recurrent = Sequential(LSTM(6, 4, 2, dropout=0.5), Dense(4, 2), seed=2)
    small = recurrent.compact()
    x = np.random.default_rng(1).standard_normal((2, 5, 6), np.float32)
    assert bits(small.predict(x)) == bits(recurrent.predict(x))
    assert bits(small.forward(x, True)[0]) == bits(recurrent.forward(x, True)[0])


def test_without_masks_what_was_pruned_trains_again(in_force):
    model = Sequential(Dense(6, 10, "tanh"), Dense(10, 3), seed=1)
    trainer = fg.Trainer(model, optimizer=fg.optim.Adam(0.1))
    masks = {name: mask.copy() for name, mask in fg.prune(model, 0.5).items()}
    trainer.step(X, LABELS)
    fg.remove_masks(model, ["0.w", "0.b"])
    assert not model.layers[0].w[~masks["0.w"]].any()
    trainer.step(X, LABELS)
    # units without outgoing weights have no gradient
    assert (model.layers[0].w[~masks["0.w"]] != 0).mean() > 0.6
    assert not model.layers[1].w[~masks["1.w"]].any()
    np.testing.assert_array_equal(model.masks()["1.w"], masks["1.w"])
    np.testing.assert_array_equal(model.layers[1].masks()["w"], masks["1.w"])
    fg.remove_masks(model)
    assert model.masks() == model.layers[1].masks() == {}
    trainer.fit(X, LABELS)
    assert (model.layers[1].w[~masks["1.w"]] != 0).all()


def test_the_last_mask_that_goes_takes_all_with_it(numpy_backend):
    model = DenseChain([4, 5, 3], seed=0)
    fg.prune(model, 0.5, names=["0.w"])
    other = copy.deepcopy(model)
    fg.remove_masks(model, ["1.w"])
    assert not model.masks()["0.w"].all()
    fg.remove_masks(model, ["0.w"])
    assert model.masks() == {}
    fg.remove_masks(model, ["0.w"])
    fg.remove_masks(model)
    assert not other.masks()["0.w"].all()


def test_bad_arguments_of_remove_masks(numpy_backend):
    layer = Dense(4, 3)
    model = Sequential(layer, BatchNorm(3))
    fg.prune(model, 0.5)
    before = bits(model._mask)
    refuses(TypeError, "remove_masks: model must be a layer of fastgrad.nn, got list", fg.remove_masks, [layer])
    message = "remove_masks: names[1] must be one of 0.w, 0.b, 1.gamma, 1.beta; got 'w'"
    refuses(ValueError, message, fg.remove_masks, model, ["0.w", "w"])
    refuses(TypeError, "remove_masks: names must be a list or tuple, got str", fg.remove_masks, model, "0.w")
    message = "remove_masks: the model is part of a Sequential; give that, with names"
    refuses(ValueError, message, fg.remove_masks, layer)
    assert bits(model._mask) == before
