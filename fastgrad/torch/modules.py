"""Modules with the names of PyTorch's: MLP, BatchNorm1d, BatchNorm2d and ResidualBlock, and LSTM, which can replace torch.nn.LSTM."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fastgrad.core import check
from fastgrad.torch.fusion import Plan, Residual, named_activation, normalise
from fastgrad.torch.ops.lstm import lstm
from fastgrad.torch.ops.lstm_layer import OP
from fastgrad.torch.registration import low
from fastgrad.torch.tensors import checked, laid, like_last

Tensor = torch.Tensor


class MLP(nn.Sequential):
    """Dense layers in a row, sizes[0] columns in, sizes[-1] out: the nn.Sequential of nn.Linear and activations, as one operator.

    activation follows every layer but the last, output the last one. Parameters are named "0.weight", "0.bias", "2.weight", ... as
    PyTorch names them, and drawn as nn.Linear does. A layer that is hooked, parametrised or exchanged runs as PyTorch's.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | tuple[str, float] = "relu",
        output: str | tuple[str, float] = "identity",
        *,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check.sequence("MLP", "sizes", sizes)
        if len(sizes) < 2:
            raise ValueError(f"MLP: sizes must have length at least 2, got {len(sizes)}")
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, bias, device, dtype), named_activation(activation)]
        layers[-1:] = [] if output == "identity" else [named_activation(output)]
        super().__init__(*layers)
        self._plan = Plan()
        self._plan.make(tuple(layers))

    def forward(self, input: Tensor) -> Tensor:
        return self._plan(self, input)


class _Normalised:
    """What BatchNorm1d and BatchNorm2d add to PyTorch's classes: an activation and a residual."""

    def __init__(
        self, num_features: int, *args: Any, activation: str | tuple[str, float] = "identity", **kwargs: Any
    ) -> None:
        check.activation("batch_norm", activation)
        super().__init__(num_features, *args, **kwargs)  # type: ignore[call-arg]
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return laid(normalise(self, input, self.activation, residual), like_last(input))


class BatchNorm1d(_Normalised, nn.BatchNorm1d):
    """y = act(norm(x) + residual): torch.nn.BatchNorm1d with an activation; `forward` also takes a residual."""


class BatchNorm2d(_Normalised, nn.BatchNorm2d):
    """y = act(norm(x) + residual): torch.nn.BatchNorm2d with an activation; `forward` also takes a residual.

    Images in memory_format=torch.channels_last are used without a copy, others are copied; y has the memory format of x.
    """


class ResidualBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut), of 3x3 convolutions (He et al. 2015), with the names of torchvision's BasicBlock.

    The shortcut is x, or where the shape changes downsample: a 1x1 convolution of this stride and a batch norm.
    """

    def __init__(
        self, n_in: int, n_out: int, stride: int = 1, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False, **made)
        self.bn1 = nn.BatchNorm2d(n_out, **made)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False, **made)
        self.bn2 = nn.BatchNorm2d(n_out, **made)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False, **made), nn.BatchNorm2d(n_out, **made)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = _PLAIN if self.downsample is None else _DOWN
        layers = residual.layers(self)
        if layers is not None:
            return residual(layers, x)
        shortcut = x if self.downsample is None else self.downsample(x)
        h = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(h)) + shortcut).relu()


_MAIN = "conv1", "bn1", None, "conv2", "bn2", None
_PLAIN, _DOWN = (Residual(_MAIN, shortcut, ResidualBlock.forward) for shortcut in ("", "downsample"))


class LSTM(nn.RNNBase):
    """torch.nn.LSTM by fastgrad's kernels: the same arguments, parameters, state_dict, inputs and outputs, PackedSequence too.

    Dropout between layers draws from PyTorch's generator. Differences: tensors on the CPU alone, float32 or float64; under autocast it
    computes in float32 and returns what PyTorch's would; there is no second derivative.
    """

    # no subclass of torch.nn.LSTM, which torch.compile refuses to trace
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def forward(self, input: Any, hx: Any = None) -> Any:
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, order, back = input if packed else (input, None, None, None)
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
            return PackedSequence(y, batch_sizes, order, back), (h_n, c_n)
        if not batched:
            return y.squeeze(0), (h_n.squeeze(1), c_n.squeeze(1))
        return y if self.batch_first else y.transpose(0, 1), (h_n, c_n)

    def _check(self, x: Any, batch_sizes: Any, order: Any) -> None:
        # autocast casts what is not of float32
        if not isinstance(x, Tensor) or low(x) is None:
            checked(OP, "input", x)
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
            what = f"{len(hx)} of them" if isinstance(hx, tuple | list) else type(hx).__name__
            raise RuntimeError(f"{OP}: expects two hidden states, a tuple (h_0, c_0), got {what}")
        if not all(isinstance(state, Tensor) for state in hx):
            raise RuntimeError(
                f"{OP}: both hidden states must be tensors, got {', '.join(type(s).__name__ for s in hx)}"
            )
        axes = 3 if batched else 2
        if any(state.dim() != axes for state in hx):
            what = "batched 3-D" if batched else "unbatched 2-D"
            got = f"({hx[0].dim()}-D, {hx[1].dim()}-D)"
            raise RuntimeError(f"For {what} input, hx and cx should also be {axes}-D but got {got} tensors")
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
        form: dict[str, Any] = {"directions": directions, "bias": self.bias, "projects": self.proj_size > 0}
        # as they are now: they may be swapped for a call, or computed from others (functional_call, parametrizations, pruning)
        every = [getattr(self, name) for name in self._flat_weights_names]
        each = len(every) // self.num_layers
        ends: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                # step by step, as PyTorch's own draws it
                x = nn.functional.dropout(x if batch_sizes is not None else x.transpose(0, 1), self.dropout)
                x = x if batch_sizes is not None else x.transpose(0, 1)
            weights: Any = every[layer * each : (layer + 1) * each]
            part = slice(layer * directions, (layer + 1) * directions)
            h_0, c_0 = (None, None) if hx is None else (hx[0][part], hx[1][part])
            x, *end = lstm(x, weights, h_0, c_0, batch_sizes, order, **form)
            ends.append(end)
        h_n, c_n = ends[0] if len(ends) == 1 else (torch.cat(states) for states in zip(*ends, strict=True))
        return x, h_n, c_n
