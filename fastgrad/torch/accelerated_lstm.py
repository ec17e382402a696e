"""AcceleratedLSTM: the class of an nn.LSTM in an accelerated model."""

from typing import Any, NoReturn

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from fastgrad.torch.choice import first_gradient
from fastgrad.torch.layers import is_dense, needs_original_layers
from fastgrad.torch.lstm_module import LSTM
from fastgrad.torch.replacement import NO_SCRIPT
from fastgrad.torch.twin import twin

LSTM_FORWARD = nn.LSTM.forward


class AcceleratedLSTM(LSTM):
    """The class of an accelerated nn.LSTM. Its forward is fgt.LSTM's if that can use its parameters, else PyTorch's.

    An instance with a choice has it as its attribute _choice.
    """

    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size

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
        return nn.LSTM.forward(self, input, hx)  # type: ignore[call-overload]

    def unit_mode(self) -> tuple[bool, bool]:
        return self.training, first_gradient(self)

    def can_fuse(self) -> bool:
        parameters = self._parameters
        if type(self) is not AcceleratedLSTM or nn.LSTM.forward is not LSTM_FORWARD:
            return False
        # no generator, which torch.compile would have to trace
        for name in self._flat_weights_names:  # noqa: SIM110
            if name not in parameters or not is_dense(parameters[name]):
                return False
        return True

    def twin(self) -> "AcceleratedLSTM":
        copied = twin(self, {})
        copied.__dict__["_flat_weights"] = [copied._parameters[name] for name in self._flat_weights_names]
        return copied

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(NO_SCRIPT)

    def undo(self) -> None:
        """Make the module an nn.LSTM again.

        A class that torch.nn.utils.parametrize has derived from this one becomes one derived from nn.LSTM.
        """
        kind = type(self)
        self.__dict__.pop("_choice", None)
        if kind is not AcceleratedLSTM:
            body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            self.__class__ = type(kind.__name__, (nn.LSTM,), body)  # type: ignore[assignment]
        else:
            self.__class__ = nn.LSTM  # type: ignore[assignment]


def _choice_arguments(input: Any, hx: Any) -> tuple[Any, tuple[Any, Any], str]:
    """What Choice.fuses takes of a call of an LSTM."""
    packed = isinstance(input, PackedSequence)
    more = ("packed" if packed else "") + ("" if hx is None else " with states")
    return input.data if packed else input, (input, hx), more.strip()
