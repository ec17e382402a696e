"""`accelerate`: replaces the layers of a PyTorch model, in place, where fastgrad's kernels fuse them; its Report undoes it.

What replaces them is in graph_units.py, replacement.py, runs.py and accelerated_recurrent.py, what chooses between the two in choice.py.
"""

import os
from functools import partial
from typing import Any

import torch
from torch import nn

from fastgrad.torch.accelerated_recurrent import ACCELERATED, AcceleratedRecurrent, is_unpatched
from fastgrad.torch.choice import Choice
from fastgrad.torch.fusion import ResidualPattern
from fastgrad.torch.graph_replacement import GraphReplacement, graphs_of
from fastgrad.torch.graph_units import record_graph, replace_graphs
from fastgrad.torch.layers import METHODS, activation_of, has_hooks, known_class, runs_layers_in_order
from fastgrad.torch.model_replacement import ModelChoice, ModelReplacement
from fastgrad.torch.replacement import BlockReplacement, ForwardReplacement, LayerReplacement, replacement_of
from fastgrad.torch.report import WHOLE, Report, stored_choices
from fastgrad.torch.residual_blocks import residual_pattern
from fastgrad.torch.runs import Run, SequentialReplacement
from fastgrad.torch.tensors import FLOATS

# what could have been fused, had its neighbours been in sight
FUSABLE = nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm
# what is replaced alone, as reports name it
ALONE: dict[Any, str] = {nn.Conv2d: "convolution", nn.BatchNorm2d: "batch norm", nn.LayerNorm: "layer norm"}


def accelerate(model: nn.Module, *, choose: bool | Report | dict[str, Any] | str | os.PathLike[str] = True) -> Report:
    """Replace in a PyTorch model, in place, what fastgrad fuses and where it is faster: nothing else about it changes.

    Chains of nn.Linear and activations; nn.Conv2d and nn.BatchNorm with what is added to them and the activation that
    follows, or alone; nn.LayerNorm in the same way; nn.LSTM and nn.GRU. In nn.Sequential, and in the code of a model's
    own forward with its functions, such as F.relu(self.bn(self.conv(x)) + x): that is run once with stand-ins, which
    record what it computes. Code that does more than that (prints, counts, decides by values) is called as it is, and
    what is inside of it is looked at by itself. Parameters, buffers and their names stay, so that an optimizer and
    checkpoints go on; so do hooks on modules that are replaced as a whole.

    At its first call with a shape, in training or evaluation, each of them is timed both ways, on copies, and then goes the
    faster way. The next calls of the model, about ten, go in turns with all of them and by PyTorch's layers alone: unless
    that is 5 % slower in the whole, the model stays PyTorch's. The report says which. Which one it is may differ from run to
    run, and with it the last digits of results: give a stored report, or False. Nothing is timed under torch.compile, autocast, a
    checkpoint or torch.use_deterministic_algorithms: there all that is fused is, and layers alone are PyTorch's.

    A layer is fused as long as it is exactly PyTorch's own, which every call asks. One of a subclass, or with hooks, a
    patched forward, a parametrisation or another dtype runs as PyTorch's, and so does all that is traced, exported or
    transformed. Deep copies and pickles stay accelerated; a report of theirs undoes them too. A shallow copy, of copy.copy,
    computes what the model does, whatever is set in the copy, until it is accelerated itself. torch.jit.script raises
    RuntimeError.

    Args:
        model: A torch.nn.Module. Its layers are replaced in place.
        choose: True times both ways. False always fuses, and leaves layers alone. A report of the same model, its to_dict()
            or the path of a file that it saved: choose alike; what was not met then is timed.

    Returns:
        A report of what was replaced, what was left and why; its save(path) stores its choices, its undo() puts everything
        back.

    Raises:
        TypeError: model is no torch.nn.Module, or choose none of the above.
        ValueError: choose is not what a report stores, or of another model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> report = fgt.accelerate(model)
        >>> print(report)
        replaced:
          0 to 2: a chain of dense layers
            is chosen at the first call
        left: nothing
        >>> model(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
        >>> report.undo()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    stored, chooses = {} if isinstance(choose, bool) else stored_choices(choose), choose is not False
    _take_off_copies(model)
    before = _taken_off(model)
    report, graphs = Report(), graphs_of(model)
    # the modules that each replacement deals with
    handled: dict[nn.Module, set[nn.Module]] = {}
    in_nodes = {layer for graph in graphs.values() for node in graph.fused for layer in node.layers}
    in_graphs = {module for outer in graphs for module in outer.modules()}
    for name, module in model.named_modules():
        if module not in in_nodes and not any(module in inner for inner in handled.values()):
            handled[module] = _replace(name, module, report, chooses, module in in_graphs)
    replace_graphs(model, graphs, handled, report, chooses)
    if chooses:
        _compare_whole(model, report, before)
    try:
        report._use(stored)
    except ValueError:
        report.undo()
        raise
    return report


def _replace(name: str, module: nn.Module, report: Report, chooses: bool, in_graph: bool) -> set[nn.Module]:
    """Replace a module, if that is possible, and report; returns the inner modules that this deals with.

    in_graph: whether it is inside of a module that has a graph: then convolutions and batch norms alone are left to that.
    """
    if module.__dict__.get("forward"):
        if (replacement := replacement_of(module)) is not None:
            return _report_again(name, module, replacement, report)
        report.left.append((name, "its forward has been replaced"))
        return set(module.modules())
    if isinstance(module, AcceleratedRecurrent):
        report.left.append((name, "is accelerated already"))
        report._record(name, module.__dict__.get("_choice"), partial(_undo_recurrent, module))
    elif why := _unsupported(module):
        report.left.append((name, why))
    elif (kind := ACCELERATED.get(type(module))) is not None and is_unpatched(type(module)):
        module.__class__ = kind  # type: ignore[assignment]
        if chooses:
            module.__dict__["_choice"] = Choice()
        report._record(name, module.__dict__.get("_choice"), partial(_undo_recurrent, module))
        report.replaced.append((name, f"fgt.{kind.original_class.__name__}"))
    elif type(module).__module__.startswith("fastgrad."):
        report.left.append((name, "is fastgrad's already"))
        return set(module.modules())
    elif runs_layers_in_order(module) and nn.Sequential in METHODS:
        return _replace_sequential(name, module, report, chooses)
    elif (pattern := residual_pattern(module)) is not None:
        return _replace_block(name, module, pattern, report, chooses)
    elif chooses and (what := ALONE.get(known_class(module))) and (what == "layer norm" or not in_graph):
        # where nothing can be timed it stays PyTorch's
        report._install(name, LayerReplacement(module, Choice(default=False)))
        report.replaced.append((name, what))
    elif not in_graph and _looks_like_a_block(module):
        report.left.append((name, "looks like a residual block, but its forward computes something else"))
    elif not module._modules and (activation_of(module) is None or known_class(module) is None):
        report.left.append((name, _why_left(module)))
    return set()


def _take_off_copies(model: nn.Module) -> None:
    """Take off shallow copies the replacements of what they were copied from."""
    for module in model.modules():
        replacement = replacement_of(module)
        if replacement is not None and replacement.module is not module:
            replacement.take_off(module)


def _taken_off(model: nn.Module) -> ModelReplacement | None:
    """Take off what compares a model as a whole, and what does so with parts of it; returns the model's own."""
    own = None
    for module in model.modules():
        replacement = replacement_of(module)
        if isinstance(replacement, ModelReplacement):
            replacement.undo(module)
            own = replacement if module is model else own
    return own


