"""Graph: the nodes and the constants of an ONNX model in the making; and the activations as nodes.

A Value is a tensor of the graph with its layout. ONNX has images channels first, and the steps of recurrent layers before rows; the graph's
inputs and outputs are laid out as those of the model.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastgrad.kernels.types import (
    CLIPPED_RELU,
    ELU,
    GELU,
    GELU_TANH,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SOFTMAX,
    SOFTPLUS,
    TANH,
    Activation,
)

# layouts: rows (N, C), sequences (N, T, C), images as here (N, H, W, C) and as in ONNX (N, C, H, W)
ROWS, SEQUENCES, IMAGES, CHANNELS_FIRST = "rows", "sequences", "images", "channels first"
TRANSPOSES = {(IMAGES, CHANNELS_FIRST): [0, 3, 1, 2], (CHANNELS_FIRST, IMAGES): [0, 2, 3, 1]}
# activations that are one node, with the name of their parameter
NODES = {
    RELU: ("Relu", ""),
    LEAKY_RELU: ("LeakyRelu", "alpha"),
    SIGMOID: ("Sigmoid", ""),
    TANH: ("Tanh", ""),
    ELU: ("Elu", "alpha"),
    SELU: ("Selu", "alpha"),
    SOFTPLUS: ("Softplus", ""),
}
SELU_SCALE = 1.0507009873554805


class Value(NamedTuple):
    """A tensor by its name, and its layout."""

    name: str
    layout: str


class Graph:
    """Nodes and constants of one model. helper: onnx.helper; path: the layer whose nodes are added, which their names begin with."""

    def __init__(self, helper: Any, dtype: np.dtype) -> None:
        self.helper, self.dtype = helper, dtype
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        # of nodes and constants, and of the input and output of the model
        self.names = {"x", "y"}
        self.path = ""

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its last output. Outputs before it are left out."""
        name = self._name(kind)
        self.nodes.append(
            self.helper.make_node(kind, list(inputs), [""] * (outputs - 1) + [name], name=name, **attributes)
        )
        return name

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """Add a constant of the model's dtype, or of another."""
        name = self._name(name)
        self.constants[name] = np.array(value, self.dtype if dtype is None else dtype, order="C")
        return name

    def in_layout(self, value: Value, layout: str) -> Value:
        """The same value in a layout: images in the other order of axes."""
        if value.layout == layout:
            return value
        return Value(self.node("Transpose", value.name, perm=TRANSPOSES[value.layout, layout]), layout)

    def activation(self, value: Value, activation: Activation) -> Value:
        code, x = activation.code, value.name
        if code == IDENTITY:
            return value
        if code in NODES:
            kind, parameter = NODES[code]
            options: dict[str, Any] = {parameter: activation.parameter} if parameter else {}
            y = self.node(kind, x, **options | ({"gamma": SELU_SCALE} if code == SELU else {}))
        elif code == SOFTMAX:
            y = self.node("Softmax", x, axis=1 if value.layout == CHANNELS_FIRST else -1)
        elif code == CLIPPED_RELU:
            y = self.node("Clip", x, self.constant("zero", 0.0), self.constant("cap", activation.parameter))
        elif code == SILU:
            y = self.node("Mul", x, self.node("Sigmoid", x))
        elif code == GELU:
            # x / 2 (1 + erf(x / sqrt(2)))
            y = self._gelu(x, self.node("Erf", self._times(x, math.sqrt(0.5))))
        else:
            assert code == GELU_TANH
            # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
            cube = self.node("Mul", self.node("Mul", x, x), self._times(x, 0.044715))
            y = self._gelu(x, self.node("Tanh", self._times(self.node("Add", x, cube), math.sqrt(2 / math.pi))))
        return value._replace(name=y)

    def _gelu(self, x: str, s: str) -> str:
        return self.node("Mul", self._times(x, 0.5), self.node("Add", s, self.constant("one", 1.0)))

    def _times(self, x: str, factor: float) -> str:
        return self.node("Mul", x, self.constant("factor", factor))

    def _name(self, name: str) -> str:
        """The name after the layer's path, with a number where it is there already."""
        first = name = f"{self.path}.{name}" if self.path else name
        number = 1
        while name in self.names:
            number += 1
            name = f"{first}_{number}"
        self.names.add(name)
        return name
