"""Graph: the fused forward of a module whose code a Tape has recorded.

A convolution, a norm, what is added to it and an activation run as one layer, and so do dense layers in a row. Other operations, and layer
norms alone, are called as they are. Images between them keep channels last in memory. An image is hidden where PyTorch's would be
contiguous: operations to which that makes a difference get it as PyTorch's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastgrad.torch.layers import METHODS, OTHER_PATCHES, WEIGHTED, activation_layer, has_hooks, hooks_of, unpatched
from fastgrad.torch.nodes import CallNode, ChainNode, ConvNode, LayerNormNode, filled, shown
from fastgrad.torch.operations import (
    activation_name,
    is_addition,
    is_known_layer,
    is_pure,
    is_pytorchs,
    known_layer,
    values_of,
    writes_outside,
)
from fastgrad.torch.ops.conv_norm_layer import ConvNorm
from fastgrad.torch.tape import METHODS as CALLS
from fastgrad.torch.tape import Operation, Tape
from fastgrad.torch.tensors import TENSOR_TYPES

Tensor = torch.Tensor


class Graph:
    """The nodes that compute a module's forward, and what has to stay as it is for that."""

    def __init__(self, tape: Tape) -> None:
        self.tape, self.nodes = tape, nodes_of(tape)
        self.fused = [node for node in self.nodes if not isinstance(node, CallNode)]
        # modules of others that are called as they are
        self.called = [o.module for o in tape.operations if o.module is not None and not is_known_layer(o.module)]
        self.writes_outside = writes_outside(tape.operations, tape.inputs)
        # whether nobody sees a call of it with other modules: no code of others is called, and nothing of others written to
        self.is_quiet = all(map(is_pytorchs, tape.operations)) and not self.writes_outside
        _drop(self.nodes, set(values_of(tape.output)))
        modules = dict.fromkeys(o.module for o in tape.operations if o.module is not None)
        layers, entered = list(filter(is_known_layer, modules)), dict.fromkeys(tape.entered)
        # what has to be as it was, in flat lists, since all of it is compared at every call
        self._copies = [*tape.copies, *((layer.__dict__, dict(layer.__dict__)) for layer in layers)]
        self._hooks = [hooks for layer in (*layers, *entered) for hooks in hooks_of(layer)]
        self._reads = list({(id(read[0]), read[1]): read for read in tape.reads}.values())
        self._own = [(module.__dict__, module.__dict__.get("forward")) for module in entered]
        kinds: Any = dict.fromkeys(map(type, (*modules, *entered)))
        self._known = [kind for kind in kinds if kind in METHODS]
        self._classes = [(module, type(module)) for module in (*modules, *entered)]
        self._hooked = [module for module in modules if has_hooks(module)]
        methods = [(kind, "forward", kind.forward) for kind in kinds]
        methods += [(kind, name, getattr(kind, name)) for kind in dict.fromkeys(map(type, entered)) for name in CALLS]
        self._methods, self._codes = methods, list(dict.fromkeys(tape.codes))
        fused = dict.fromkeys(layer for node in self.fused for layer in node.layers)
        tensors = [part for layer in fused for part in (layer._parameters, layer._buffers)]
        items = [(part, name, p) for part in tensors for name, p in part.items() if name != "num_batches_tracked"]
        self._parameters = [(parameters, name, p.shape) for parameters, name, p in items if p is not None]
        self._nothing = [(parameters, name) for parameters, name, p in items if p is None]
        dtypes = {p.dtype for _, _, p in items if p is not None}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else None

    def is_valid(self) -> bool:
        """Whether all that the graph depends on is as it was."""
        try:
            return self._is_as_it_was() and all(map(unpatched, self._known))
        except (RuntimeError, ValueError, KeyError):
            # an attribute is a tensor or an array now, or is no longer there
            return False

    def _is_as_it_was(self) -> bool:
        for attributes, copy in self._copies:
            if attributes != copy:
                return False
        for mapping, name, value in self._reads:
            now = mapping.get(name, self)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        for attributes, forward in self._own:
            if attributes.get("forward") is not forward or not OTHER_PATCHES.isdisjoint(attributes):
                return False
        for module, kind in self._classes:
            if module.__class__ is not kind:
                return False
        for kind, name, method in self._methods:
            if getattr(kind, name) is not method:
                return False
        for function, code in self._codes:
            if function.__code__ is not code:
                return False
        for parameters, name, shape in self._parameters:
            p = parameters[name]
            if (
                type(p) not in TENSOR_TYPES
                or p.dtype is not self.dtype
                or p.shape != shape
                or not p.is_cpu
                or p.layout is not torch.strided
            ):
                return False
        if any(self._hooks) or not all(map(has_hooks, self._hooked)):
            return False
        return all(parameters[name] is None for parameters, name in self._nothing)

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """What the forward returns."""
        values = [*inputs, *[None] * (self.tape.size - len(inputs))]
        hidden = [False] * len(values)
        for node in self.nodes:
            node.run(values, hidden)
            for i in node.dead:
                values[i] = None
        shown(list(values_of(self.tape.output)), values, hidden)
        return filled(self.tape.output, values)


