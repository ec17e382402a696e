"""Modules with PyTorch's names and parameters: MLP, BatchNorm1d, BatchNorm2d, LayerNorm and ResidualBlock.

LSTM is in lstm_module.py, GRU in gru_module.py.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.torch.fusion import Plan, ResidualPattern, normalise, normalise_rows
from fastgrad.torch.layers import activation_layer
from fastgrad.torch.tensors import in_memory_format, is_channels_last

Tensor = torch.Tensor


class MLP(nn.Sequential):
    """Dense layers in a row: an nn.Sequential of nn.Linear and activations that runs as one operator.

    Parameters are named "0.weight", "0.bias", "2.weight", ... and drawn as nn.Linear draws them. A layer that is hooked,
    parametrised or exchanged runs as PyTorch's own.

    Args:
        sizes: The widths: sizes[0] columns of the input, then the outputs of each layer; at least two.
        activation: Of every layer but the last: a name, or a pair such as ("leaky_relu", 0.1).
        output: The activation of the last layer.
        bias: Whether layers have biases.
        device: Of the parameters, as nn.Linear takes it. Layers that are not on the CPU run as PyTorch's.
        dtype: Of the parameters; None is PyTorch's default.

    Raises:
        ValueError: sizes has fewer than two entries, or an activation is unknown.
        TypeError: sizes is no sequence.

    Example:
        >>> net = fgt.MLP([4, 8, 2], "tanh")
        >>> net(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
        >>> list(net.state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
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
            layers += [nn.Linear(n_in, n_out, bias, device, dtype), activation_layer(activation)]
        layers[-1:] = [] if output == "identity" else [activation_layer(output)]
        super().__init__(*layers)
        self._plan = Plan()
        self._plan.update(tuple(layers))

    def forward(self, input: Tensor) -> Tensor:
        """The output (..., sizes[-1]) of input (..., sizes[0])."""
        return self._plan(self, input)


class _BatchNorm:
    """What BatchNorm1d and BatchNorm2d add to PyTorch's classes: an activation and a residual."""

    def __init__(
        self, num_features: int, *args: Any, activation: str | tuple[str, float] = "identity", **kwargs: Any
    ) -> None:
        check.activation("batch_norm", activation)
        super().__init__(num_features, *args, **kwargs)  # type: ignore[call-arg]
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual), of the shape and memory format of input."""
        return in_memory_format(normalise(self, input, self.activation, residual), is_channels_last(input))


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm with an activation and a residual.

    y = act(norm(x) + residual), where `forward(x, residual)` takes x (..., *normalized_shape), and residual like x or None.

    Args:
        normalized_shape: The sizes of the last axes, which are normalised together; an integer is one axis.
        *args: As torch.nn.LayerNorm takes them: eps, elementwise_affine, bias.
        activation: A name, or a pair such as ("leaky_relu", 0.1); softmax only of one axis.
        **kwargs: As torch.nn.LayerNorm takes them.

    Raises:
        ValueError: activation is unknown.

    Example:
        >>> norm = fgt.LayerNorm(2, activation="relu")
        >>> norm(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).shape
        torch.Size([2, 2])

    References:
        Ba, Kiros & Hinton 2016, "Layer Normalization".
    """

    def __init__(
        self, normalized_shape: Any, *args: Any, activation: str | tuple[str, float] = "identity", **kwargs: Any
    ) -> None:
        check.activation("layer_norm", activation)
        super().__init__(normalized_shape, *args, **kwargs)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual), of the shape of input."""
        return normalise_rows(self, input, self.activation, residual)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with an activation and a residual.

    y = act(norm(x) + residual), where `forward(x, residual)` takes x (N, C) or (N, C, L), and residual like x or None.

    Args:
        num_features: C.
        *args: As torch.nn.BatchNorm1d takes them: eps, momentum, affine, track_running_stats.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        **kwargs: As torch.nn.BatchNorm1d takes them.

    Raises:
        ValueError: activation is unknown.

    Example:
        >>> norm = fgt.BatchNorm1d(2, activation="relu")
        >>> norm(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).shape
        torch.Size([2, 2])

    References:
        Ioffe & Szegedy 2015, "Batch Normalization".
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with an activation and a residual.

    y = act(norm(x) + residual), where `forward(x, residual)` takes x (N, C, H, W), and residual like x or None. Images in
    memory_format=torch.channels_last are used without a copy, others are copied; y has the memory format of x.

    Args:
        num_features: C.
        *args: As torch.nn.BatchNorm2d takes them: eps, momentum, affine, track_running_stats.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        **kwargs: As torch.nn.BatchNorm2d takes them.

    Raises:
        ValueError: activation is unknown.

    Example:
        >>> norm = fgt.BatchNorm2d(3, activation="relu")
        >>> norm(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])

    References:
        Ioffe & Szegedy 2015, "Batch Normalization".
    """


class ResidualBlock(nn.Module):
    """A residual block of two 3x3 convolutions, with the parameter names of torchvision's BasicBlock.

    y = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))

    The shortcut is x, or where the shape changes `downsample`: a 1x1 convolution of this stride and a batch norm.

    Args:
        n_in: The channels of x.
        n_out: The channels of y.
        stride: Of the first convolution and of the shortcut.
        device: Of the parameters, as nn.Conv2d takes it. Layers that are not on the CPU run as PyTorch's.
        dtype: Of the parameters; None is PyTorch's default.

    Example:
        >>> block = fgt.ResidualBlock(3, 8, stride=2)
        >>> block(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 4, 4])

    References:
        He et al. 2015, "Deep Residual Learning for Image Recognition".
    """

    def __init__(
        self, n_in: int, n_out: int, stride: int = 1, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False, **options)
        self.bn1 = nn.BatchNorm2d(n_out, **options)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False, **options)
        self.bn2 = nn.BatchNorm2d(n_out, **options)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False, **options), nn.BatchNorm2d(n_out, **options)
            )

    def forward(self, x: Tensor) -> Tensor:
        """y (N, n_out, H', W') of x (N, n_in, H, W)."""
        pattern = _IDENTITY_SHORTCUT if self.downsample is None else _DOWNSAMPLE
        layers = pattern.layers(self)
        if layers is not None:
            return pattern(layers, x)
        shortcut = x if self.downsample is None else self.downsample(x)
        h = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(h)) + shortcut).relu()


_MAIN = "conv1", "bn1", None, "conv2", "bn2", None
_IDENTITY_SHORTCUT, _DOWNSAMPLE = (
    ResidualPattern(_MAIN, shortcut, ResidualBlock.forward) for shortcut in ("", "downsample")
)
