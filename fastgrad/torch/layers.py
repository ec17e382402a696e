"""What fused operators make of PyTorch's own layers: their parameters, settings and activations, read at every call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastgrad import check
from fastgrad.torch.batchnorm import batch_norm
from fastgrad.torch.conv import conv2d
from fastgrad.torch.dense import chain

Tensor = torch.Tensor
NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SELU: "selu",
    nn.SiLU: "silu",
}
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def activation_of(layer: nn.Module) -> str | tuple[str, float] | None:
    """The name of the activation that a layer is, or None."""
    match layer:
        case nn.LeakyReLU():
            return ("leaky_relu", layer.negative_slope) if layer.negative_slope >= 0 else None
        case nn.ELU():
            return ("elu", layer.alpha) if layer.alpha >= 0 else None
        case nn.GELU():
            return "gelu_tanh" if layer.approximate == "tanh" else "gelu"
        case nn.Softmax(dim=-1):
            return "softmax"
    return NAMES.get(type(layer))


def hooked(layer: nn.Module) -> bool:
    """Whether someone wants to see what goes through this very layer."""
    return any(getattr(layer, hooks) for hooks in HOOKS)


class Chain:
    """Linear layers in a row and what follows each of them."""

    def __init__(self, linears: Sequence[nn.Linear], activations: Sequence[str | tuple[str, float]]) -> None:
        self.linears = list(linears)
        fs = check.activations("dense_chain", list(activations), len(linears))
        self.codes, self.parameters = [f.code for f in fs], [f.parameter for f in fs]
        self._known: dict[str, Any] = {}

    def __call__(self, x: Tensor) -> Tensor:
        # past nn.Module's __getattr__
        arrays: list[Any] = [linear._parameters for linear in self.linears]
        weights, biases = [a["weight"] for a in arrays], [a["bias"] for a in arrays]
        return chain(x, weights, biases, self.codes, self.parameters, None, self._known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def __repr__(self) -> str:
        return "a chain of dense layers" if len(self.linears) > 1 else "a dense layer with its activation"


class Convolved:
    """act(norm(conv(x)) + residual), without conv or without norm too."""

    def __init__(
        self, conv: nn.Conv2d | None, norm: nn.Module | None, activation: str | tuple[str, float] = "identity"
    ) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.norm is None:
            return convolve(self.conv, x, self.activation, residual)
        return normalise(self.norm, x if self.conv is None else convolve(self.conv, x), self.activation, residual)

    def __repr__(self) -> str:
        name = self.activation if isinstance(self.activation, str) else self.activation[0]
        parts = "convolution" if self.conv else "", "batch norm" if self.norm else "", name
        return " and ".join(part for part in parts if part not in ("", "identity"))


def convolve(
    conv: Any, x: Tensor, activation: str | tuple[str, float] = "identity", residual: Tensor | None = None
) -> Tensor:
    """What nn.Conv2d makes of x, with an activation and a residual."""
    return conv2d(
        x, conv.weight, conv.bias, stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
        activation=activation, residual=residual,
    )  # fmt: skip


def normalise(
    norm: Any, x: Tensor, activation: str | tuple[str, float] = "identity", residual: Tensor | None = None
) -> Tensor:
    """What nn.BatchNorm1d or nn.BatchNorm2d makes of x, with an activation and a residual."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    moves = not norm.training or norm.track_running_stats
    running = (norm.running_mean, norm.running_var) if moves else (None, None)
    gamma, beta = norm.weight, norm.bias
    if gamma is None:
        gamma, beta = x.new_ones(norm.num_features), x.new_zeros(norm.num_features)
    return batch_norm(
        x, gamma, beta, *running, training=norm.training or norm.running_mean is None, momentum=momentum, eps=norm.eps,
        activation=activation, residual=residual,
    )  # fmt: skip


def block(layer: Any, x: Tensor, shortcut_name: str = "downsample") -> Tensor:
    """A residual block of these names: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut), of x or of a Sequential of conv and norm."""
    shortcut = x
    if other := getattr(layer, shortcut_name):
        shortcut = normalise(other[1], convolve(other[0], x))
    h = normalise(layer.bn1, convolve(layer.conv1, x), "relu")
    return normalise(layer.bn2, convolve(layer.conv2, h), "relu", shortcut)


def steps(layers: Sequence[nn.Module]) -> list[Any]:
    """Of a Sequential's layers, in their order, what is called: fused ones, and those that stay as they are."""
    found: list[Any] = []
    at = 0
    while at < len(layers):
        step, size = _first_step(layers[at:])
        found.append(step)
        at += size
    return found


def _first_step(layers: Sequence[nn.Module]) -> tuple[Any, int]:
    """What to call first, and how many layers it is."""
    linears: list[Any] = []
    activations: list[Any] = []
    at = 0
    while at < len(layers) and _free(layers[at], nn.Linear):
        f = activation_of(layers[at + 1]) if at + 1 < len(layers) and not hooked(layers[at + 1]) else None
        linears.append(layers[at])
        activations.append(f or "identity")
        at += 1 if f is None else 2
    if at > 1:
        return Chain(linears, activations), at
    conv: Any = layers[0] if _free(layers[0], nn.Conv2d) and layers[0].padding_mode == "zeros" else None
    at = conv is not None
    norm = layers[at] if at < len(layers) and _free(layers[at], nn.BatchNorm2d, nn.BatchNorm1d) else None
    at += norm is not None
    f = activation_of(layers[at]) if at and at < len(layers) and not hooked(layers[at]) else None
    # the softmax is over channels, the last axis here and not in PyTorch's images
    if f is not None and f != "softmax":
        return Convolved(conv, norm, f), at + 1
    return (Convolved(conv, norm), at) if at > 1 else (layers[0], 1)


def _free(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a layer is of exactly one of these kinds, and no one looks at it."""
    return type(layer) in kinds and not hooked(layer)


def named_activation(name: str | tuple[str, float]) -> nn.Module:
    """PyTorch's layer of an activation of ours."""
    kind, *parameter = (name,) if isinstance(name, str) else name
    made: dict[str, Any] = {
        **{known: layer for layer, known in NAMES.items()},
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU("tanh"),
        "softmax": lambda: nn.Softmax(-1),
    }
    check.choice("MLP", "activation", kind, made)
    return made[kind](*parameter)
