"""`accelerate`: replaces the layers of a PyTorch model, in place, where fastgrad's kernels fuse them; its Report undoes it.

An nn.Sequential or a residual block gets a `forward` of its own (Fused); an nn.LSTM gets another class (AcceleratedLSTM).
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from fastgrad.torch.fusion import (
    KNOWN,
    SEQUENTIAL,
    Chain,
    Convolved,
    Plan,
    Residual,
    activation_of,
    aside,
    dense,
    hooked,
    plain,
)
from fastgrad.torch.modules import LSTM
from fastgrad.torch.residual_blocks import recognised
from fastgrad.torch.tensors import FLOATS

Tensor = torch.Tensor
# what could have been fused, had its neighbours been in sight
FUSABLE = nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d
LSTM_FORWARD = nn.LSTM.forward
NO_SCRIPT = "accelerate: TorchScript and torch.fx cannot take an accelerated model: call undo() of its report first"


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

    Chains of nn.Linear and activations, nn.Conv2d and nn.BatchNorm with what follows, both in nn.Sequential; nn.LSTM;
    and residual blocks like torchvision's BasicBlock, known by their forward's code. Parameters, buffers and their
    names stay, so that an optimizer and checkpoints go on; so do hooks on modules that are replaced as a whole.

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
    report, done = Report(), set()
    for name, module in model.named_modules():
        if module not in done:
            done |= _replaced(name, module, report)
    return report


class Fused:
    """A replacement of a module's forward, until it is stopped. A call that it cannot fuse goes to the forward of the module's class."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.stopped = module, False

    def put(self) -> None:
        """Set attributes of the module itself, which hide those of its class."""
        self.module.__dict__.update(self._attributes())

    def undo(self, module: nn.Module) -> None:
        """Delete from a module the attributes that `put` has set. An attribute that was set since stays."""
        self.stopped = True
        for name, value in self._attributes().items():
            if module.__dict__.get(name) == value:
                del module.__dict__[name]

    def _attributes(self) -> dict[str, Any]:
        return {
            "forward": self.forward,
            "__prepare_scriptable__": self.no_script,
            "_replicate_for_data_parallel": self.replicate,
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def no_script(self) -> NoReturn:
        """Raise RuntimeError: torch.jit.script calls this to know what to compile."""
        raise RuntimeError(NO_SCRIPT)

    def replicate(self) -> nn.Module:
        """A replica of nn.DataParallel has other layers, on another device: PyTorch's forward takes them."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        for name in self._attributes():
            replica.__dict__.pop(name, None)
        return replica


class FusedSequential(Fused):
    """The replacement of an nn.Sequential's forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.plan = Plan()
        self.plan.make(tuple(module._modules.values()))

    def forward(self, input: Tensor) -> Tensor:
        if self.stopped or not _runs_layers(self.module):
            return type(self.module).forward(self.module, input)
        return self.plan(self.module, input)


class FusedBlock(Fused):
    """The replacement of a residual block's forward."""

    def __init__(self, module: nn.Module, residual: Residual | None) -> None:
        super().__init__(module)
        self.residual = residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and not self.stopped:
            if self.residual is None and not torch.compiler.is_compiling():
                self.residual = recognised(self.module)
            layers = None if self.residual is None else self.residual.layers(self.module)
            if layers is not None:
                return self.residual(layers, args[0])  # type: ignore[misc]
        return type(self.module).forward(self.module, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # the code of the forward may be another where this is loaded
        return {**self.__dict__, "residual": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedBlock":
        copied = memo[id(self)] = FusedBlock.__new__(FusedBlock)
        copied.__dict__.update({**self.__dict__, "module": copy.deepcopy(self.module, memo)})
        return copied


class AcceleratedLSTM(LSTM):
    """The class of an accelerated nn.LSTM. Its forward is fgt.LSTM's if that can use its parameters, else PyTorch's."""

    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size

    def forward(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, torch.fx.Proxy):
            raise RuntimeError(NO_SCRIPT)
        if aside() or not self._fused():
            return nn.LSTM.forward(self, input, hx)  # type: ignore[call-overload]
        return super().forward(input, hx)

    def _fused(self) -> bool:
        parameters = self._parameters
        if type(self) is not AcceleratedLSTM or nn.LSTM.forward is not LSTM_FORWARD:
            return False
        # no generator, which torch.compile would have to trace
        for name in self._flat_weights_names:  # noqa: SIM110
            if name not in parameters or not dense(parameters[name]):
                return False
        return True

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(NO_SCRIPT)

    def undo(self) -> None:
        """Make the module an nn.LSTM again.

        A class that torch.nn.utils.parametrize has derived from this one becomes one derived from nn.LSTM.
        """
        kind = type(self)
        if kind is not AcceleratedLSTM:
            body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            self.__class__ = type(kind.__name__, (nn.LSTM,), body)  # type: ignore[assignment]
        else:
            self.__class__ = nn.LSTM  # type: ignore[assignment]


def _runs_layers(module: nn.Module) -> bool:
    """Whether a module calls its layers one after the other, as nn.Sequential does."""
    kind: Any = type(module)
    return kind.forward is SEQUENTIAL[0] and kind.__iter__ is SEQUENTIAL[1]


def _replaced(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    """Replace a module, if that is possible, and report; returns the inner modules that this deals with."""
    if forward := module.__dict__.get("forward"):
        fused = getattr(forward, "__self__", None)
        if isinstance(fused, Fused):
            return _again(name, module, fused, report)
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
    elif _runs_layers(module) and nn.Sequential in KNOWN:
        return _sequential(name, module, report)
    elif (residual := recognised(module)) is not None:
        return _block(name, module, residual, report)
    elif _looks_like_a_block(module):
        report.left.append((name, "looks like a residual block, but its forward computes something else"))
    elif not module._modules and (activation_of(module) is None or plain(module) is None):
        report.left.append((name, _why_left(module)))
    return set()


def _again(name: str, module: nn.Module, fused: Fused, report: Report) -> set[nn.Module]:
    """Report a module that is accelerated already, perhaps as a copy; this report undoes it too. Returns the modules that it deals with."""
    report.left.append((name, "is accelerated already"))
    report._undo.append(partial(fused.undo, module))
    if not isinstance(fused, FusedSequential):
        return set(module.modules())
    return {layer for step in fused.plan.steps if isinstance(step, Chain | Convolved) for layer in step.layers}


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
        if hooked(module):
            return "has hooks"
        if "forward" in module.__dict__ or type(module).forward is not KNOWN.get(type(module), [None])[0]:
            return "its forward has been replaced"
        return "has no neighbour in an nn.Sequential to be fused with"
    return f"{type(module).__name__} stays PyTorch's"


def _sequential(name: str, module: nn.Module, report: Report) -> set[nn.Module]:
    fused, done = FusedSequential(module), set()
    names = {layer: key for key, layer in module._modules.items()}
    for step in fused.plan.steps:
        if isinstance(step, Chain | Convolved):
            inner = step.linears if isinstance(step, Chain) else [a for a in (step.conv, step.norm) if a is not None]
            inside = f"{names[inner[0]]}..{names[inner[-1]]}" if len(inner) > 1 else names[inner[0]]
            report.replaced.append((f"{name}.{inside}".lstrip("."), str(step)))
            done |= set(step.layers)
    if done:
        _put(module, fused, report)
    return done


def _put(module: nn.Module, fused: Fused, report: Report) -> None:
    fused.put()
    report._undo.append(partial(fused.undo, module))


def _block(name: str, module: nn.Module, residual: Residual, report: Report) -> set[nn.Module]:
    inside = set(module.modules()) - {module}
    if residual.layers(module) is not None:
        _put(module, FusedBlock(module, residual), report)
        report.replaced.append((name, "a residual block"))
        return inside
    why = "has layers with hooks" if any(map(hooked, inside)) else next(filter(None, map(_unsupported, inside)), "")
    report.left.append((name, why or "is a residual block of other layers"))
    return set()


def _looks_like_a_block(module: Any) -> bool:
    kinds = {"conv1": nn.Conv2d, "bn1": nn.BatchNorm2d, "conv2": nn.Conv2d, "bn2": nn.BatchNorm2d}
    return all(type(getattr(module, name, None)) is kind for name, kind in kinds.items())
