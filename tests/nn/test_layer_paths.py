"""Errors inside a model of layers say which layer raised them, by its path from the model; their class stays, and nothing else changes."""

import numpy as np
import pytest
from error_messages import refuses

import fastgrad as fg
from fastgrad.nn import (
    LSTM,
    BatchNorm,
    Conv2d,
    Dense,
    DenseChain,
    Dropout,
    Flatten,
    MaxPool2d,
    Model,
    Residual,
    Sequential,
)

pytestmark = pytest.mark.usefixtures("numpy_backend")


def calls(model, x):
    """The calls of a model and a trainer that run its layers over x."""
    trainer, y = fg.Trainer(model), np.zeros(len(x), np.int64)
    return [
        lambda: model(x),
        lambda: model.predict(x, 1),
        lambda: model.forward(x),
        lambda: model.forward(x, training=True),
        lambda: trainer.step(x, y),
        lambda: trainer.fit(x, y),
        lambda: trainer.predict(x),
        lambda: trainer.evaluate(x, y),
    ]


def net():
    body = Sequential(Conv2d(4, 4, 3, padding="same"), BatchNorm(4))
    return Sequential(
        Conv2d(3, 4, 3, activation="relu"),
        Residual(body),
        MaxPool2d(2),
        Flatten(),
        Sequential(Dropout(0.1), Dense(36, 8, "relu"), Dense(8, 4)),
        Dense(4, 2),
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2, 9), "layers[0]: Conv2d: the kernel's reach must be at most the padded image (2, 9), got (3, 3)"),
        ((3, 3), "layers[2]: max_pool2d: size must be at most the padded image (1, 1), got (2, 2)"),
        ((6, 6), "layers[4].layers[1]: Dense{op}: x must be (N, C) = (_, 36), got ({n}, 16)"),
    ],
)
def test_the_layer_is_named_in_every_call(size, message):
    model = net()
    x = np.zeros((2, *size, 3), np.float32)
    before = model.params.copy(), [a.copy() for a in model.statistics().values()]
    for i, call in enumerate(calls(model, x)):
        op = ".predict" if i in (0, 1, 6, 7) else ""
        refuses(ValueError, f"Sequential.{message.format(n=1 if i == 1 else 2, op=op)}", call)
    np.testing.assert_array_equal(model.params, before[0])
    for array, values in zip(model.statistics().values(), before[1], strict=True):
        np.testing.assert_array_equal(array, values)
    assert fg.Trainer(model).step(np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int64)) > 0


def test_paths_lead_through_bodies_and_shortcuts_to_the_layer():
    body = Sequential(Conv2d(4, 4, 3, padding="same"), Sequential(Conv2d(4, 4, 1), BatchNorm(4)))
    model = Sequential(Dropout(0.0), Residual(body, Conv2d(4, 4, 3)))
    too_small, same = np.zeros((1, 2, 2, 4), np.float32), np.zeros((1, 5, 5, 4), np.float32)
    for call in (model, lambda x: model.forward(x, True)):
        message = "the kernel's reach must be at most the padded image (2, 2), got (3, 3)"
        refuses(ValueError, f"Sequential.layers[1].shortcut: Conv2d: {message}", call, too_small)
        message = "residual must be like x = (1, 5, 5, 4), got (1, 3, 3, 4)"
        refuses(ValueError, f"Sequential.layers[1].body.layers[1].layers[1]: BatchNorm: {message}", call, same)
    assert type(model.layers[1].body.layers[1].layers[1]) is BatchNorm
    single = Residual(Conv2d(4, 4, 3, padding="same"), Dropout(0.0))
    message = "Residual.body: Conv2d: x must be float32 like the model, got float64; astype(np.float32), or dtype='float64' for the model"
    refuses(TypeError, message, single, same.astype("float64"))


def test_dense_layers_that_run_as_one_are_named_by_the_first():
    model = Sequential(Flatten(), Dense(12, 4), DenseChain([4, 3, 2]), Dense(2, 2), Dropout(), Dense(2, 2))
    x = np.zeros((2, 2, 2, 2), np.float32)
    refuses(ValueError, "Sequential.layers[1]: Dense: x must be (N, C) = (_, 12), got (2, 8)", model.forward, x, True)
    assert [model._path(i) for i in range(4)] == [f".layers[{i}]" for i in (0, 1, 4, 5)]


def test_an_error_of_the_model_itself_keeps_its_words():
    model = Sequential(LSTM(3, 4), Dense(4, 2))
    x = np.zeros((2, 5, 3), np.float32)
    refuses(ValueError, "Sequential: state must have length 2, got 1", model.run, x, [None])
    message = "Sequential: state[1] must be None, for layers[1] has no LSTM and no GRU"
    refuses(ValueError, message, model.run, x, [None, 3])
    message = "Sequential.layers[0]: LSTM: state must have length 2, got 1"
    refuses(ValueError, message, model.run, x, [[None], None])


class Failing(Model):
    """A layer that raises this error."""

    keeps_width, n_in, n_out = True, None, None

    def __init__(self, error):
        super().__init__({}, "float32", 0)
        self.error = error

    def forward(self, x, training=False, *, logits=False):
        raise self.error


class CodedError(ValueError):
    """An error with more than a message."""

    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("too cold"), "Sequential.layers[1]: too cold"),
        (TypeError("no"), "Sequential.layers[1]: no"),
        (ValueError(), ""),
        (ValueError(3), "3"),
        (CodedError("too cold", 7), "('too cold', 7)"),
        (KeyError("k"), "'k'"),
        (RuntimeError("out"), "out"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_errors_of_a_users_layer_are_the_same_objects(error, text):
    model = Sequential(Dropout(), Failing(error))
    with pytest.raises(type(error)) as caught:
        model.forward(np.zeros((2, 3), np.float32))
    assert caught.value is error
    assert str(error) == text
