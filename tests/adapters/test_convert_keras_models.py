"""Whole models from Keras and to it: Keras's outputs and statistics from ours, and back to the same bits.

All but the last ones skip without Keras.
"""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from keras_import import import_keras

import fastgrad as fg
from fastgrad.nn import (
    GRU,
    LSTM,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    MaxPool2d,
    Residual,
    Sequential,
)

SIZE = 9, 12
# name: (shape of the inputs without N, layers of keras.layers)
MODELS = {
    "dense": ((4,), lambda k, L: [L.Dense(8, "relu"), L.Dropout(0.3), L.Dense(3, "softmax", use_bias=False)]),
    "nested": (
        (4,),
        lambda k, L: [
            k.Sequential([L.Dense(8), L.BatchNormalization(momentum=0.9), L.Activation("tanh")]),
            L.Flatten(),
            L.Dense(3, L.LeakyReLU()),
        ],
    ),
    "images": (
        (*SIZE, 4),
        lambda k, L: [
            L.Conv2D(6, (3, 2), 2, "same", groups=2, use_bias=False),
            L.BatchNormalization(epsilon=1e-2),
            L.ReLU(max_value=2.0),
            L.MaxPooling2D(3, 2, "same"),
            L.Conv2D(5, 2, activation="gelu", padding="same", dilation_rate=2),
            L.AveragePooling2D(2, 1, "same"),
            L.Flatten(),
            L.Dense(3),
        ],
    ),
    "zeros": (
        (*SIZE, 3),
        lambda k, L: [
            L.ZeroPadding2D((1, 2)),
            L.Conv2D(4, (3, 5), activation="relu6"),
            L.ZeroPadding2D(1),
            L.AveragePooling2D(3, 2),
            L.GlobalAveragePooling2D(),
            L.Dense(2, "selu"),
        ],
    ),
    "layer norm": (
        (*SIZE, 4),
        lambda k, L: [
            L.Conv2D(3, 2),
            L.LayerNormalization(),
            L.ReLU(),
            L.Flatten(),
            L.LayerNormalization(epsilon=1e-2),
            L.Dense(2),
        ],
    ),
    "flatten first": ((*SIZE, 3), lambda k, L: [L.Flatten(), L.Dense(3), L.ELU(0.5)]),
    "lstm": (
        (6, 3),
        lambda k, L: [
            L.LSTM(5, return_sequences=True),
            L.BatchNormalization(),
            L.Dense(4, "softplus"),
            L.Bidirectional(L.LSTM(4)),
            L.Dense(2),
        ],
    ),
    "lstm from the end": ((6, 3), lambda k, L: [L.LSTM(5, go_backwards=True, use_bias=False), L.Dense(2, "elu")]),
    "mean of steps": (
        (6, 3),
        lambda k, L: [L.Bidirectional(L.LSTM(5, return_sequences=True)), L.GlobalAveragePooling1D(), L.Dense(2)],
    ),
    "zeros on one side": (
        (7, 6, 3),
        lambda k, L: [
            L.ZeroPadding2D(((0, 1), (0, 1))),
            L.Conv2D(4, 3, strides=2, activation="relu"),
            L.ZeroPadding2D(((1, 0), (0, 1))),
            L.AveragePooling2D(2, 1),
        ],
    ),
    "gru": (
        (6, 3),
        lambda k, L: [
            L.GRU(5, return_sequences=True),
            L.BatchNormalization(),
            L.Dense(4, "softplus"),
            L.Bidirectional(L.GRU(4, reset_after=False)),
            L.Dense(2),
        ],
    ),
    "gru from the end": ((6, 3), lambda k, L: [L.GRU(5, go_backwards=True, use_bias=False), L.Dense(2, "elu")]),
    "mean of a gru's steps": (
        (6, 3),
        lambda k, L: [
            L.LSTM(4, return_sequences=True),
            L.Bidirectional(L.GRU(5, return_sequences=True)),
            L.GlobalAveragePooling1D(),
            L.Flatten(),
            L.Dense(2),
        ],
    ),
}


