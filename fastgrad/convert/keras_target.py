"""model_to_keras: a model of fg.nn as Keras's layers."""

from typing import Any

import numpy as np

from fastgrad.convert.keras_source import FUNCTIONS
from fastgrad.convert.leaves import check_model, leaves, place_of, takes_images
from fastgrad.convert.recurrent_arrays import cell_of
from fastgrad.convert.recurrent_keras import to_keras
from fastgrad.functional import geometry
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.context import activation_name
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

# a layer of Keras and its weights
Pair = tuple[Any, list[np.ndarray]]


def model_to_keras(model: Model, image_size: int | tuple[int, int] | None = None) -> Any:
    """A keras.Sequential with the weights and the outputs of a model.

    It is what model_from_keras reads: every layer of a Sequential, of inner ones in their place. Layers of an LSTM or a
    GRU come one after the other, and the padding of a convolution is a ZeroPadding2D before it. A Residual has no
    equal. In training, batch norms there are those with unbiased=False.

    Args:
        model: The model, not on a GPU. Nothing of it is changed.
        image_size: Height and width of the inputs, in pixels, an integer or a pair; needed where a Flatten makes rows
            of images, or the model is norms and dropout alone, which without it are of rows.

    Returns:
        The keras.Sequential, built.

    Raises:
        ValueError: A layer has what Keras has not, the model is on a GPU, or image_size is missing or does not fit.
        TypeError: model is no model of fg.nn, or a layer has no equal.
        ImportError: Keras is not installed.

    Example:
        >>> model = fg.nn.DenseChain([4, 8, 3], output="softmax")
        >>> [type(layer).__name__ for layer in fg.convert.model_to_keras(model).layers]
        ['Dense', 'Dense']
    """
    op = "model_to_keras"
    check_model(op, model)
    try:
        import keras
    except ImportError as error:
        raise ImportError(f"{op}: Keras is needed; pip install keras, and one of its backends") from error
    pairs: list[Pair] = []
    size = (None, None) if image_size is None else geometry.pair(op, "image_size", image_size)
    for path, layer in leaves(model):
        place = place_of(path, layer)
        if isinstance(layer, Flatten) and image_size is None:
            raise ValueError(f"{op}: {place} needs image_size=(H, W), the height and width of the model's inputs")
        try:
            own = _layers(Makers(keras.layers, model.dtype), layer)
        except ValueError as error:
            raise ValueError(f"{op}: {place} {error}") from None
        if not own:
            raise TypeError(f"{op}: {place} has no equal among the layers of a keras.Sequential")
        pairs += own
    shape = (None,) if model.recurrent else size if takes_images(model, image_size) else ()
    inputs = keras.Input((*shape, _columns(op, model, size)), dtype=str(model.dtype))
    theirs = keras.Sequential([inputs, *(layer for layer, _ in pairs)])
    for layer, weights in pairs:
        if weights:
            layer.set_weights(weights)
    return theirs


def _columns(op: str, model: Model, size: tuple[Any, Any]) -> int:
    """The number of channels of the inputs."""
    if model.n_in is not None:
        return model.n_in
    first, *others = [layer for _, layer in leaves(model)]
    columns = next((layer.n_in for layer in others if layer.n_in is not None), None)
    if not isinstance(first, Flatten) or columns is None:
        raise ValueError(f"{op}: the model takes any number of channels, and one of Keras a known one")
    # rows of the images themselves
    channels, rest = divmod(columns, size[0] * size[1])
    if rest:
        raise ValueError(f"{op}: images of {size} pixels do not give {columns} columns")
    return channels


class Makers:
    """Makes Keras's layers by name, of the model's dtype; those of images as here, whatever Keras's own settings are."""

    def __init__(self, layers: Any, dtype: np.dtype) -> None:
        self.layers, self.dtype = layers, str(dtype)

    def layer(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.layers, name)(*arguments, dtype=self.dtype, **options)

    def images(self, name: str, *arguments: Any, **options: Any) -> Any:
        return self.layer(name, *arguments, data_format="channels_last", **options)


