"""AcceleratedLSTM and AcceleratedGRU: the classes of an nn.LSTM and an nn.GRU in an accelerated model."""

from typing import Any, ClassVar, NoReturn

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from fastgrad.torch.choice import first_gradient
from fastgrad.torch.gru_module import GRU
from fastgrad.torch.layers import is_dense, needs_original_layers
from fastgrad.torch.lstm_module import LSTM
from fastgrad.torch.recurrent_module import RecurrentModule
from fastgrad.torch.replacement import NO_SCRIPT
from fastgrad.torch.twin import twin


class AcceleratedRecurrent(RecurrentModule):
    """The class of an accelerated recurrent module. Its forward is fastgrad's if that can use its parameters, else PyTorch's.

    An instance with a choice has it as its attribute _choice.
    """

    # PyTorch's
    original_class: ClassVar[Any]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, torch.fx.Proxy):
            raise RuntimeError(NO_SCRIPT)
        choice = None if is_dynamo_compiling() else self.__dict__.get("_choice")
        if choice is not None and not choice.fuses(self, *_choice_arguments(input, hx)):
            return self.original(input, hx)
        return self.fused(input, hx)

    def fused(self, input: Any, hx: Any = None) -> Any:
        if needs_original_layers() or not self.can_fuse():
            return self.original(input, hx)
        return super().forward(input, hx)

    def original(self, input: Any, hx: Any = None) -> Any:
        return self.original_class.forward(self, input, hx)

    def unit_mode(self) -> tuple[bool, bool]:
        return self.training, first_gradient(self)

    def can_fuse(self) -> bool:
        parameters = self._parameters
        if type(self) not in (AcceleratedLSTM, AcceleratedGRU) or not is_unpatched(self.original_class):
            return False
        # no generator, which torch.compile would have to trace
        for name in self._flat_weights_names:  # noqa: SIM110
            if name not in parameters or not is_dense(parameters[name]):
                return False
        return True

    def twin(self) -> "AcceleratedRecurrent":
        copied = twin(self, {})
        copied.__dict__["_flat_weights"] = [copied._parameters[name] for name in self._flat_weights_names]
        return copied

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(NO_SCRIPT)

    def undo(self) -> None:
        """Make the module one of PyTorch's class again.

        A class that torch.nn.utils.parametrize has derived from this one becomes one derived from PyTorch's.
        """
        kind, original = type(self), self.original_class
        self.__dict__.pop("_choice", None)
        if kind not in (AcceleratedLSTM, AcceleratedGRU):
            body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            self.__class__ = type(kind.__name__, (original,), body)
        else:
            self.__class__ = original


class AcceleratedLSTM(AcceleratedRecurrent, LSTM):
    """The class of an accelerated nn.LSTM."""

    original_class = nn.LSTM
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size


class AcceleratedGRU(AcceleratedRecurrent, GRU):
    """The class of an accelerated nn.GRU."""

    original_class = nn.GRU


ACCELERATED: dict[Any, type[AcceleratedRecurrent]] = {nn.LSTM: AcceleratedLSTM, nn.GRU: AcceleratedGRU}
FORWARDS = {kind: kind.forward for kind in ACCELERATED}


def is_unpatched(kind: Any) -> bool:
    """Whether PyTorch's class has the forward that it had when this module was imported."""
    return kind.forward is FORWARDS[kind]


def _choice_arguments(input: Any, hx: Any) -> tuple[Any, tuple[Any, Any], str]:
    """What Choice.fuses takes of a call."""
    packed = isinstance(input, PackedSequence)
    more = ("packed" if packed else "") + ("" if hx is None else " with states")
    return input.data if packed else input, (input, hx), more.strip()
