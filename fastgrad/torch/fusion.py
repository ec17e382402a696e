"""Fused calls of PyTorch's own layers: which layers can be fused, and the steps Chain, Convolved and Residual, and Plan.

Parameters, settings, hooks and activations are read at every call, since they may change at any time.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from fastgrad.core import check
from fastgrad.torch.ops.batch_norm import batch_norm_last
from fastgrad.torch.ops.conv import conv2d_last
from fastgrad.torch.ops.dense import chain
from fastgrad.torch.tensors import FLOATS, PLAIN, laid, like_last

Tensor = torch.Tensor
exporting = getattr(torch.compiler, "is_exporting", bool)
NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SELU: "selu",
    nn.SiLU: "silu",
}
# what an instance has only if someone put it there in the place of its class's
PATCHES = (
    "forward",
    "_call_impl",
    "_compiled_call_impl",
    "_wrapped_call_impl",
    "_slow_forward",
    "_conv_forward",
    "_check_input_dim",
)
GLOBAL_HOOKS: list[Any] = [
    getattr(torch.nn.modules.module, name)
    for name in (
        "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
    )
]  # fmt: skip
NORMS = nn.BatchNorm1d, nn.BatchNorm2d
SEQUENTIAL = nn.Sequential.forward, nn.Sequential.__iter__


def _methods(kind: type[nn.Module]) -> tuple[Any, ...]:
    """The methods with which a class computes its output."""
    last = {nn.Conv2d: "_conv_forward", nn.Sequential: "__iter__"}.get(kind, "forward")
    last = "_check_input_dim" if kind in NORMS else last
    return tuple(getattr(kind, name) for name in ("forward", "__call__", "_call_impl", "_wrapped_call_impl", last))


def _genuine(methods: Iterable[Any]) -> bool:
    """Whether methods are those of PyTorch's source, and not patched before this import."""
    root = os.path.dirname(torch.__file__)
    codes = [getattr(method, "__code__", None) for method in methods]
    return all(code is not None and code.co_filename.startswith(root) for code in codes)


# the classes that are known, with the methods that each is known by
KNOWN = {
    kind: methods
    for kind in (nn.Linear, nn.Conv2d, *NORMS, *NAMES, nn.LeakyReLU, nn.ELU, nn.GELU, nn.Softmax, nn.Sequential)
    if _genuine(methods := _methods(kind))
}


def _unpatched(kind: Any) -> bool:
    """Whether a known class still computes with these methods. Spelled out, so that torch.compile can trace it."""
    forward, call, implementation, wrapped, last = KNOWN[kind]
    if kind is nn.Conv2d:
        own: Any = kind._conv_forward
    elif kind in NORMS:
        own = kind._check_input_dim
    else:
        own = kind.__iter__ if kind is nn.Sequential else forward
    return (
        kind.forward is forward
        and kind.__call__ is call
        and kind._call_impl is implementation
        and kind._wrapped_call_impl is wrapped
        and own is last
    )


def plain(layer: Any) -> type[nn.Module] | None:
    """The class of a layer that is exactly PyTorch's own: no subclass, nothing patched, hooked or parametrised; or None.

    Parameters must be dense floats on the CPU. Asked at every call, under torch.compile too.
    """
    kind = type(layer)
    if kind not in KNOWN or not _unpatched(kind):
        return None
    own = layer.__dict__
    if hooked(layer):
        return None
    for name in PATCHES:
        if name in own:
            return None
    if kind is nn.Conv2d and layer.padding_mode != "zeros":
        return None
    if kind is nn.Linear or kind is nn.Conv2d or kind in NORMS:
        parameters = own["_parameters"]
        if "weight" not in parameters or "bias" not in parameters:
            return None
        weight, bias = parameters["weight"], parameters["bias"]
        if not (dense(weight) or (weight is None and kind in NORMS)) or not (bias is None or dense(bias)):
            return None
    return kind