def _drop(nodes: list[Any], kept: set[int]) -> None:
    """Tell nodes of the values that none needs after them."""
    last: dict[int, Any] = {}
    for node in nodes:
        last.update(dict.fromkeys((*node.inputs, node.output), node))
    for i, node in last.items():
        if i not in kept:
            node.dead.append(i)


def nodes_of(tape: Tape) -> list[Any]:
    """The nodes that compute a tape's operations, in order: a node runs where the last of its operations is."""
    operations = tape.operations
    users: dict[int, list[int]] = {}
    for at, operation in enumerate(operations):
        for i in values_of((operation.args, operation.kwargs)):
            users.setdefault(i, []).append(at)
    for i in values_of(tape.output):
        users.setdefault(i, []).append(len(operations))
    taken: dict[int, Any] = {}
    for at in range(len(operations)):
        if at not in taken and (group := _Group(operations, users, taken, at).node()):
            steps, node = group
            taken.update(dict.fromkeys(steps))
            taken[steps[-1]] = node
    nodes = [taken.get(at, CallNode(operation)) for at, operation in enumerate(operations)]
    return [node for node in nodes if node is not None]


class _Group:
    """The operations from one on that one node can compute, each the only user of what the one before returns."""

    def __init__(
        self, operations: list[Operation], users: dict[int, list[int]], taken: dict[int, Any], first: int
    ) -> None:
        self.operations, self.users, self.taken, self.steps = operations, users, taken, [first]

    def node(self) -> tuple[list[int], Any] | None:
        """The indices of operations, and their node; None if there is nothing to fuse."""
        first = self.operations[self.steps[0]]
        kind: Any = known_layer(first)
        inputs = list(values_of(first.args))
        if len(inputs) != 1 or kind not in WEIGHTED:
            return None
        (x,) = inputs
        if kind is nn.Linear:
            return self._chain(x)
        return self._layer_norm(x) if kind is nn.LayerNorm else self._conv(first.module, kind, x)

    def _conv(self, layer: Any, kind: Any, x: int) -> tuple[list[int], Any] | None:
        conv, norm = (layer, None) if kind is nn.Conv2d else (None, layer)
        if conv is not None:
            if not ConvNorm.fits(conv):
                return None
            following = self._next(lambda o: known_layer(o) is nn.BatchNorm2d)
            norm = None if following is None else following.module
        residual, name = self._following()
        steps = [self.operations[at] for at in self.steps]
        return self.steps, ConvNode(steps, ConvNorm(conv, norm, name), x, residual)

    def _layer_norm(self, x: int) -> tuple[list[int], Any] | None:
        residual, name = self._following()
        # alone it has a replacement and a choice of its own
        if len(self.steps) == 1:
            return None
        return self.steps, LayerNormNode([self.operations[at] for at in self.steps], name, x, residual)

    def _following(self) -> tuple[int | None, Any]:
        """What is added to the last operation's output, or None, and the activation after that, which both belong to the group."""
        before, residual = self._output, None
        addition = self._next(is_addition)
        if addition is not None:
            (residual,) = (i for i in values_of(addition.args) if i != before)
        activation = self._next(activation_name)
        return residual, "identity" if activation is None else activation_name(activation)

    def _chain(self, x: int) -> tuple[list[int], Any] | None:
        pairs: list[tuple[Any, Any]] = []
        linear: Any = self.operations[self.steps[0]]
        while linear is not None:
            activation = self._next(lambda o: known_layer(o) is nn.Softmax or activation_name(o))
            name: Any = None if activation is None else activation_name(activation)
            pairs.append((linear.module, activation and (activation.module or activation_layer(name))))
            linear = self._next(lambda o: known_layer(o) is nn.Linear)
        if len(self.steps) == 1:
            return None
        return self.steps, ChainNode([self.operations[at] for at in self.steps], pairs, x)

    @property
    def _output(self) -> int:
        return self.operations[self.steps[-1]].output

    def _next(self, fits: Callable[[Operation], Any]) -> Operation | None:
        """The only user of the last operation's output, if it fits; then it belongs to the group."""
        users = self.users.get(self._output, [])
        if len(users) != 1 or users[0] == len(self.operations) or users[0] in self.taken:
            return None
        at, operation = users[0], self.operations[users[0]]
        # what is between them may not write to what the group reads; nor may the sum be written into the other one
        between = [self.operations[i] for i in range(self.steps[0], at) if i not in self.steps]
        is_main = next(values_of(operation.args), None) == self._output
        if not fits(operation) or not all(map(is_pure, between)) or not (is_main or is_pure(operation)):
            return None
        self.steps.append(at)
        return operation