def _layers(make: Makers, layer: Model) -> list[Pair]:
    """Keras's layers for one layer, none if there is no equal. ValueError: what Keras has not, as the end of a sentence."""
    if isinstance(layer, (LSTM, GRU)):
        return _recurrent(make, layer)
    if isinstance(layer, Dense):
        weights = [np.array(a) for a in (layer.w, layer.b) if a is not None]
        name, after = _activation(make, layer)
        return [(make.layer("Dense", layer.n_out, name, layer.b is not None), weights), *after]
    if isinstance(layer, Conv2d):
        weights = [np.array(a) for a in (layer.w, layer.b) if a is not None]
        before, padding = _padding(make, layer, zeros=True)
        name, after = _activation(make, layer)
        options = {"padding": padding, "dilation_rate": layer.dilation, "groups": layer.groups, "activation": name}
        options["use_bias"] = layer.b is not None
        return [*before, (make.images("Conv2D", layer.n_out, layer.size, layer.stride, **options), weights), *after]
    if isinstance(layer, (BatchNorm, LayerNorm)):
        weights = [np.array(a) for a in (layer.gamma, layer.beta, *layer.statistics().values())]
        name, after = _activation(make, layer)
        if name != "linear":
            after = [(make.layer("Activation", name), [])]
        if isinstance(layer, LayerNorm):
            return [(make.layer("LayerNormalization", epsilon=layer.eps), weights), *after]
        # without the last digit of 1 - 0.01
        momentum = round(1 - layer.momentum, 12)
        return [(make.layer("BatchNormalization", momentum=momentum, epsilon=layer.eps), weights), *after]
    if isinstance(layer, AvgPool2d):
        before, padding = _padding(make, layer, zeros=layer.include_pad)
        return [*before, (make.images("AveragePooling2D", layer.size, layer.stride, padding), [])]
    if isinstance(layer, MaxPool2d):
        _, padding = _padding(make, layer, zeros=False)
        return [(make.images("MaxPooling2D", layer.size, layer.stride, padding), [])]
    if isinstance(layer, GlobalAvgPool2d):
        return [(make.images("GlobalAveragePooling2D"), [])]
    if isinstance(layer, Flatten):
        return [(make.images("Flatten"), [])]
    return [(make.layer("Dropout", layer.rate), [])] if isinstance(layer, Dropout) else []


def _padding(make: Makers, layer: Conv2d | MaxPool2d, zeros: bool) -> tuple[list[Pair], str]:
    """(a layer of zeros or nothing, Keras's padding). zeros: whether the padding is zeros, which a layer can put there."""
    if isinstance(layer, MaxPool2d) and layer.ceil_mode:
        raise ValueError("has ceil_mode, which Keras has not")
    if layer.padding == "same":
        if isinstance(layer, AvgPool2d) and zeros:
            raise ValueError('has padding "same" with include_pad, which Keras has not')
        return [], "same"
    top, left, bottom, right = geometry.sides("", layer.padding)
    if max(top, left, bottom, right) == 0:
        return [], "valid"
    if zeros:
        is_even = (top, left) == (bottom, right)
        return [(make.images("ZeroPadding2D", (top, left) if is_even else ((top, bottom), (left, right))), [])], "valid"
    # without a stride it is "same" if the size stays, with the odd pixel at the bottom and right
    totals = top + bottom, left + right
    is_same = (top, left) == (totals[0] // 2, totals[1] // 2) and layer.size == (totals[0] + 1, totals[1] + 1)
    if layer.stride == (1, 1) and is_same:
        return [], "same"
    raise ValueError(f"has padding {layer.padding}, and Keras's pools only 'valid' and 'same'")


def _activation(make: Makers, layer: Model) -> tuple[str, list[Pair]]:
    """(Keras's name of the activation, none); of one with a parameter ("linear", its layer)."""
    activation = activation_name(layer.output)
    name, parameter = activation if isinstance(activation, tuple) else (activation, layer.output.parameter)
    if name == "leaky_relu":
        return "linear", [(make.layer("LeakyReLU", negative_slope=parameter), [])]
    if name == "clipped_relu":
        return "linear", [(make.layer("ReLU", max_value=parameter), [])]
    if name == "elu" and parameter != 1:
        return "linear", [(make.layer("ELU", alpha=parameter), [])]
    if name not in FUNCTIONS.values():
        raise ValueError(f"has activation {name!r}, which Keras has no layer for")
    return ("linear" if name == "identity" else name), []


def _recurrent(make: Makers, layer: LSTM | GRU) -> list[Pair]:
    try:
        weights = to_keras(layer)
    except ValueError as error:
        raise ValueError(f"is not Keras's: {error}") from None
    if layer.reverse and (layer.pool != "last" or layer.num_layers > 1):
        raise ValueError("has reverse, and Keras's go_backwards returns sequences in another order")
    pairs: list[Pair] = []
    arrays_each, cell = 3 * layer.directions, cell_of(type(layer))
    options: dict[str, Any] = {"go_backwards": layer.reverse}
    if isinstance(layer, GRU):
        options["reset_after"] = layer.reset_after
    for i in range(layer.num_layers):
        last = i == layer.num_layers - 1
        sequences = not (last and layer.pool == "last")
        theirs = make.layer(cell, layer.hidden_size, return_sequences=sequences, **options)
        if layer.bidirectional:
            theirs = make.layer("Bidirectional", theirs)
        pairs.append((theirs, weights[i * arrays_each : (i + 1) * arrays_each]))
        if layer.dropout and not last:
            pairs.append((make.layer("Dropout", layer.dropout), []))
    return [*pairs, (make.layer("GlobalAveragePooling1D"), [])] if layer.pool == "mean" else pairs
