"""GraphReplacement: the replacement of a module's forward by a Graph, one for training and one for evaluation."""

import copy
from typing import Any

import torch
from torch import nn

from fastgrad.torch.choice import Choice
from fastgrad.torch.graph import Graph
from fastgrad.torch.layers import needs_original_layers
from fastgrad.torch.registration import skips_dispatcher
from fastgrad.torch.replacement import ForwardReplacement, with_gradient_format
from fastgrad.torch.stand_ins import RefusedError
from fastgrad.torch.tape import Tape
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES

# graphs that may be made one after the other, and calls after which there may be one more
CREDIT, CALLS = 8, 50


def is_replaced(module: nn.Module) -> bool:
    """Whether a module's own forward is a replacement that computes what its class's does."""
    replacement = getattr(module.__dict__.get("forward"), "__self__", None)
    return isinstance(replacement, ForwardReplacement) and replacement.module is module


def graph_of(module: nn.Module) -> Graph | None:
    """The graph of a module's forward of one tensor as it is now; None if its code cannot be recorded, or nothing is fused."""
    try:
        tape = Tape(module, 1, is_replaced)
    except RefusedError:
        return None
    graph = Graph(tape)
    return graph if graph.fused and graph.dtype in FLOATS and graph.is_valid() else None


def graphs_of(module: nn.Module) -> dict[nn.Module, Graph]:
    """The graphs of the outermost modules in a module that have one; and of those that they call as they are."""
    graph = graph_of(module)
    inner = module.children() if graph is None else graph.called
    graphs = {} if graph is None else {module: graph}
    for child in inner:
        graphs.update(graphs_of(child))
    return graphs


class GraphReplacement(ForwardReplacement):
    """The replacement of the forward of any module whose code a Tape can record.

    A call first compares all that the graph depends on, and makes it again if that has changed: not at every call, since that takes time.
    """

    def __init__(self, module: nn.Module, choice: Choice | None = None) -> None:
        """The forward that the module has now takes the calls that a graph does not."""
        super().__init__(module, choice)
        inner = getattr(module.__dict__.get("forward"), "__self__", None)
        self.inner: ForwardReplacement | None = inner
        self.graphs: dict[bool, Graph | None] = {}
        self._credit = float(CREDIT)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.stopped or kwargs or len(args) != 1 or needs_original_layers():
            return self._other(*args, **kwargs)
        x = args[0]
        if type(x) not in TENSOR_TYPES or not skips_dispatcher("graph", x):
            return self._other(x)
        if self.choice is not None and not self.choice.fuses(self, x):
            return self._other(x)
        graph = self._graph()
        return self._other(x) if graph is None else graph((with_gradient_format(x),))

    def fused(self, x: Any) -> Any:
        graph = self._graph()
        return self.original(x) if graph is None else graph((with_gradient_format(x),))

    def can_fuse(self) -> bool:
        return self._graph() is not None

    def _other(self, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self.inner.forward(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def undo(self, module: nn.Module) -> None:
        super().undo(module)
        if self.inner is not None:
            self.inner.undo(module)

    def _graph(self) -> Graph | None:
        training = self.module.training
        graph = self.graphs.get(training)
        self._credit = min(self._credit + 1 / CALLS, CREDIT)
        if graph is not None and graph.is_valid():
            return graph
        if self._credit < 1:
            return None
        self._credit -= 1
        graph = self.graphs[training] = graph_of(self.module)
        return graph

    def __getstate__(self) -> dict[str, Any]:
        # the code of the forward may be another where this is loaded
        return {**self.__dict__, "graphs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphReplacement":
        copied = memo[id(self)] = GraphReplacement.__new__(GraphReplacement)
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied
