"""A model that exists, with fastgrad's kernels put in where they fuse something."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastgrad.torch.layers import HOOKS, Chain, Convolved, activation_of, block, hooked, steps
from fastgrad.torch.recurrent import LSTM
from fastgrad.torch.tensors import FLOATS

Tensor = torch.Tensor
# what could have been fused, had its neighbours been in sight
FUSABLE = nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d
SHORTCUTS = "downsample", "shortcut"


class Report:
    """What `accelerate` did: `replaced` and `left`, lists of (name of the module, what became of it or why), and `undo`."""

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str]] = []
        self.left: list[tuple[str, str]] = []
        self._undo: list[Callable[[], Any]] = []

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        parts = []
        for title, rows in (("replaced", self.replaced), ("left", self.left)):
            parts += [
                f"{title}:" if rows else f"{title}: nothing",
                *(f"  {name or '(the model)'}: {what}" for name, what in rows),
            ]
        return "\n".join(parts)


def accelerate(model: nn.Module) -> Report:
    """Replace in a PyTorch model, in place, what fastgrad fuses: nothing else about it changes.

    Chains of nn.Linear and activations, nn.Conv2d and nn.BatchNorm with what follows, both in nn.Sequential; nn.LSTM; and residual
    blocks like torchvision's BasicBlock, found by their layers and tried out. Parameters, buffers and their names stay, so that an
    optimizer and checkpoints go on; so do hooks on modules that are replaced as a whole. A layer with hooks of its own is not
    fused with others. Returns a report of what was replaced, what was left and why; its undo() puts everything back.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    report, done = Report(), set()
    for name, module in model.named_modules():
        if module not in done:
            done |= _replaced(name, module, report)
    return report


class FusedSequential:
    """Takes the place of a Sequential's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._plan()

    def _plan(self) -> None:
        self.layers = tuple(self.module._modules.values())
        self.steps = steps(self.layers)  # type: ignore[arg-type]
        hooks = [getattr(layer, name) for layer in self.layers for name in HOOKS]
        self._used, self._unused = [found for found in hooks if found], [found for found in hooks if not found]

    def __call__(self, input: Tensor) -> Tensor:
        # layers may have been exchanged since, or someone hooked on to one, or left
        if not torch.compiler.is_compiling() and (
            self.layers != tuple(self.module._modules.values()) or any(self._unused) or not all(self._used)
        ):
            self._plan()
        for step in self.steps:
            input = step(input)
        return input


class FusedBlock:
    """Takes the place of a residual block's forward."""

    def __init__(self, module: nn.Module, shortcut: str) -> None:
        self.module, self.shortcut = module, shortcut

    def __call__(self, x: Tensor) -> Tensor:
        return block(self.module, x, self.shortcut)


def _replaced(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    """Replace what can be; the modules within that are dealt with."""
    if forward := module.__dict__.get("forward"):
        ours = isinstance(forward, FusedSequential | FusedBlock)
        report.left.append((name, "is accelerated already" if ours else "its forward has been replaced"))
        return set(module.modules())
    if why := _unsupported(module):
        report.left.append((name, why))
    elif type(module) is nn.LSTM:
        module.__class__ = LSTM  # type: ignore[assignment]
        report._undo.append(partial(setattr, module, "__class__", nn.LSTM))
        report.replaced.append((name, "fgt.LSTM"))
    elif type(module).__module__.startswith("fastgrad."):
        report.left.append((name, "is fastgrad's already"))
        return set(module.modules())
    elif type(module).forward is nn.Sequential.forward:
        return _sequential(name, module, report)
    elif shortcut := _block_shortcut(module):
        return _block(name, module, shortcut, report)
    elif not module._modules and activation_of(module) is None:
        report.left.append((name, _why_left(module)))
    return set()


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
        return "has hooks" if hooked(module) else "has no neighbour in an nn.Sequential to be fused with"
    return f"{type(module).__name__} stays PyTorch's"


def _sequential(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    forward, rows, done = FusedSequential(module), [], set()
    names = {layer: key for key, layer in module._modules.items()}
    for step in forward.steps:
        if isinstance(step, Chain | Convolved):
            inner = step.linears if isinstance(step, Chain) else [a for a in (step.conv, step.norm) if a is not None]
            inside = f"{names[inner[0]]}..{names[inner[-1]]}" if len(inner) > 1 else names[inner[0]]
            rows.append((f"{name}.{inside}".lstrip("."), str(step)))
            done |= set(inner)
    # layers of another device or dtype would be refused only when they are called
    if why := next(filter(None, map(_unsupported, done)), ""):
        report.left.append((name, why))
    elif done:
        report.replaced += rows
        _put(module, forward, report)
    return done


def _put(module: nn.Module, forward: Callable, report: Report) -> None:
    module.forward = forward
    report._undo.append(partial(module.__dict__.pop, "forward", None))


def _block_shortcut(module: Any) -> str:
    """The name of the shortcut, if the layers are those of a residual block."""
    kinds = {"conv1": nn.Conv2d, "bn1": nn.BatchNorm2d, "conv2": nn.Conv2d, "bn2": nn.BatchNorm2d}
    if any(type(getattr(module, name, None)) is not kind for name, kind in kinds.items()):
        return ""
    for name in SHORTCUTS:
        if hasattr(module, name):
            other = getattr(module, name)
            of_both = isinstance(other, nn.Sequential) and [type(a) for a in other] == [nn.Conv2d, nn.BatchNorm2d]
            return name if not other or of_both else ""
    return ""


def _block(name: str, module: Any, shortcut: str, report: Report) -> set[nn.Module]:
    inside = set(module.modules()) - {module}
    if any(hooked(layer) for layer in inside):
        report.left.append((name, "has layers with hooks"))
    elif why := next(filter(None, map(_unsupported, inside)), ""):
        report.left.append((name, why))
    elif not _does_the_same(module, shortcut):
        report.left.append((name, "looks like a residual block, but its forward computes something else"))
    else:
        _put(module, FusedBlock(module, shortcut), report)
        report.replaced.append((name, "a residual block"))
    return inside


def _does_the_same(module: Any, shortcut: str) -> bool:
    """Whether copies of a block find the same on random images, in training and in evaluation."""
    w = module.conv1.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, module.conv1.in_channels, 9, 9, generator=generator, dtype=w.dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for training in (True, False):
            ours, theirs = (copy.deepcopy(module).train(training) for _ in range(2))
            try:
                found, expected = block(ours, x, shortcut), theirs.forward(x)
            except (RuntimeError, TypeError, ValueError, AttributeError):
                return False
            if not isinstance(expected, Tensor) or found.shape != expected.shape:
                return False
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
                return False
    return True
