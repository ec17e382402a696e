"""RecurrentModule, the base of LSTM and GRU: PyTorch's inputs, states and layers. The operators of one layer are in ops/."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fastgrad.torch.registration import autocast_dtype
from fastgrad.torch.tensors import check_tensor

Tensor = torch.Tensor
States = tuple[Tensor, ...]


# no subclass of torch.nn.LSTM or torch.nn.GRU, which torch.compile refuses to trace
class RecurrentModule(nn.RNNBase):
    """Layers on top of each other; a subclass has the cell. op is its operator's name."""

    op: str

    def _layer(
        self, x: Tensor, weights: list[Tensor], states: Any, batch_sizes: Any, order: Any, directions: int
    ) -> States:
        """y and the end states of one layer. states: its initial states, or None."""
        raise NotImplementedError

    def _state_tensors(self, hx: Any, batched: bool) -> States:
        """The initial states as tensors of 3 axes, or of 2 without a batch, or PyTorch's errors."""
        raise NotImplementedError

    def _run(self, input: Any, hx: Any) -> tuple[Any, States]:
        """y, a PackedSequence if the input is one, and the end states."""
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, inverse_order = input if packed else (input, None, None, None)
        if not torch.compiler.is_compiling():
            self._check(x, batch_sizes, order)
        batched = packed or x.dim() == 3
        if not batched:
            x = x.unsqueeze(0)
        elif not packed and not self.batch_first:
            x = x.transpose(0, 1)
        states = None if hx is None else self._states(hx, x, batch_sizes, batched)
        if not packed and not x.shape[1]:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        y, ends = self._layers(x, states, batch_sizes, order)
        if packed:
            return PackedSequence(y, batch_sizes, order, inverse_order), ends
        if not batched:
            return y.squeeze(0), tuple([end.squeeze(1) for end in ends])
        return y if self.batch_first else y.transpose(0, 1), ends

    def _check(self, x: Any, batch_sizes: Any, order: Any) -> None:
        # autocast casts what is not of float32
        if not isinstance(x, Tensor) or autocast_dtype(x) is None:
            check_tensor(self.op, "input", x)
        for name, value in (("batch_sizes", batch_sizes), ("sorted_indices", order)):
            if value is not None and not value.is_cpu:
                raise TypeError(f"{self.op}: {name} of the PackedSequence must be on the CPU, got {value.device}")
        if batch_sizes is None and x.dim() not in (2, 3):
            raise ValueError(f"{self.op}: input must be (N, T, C), (T, N, C), (T, C) or packed, got {tuple(x.shape)}")
        if x.shape[-1] != self.input_size:
            raise ValueError(f"{self.op}: input must have {self.input_size} channels, got {tuple(x.shape)}")

    def _states(self, hx: Any, x: Tensor, batch_sizes: Any, batched: bool) -> States:
        """The initial states with a batch, of exactly the shapes that x (N, T, C) or packed rows ask for, or PyTorch's errors."""
        states = self._state_tensors(hx, batched)
        if not batched:
            states = tuple([state.unsqueeze(1) for state in states])
        n = x.shape[0]
        if batch_sizes is not None:
            # a number that no trace knows; the operator compares it when it runs
            n = states[0].shape[1] if torch.compiler.is_compiling() else int(batch_sizes[0])
        layers = self.num_layers * (2 if self.bidirectional else 1)
        for i, state in enumerate(states):
            expected = layers, n, self.hidden_size if i else self.proj_size or self.hidden_size
            if tuple(state.shape) != expected:
                name = "hidden" if len(states) == 1 else f"hidden[{i}]"
                raise RuntimeError(f"Expected {name} size {expected}, got {list(state.shape)}")
        return states

    def _layers(self, x: Tensor, states: Any, batch_sizes: Any, order: Any) -> tuple[Tensor, States]:
        """y and the end states of x (N, T, C), or of packed rows."""
        directions = 2 if self.bidirectional else 1
        # as they are now: they may be swapped for a call, or computed from others (functional_call, parametrizations, pruning)
        parameters = [getattr(self, name) for name in self._flat_weights_names]
        count = len(parameters) // self.num_layers
        ends: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                # step by step, as PyTorch's own draws it
                x = nn.functional.dropout(x if batch_sizes is not None else x.transpose(0, 1), self.dropout)
                x = x if batch_sizes is not None else x.transpose(0, 1)
            weights = parameters[layer * count : (layer + 1) * count]
            own = slice(layer * directions, (layer + 1) * directions)
            start = None if states is None else [state[own] for state in states]
            x, *end = self._layer(x, weights, start, batch_sizes, order, directions)
            ends.append(end)
        return x, tuple(ends[0] if len(ends) == 1 else [torch.cat(end) for end in zip(*ends, strict=True)])
