"""The module LSTM, which can replace torch.nn.LSTM: its inputs, states and layers. The operator of one layer is in ops/lstm.py."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fastgrad.torch.ops.lstm import lstm
from fastgrad.torch.ops.lstm_layer import OP
from fastgrad.torch.registration import autocast_dtype
from fastgrad.torch.tensors import check_tensor

Tensor = torch.Tensor


class LSTM(nn.RNNBase):
    """torch.nn.LSTM by fastgrad's kernels: the same arguments, parameters, state_dict, inputs and outputs.

    `forward(input, hx)` takes sequences (T, N, C), (N, T, C) with batch_first, (T, C) or a PackedSequence, and states
    (h_0, c_0) or None, which is 0. Dropout between layers draws from PyTorch's generator. Other than torch.nn.LSTM it takes
    tensors on the CPU alone, float32 or float64; under autocast it computes in float32 and returns the dtype that
    PyTorch's would; there is no second derivative.

    Args:
        *args: As torch.nn.LSTM takes them: input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size.
        **kwargs: As torch.nn.LSTM takes them.

    Raises:
        ValueError: An argument is out of its range, as of torch.nn.LSTM.

    Example:
        >>> lstm = fgt.LSTM(3, 5, batch_first=True)
        >>> y, (h_n, c_n) = lstm(torch.zeros(2, 7, 3))
        >>> y.shape, h_n.shape
        (torch.Size([2, 7, 5]), torch.Size([1, 2, 5]))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Gers, Schmidhuber & Cummins 2000, "Learning to Forget: Continual Prediction with LSTM".
    """

    # no subclass of torch.nn.LSTM, which torch.compile refuses to trace
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """(y, (h_n, c_n)), as torch.nn.LSTM's forward; of a PackedSequence y is one too."""
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, inverse_order = input if packed else (input, None, None, None)
        if not torch.compiler.is_compiling():
            self._check(x, batch_sizes, order)
        batched = packed or x.dim() == 3
        if not batched:
            x = x.unsqueeze(0)
        elif not packed and not self.batch_first:
            x = x.transpose(0, 1)
        if hx is not None:
            hx = self._states(hx, x, batch_sizes, batched)
        if not packed and not x.shape[1]:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        y, h_n, c_n = self._layers(x, hx, batch_sizes, order)
        if packed:
            return PackedSequence(y, batch_sizes, order, inverse_order), (h_n, c_n)
        if not batched:
            return y.squeeze(0), (h_n.squeeze(1), c_n.squeeze(1))
        return y if self.batch_first else y.transpose(0, 1), (h_n, c_n)

    def _check(self, x: Any, batch_sizes: Any, order: Any) -> None:
        # autocast casts what is not of float32
        if not isinstance(x, Tensor) or autocast_dtype(x) is None:
            check_tensor(OP, "input", x)
        for name, value in (("batch_sizes", batch_sizes), ("sorted_indices", order)):
            if value is not None and not value.is_cpu:
                raise TypeError(f"{OP}: {name} of the PackedSequence must be on the CPU, got {value.device}")
        if batch_sizes is None and x.dim() not in (2, 3):
            raise ValueError(f"{OP}: input must be (N, T, C), (T, N, C), (T, C) or packed, got {tuple(x.shape)}")
        if x.shape[-1] != self.input_size:
            raise ValueError(f"{OP}: input must have {self.input_size} channels, got {tuple(x.shape)}")

    def _states(self, hx: Any, x: Tensor, batch_sizes: Any, batched: bool) -> tuple[Tensor, Tensor]:
        """h_0 and c_0 with a batch, of exactly the shapes that x (N, T, C) or packed rows ask for: PyTorch's errors if they are not."""
        if not batched and isinstance(hx, Tensor):
            hx = tuple(hx)
        if not isinstance(hx, tuple | list) or len(hx) != 2:
            got = f"{len(hx)} of them" if isinstance(hx, tuple | list) else type(hx).__name__
            raise RuntimeError(f"{OP}: expects two hidden states, a tuple (h_0, c_0), got {got}")
        if not all(isinstance(state, Tensor) for state in hx):
            raise RuntimeError(
                f"{OP}: both hidden states must be tensors, got {', '.join(type(s).__name__ for s in hx)}"
            )
        axes = 3 if batched else 2
        if any(state.dim() != axes for state in hx):
            kind = "batched 3-D" if batched else "unbatched 2-D"
            got = f"({hx[0].dim()}-D, {hx[1].dim()}-D)"
            raise RuntimeError(f"For {kind} input, hx and cx should also be {axes}-D but got {got} tensors")
        states = hx if batched else [state.unsqueeze(1) for state in hx]
        n = x.shape[0]
        if batch_sizes is not None:
            # a number that no trace knows; the operator compares it when it runs
            n = states[0].shape[1] if torch.compiler.is_compiling() else int(batch_sizes[0])
        layers = self.num_layers * (2 if self.bidirectional else 1)
        for i, width in enumerate((self.proj_size or self.hidden_size, self.hidden_size)):
            expected = layers, n, width
            if tuple(states[i].shape) != expected:
                raise RuntimeError(f"Expected hidden[{i}] size {expected}, got {list(states[i].shape)}")
        return states[0], states[1]

    def _layers(self, x: Tensor, hx: Any, batch_sizes: Any, order: Any) -> tuple[Tensor, Tensor, Tensor]:
        """y, h_n and c_n of x (N, T, C), or of packed rows."""
        directions = 2 if self.bidirectional else 1
        options: dict[str, Any] = {"directions": directions, "bias": self.bias, "projects": self.proj_size > 0}
        # as they are now: they may be swapped for a call, or computed from others (functional_call, parametrizations, pruning)
        parameters = [getattr(self, name) for name in self._flat_weights_names]
        count = len(parameters) // self.num_layers
        end_states: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                # step by step, as PyTorch's own draws it
                x = nn.functional.dropout(x if batch_sizes is not None else x.transpose(0, 1), self.dropout)
                x = x if batch_sizes is not None else x.transpose(0, 1)
            weights: Any = parameters[layer * count : (layer + 1) * count]
            own_states = slice(layer * directions, (layer + 1) * directions)
            h_0, c_0 = (None, None) if hx is None else (hx[0][own_states], hx[1][own_states])
            x, *end = lstm(x, weights, h_0, c_0, batch_sizes, order, **options)
            end_states.append(end)
        h_n, c_n = (
            end_states[0] if len(end_states) == 1 else (torch.cat(states) for states in zip(*end_states, strict=True))
        )
        return x, h_n, c_n