@pytest.fixture(scope="module")
def keras():
    return import_keras()


def keras_model(keras, name, rng):
    shape, layers = MODELS[name]
    model = keras.Sequential([keras.Input(shape), *layers(keras, keras.layers)])
    model.set_weights([rng.uniform(0.2, 1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model, rng.standard_normal((4, *shape), np.float32)


def outputs(model, x, training=False):
    y = model(x, training=training)
    return np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", MODELS)
def test_models_have_kerass_outputs_and_go_back_to_the_same_bits(in_force, name, keras, rng):
    theirs, x = keras_model(keras, name, rng)
    before = theirs.get_weights()
    model = fg.convert.model_from_keras(theirs)
    close(model.predict(x), outputs(theirs, x))
    back = fg.convert.model_to_keras(model, SIZE if model.images else None)
    close(outputs(back, x), outputs(theirs, x))
    again = fg.convert.model_from_keras(back)
    assert bits(again.params) == bits(model.params)
    for a, b in zip(again.statistics().values(), model.statistics().values(), strict=True):
        assert bits(a) == bits(b)
    assert repr(again) == repr(model)
    assert all(bits(a) == bits(b) for a, b in zip(theirs.get_weights(), before, strict=True))


def test_a_forward_in_training_moves_the_statistics_as_keras_does(keras, rng):
    theirs, x = keras_model(keras, "nested", rng)
    model = fg.convert.model_from_keras(theirs)
    y, _ = model.forward(x, training=True)
    close(y, outputs(theirs, x, training=True))
    norm = theirs.layers[0].layers[1]
    for ours, own in zip(model.statistics().values(), norm.get_weights()[2:], strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-5)


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_layers_on_top_of_each_other_come_one_after_the_other(cell, keras, rng):
    model = Sequential(cell(3, 4, 2, bidirectional=True, dropout=0.5), BatchNorm(8, "silu"), Dense(8, 2), seed=0)
    x = rng.standard_normal((2, 5, 3), np.float32)
    theirs = fg.convert.model_to_keras(model)
    names = "Bidirectional Dropout Bidirectional BatchNormalization Activation Dense"
    assert [type(layer).__name__ for layer in theirs.layers] == names.split()
    close(outputs(theirs, x), model.predict(x))


def test_layers_of_our_own(keras, rng):
    """What model_from_keras does not make: paddings of pools, an inner Sequential."""
    model = Sequential(
        Sequential(Conv2d(3, 4, 3, padding=1), MaxPool2d(3, stride=1, padding=1)),
        AvgPool2d(3, padding=1),
        AvgPool2d(3, stride=1, padding=1, include_pad=False),
        MaxPool2d(2, stride=1, padding=((0, 1), (0, 1))),
        Conv2d(4, 2, 1, activation=("leaky_relu", 0.3)),
        seed=0,
    )
    x = rng.standard_normal((2, *SIZE, 3), np.float32)
    close(outputs(fg.convert.model_to_keras(model), x), model.predict(x))


def test_float64(keras, rng):
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 without a setting of its own")
    model = Sequential(
        Conv2d(3, 4, 3, padding=1, activation=("elu", 0.5), dtype="float64"),
        BatchNorm(4, "tanh", dtype="float64"),
        MaxPool2d(2),
        Flatten(),
        Dense(4 * 4 * 6, 2, "softmax", dtype="float64"),
        seed=0,
    )
    theirs, x = fg.convert.model_to_keras(model, SIZE), rng.standard_normal((2, *SIZE, 3))
    assert {str(a.dtype) for a in theirs.get_weights()} == {"float64"}
    # Keras over PyTorch multiplies matrices in float32, whatever their dtype is
    np.testing.assert_allclose(outputs(theirs, x), model.predict(x), rtol=1e-6)
    again = fg.convert.model_from_keras(theirs)
    assert again.dtype == np.float64
    assert bits(again.params) == bits(model.params)


def test_a_single_layer_is_that_layer(keras):
    layer = keras.layers.Dense(3, "tanh")
    layer.build((None, 4))
    assert repr(fg.convert.model_from_keras(layer)) == "Dense(4, 3, 'tanh')"


NOT = ", which fg.nn has not"
ZEROS = "must come before a Conv2D or an AveragePooling2D, which take its zeros as their padding"
REFUSED = {
    "zeros before a pool": (
        (4, 4, 3),
        lambda k, L: [L.ZeroPadding2D(1, name="a"), L.MaxPooling2D()],
        f'layer "a" (ZeroPadding2D) {ZEROS}',
    ),
    "zeros last": ((4, 4, 3), lambda k, L: [L.ZeroPadding2D(1, name="a")], f'layer "a" (ZeroPadding2D) {ZEROS}'),
    "zeros twice": (
        (4, 4, 3),
        lambda k, L: [L.ZeroPadding2D(1), L.Conv2D(2, 3, padding="same", name="a")],
        f'layer "a" (Conv2D) has padding "same" after a ZeroPadding2D{NOT}',
    ),
    "dropout within": (
        (4, 3),
        lambda k, L: [k.Sequential([L.LSTM(2, recurrent_dropout=0.1, name="b")], name="a")],
        f'layer "a.b" (LSTM) has dropout within an LSTM{NOT}',
    ),
    "another activation of an LSTM": (
        (4, 3),
        lambda k, L: [L.LSTM(2, activation="relu", name="a")],
        f"layer \"a\" (LSTM) has activations ('relu', 'sigmoid'){NOT}",
    ),
    "reversed sequences": (
        (4, 3),
        lambda k, L: [L.LSTM(2, go_backwards=True, return_sequences=True, name="a")],
        f'layer "a" (LSTM) has go_backwards with sequences, which come out reversed{NOT}',
    ),
    "sum of directions": (
        (4, 3),
        lambda k, L: [L.Bidirectional(L.LSTM(2), merge_mode="sum", name="a")],
        f"layer \"a\" (Bidirectional) has merge_mode 'sum'{NOT}",
    ),
    "dropout within a GRU": (
        (4, 3),
        lambda k, L: [L.GRU(2, dropout=0.1, name="a")],
        f'layer "a" (GRU) has dropout within a GRU{NOT}',
    ),
    "a simple layer in two directions": (
        (4, 3),
        lambda k, L: [L.Bidirectional(L.SimpleRNN(2), name="a")],
        f'layer "a" (Bidirectional) has a SimpleRNN for a direction{NOT}',
    ),
    "an LSTM and a GRU": (
        (4, 3),
        lambda k, L: [L.Bidirectional(L.LSTM(2), backward_layer=L.GRU(2, go_backwards=True), name="a")],
        f'layer "a" (Bidirectional) has an LSTM and a GRU for its directions{NOT}',
    ),
    "two kinds of GRU": (
        (4, 3),
        lambda k, L: [
            L.Bidirectional(L.GRU(2), backward_layer=L.GRU(2, reset_after=False, go_backwards=True), name="a")
        ],
        f'layer "a" (Bidirectional) has directions of different reset_after{NOT}',
    ),
    "rows of a GRU's sequences": (
        (4, 3),
        lambda k, L: [L.GRU(2, return_sequences=True), L.Flatten(name="a")],
        'layer "a" (Flatten) makes rows of sequences, which fg.nn.Flatten does not',
    ),
    "rows of sequences": (
        (4, 3),
        lambda k, L: [L.LSTM(2, return_sequences=True), L.Flatten(name="a")],
        'layer "a" (Flatten) makes rows of sequences, which fg.nn.Flatten does not',
    ),
    "mean of rows": (
        (4, 3),
        lambda k, L: [L.GlobalAveragePooling1D(name="a")],
        'layer "a" (GlobalAveragePooling1D) must come right after an LSTM or a GRU with return_sequences, and without keepdims',
    ),
    "batch norm without scale": (
        (4,),
        lambda k, L: [L.BatchNormalization(scale=False, name="a")],
        f'layer "a" (BatchNormalization) has center=False or scale=False{NOT}',
    ),
    "batch norm of another axis": (
        (4, 3),
        lambda k, L: [L.BatchNormalization(axis=1, name="a")],
        f'layer "a" (BatchNormalization) has axis 1, not the last{NOT}',
    ),
    "layer norm of another axis": (
        (4, 3),
        lambda k, L: [L.LayerNormalization(axis=1, name="a")],
        f'layer "a" (LayerNormalization) has axis 1, not the last{NOT}',
    ),
    "layer norm without center": (
        (4,),
        lambda k, L: [L.LayerNormalization(center=False, name="a")],
        f'layer "a" (LayerNormalization) has center=False or scale=False{NOT}',
    ),
    "two activations": (
        (4,),
        lambda k, L: [L.Dense(2, "relu"), L.Activation("tanh", name="a")],
        'layer "a" (Activation) is an activation, and fg.nn has these in Dense, Conv2d, BatchNorm and LayerNorm alone, one each: '
        "it must come right after such a layer",
    ),
    "another activation": (
        (4,),
        lambda k, L: [L.Dense(2, "hard_sigmoid", name="a")],
        f"layer \"a\" (Dense) has activation 'hard_sigmoid'{NOT}; known are linear, leaky_relu, relu, relu6, sigmoid, tanh, elu, "
        "selu, gelu, silu, softplus, softmax",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fastgrad_has_not_is_an_error_that_names_the_layer(name, keras):
    shape, layers, message = REFUSED[name]
    model = keras.Sequential([keras.Input(shape), *layers(keras, keras.layers)])
    refuses(ValueError, f"model_from_keras: {message}", fg.convert.model_from_keras, model)


def test_what_is_not_known_or_not_built_is_named(keras):
    convert, layers = fg.convert.model_from_keras, keras.layers
    known = (
        "known are Activation, AveragePooling2D, BatchNormalization, Bidirectional, Conv2D, Dense, Dropout, ELU, Flatten, GRU, "
        "GlobalAveragePooling1D, GlobalAveragePooling2D, InputLayer, LSTM, LayerNormalization, "
        "LeakyReLU, MaxPooling2D, ReLU, Sequential, Softmax, "
        "ZeroPadding2D"
    )
    model = keras.Sequential([keras.Input((4, 3)), layers.Conv1D(2, 2, name="a")])
    refuses(TypeError, f'model_from_keras: layer "a" (Conv1D) has no equal in fg.nn; {known}', convert, model)
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2)(x))
    hint = "of models only a Sequential is known"
    refuses(
        TypeError, f"model_from_keras: the model (Functional) has no equal in fg.nn; {hint}; {known}", convert, model
    )
    message = "model_from_keras: the model (Dense) has no weights yet; model.build(shape), or a keras.Input as its first layer, makes them"
    refuses(ValueError, message, convert, layers.Dense(3))
    message = "model_from_keras: model must be a keras.Sequential or a layer of Keras, got int"
    refuses(TypeError, message, convert, 3)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype="float16", name="a")])
    message = 'model_from_keras: w of layer "a" (Dense) must be float32 or float64 in native byte order, got float16'
    refuses(TypeError, message, convert, model)


