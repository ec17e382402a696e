"""What takes the place of a module's forward in an accelerated model: ForwardReplacement, its kinds, and the class AcceleratedLSTM."""

import copy
from typing import Any, NoReturn

import torch
from torch import nn

from fastgrad.torch.fusion import Plan, ResidualPattern
from fastgrad.torch.layers import is_dense, needs_original_layers, runs_layers_in_order
from fastgrad.torch.lstm_module import LSTM
from fastgrad.torch.residual_blocks import residual_pattern

Tensor = torch.Tensor
LSTM_FORWARD = nn.LSTM.forward
NO_SCRIPT = "accelerate: TorchScript and torch.fx cannot take an accelerated model: call undo() of its report first"


class ForwardReplacement:
    """Another forward of a module, until it is stopped. A call that it cannot fuse goes to the forward of the module's class."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.stopped = module, False

    def install(self) -> None:
        """Set attributes of the module itself, which hide those of its class."""
        self.module.__dict__.update(self._attributes())

    def undo(self, module: nn.Module) -> None:
        """Delete from a module the attributes that `install` has set. An attribute that was set since stays."""
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


class SequentialReplacement(ForwardReplacement):
    """The replacement of an nn.Sequential's forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.plan = Plan()
        self.plan.update(tuple(module._modules.values()))

    def forward(self, input: Tensor) -> Tensor:
        if self.stopped or not runs_layers_in_order(self.module):
            return type(self.module).forward(self.module, input)
        return self.plan(self.module, input)


class BlockReplacement(ForwardReplacement):
    """The replacement of a residual block's forward."""

    def __init__(self, module: nn.Module, pattern: ResidualPattern | None) -> None:
        super().__init__(module)
        self.pattern = pattern

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and not self.stopped:
            if self.pattern is None and not torch.compiler.is_compiling():
                self.pattern = residual_pattern(self.module)
            layers = None if self.pattern is None else self.pattern.layers(self.module)
            if layers is not None:
                return self.pattern(layers, args[0])  # type: ignore[misc]
        return type(self.module).forward(self.module, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # the code of the forward may be another where this is loaded
        return {**self.__dict__, "pattern": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockReplacement":
        copied = memo[id(self)] = BlockReplacement.__new__(BlockReplacement)
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
        if needs_original_layers() or not self._can_fuse():
            return nn.LSTM.forward(self, input, hx)  # type: ignore[call-overload]
        return super().forward(input, hx)

    def _can_fuse(self) -> bool:
        parameters = self._parameters
        if type(self) is not AcceleratedLSTM or nn.LSTM.forward is not LSTM_FORWARD:
            return False
        # no generator, which torch.compile would have to trace
        for name in self._flat_weights_names:  # noqa: SIM110
            if name not in parameters or not is_dense(parameters[name]):
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
