"""model_from_keras: Keras's layers as a model of fg.nn. Keras is not imported."""

from collections.abc import Callable
from typing import Any

from fastgrad.convert.reading import Reading
from fastgrad.convert.recurrent_arrays import kind, with_article
from fastgrad.convert.recurrent_keras import from_keras
from fastgrad.functional.geometry import Padding
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d

# Keras's activation functions by name
FUNCTIONS: dict[str, str | tuple[str, float]] = {
    "linear": "identity",
    "leaky_relu": ("leaky_relu", 0.2),
    **{name: name for name in "relu relu6 sigmoid tanh elu selu gelu silu softplus softmax".split()},
}
CELLS: dict[str, type[LSTM | GRU]] = {"LSTM": LSTM, "GRU": GRU}


class KerasReading(Reading):
    """What has been read of a Keras model, and the zeros around the images that its last layer put there."""

    def __init__(self, op: str) -> None:
        super().__init__(op, None, channels_first=False)
        self.zeros: Padding | None = None


def model_from_keras(model: Any) -> Model:
    """A model of fg.nn with the weights and the outputs of a Keras model.

    The model is a Sequential, also of others, whose layers come in their place; or a single layer. Known are Dense,
    Conv2D, BatchNormalization, LayerNormalization of the last axis, LSTM, GRU, Bidirectional of one of these,
    MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D, GlobalAveragePooling1D after an LSTM or a GRU, ZeroPadding2D
    before a Conv2D or an AveragePooling2D, Flatten, Dropout, and activations, as arguments or as layers after a Dense,
    a Conv2D or a norm.

    A batch norm has the same eps and running statistics, and its momentum is 1 minus that of Keras.

    Args:
        model: The keras.Sequential or layer, built, of float32 or float64, with channels last. Nothing of it is
            changed.

    Returns:
        A Sequential, or of a single layer that layer.

    Raises:
        ValueError: A layer has an option that fg.nn has not, or no weights yet.
        TypeError: A layer has no equal in fg.nn, its dtype is another, or model is nothing of Keras.

    Example:
        >>> import keras
        >>> theirs = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
        >>> model = fg.convert.model_from_keras(theirs)
        >>> model.layers
        (Dense(4, 8, 'relu'), Dense(8, 3))
    """
    reading = KerasReading("model_from_keras")
    if not (hasattr(model, "get_weights") and hasattr(model, "built")):
        raise TypeError(f"{reading.op}: model must be a keras.Sequential or a layer of Keras, got {kind(model)}")
    _read(reading, "", model)
    if reading.zeros is not None:
        reading.refuse("must come before a Conv2D or an AveragePooling2D, which take its zeros as their padding")
    return reading.model(type(model).__name__ == "Sequential")


def _read(reading: KerasReading, path: str, layer: Any) -> None:
    own = type(layer).__module__.split(".")[0] in ("keras", "tf_keras")
    name = type(layer).__name__ if own else ""
    if name == "Sequential":
        for child in layer.layers:
            _read(reading, f"{path}.{child.name}" if path else child.name, child)
        return
    if reading.zeros is not None and name not in ("Conv2D", "AveragePooling2D"):
        reading.refuse("must come before a Conv2D or an AveragePooling2D, which take its zeros as their padding")
    reading.enter(path, layer)
    if name not in LAYERS and name not in ACTIVATIONS:
        hint = "; of models only a Sequential is known" if hasattr(layer, "layers") else ""
        reading.unknown({"Sequential", *LAYERS, *ACTIVATIONS}, hint)
    if not layer.built:
        reading.refuse("has no weights yet; model.build(shape), or a keras.Input as its first layer, makes them")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        reading.refuse("has channels first; images are (N, H, W, C) here")
    if name in ACTIVATIONS:
        reading.activate(ACTIVATIONS[name](reading, layer))
    else:
        LAYERS[name](reading, layer)


def _arrays(layer: Any, *names: str) -> dict[str, Any]:
    """The layer's arrays by our names; the last ones may be left out."""
    return dict(zip(names, layer.get_weights(), strict=False))


