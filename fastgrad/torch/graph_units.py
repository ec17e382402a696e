"""The graphs in `accelerate`: which modules get one, and what the report knows of it."""

from functools import partial
from typing import Any

from torch import nn

from fastgrad.torch.graph import Graph
from fastgrad.torch.graph_replacement import GraphChoice, GraphReplacement
from fastgrad.torch.nodes import ConvNode
from fastgrad.torch.replacement import replacement_of
from fastgrad.torch.report import NO_NAME, Report

# the layers that replacements of modules deal with
Handled = dict[nn.Module, set[nn.Module]]


def replace_graphs(
    model: nn.Module, graphs: dict[nn.Module, Graph], handled: Handled, report: Report, chooses: bool
) -> None:
    """Replace the forwards of modules that have a graph, if that fuses more than the replacements in them."""
    names = {module: name for name, module in model.named_modules()}
    for module, graph in graphs.items():
        if isinstance(replacement_of(module), GraphReplacement) or _adds_nothing(graph, handled):
            continue
        replacement = GraphReplacement(module, GraphChoice(module) if chooses else None)
        replacement.install()
        name = record_graph(names[module], replacement, partial(replacement.undo, module), report)
        report.replaced.append((name, f"{len(graph.fused)} fused steps of {len(graph.nodes)}"))
        for node in graph.fused:
            ends = dict.fromkeys((names[node.layers[0]], names[node.layers[-1]]))
            row = " to ".join(ends), f"{node}, in {name}"
            report.replaced.append(row)
            report._graphs[row] = name


def record_graph(name: str, replacement: GraphReplacement, undo: Any, report: Report) -> str:
    """Have a report know the choices of a module's graph and of its convolutions. Returns the graph's name, since the module may be
    another unit too."""
    graph = f"the graph of {name or NO_NAME}"
    report._record(graph, replacement.choice, undo)
    for settings, choice in replacement.convolutions.items():
        report._record(f"{settings}, in {graph}", choice, None)
    return graph


def _adds_nothing(graph: Graph, handled: Handled) -> bool:
    """Whether other replacements fuse all that a graph does, and a single one all of its images."""
    parts = [set(node.layers) for node in graph.fused]
    parts.append({layer for node in graph.fused if isinstance(node, ConvNode) for layer in node.layers})
    return all(any(part <= inner for inner in handled.values()) for part in parts)
