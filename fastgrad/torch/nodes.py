"""The nodes of a Graph: layers that run as one, ConvNode, LayerNormNode and ChainNode, and CallNode, an operation that is called as it is.

A node reads `values` and writes its output there. `hidden` says of each whether it is an image with channels last in memory where PyTorch's
would be contiguous.
"""

from typing import Any

import torch

from fastgrad.torch.fusion import ChainStep, normalise_rows, normalises_rows
from fastgrad.torch.operations import is_agnostic, values_of
from fastgrad.torch.ops.conv_norm import conv_norm
from fastgrad.torch.ops.conv_norm_layer import ConvNorm
from fastgrad.torch.stand_ins import Value
from fastgrad.torch.tape import Operation
from fastgrad.torch.tensors import TENSOR_TYPES, in_memory_format, is_channels_last

Tensor = torch.Tensor


def filled(structure: Any, values: list[Any]) -> Any:
    """A nested structure with tensors in the place of its values."""
    if isinstance(structure, Value):
        return values[structure.fg_index]
    if isinstance(structure, slice):
        return slice(*filled((structure.start, structure.stop, structure.step), values))
    if isinstance(structure, dict):
        return {key: filled(item, values) for key, item in structure.items()}
    if isinstance(structure, tuple | list) and not isinstance(structure, torch.Size):
        items = [filled(item, values) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)
    return structure


def shown(indices: list[int] | tuple[int, ...], values: list[Any], hidden: list[bool]) -> None:
    """Give values, where they are hidden, the memory format of PyTorch's."""
    for i in indices:
        if hidden[i]:
            values[i], hidden[i] = in_memory_format(values[i], False), False


class CallNode:
    """The call of an operation as it is."""

    def __init__(self, operation: Operation) -> None:
        self.operation, self.output, self.dead = operation, operation.output, list[int]()
        self.inputs = list(dict.fromkeys(values_of((operation.args, operation.kwargs))))
        self.is_agnostic = is_agnostic(operation)
        is_flat = not operation.kwargs and all(isinstance(a, Value) for a in operation.args)
        # of values alone their indices, each as often as it is an argument
        self._flat = [a.fg_index for a in operation.args] if is_flat else None

    def run(self, values: list[Any], hidden: list[bool]) -> None:
        """Write the output into values, and whether it is hidden."""
        function, args, kwargs, _, output = self.operation
        is_hidden = any(hidden[i] for i in self.inputs)
        if is_hidden and not (self.is_agnostic and all(hidden[i] or _is_contiguous(values[i]) for i in self.inputs)):
            shown(self.inputs, values, hidden)
            is_hidden = False
        y = (
            function(*[values[i] for i in self._flat])
            if self._flat is not None
            else function(*filled(args, values), **filled(kwargs, values))
        )
        if is_hidden and isinstance(y, tuple):
            y = type(y)(in_memory_format(item, False) if isinstance(item, Tensor) else item for item in y)
        values[output] = y
        hidden[output] = is_hidden and isinstance(y, Tensor) and y.dim() > 2 and _has_channels_last(y)


def _is_contiguous(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.is_contiguous()


def _has_channels_last(y: Tensor) -> bool:
    return not y.is_contiguous() or (y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last))


class ConvNode:
    """act(norm(conv(x)) + residual) as one layer. calls: the same one by one."""

    def __init__(self, operations: list[Operation], layer: ConvNorm, x: int, residual: int | None) -> None:
        self.calls, self.layer, self.x, self.residual = list(map(CallNode, operations)), layer, x, residual
        self.output, self.dead = operations[-1].output, [operation.output for operation in operations[:-1]]
        self.inputs = [x] if residual is None else [x, residual]
        self.layers = [a for a in (layer.conv, layer.norm) if a is not None]

    def run(self, values: list[Any], hidden: list[bool]) -> None:
        x, layer = values[self.x], self.layer
        residual = None if self.residual is None else values[self.residual]
        if not layer.takes(x, residual):
            for call in self.calls:
                call.run(values, hidden)
            return
        last = not hidden[self.x] and is_channels_last(x)
        if not last and layer.conv is not None:
            last = is_channels_last(layer.conv._parameters["weight"])
        values[self.output], hidden[self.output] = conv_norm(layer, x, residual), not last and x.dim() > 2

    def __str__(self) -> str:
        return str(self.layer)


class LayerNormNode:
    """act(norm(x) + residual) of an nn.LayerNorm as one layer. calls: the same one by one."""

    def __init__(
        self, operations: list[Operation], activation: str | tuple[str, float], x: int, residual: int | None
    ) -> None:
        self.calls, self.activation, self.x, self.residual = list(map(CallNode, operations)), activation, x, residual
        self.output, self.dead = operations[-1].output, [operation.output for operation in operations[:-1]]
        self.inputs = [x] if residual is None else [x, residual]
        self.layers: list[Any] = [operations[0].module]

    def run(self, values: list[Any], hidden: list[bool]) -> None:
        shown(self.inputs, values, hidden)
        (norm,), x, residual = self.layers, values[self.x], None if self.residual is None else values[self.residual]
        if normalises_rows(norm, x, residual):
            values[self.output] = normalise_rows(norm, x, self.activation, residual)
            return
        for call in self.calls:
            call.run(values, hidden)

    def __str__(self) -> str:
        f = self.activation if isinstance(self.activation, str) else self.activation[0]
        names = "layer norm", "" if self.residual is None else "sum", "" if f == "identity" else f
        return " and ".join(filter(None, names))


class ChainNode:
    """Dense layers in a row, each with its activation. calls: the same one by one."""

    def __init__(self, operations: list[Operation], pairs: list[tuple[Any, Any]], x: int) -> None:
        self.calls, self.step, self.x, self.inputs = list(map(CallNode, operations)), ChainStep(pairs), x, [x]
        self.output, self.dead = operations[-1].output, [operation.output for operation in operations[:-1]]
        self.layers = self.step.linears
        self.dtype = self.layers[0].weight.dtype

    def run(self, values: list[Any], hidden: list[bool]) -> None:
        shown(self.inputs, values, hidden)
        x = values[self.x]
        if type(x) in TENSOR_TYPES and x.dtype is self.dtype and x.dim():
            values[self.output] = self.step(x)
            return
        for call in self.calls:
            call.run(values, hidden)

    def __str__(self) -> str:
        return str(self.step)
