"""Reading: the layers of a model of another library, collected one after the other, and the model of fg.nn made of them.

The layers of fg.nn are made when all have been read: their activations are layers of their own in other libraries, and come after them.
Every error names the layer by its path.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from fastgrad.convert.images import ImageShape
from fastgrad.core import check
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Sequential
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

# layers that have an activation
ACTIVE = Dense, Conv2d, BatchNorm, LayerNorm
# activations that may as well come before a MaxPool2d as after it: the largest value stays the largest
RISING = {"relu", "relu6", "clipped_relu", "leaky_relu", "sigmoid", "tanh", "elu", "selu", "softplus"}


class Spec:
    """A layer to be made: its kind and arguments, its arrays by name, and what writes into it besides."""

    def __init__(self, place: str, kind: type[Model], arguments: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.place, self.kind, self.arguments, self.arrays = place, kind, arguments, arrays
        self.write: Callable[[Any], None] | None = None
        # whether it has a softmax over the dimension 1 of PyTorch, which is the steps of sequences
        self.over_dim_1 = False


class Reading:
    """The layers read so far. op is the public function, for errors.

    image_size: height and width of the model's inputs, or None.
    channels_first: whether images are (N, C, H, W) in the other library.
    """

    def __init__(self, op: str, image_size: Any, channels_first: bool) -> None:
        self.op, self.channels_first = op, channels_first
        self.images = ImageShape(op, image_size, None)
        self.specs: list[Spec] = []
        # the paths of layers with weights, by id
        self.seen: dict[int, str] = {}
        # the dtype of the arrays so far
        self.dtype: np.dtype | None = None
        # the layer that is read: 'layer "0.1" (Linear)'
        self.place = ""

    def enter(self, path: str, layer: Any) -> None:
        kind = type(layer).__name__
        self.place = f'layer "{path}" ({kind})' if path else f"the model ({kind})"

    def refuse(self, text: str) -> NoReturn:
        raise ValueError(f"{self.op}: {self.place} {text}")

    def need(self, condition: bool, text: str) -> None:
        """Refuse the layer unless the condition holds; text: what it has that fg.nn has not."""
        if not condition:
            self.refuse(f"has {text}, which fg.nn has not")

    def unknown(self, known: Any, hint: str = "") -> NoReturn:
        names = ", ".join(sorted(known))
        raise TypeError(f"{self.op}: {self.place} has no equal in fg.nn{hint}; known are {names}")

    def last(self) -> Spec | None:
        return self.specs[-1] if self.specs else None

    def add(self, kind: type[Model], arguments: dict[str, Any], arrays: dict[str, Any] | None = None) -> Spec:
        """Add a layer of fg.nn with these arrays, each in our layout."""
        values = {}
        for name, array in (arrays or {}).items():
            self.dtype = self.dtype_of(array, name)
            values[name] = array
        spec = Spec(self.place, kind, arguments, values)
        if kind in (Dense, BatchNorm, LayerNorm) and self.channels_first:
            n = len(next(iter(values.values())))
            order = self.images.order(self.op, n)
            if order is not None:
                spec.arrays = {name: a if kind is Dense and name == "b" else a[order] for name, a in values.items()}
            if kind is Dense:
                self.images.flattened = ""
        self.specs.append(spec)
        if kind in (Conv2d, MaxPool2d, AvgPool2d):
            if self.channels_first:
                self.images.pads(self._make(spec))  # type: ignore[arg-type]
        elif kind is GlobalAvgPool2d:
            self.images.size = None
        return spec

    def dtype_of(self, array: Any, name: str = "kernel") -> np.dtype:
        """The dtype of an array, which is that of all arrays of the model."""
        return check.floating(self.op, f"{name} of {self.place}", array, self.dtype).dtype

    def has_rows(self) -> bool:
        """Whether a layer so far has made rows, or takes them."""
        return any(spec.kind in (GlobalAvgPool2d, Dense, Flatten) for spec in self.specs)

    def flatten(self) -> None:
        """Add a Flatten, unless rows come in."""
        before = [spec.kind for spec in self.specs]
        if self.has_rows():
            return
        if LSTM in before or GRU in before:
            if any(spec.arguments.get("pool") for spec in self.specs):
                return
            self.refuse("makes rows of sequences, which fg.nn.Flatten does not")
        if self.channels_first:
            self.images.flattened = self.place
        self.add(Flatten, {})

    def activate(self, activation: str | tuple[str, float]) -> None:
        """Give the last layer its activation, or the one before a Flatten or a MaxPool2d."""
        if activation == "identity":
            return
        name = activation[0] if isinstance(activation, tuple) else activation
        passed: set[type[Model]] = {Flatten} if name != "softmax" else set()
        passed |= {MaxPool2d} if name in RISING else set()
        last = next((spec for spec in reversed(self.specs) if spec.kind not in passed), None)
        if last is None or last.kind not in ACTIVE or "activation" in last.arguments:
            self.refuse(
                "is an activation, and fg.nn has these in Dense, Conv2d, BatchNorm and LayerNorm alone, one each: "
                "it must come right after such a layer"
            )
        last.arguments["activation"] = activation

    def model(self, sequential: bool) -> Model:
        """All layers, as a Sequential or, of one layer that stood alone, as that layer."""
        if not self.specs:
            raise ValueError(f"{self.op}: the model has no layer")
        if self.images.flattened and self.images.order(self.op, self._columns()) is not None:
            raise ValueError(
                f"{self.op}: {self.images.flattened} is the model's output, in another order here; it needs a Dense after it"
            )
        layers = [self._make(spec) for spec in self.specs]
        if not sequential and len(layers) == 1:
            return layers[0]
        try:
            return Sequential(*layers)
        except ValueError as error:
            raise ValueError(f"{self.op}: {error}") from None

    def _columns(self) -> int:
        """The number of columns after a last Flatten: more than the channels, unless the images are known to be one pixel."""
        size, channels = self.images.size, self.images.channels or 1
        return channels * (size[0] * size[1] if size else 2)

    def _make(self, spec: Spec) -> Model:
        arguments = dict(spec.arguments)
        for array in spec.arrays.values():
            arguments["dtype"] = array.dtype
        if spec.kind in (Dense, Conv2d, LSTM, GRU):
            # with a seed of its own a layer keeps its weights in a Sequential
            arguments["seed"] = 0
        try:
            layer = spec.kind(**arguments)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self.op}: {spec.place}: {error}") from None
        targets: dict[str, np.ndarray] = layer.parameters() | layer.statistics()
        for name, array in spec.arrays.items():
            if array.shape != targets[name].shape:
                raise ValueError(f"{self.op}: {spec.place} has {name} {array.shape} for {targets[name].shape} here")
            targets[name][...] = array
        if spec.write is not None:
            spec.write(layer)
        return layer