def _function(reading: Reading, function: Any) -> str | tuple[str, float]:
    """The activation that an argument of a layer is."""
    name = getattr(function, "__name__", "")
    if name in FUNCTIONS and function.__module__.split(".")[0] in ("keras", "tf_keras"):
        return FUNCTIONS[name]
    if type(function).__name__ in ACTIVATIONS:
        return ACTIVATIONS[type(function).__name__](reading, function)
    reading.refuse(f"has activation {name or kind(function)!r}, which fg.nn has not; known are {', '.join(FUNCTIONS)}")


def _dense(reading: KerasReading, layer: Any) -> None:
    arrays = _arrays(layer, "w", "b")
    n_in, n_out = arrays["w"].shape
    reading.add(Dense, {"n_in": n_in, "n_out": n_out, "bias": layer.use_bias}, arrays)
    reading.activate(_function(reading, layer.activation))


def _conv(reading: KerasReading, layer: Any) -> None:
    arrays = _arrays(layer, "w", "b")
    arguments = {"n_in": arrays["w"].shape[2] * layer.groups, "n_out": layer.filters, "size": layer.kernel_size}
    arguments |= {"stride": layer.strides, "dilation": layer.dilation_rate, "groups": layer.groups}
    reading.add(Conv2d, {**arguments, "bias": layer.use_bias, "padding": _padding(reading, layer)}, arrays)
    reading.activate(_function(reading, layer.activation))


def _padding(reading: KerasReading, layer: Any) -> Padding:
    zeros, reading.zeros = reading.zeros, None
    if zeros is None:
        return "same" if layer.padding == "same" else 0
    reading.need(layer.padding == "valid", 'padding "same" after a ZeroPadding2D')
    return zeros


def _zero_padding(reading: KerasReading, layer: Any) -> None:
    (top, bottom), (left, right) = layer.padding
    is_even = (top, left) == (bottom, right)
    reading.zeros = (top, left) if is_even else ((top, bottom), (left, right))


def _batch_norm(reading: KerasReading, layer: Any) -> None:
    last = layer.input_spec.ndim - 1
    reading.need(layer.axis in (-1, last), f"axis {layer.axis}, not the last")
    reading.need(layer.center and layer.scale, "center=False or scale=False")
    arrays = _arrays(layer, "gamma", "beta", "running_mean", "running_var")
    # without the last digit of 1 - 0.99
    momentum = round(1 - layer.momentum, 12)
    arguments = {"n": len(arrays["gamma"]), "momentum": momentum, "eps": layer.epsilon, "unbiased": False}
    reading.add(BatchNorm, arguments, arrays)


def _layer_norm(reading: KerasReading, layer: Any) -> None:
    # built, it has its axes as a list
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    reading.need(
        axes in ([-1], [layer.input_spec.ndim - 1 if layer.input_spec else -1]),
        f"axis {axes[0] if len(axes) == 1 else axes}, not the last",
    )
    reading.need(layer.center and layer.scale, "center=False or scale=False")
    arrays = _arrays(layer, "gamma", "beta")
    reading.add(LayerNorm, {"n": len(arrays["gamma"]), "eps": layer.epsilon}, arrays)


