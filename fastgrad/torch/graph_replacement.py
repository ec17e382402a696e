"""GraphReplacement: the replacement of a module's forward by a Graph, one for training and one for evaluation."""

import copy
from typing import Any

import torch
from torch import nn

from fastgrad.torch.choice import MOST_CALLS, Choice, can_time, key_of
from fastgrad.torch.graph import Graph
from fastgrad.torch.layers import known_class, needs_original_layers
from fastgrad.torch.nodes import ConvNode
from fastgrad.torch.ops.conv_norm_layer import ConvNorm
from fastgrad.torch.registration import skips_dispatcher
from fastgrad.torch.replacement import ForwardReplacement, replacement_of, with_gradient_format
from fastgrad.torch.stand_ins import RefusedError
from fastgrad.torch.tape import Tape
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES
from fastgrad.torch.twin import detached, twin

# graphs that may be made one after the other, and calls after which there may be one more
CREDIT, CALLS = 8, 50


def is_replaced(module: nn.Module) -> bool:
    """Whether a module's own forward is a replacement that computes what its class's does."""
    replacement = replacement_of(module)
    return replacement is not None and replacement.module is module


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


class GraphChoice(Choice):
    """The choice of a graph: of the whole, and of each convolution in it. Convolutions with the same settings have one choice."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        kinds = [m for m in module.modules() if known_class(m) is nn.Conv2d and ConvNorm.fits(m)]
        self.convolutions = {settings_of(conv): Choice() for conv in kinds}

    def lines(self) -> list[str]:
        inner = [f"{n}: {line}" for n, choice in self.convolutions.items() if choice.ways for line in choice.lines()]
        return [*super().lines(), *inner]


def settings_of(conv: Any) -> str:
    """What the time of a convolution depends on, besides the image, in words."""
    height, width = conv.kernel_size
    words = [f"convolution {height}x{width} from {conv.in_channels} to {conv.out_channels} channels"]
    for name, value, usual in (("stride", conv.stride, (1, 1)), ("dilation", conv.dilation, (1, 1))):
        if value != usual:
            words.append(f"{name} {value[0]}" if value[0] == value[1] else f"{name} {value}")
    padding = conv.padding if isinstance(conv.padding, str) else tuple(conv.padding)
    if padding != (height // 2, width // 2):
        words.append(f"padding {padding}")
    return ", ".join([*words, *([f"{conv.groups} groups"] if conv.groups > 1 else [])])


class GraphReplacement(ForwardReplacement):
    """The replacement of the forward of any module whose code a Tape can record.

    A call first compares all that the graph depends on, and makes it again if that has changed: not at every call, since that takes time.
    """

    choice: GraphChoice | None

    def __init__(self, module: nn.Module, choice: GraphChoice | None = None) -> None:
        """The forward that the module has now takes the calls that a graph does not."""
        super().__init__(module, choice)
        self.inner = replacement_of(module)
        self.convolutions = {} if choice is None else choice.convolutions
        self.graphs: dict[bool, Graph | None] = {}
        self._credit = float(CREDIT)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.stopped or kwargs or len(args) != 1 or needs_original_layers():
            return self.replaced_forward(*args, **kwargs)
        (x,) = args
        if type(x) not in TENSOR_TYPES or not skips_dispatcher("graph", x):
            return self.replaced_forward(x)
        if self.choice is not None:
            self._choose_convolutions(self.choice, x)
            if not self.choice.fuses(self, x):
                return self.replaced_forward(x)
        graph = self._graph()
        return self.replaced_forward(x) if graph is None else _run(graph, x)

    def fused(self, x: Any) -> Any:
        graph = self._graph()
        return self.original(x) if graph is None else _run(graph, x)

    def can_fuse(self) -> bool:
        """Whether the graph can be timed."""
        graph = self._graph()
        return graph is not None and graph.is_quiet

    def twin(self) -> "GraphReplacement":
        """It shares the choices of convolutions."""
        replacement = GraphReplacement(twin(self.module, {}))
        replacement.convolutions = self.convolutions
        return replacement

    def _choose_convolutions(self, choice: GraphChoice, x: Any) -> None:
        """Before the whole is timed: the choices of convolutions, by calls of a twin."""
        if (
            not choice.convolutions
            or key_of(self.unit_mode(), x) in choice.ways
            or not can_time(x)
            or not self.can_fuse()
        ):
            return
        copied, state = self.twin(), torch.get_rng_state()
        try:
            with torch._C.DisableTorchFunction():
                for _ in range(MOST_CALLS):
                    copied.fused(detached(x))
                    if not any(inner.is_open for inner in self.convolutions.values()):
                        return
        except Exception:
            # the call itself says why
            return
        finally:
            torch.set_rng_state(state)

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
        for node in [] if graph is None else graph.fused:
            if isinstance(node, ConvNode) and node.layer.conv is not None:
                node.layer.choice = self.convolutions.get(settings_of(node.layer.conv))
        return graph

    def __getstate__(self) -> dict[str, Any]:
        # the code of the forward may be another where this is loaded
        return {**self.__dict__, "graphs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphReplacement":
        copied = memo[id(self)] = GraphReplacement.__new__(GraphReplacement)
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied


def _run(graph: Graph, x: Any) -> Any:
    # what is written to must be x itself
    return graph((x if graph.writes_outside else with_gradient_format(x),))