def test_what_keras_has_not_is_an_error_that_names_the_layer(keras):
    convert = fg.convert.model_to_keras
    message = 'model_to_keras: layer "1" (Residual) has no equal among the layers of a keras.Sequential'
    refuses(TypeError, message, convert, Sequential(Dense(3, 3), Residual(Dense(3, 3))))
    message = "model_to_keras: layer \"1\" (MaxPool2d) has padding 1, and Keras's pools only 'valid' and 'same'"
    refuses(ValueError, message, convert, Sequential(Conv2d(3, 3, 3), MaxPool2d(3, padding=1)))
    message = 'model_to_keras: layer "1" (AvgPool2d) has padding "same" with include_pad, which Keras has not'
    refuses(ValueError, message, convert, Sequential(Conv2d(3, 3, 3), AvgPool2d(3, padding="same")))
    message = "model_to_keras: the model (MaxPool2d) has ceil_mode, which Keras has not"
    refuses(ValueError, message, convert, MaxPool2d(2, ceil_mode=True))
    message = (
        "model_to_keras: the model (LSTM) has reverse, and Keras's go_backwards returns sequences in another order"
    )
    refuses(ValueError, message, convert, LSTM(2, 3, reverse=True))
    message = (
        "model_to_keras: the model (LSTM) is not Keras's: to_keras: the layer has peephole, which Keras's LSTM has not"
    )
    refuses(ValueError, message, convert, LSTM(2, 3, peephole=True))
    message = "model_to_keras: the model (GRU) has reverse, and Keras's go_backwards returns sequences in another order"
    refuses(ValueError, message, convert, GRU(2, 3, reverse=True, pool="mean"))
    message = "model_to_keras: the model (Dense) has activation 'gelu_tanh', which Keras has no layer for"
    refuses(ValueError, message, convert, Dense(2, 3, "gelu_tanh"))
    message = 'model_to_keras: layer "1" (Flatten) needs image_size=(H, W), the height and width of the model\'s inputs'
    refuses(ValueError, message, convert, Sequential(Conv2d(3, 3, 3), Flatten()))
    message = "model_to_keras: the model takes any number of channels, and one of Keras a known one"
    refuses(ValueError, message, convert, MaxPool2d(2))
    message = "model_to_keras: images of (5, 5) pixels do not give 26 columns"
    refuses(ValueError, message, convert, Sequential(Flatten(), Dense(26, 3)), 5)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(BatchNorm(3), (*SIZE, 3)), (Sequential(BatchNorm(3), Dropout()), (*SIZE, 3)), (Sequential(BatchNorm(3), Dense(3, 2)), (3,))],
)  # fmt: skip
def test_norms_alone_are_of_images_where_an_image_size_is_given(model, shape, monkeypatch):
    keras = MagicMock()
    monkeypatch.setitem(sys.modules, "keras", keras)
    fg.convert.model_to_keras(model, SIZE)
    keras.Input.assert_called_once_with(shape, dtype="float32")