def _compare_whole(model: nn.Module, report: Report, before: ModelReplacement | None) -> None:
    """Have a model of more than one unit compare its steps with PyTorch's. before: what did so until now."""
    units = list(report._choices.values())
    inner = replacement_of(model)
    if not units or (len(units) == 1 and (inner is not None or isinstance(model, AcceleratedRecurrent))):
        return
    whole = before or ModelReplacement(model, ModelChoice())
    whole.inner, whole.stopped = inner, False
    report._install(WHOLE, whole)
    for unit in units:
        unit.whole = whole.choice


def _report_again(name: str, module: nn.Module, replacement: ForwardReplacement, report: Report) -> set[nn.Module]:
    """Report a module that is accelerated already, perhaps as a copy; this report undoes it too. Returns the modules that it deals with."""
    report.left.append((name, "is accelerated already"))
    if isinstance(replacement, GraphReplacement):
        record_graph(name, replacement, partial(replacement.undo, module), report)
        # its children have replacements of their own
        return set()
    report._record(name, replacement.choice, partial(replacement.undo, module))
    if not isinstance(replacement, SequentialReplacement):
        return set(module.modules())
    for run in replacement.runs():
        report._record(_run_name(name, run), run.choice, None)
    return {layer for run in replacement.runs() for layer in run.layers}


def _run_name(name: str, run: Run) -> str:
    """The names of the first and the last layer of a run."""
    ends = dict.fromkeys((run.names[0], run.names[-1]))
    return " to ".join(f"{name}.{end}".lstrip(".") for end in ends)


def _undo_recurrent(module: Any) -> None:
    # it may have been undone by another report
    if isinstance(module, AcceleratedRecurrent):
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


def _replace_sequential(name: str, module: nn.Module, report: Report, chooses: bool) -> set[nn.Module]:
    replacement = SequentialReplacement(module, chooses)
    for run in replacement.runs():
        report._record(_run_name(name, run), run.choice, None)
        report.replaced.append((_run_name(name, run), str(run)))
    if replacement.runs():
        report._install(name, replacement)
    return {layer for run in replacement.runs() for layer in run.layers}


def _replace_block(
    name: str, module: nn.Module, pattern: ResidualPattern, report: Report, chooses: bool
) -> set[nn.Module]:
    inside = set(module.modules()) - {module}
    if pattern.layers(module) is not None:
        report._install(name, BlockReplacement(module, pattern, Choice() if chooses else None))
        report.replaced.append((name, "a residual block"))
        return inside
    why = "has layers with hooks" if any(map(has_hooks, inside)) else next(filter(None, map(_unsupported, inside)), "")
    report.left.append((name, why or "is a residual block of other layers"))
    return set()


def _looks_like_a_block(module: Any) -> bool:
    kinds = {"conv1": nn.Conv2d, "bn1": nn.BatchNorm2d, "conv2": nn.Conv2d, "bn2": nn.BatchNorm2d}
    return all(type(getattr(module, name, None)) is kind for name, kind in kinds.items())