def dense(value: Any) -> bool:
    """Whether operators can use a parameter: a dense tensor of float32 or float64 on the CPU."""
    return type(value) in PLAIN and value.dtype in FLOATS and value.is_cpu and value.layout is torch.strided


def aside() -> bool:
    """Whether calls are traced, exported, transformed or hooked by tools that know PyTorch's own layers and operators only."""
    if any(GLOBAL_HOOKS):
        return True
    if torch.compiler.is_compiling():
        return exporting()
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def activation_of(layer: Any) -> str | tuple[str, float] | None:
    """The activation that a layer computes at this moment, as fastgrad names it, or None; None for any other layer."""
    kind = type(layer)
    if kind is nn.LeakyReLU:
        return ("leaky_relu", layer.negative_slope) if layer.negative_slope >= 0 else None
    if kind is nn.ELU:
        return ("elu", layer.alpha) if layer.alpha >= 0 else None
    if kind is nn.GELU:
        return "gelu_tanh" if layer.approximate == "tanh" else "gelu"
    if kind is nn.Softmax:
        return "softmax" if layer.dim == -1 else None
    if kind is nn.ReLU6 and (layer.min_val != 0 or layer.max_val != 6):
        return None
    return NAMES.get(kind)


def hooked(layer: nn.Module) -> bool:
    """Whether this layer has hooks of its own."""
    own = layer.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


def through(layers: Iterable[Any], x: Tensor) -> Tensor:
    """The output of layers in a row for x."""
    for layer in layers:
        x = layer(x)
    return x


def run(steps: Sequence[Any], x: Tensor) -> Tensor:
    """The output of steps in a row for x.

    Between convolutions and norms, channels stay last in memory. After them images have the memory format that PyTorch's would have.
    """
    last = None
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        if not isinstance(step, Convolved):
            x = step(x)
            continue
        x, last = step.inner(x, like_last(x) if last is None else last)
        if not isinstance(following, Convolved):
            x, last = laid(x, last), None
    return x


class Plan:
    """The steps that run the layers of a Sequential, in order: fused steps, and layers that stay as they are.

    A call first compares the layers with those of the plan, and whether they are still plain, and plans again if something has changed.
    """

    def __init__(self) -> None:
        # the layers, the kinds of those that are plain, and the steps: in one, for threads that plan at the same time
        self.made: tuple[tuple, list, list] = (), [], []

    @property
    def steps(self) -> list[Any]:
        return self.made[2]

    def make(self, layers: tuple[Any, ...]) -> list[Any]:
        """Plan the steps of these layers, and return them."""
        kinds = [plain(layer) for layer in layers]
        self.made = layers, kinds, _steps(layers, kinds)
        return self.made[2]

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        layers: tuple[Any, ...] = tuple(module._modules.values())
        if aside():
            return through(layers, x)
        planned, kinds, steps = self.made
        if layers != planned or [plain(layer) for layer in layers] != kinds:
            # a plan is made outside of traces
            steps = layers if torch.compiler.is_compiling() else self.make(layers)  # type: ignore[assignment]
        return run(steps, x)