@pytest.mark.parametrize(("package", "slope"), [("tf_keras", "alpha"), ("keras", "alpha"), ("keras", "negative_slope")])
def test_the_slope_of_leaky_relu_is_read_by_its_older_name_too(package, slope):
    def layer(name, weights=(), **attributes):
        kind = type(name, (SimpleNamespace,), {"__module__": f"{package}.src.layers", "get_weights": lambda _: weights})
        return kind(name=name.lower(), built=True, **attributes)

    def linear(x):
        return x

    linear.__module__ = f"{package}.src.activations"
    weights = [np.ones((4, 3), np.float32), np.zeros(3, np.float32)]
    dense = layer("Dense", weights, use_bias=True, activation=linear)
    leaky = layer("LeakyReLU", **{slope: np.float32(0.25)})
    model = fg.convert.model_from_keras(layer("Sequential", layers=[dense, leaky]))
    assert repr(model.layers) == "(Dense(4, 3, ('leaky_relu', 0.25)),)"
    dense.activation = leaky
    assert repr(fg.convert.model_from_keras(dense)) == "Dense(4, 3, ('leaky_relu', 0.25))"


def test_without_keras_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    message = "model_to_keras: Keras is needed; pip install keras, and one of its backends"
    refuses(ImportError, message, fg.convert.model_to_keras, Dense(3, 4))
