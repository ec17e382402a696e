"""`accelerate`: replaces the layers of a PyTorch model, in place, where fastgrad's kernels fuse them; its Report undoes it.

What replaces them is in replacement.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastgrad.torch.fusion import ChainStep, ConvolutionStep, ResidualPattern
from fastgrad.torch.graph import Graph
from fastgrad.torch.graph_replacement import GraphReplacement, graphs_of
from fastgrad.torch.layers import METHODS, activation_of, has_hooks, known_class, runs_layers_in_order
from fastgrad.torch.nodes import ConvNode
from fastgrad.torch.replacement import (
    LSTM_FORWARD,
    AcceleratedLSTM,
    BlockReplacement,
    ForwardReplacement,
    SequentialReplacement,
)
from fastgrad.torch.residual_blocks import residual_pattern
from fastgrad.torch.tensors import FLOATS

# what could have been fused, had its neighbours been in sight
FUSABLE = nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d


class Report:
    """What `accelerate` did: print it, or undo it.

    `replaced` and `left` are lists of pairs: the name of a module, and what became of it or why it was left.
    """

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str]] = []
        self.left: list[tuple[str, str]] = []
        self._undo: list[Callable[[], Any]] = []

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        lines = []
        for title, rows in (("replaced", self.replaced), ("left", self.left)):
            lines += [
                f"{title}:" if rows else f"{title}: nothing",
                *(f"  {name or '(the model)'}: {what}" for name, what in rows),
            ]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Report:
    """Replace in a PyTorch model, in place, what fastgrad fuses: nothing else about it changes.

    Chains of nn.Linear and activations; nn.Conv2d and nn.BatchNorm with what is added to them and the activation that
    follows; nn.LSTM. In nn.Sequential, and in the code of a model's own forward with its functions, such as
    F.relu(self.bn(self.conv(x)) + x): that is run once with stand-ins, which record what it computes. Code that does more
    than that (prints, counts, decides by values) is called as it is, and what is inside of it is looked at by itself.
    Parameters, buffers and their names stay, so that an optimizer and checkpoints go on; so do hooks on modules that are
    replaced as a whole.

    A layer is fused as long as it is exactly PyTorch's own, which every call asks. One of a subclass, or with hooks, a
    patched forward, a parametrisation or another dtype runs as PyTorch's, and so does all that is traced, exported or
    transformed. Copies and pickles stay accelerated; a report of theirs undoes them too. torch.jit.script raises
    RuntimeError.

    Args:
        model: A torch.nn.Module. Its layers are replaced in place.

    Returns:
        A report of what was replaced, what was left and why; its undo() puts everything back.

    Raises:
        TypeError: model is no torch.nn.Module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> report = fgt.accelerate(model)
        >>> print(report)
        replaced:
          0..2: a chain of dense layers
        left: nothing
        >>> model(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
        >>> report.undo()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    report, handled, graphs = Report(), set(), graphs_of(model)
    nodes = {layer: node for graph in graphs.values() for node in graph.fused for layer in node.layers}
    for name, module in model.named_modules():
        if module not in handled and module not in nodes:
            handled |= _replace(name, module, report)
    _replace_graphs(model, graphs, handled, report)
    return report


def _replace_graphs(model: nn.Module, graphs: dict[nn.Module, Graph], handled: set[nn.Module], report: Report) -> None:
    """Replace the forwards of modules that have a graph, and report what is fused only there."""
    names = {module: name for name, module in model.named_modules()}
    for module, graph in graphs.items():
        if isinstance(getattr(module.__dict__.get("forward"), "__self__", None), GraphReplacement):
            continue
        nodes = [node for node in graph.fused if not handled.issuperset(node.layers)]
        for node in nodes:
            report.replaced.append((_span(names[node.layers[0]], names[node.layers[-1]]), str(node)))
        if nodes or any(isinstance(node, ConvNode) for node in graph.fused):
            _install(module, GraphReplacement(module), report)


def _span(first: str, last: str) -> str:
    """One name of layers from the first to the last: "stem.0..1" of "stem.0" and "stem.1"."""
    if first == last:
        return first
    parent = first.rpartition(".")[0] + "."
    return f"{first}..{last.removeprefix(parent) if parent != '.' else last}"


def _replace(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    """Replace a module, if that is possible, and report; returns the inner modules that this deals with."""
    if forward := module.__dict__.get("forward"):
        replacement = getattr(forward, "__self__", None)
        if isinstance(replacement, ForwardReplacement):
            return _report_again(name, module, replacement, report)
        report.left.append((name, "its forward has been replaced"))
        return set(module.modules())
    if isinstance(module, AcceleratedLSTM):
        report.left.append((name, "is accelerated already"))
        report._undo.append(partial(_undo_lstm, module))
    elif why := _unsupported(module):
        report.left.append((name, why))
    elif type(module) is nn.LSTM and nn.LSTM.forward is LSTM_FORWARD:
        module.__class__ = AcceleratedLSTM  # type: ignore[assignment]
        report._undo.append(partial(_undo_lstm, module))
        report.replaced.append((name, "fgt.LSTM"))
    elif type(module).__module__.startswith("fastgrad."):
        report.left.append((name, "is fastgrad's already"))
        return set(module.modules())
    elif runs_layers_in_order(module) and nn.Sequential in METHODS:
        return _replace_sequential(name, module, report)
    elif (pattern := residual_pattern(module)) is not None:
        return _replace_block(name, module, pattern, report)
    elif not module._modules and (activation_of(module) is None or known_class(module) is None):
        report.left.append((name, _why_left(module)))
    return set()


def _report_again(name: str, module: nn.Module, replacement: ForwardReplacement, report: Report) -> set[nn.Module]:
    """Report a module that is accelerated already, perhaps as a copy; this report undoes it too. Returns the modules that it deals with."""
    report.left.append((name, "is accelerated already"))
    report._undo.append(partial(replacement.undo, module))
    if isinstance(replacement, GraphReplacement):
        # its children have replacements of their own
        return set()
    if not isinstance(replacement, SequentialReplacement):
        return set(module.modules())
    return {
        layer
        for step in replacement.plan.steps
        if isinstance(step, ChainStep | ConvolutionStep)
        for layer in step.layers
    }


def _undo_lstm(module: Any) -> None:
    # it may have been undone by another report
    if isinstance(module, AcceleratedLSTM):
        module.undo()


def _unsupported(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript"
    for parameter in module.parameters(recurse=False):
        if not parameter.is_cpu:
            return f"its parameters are on {parameter.device}"
        if parameter.dtype not in FLOATS:
            return f"its parameters are {parameter.dtype}"
    return ""


def _why_left(module: nn.Module) -> str:
    if type(module) in FUSABLE:
        if has_hooks(module):
            return "has hooks"
        if "forward" in module.__dict__ or type(module).forward is not METHODS.get(type(module), [None])[0]:
            return "its forward has been replaced"
        return "has no neighbour in an nn.Sequential to be fused with"
    return f"{type(module).__name__} stays PyTorch's"


def _replace_sequential(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    replacement, handled = SequentialReplacement(module), set()
    names = {layer: key for key, layer in module._modules.items()}
    for step in replacement.plan.steps:
        if isinstance(step, ChainStep | ConvolutionStep):
            inner = (
                step.linears if isinstance(step, ChainStep) else [a for a in (step.conv, step.norm) if a is not None]
            )
            inside = f"{names[inner[0]]}..{names[inner[-1]]}" if len(inner) > 1 else names[inner[0]]
            report.replaced.append((f"{name}.{inside}".lstrip("."), str(step)))
            handled |= set(step.layers)
    if handled:
        _install(module, replacement, report)
    return handled


def _install(module: nn.Module, replacement: ForwardReplacement, report: Report) -> None:
    replacement.install()
    report._undo.append(partial(replacement.undo, module))


def _replace_block(name: str, module: nn.Module, pattern: ResidualPattern, report: Report) -> set[nn.Module]:
    inside = set(module.modules()) - {module}
    if pattern.layers(module) is not None:
        _install(module, BlockReplacement(module, pattern), report)
        report.replaced.append((name, "a residual block"))
        return inside
    why = "has layers with hooks" if any(map(has_hooks, inside)) else next(filter(None, map(_unsupported, inside)), "")
    report.left.append((name, why or "is a residual block of other layers"))
    return set()
