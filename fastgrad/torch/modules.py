"""Modules with PyTorch's own names: MLP, BatchNorm1d and BatchNorm2d, ResidualBlock."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastgrad import check
from fastgrad.torch.layers import Plan, Residual, named_activation, normalise
from fastgrad.torch.tensors import laid, like_last

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
        check.each("MLP", "sizes", sizes)
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
    """What both batch norms add to PyTorch's."""

    def __init__(
        self, num_features: int, *args: Any, activation: str | tuple[str, float] = "identity", **kwargs: Any
    ) -> None:
        check.activation("batch_norm", activation)
        super().__init__(num_features, *args, **kwargs)  # type: ignore[call-arg]
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return laid(normalise(self, input, self.activation, residual), like_last(input))


class BatchNorm1d(_Normalised, nn.BatchNorm1d):
    """y = act(norm(x) + residual): torch.nn.BatchNorm1d, with what often follows it; `forward` takes the residual too."""


class BatchNorm2d(_Normalised, nn.BatchNorm2d):
    """y = act(norm(x) + residual): torch.nn.BatchNorm2d, with what often follows it; `forward` takes the residual too.

    Images in memory_format=torch.channels_last are taken as they are, others copied; y lies like them.
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