class Chain:
    """A step: linear layers in a row, each with an activation or None. layers: all of these layers in order."""

    def __init__(
        self, layers: Sequence[nn.Module], linears: Sequence[nn.Linear], activations: Sequence[nn.Module | None]
    ) -> None:
        self.layers, self.linears, self.activations = tuple(layers), list(linears), list(activations)
        # names of activations, what kernels take of them, and what is known of the weights: in one, for threads
        self._settings: tuple = [], (), (), {}

    def __call__(self, x: Tensor) -> Tensor:
        names: Any = ["identity" if layer is None else activation_of(layer) for layer in self.activations]
        if None in names:
            return through(self.layers, x)
        settings = self._settings
        # slopes and the like can be set at any time
        if names != settings[0]:
            fs = check.activations("dense_chain", names, len(names))
            settings = names, [f.code for f in fs], [f.parameter for f in fs], {}
            if not torch.compiler.is_compiling():
                self._settings = settings
        _, codes, parameters, known = settings
        # past nn.Module's __getattr__
        arrays: list[Any] = [linear._parameters for linear in self.linears]
        return chain(x, [a["weight"] for a in arrays], [a["bias"] for a in arrays], codes, parameters, None, known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settings": ([], (), (), {})}

    def __repr__(self) -> str:
        return "a chain of dense layers" if len(self.linears) > 1 else "a dense layer with its activation"


class Convolved:
    """A step: act(norm(conv(x))), where conv or norm may be None."""

    def __init__(self, conv: nn.Conv2d | None, norm: nn.Module | None, activation: nn.Module | None) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation
        self.layers = tuple(layer for layer in (conv, norm, activation) if layer is not None)

    def inner(self, x: Tensor, last: bool) -> tuple[Tensor, bool]:
        """(y with channels last in memory, whether PyTorch's y would be channels_last). last: whether PyTorch's x would be."""
        f = "identity" if self.activation is None else pointwise(self.activation)
        # PyTorch's layers take one image without a batch, too
        if f is None or (self.conv is not None and x.dim() != 4):
            return through(self.layers, laid(x, last) if x.dim() == 4 else x), True
        if self.norm is None:
            return convolve(self.conv, x, last, f)
        if self.conv is not None:
            x, last = convolve(self.conv, x, last)
        return normalise(self.norm, x, f), last

    def __repr__(self) -> str:
        name = "" if self.activation is None else pointwise(self.activation)
        parts = "convolution" if self.conv else "", "batch norm" if self.norm else "", name or ""
        return " and ".join(
            part if isinstance(part, str) else part[0] for part in parts if part not in ("", "identity")
        )


def pointwise(layer: Any) -> str | tuple[str, float] | None:
    """As `activation_of`, without the softmax: it is over channels, the last axis here and not in PyTorch's images."""
    f = activation_of(layer)
    return None if f == "softmax" else f


def convolve(conv: Any, x: Tensor, last: bool, activation: str | tuple[str, float] = "identity") -> tuple[Tensor, bool]:
    """The output of an nn.Conv2d for x, with an activation; `last` and the result as of `Convolved.inner`."""
    weight = conv.weight
    windows = conv.stride, conv.padding, conv.dilation, conv.groups
    y = conv2d_last(x, weight, conv.bias, None, windows, activation)
    return y, last or like_last(weight)


def normalise(
    norm: Any, x: Tensor, activation: str | tuple[str, float] = "identity", residual: Tensor | None = None
) -> Tensor:
    """The output of an nn.BatchNorm1d or nn.BatchNorm2d for x, with an activation and a residual; channels last in memory."""
    norm._check_input_dim(x)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1 / float(norm.num_batches_tracked)
    moves = not norm.training or norm.track_running_stats
    running = (norm.running_mean, norm.running_var) if moves else (None, None)
    gamma = x.new_ones(norm.num_features) if norm.weight is None else norm.weight
    beta = x.new_zeros(norm.num_features) if norm.bias is None else norm.bias
    options = norm.training or norm.running_mean is None, momentum, norm.eps
    return batch_norm_last(x, (gamma, beta), running, residual, options, activation)


class Residual:
    """act(norm2(conv2(act(norm1(conv1(x))))) + shortcut) of a module's layers, by their names.

    An activation is a layer's name or None, which is relu. The shortcut is the name of a Sequential of a convolution and a
    norm, or of none; of what passes x on; or "", which is x. forward is the method that computes this, as long as the
    module's settings, names and values, stay as they are.
    """

    def __init__(
        self,
        main: tuple[str, str, str | None, str, str, str | None],
        shortcut: str,
        forward: Any,
        settings: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        self.main, self.shortcut, self.settings = main, shortcut, settings
        self.forward, self.code = forward, forward.__code__

    def layers(self, module: nn.Module) -> list[Any] | None:
        """What `__call__` needs of a module, if all can be fused at this moment, else None.

        The list is conv1, norm1, act1, conv2, norm2, act2, and the shortcut's convolution and norm, or None twice.
        """
        if aside() or type(module).forward is not self.forward or self.forward.__code__ is not self.code:
            return None
        children, own = module._modules, module.__dict__
        for name, value in self.settings:
            # None may be a child's, and what is put in the place of a child is none of the module's own attributes
            now = own[name] if name in own else children.get(name, self)
            if now is not value and (type(now) is not type(value) or now != value):
                return None
        conv1, norm1, act1, conv2, norm2, act2 = self.main
        found: list[Any] = []
        for name, kind in ((conv1, nn.Conv2d), (norm1, nn.BatchNorm2d), (conv2, nn.Conv2d), (norm2, nn.BatchNorm2d)):
            layer = children.get(name)
            if name in own or plain(layer) is not kind:
                return None
            found.append(layer)
        for at, act in ((2, act1), (5, act2)):
            f: Any = "relu"
            if act is not None:
                layer = children.get(act)
                f = pointwise(layer) if plain(layer) is not None and act not in own else None
            if f is None:
                return None
            found.insert(at, f)
        if not self.shortcut:
            return [*found, None, None]
        other = children.get(self.shortcut)
        if self.shortcut in own:
            return None
        of = plain(other)
        inner = tuple(other._modules.values()) if of is nn.Sequential else ()  # type: ignore[union-attr]
        if of is nn.Identity or (of is nn.Sequential and not inner):
            return [*found, None, None]
        if len(inner) != 2 or plain(inner[0]) is not nn.Conv2d or plain(inner[1]) is not nn.BatchNorm2d:
            return None
        return [*found, *inner]

    def __call__(self, layers: list[Any], x: Tensor) -> Tensor:
        """The output of the block for x. layers: the result of `layers`."""
        conv1, norm1, act1, conv2, norm2, act2, conv, norm = layers
        last = like_last(x)
        shortcut = x if conv is None else normalise(norm, convolve(conv, x, last)[0])
        z, last = convolve(conv1, x, last)
        z, last = convolve(conv2, normalise(norm1, z, act1), last)
        return laid(normalise(norm2, z, act2, shortcut), last)


def _steps(layers: Sequence[nn.Module], kinds: Sequence[type[nn.Module] | None]) -> list[Any]:
    """The steps that run layers: fused steps of plain layers, and layers that stay as they are."""
    found: list[Any] = []
    at = 0
    while at < len(layers):
        step, size = _first_step(layers[at:], kinds[at:])
        found.append(step)
        at += size
    return found


def _first_step(layers: Sequence[Any], kinds: Sequence[type[nn.Module] | None]) -> tuple[Any, int]:
    """The first step, and how many layers it runs."""
    kinds = [*kinds, None, None, None]
    linears: list[Any] = []
    activations: list[Any] = []
    at = 0
    while kinds[at] is nn.Linear:
        follows = kinds[at + 1] is not None and activation_of(layers[at + 1]) is not None
        linears.append(layers[at])
        activations.append(layers[at + 1] if follows else None)
        at += 1 + follows
    if at > 1:
        return Chain(layers[:at], linears, activations), at
    at = kinds[0] is nn.Conv2d
    conv = layers[0] if at else None
    norm = layers[at] if kinds[at] in NORMS else None
    at += norm is not None
    # without convolution and norm there is nothing for an activation to be fused with
    activation = layers[at] if at and kinds[at] is not None and pointwise(layers[at]) is not None else None
    at += activation is not None
    return (Convolved(conv, norm, activation), at) if at > 1 else (layers[0], 1)


def named_activation(name: str | tuple[str, float]) -> nn.Module:
    """PyTorch's layer for an activation of fastgrad."""
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