def _recurrent(reading: KerasReading, layer: Any, bidirectional: bool = False) -> None:
    weights = layer.get_weights()
    ways = [layer.forward_layer, layer.backward_layer] if bidirectional else [layer]
    first, cell = ways[0], type(ways[0]).__name__
    for way in ways:
        own = type(way).__name__
        reading.need(own in CELLS, f"a {own} for a direction")
        reading.need(own == cell, f"{with_article(cell)} and {with_article(own)} for its directions")
        functions = _function(reading, way.activation), _function(reading, way.recurrent_activation)
        reading.need(functions == ("tanh", "sigmoid"), f"activations {functions}")
        reading.need(not (way.dropout or way.recurrent_dropout), f"dropout within {with_article(own)}")
        reading.need(not (way.return_state or way.stateful), "return_state or stateful")
        if cell == "GRU":
            reading.need(way.reset_after == first.reset_after, "directions of different reset_after")
    if bidirectional:
        reading.need(layer.merge_mode == "concat", f"merge_mode {layer.merge_mode!r}")
        reading.need(not first.go_backwards, "go_backwards of the first direction")
    reading.need(
        not (first.go_backwards and first.return_sequences), "go_backwards with sequences, which come out reversed"
    )
    arguments = {"input_size": weights[0].shape[0], "hidden_size": first.units, "bidirectional": bidirectional}
    arguments |= {"reverse": first.go_backwards, "pool": None if first.return_sequences else "last"}
    if cell == "GRU":
        arguments["reset_after"] = first.reset_after
    spec = reading.add(CELLS[cell], arguments | {"dtype": reading.dtype_of(weights[0])})
    spec.write = lambda ours: from_keras(ours, weights)


def _max_pool(reading: KerasReading, layer: Any) -> None:
    reading.add(MaxPool2d, {"size": layer.pool_size, "stride": layer.strides, "padding": _padding(reading, layer)})


def _avg_pool(reading: KerasReading, layer: Any) -> None:
    arguments = {"size": layer.pool_size, "stride": layer.strides, "padding": _padding(reading, layer)}
    # Keras's own padding is no part of the mean, but zeros of a layer are
    reading.add(AvgPool2d, arguments | {"include_pad": arguments["padding"] != "same"})


def _global_pool(reading: KerasReading, layer: Any) -> None:
    reading.need(not layer.keepdims, "keepdims=True")
    reading.add(GlobalAvgPool2d, {})


def _mean_of_steps(reading: KerasReading, layer: Any) -> None:
    last = reading.last()
    if last is None or last.kind not in (LSTM, GRU) or last.arguments["pool"] is not None or layer.keepdims:
        reading.refuse("must come right after an LSTM or a GRU with return_sequences, and without keepdims")
    last.arguments["pool"] = "mean"


def _dropout(reading: KerasReading, layer: Any) -> None:
    reading.need(layer.noise_shape is None, f"noise_shape {layer.noise_shape}")
    reading.add(Dropout, {"rate": layer.rate})


def _relu(reading: Reading, layer: Any) -> str | tuple[str, float]:
    reading.need(not layer.threshold, f"threshold {layer.threshold}")
    reading.need(layer.max_value is None or not layer.negative_slope, "max_value with a slope")
    if layer.max_value is not None:
        return "clipped_relu", float(layer.max_value)
    return ("leaky_relu", float(layer.negative_slope)) if layer.negative_slope else "relu"


def _leaky_relu(reading: Reading, layer: Any) -> tuple[str, float]:
    # before Keras 3, and in tf_keras, the slope is called alpha
    slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha
    return "leaky_relu", float(slope)


def _softmax(reading: Reading, layer: Any) -> str:
    reading.need(layer.axis == -1, f"axis {layer.axis}")
    return "softmax"


LAYERS: dict[str, Callable[[KerasReading, Any], None]] = {
    "AveragePooling2D": _avg_pool,
    "BatchNormalization": _batch_norm,
    "Bidirectional": lambda reading, layer: _recurrent(reading, layer, True),
    "Conv2D": _conv,
    "Dense": _dense,
    "Dropout": _dropout,
    "Flatten": lambda reading, layer: reading.flatten(),
    "GRU": _recurrent,
    "GlobalAveragePooling1D": _mean_of_steps,
    "GlobalAveragePooling2D": _global_pool,
    "InputLayer": lambda reading, layer: None,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_norm,
    "MaxPooling2D": _max_pool,
    "ZeroPadding2D": _zero_padding,
}
ACTIVATIONS: dict[str, Callable[[Reading, Any], Any]] = {
    "Activation": lambda reading, layer: _function(reading, layer.activation),
    "ELU": lambda reading, layer: ("elu", float(layer.alpha)),
    "LeakyReLU": _leaky_relu,
    "ReLU": _relu,
    "Softmax": _softmax,
}
