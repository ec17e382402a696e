"""What takes the place of a module's forward in an accelerated model: ForwardReplacement, of residual blocks and of single layers.

That of an nn.Sequential is in runs.py, that of an nn.LSTM or nn.GRU in accelerated_recurrent.py.
"""

import copy
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from fastgrad.torch.choice import Choice, first_gradient
from fastgrad.torch.fusion import ConvolutionStep, ResidualPattern, apply_steps, normalise_rows, normalises_rows
from fastgrad.torch.layers import OTHER_PATCHES, known_class, needs_original_layers
from fastgrad.torch.residual_blocks import residual_pattern
from fastgrad.torch.twin import twin

Tensor = torch.Tensor
NO_SCRIPT = "accelerate: TorchScript and torch.fx cannot take an accelerated model: call undo() of its report first"


class _GradientFormat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return dy.contiguous()


def with_gradient_format(x: Tensor) -> Tensor:
    """x, such that its gradient is contiguous if x is.

    That of fused layers has channels last. PyTorch's layers before them would be slow on it, and no time of the unit would tell.
    """
    if is_dynamo_compiling() or not (
        x.requires_grad and x.dim() == 4 and torch.is_grad_enabled() and x.is_contiguous()
    ):
        return x
    return _GradientFormat.apply(x)


def replacement_of(module: nn.Module) -> "ForwardReplacement | None":
    """What takes the place of a module's forward, or None."""
    replacement = getattr(module.__dict__.get("forward"), "__self__", None)
    return replacement if isinstance(replacement, ForwardReplacement) else None


class ForwardReplacement:
    """Another forward of a module, until it is stopped. A call that it cannot fuse goes to the forward that it replaces.

    choice: what decides between `fused` and `original`; None is always `fused`. See `choice.Unit` for what it calls.
    inner: the replacement that this one takes the place of; None where that is the forward of the module's class.
    """

    inner: "ForwardReplacement | None" = None

    def __init__(self, module: nn.Module, choice: Choice | None = None) -> None:
        self.module, self.choice, self.stopped = module, choice, False

    def install(self) -> None:
        """Set attributes of the module itself, which hide those of its class."""
        self.module.__dict__.update(self._attributes())

    def undo(self, module: nn.Module) -> None:
        """Delete from a module the attributes that `install` has set. An attribute that was set since stays."""
        self.stopped = True
        self.take_off(module)

    def take_off(self, module: nn.Module) -> None:
        """The same for one module alone, such as a shallow copy of this one's: this one goes on."""
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
        if len(args) == 1 and not kwargs and not self.stopped:
            choice = self.choice
            if choice is None or choice.fuses(self, args[0]):
                return self.fused(args[0])
        return self.replaced_forward(*args, **kwargs)

    def replaced_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output by the forward that this one replaces."""
        if self.inner is not None:
            return self.inner.forward(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def fused(self, x: Any) -> Any:
        """The fused output for x; PyTorch's where the layers cannot be fused at this moment."""
        raise NotImplementedError

    def original(self, x: Any) -> Any:
        """The output of the module as its class computes it."""
        return type(self.module).forward(self.module, x)

    def unit_mode(self) -> tuple[bool, bool]:
        return self.module.training, first_gradient(self.module)

    def can_fuse(self) -> bool:
        return True

    def twin(self) -> "ForwardReplacement":
        return type(self)(twin(self.module, {}))

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.module.parameters()

    def no_script(self) -> NoReturn:
        """Raise RuntimeError: torch.jit.script calls this to know what to compile."""
        raise RuntimeError(NO_SCRIPT)

    def replicate(self) -> nn.Module:
        """A replica of nn.DataParallel has other layers, on another device: PyTorch's forward takes them."""
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        for name in self._attributes():
            replica.__dict__.pop(name, None)
        return replica


class BlockReplacement(ForwardReplacement):
    """The replacement of a residual block's forward."""

    def __init__(self, module: nn.Module, pattern: ResidualPattern | None, choice: Choice | None = None) -> None:
        super().__init__(module, choice)
        self.pattern = pattern

    def fused(self, x: Any) -> Any:
        layers = self._layers()
        if layers is None:
            return self.original(x)
        return self.pattern(layers, with_gradient_format(x))  # type: ignore[misc]

    def _layers(self) -> list[Any] | None:
        if self.pattern is None and not torch.compiler.is_compiling():
            self.pattern = residual_pattern(self.module)
        return None if self.pattern is None else self.pattern.layers(self.module)

    def can_fuse(self) -> bool:
        return self._layers() is not None

    def twin(self) -> "BlockReplacement":
        return BlockReplacement(twin(self.module, {}), self.pattern)

    def __getstate__(self) -> dict[str, Any]:
        # the code of the forward may be another where this is loaded
        return {**self.__dict__, "pattern": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockReplacement":
        copied = memo[id(self)] = BlockReplacement.__new__(BlockReplacement)
        attributes = {**self.__dict__, "pattern": None}
        copied.__dict__.update({**copy.deepcopy(attributes, memo), "pattern": self.pattern})
        return copied


class LayerReplacement(ForwardReplacement):
    """The replacement of the forward of an nn.Conv2d, nn.BatchNorm2d or nn.LayerNorm that the model's own code calls."""

    def fused(self, x: Any) -> Any:
        if needs_original_layers() or not self.can_fuse():
            return self.original(x)
        if isinstance(self.module, nn.LayerNorm):
            return normalise_rows(self.module, x) if normalises_rows(self.module, x) else self.original(x)
        if x.dim() != 4:
            return self.original(x)
        layers = (self.module, None, None) if isinstance(self.module, nn.Conv2d) else (None, self.module, None)
        return apply_steps([ConvolutionStep(*layers)], with_gradient_format(x))

    def can_fuse(self) -> bool:
        return known_class(self.module, OTHER_PATCHES) is not None
