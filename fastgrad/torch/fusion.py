"""The fused forward of an nn.Sequential: Plan, and its steps, ChainStep, ConvolutionStep and LayerNormStep.

And of residual blocks: ResidualPattern.

Each call reads the layers' parameters, settings, hooks and activations, since they may change at any time.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.nn.plan import chain_plan
from fastgrad.torch.layers import NORMS, activation_of, known_class, needs_original_layers, pointwise_activation
from fastgrad.torch.ops.batch_norm import batch_norm_last
from fastgrad.torch.ops.conv import conv2d_last
from fastgrad.torch.ops.dense import chain
from fastgrad.torch.ops.layer_norm import layer_norm
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES, in_memory_format, is_channels_last

Tensor = torch.Tensor


def apply_layers(layers: Iterable[Any], x: Tensor) -> Tensor:
    """The output of layers in a row for x."""
    for layer in layers:
        x = layer(x)
    return x


def apply_steps(steps: Sequence[Any], x: Tensor) -> Tensor:
    """The output of steps in a row for x.

    Between convolutions and norms, channels stay last in memory. After them images have the memory format that PyTorch's would have.
    """
    last = None
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        if not isinstance(step, ConvolutionStep):
            x = step(x)
            continue
        x, last = step.output(x, is_channels_last(x) if last is None else last)
        if not isinstance(following, ConvolutionStep):
            x, last = in_memory_format(x, last), None
    return x


class Plan:
    """The steps that run the layers of a Sequential, in order: fused steps, and layers that stay as they are."""

    def __init__(self) -> None:
        # the layers, the class that each is known by, and the steps: in one, for threads that plan at the same time
        self._state: tuple[tuple, list, list] = (), [], []

    @property
    def steps(self) -> list[Any]:
        return self._state[2]

    def update(self, layers: tuple[Any, ...]) -> list[Any]:
        """Plan the steps of these layers, and return them."""
        classes = [known_class(layer) for layer in layers]
        self._state = layers, classes, _steps(layers, classes)
        return self._state[2]

    def steps_of(self, module: nn.Module) -> Sequence[Any]:
        """The steps of a module's layers. If one of these has changed, or the class that it is known by, it plans again."""
        layers: tuple[Any, ...] = tuple(module._modules.values())
        if needs_original_layers():
            return layers
        planned, classes, steps = self._state
        if layers == planned and [known_class(layer) for layer in layers] == classes:
            return steps
        # a plan is made outside of traces
        return layers if torch.compiler.is_compiling() else self.update(layers)

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        return apply_steps(self.steps_of(module), x)


class ChainStep:
    """A step: linear layers in a row, each with an activation or None. layers: all of these layers in order."""

    def __init__(self, pairs: Sequence[tuple[nn.Linear, nn.Module | None]]) -> None:
        self.layers = tuple(layer for pair in pairs for layer in pair if layer is not None)
        self.linears, self.activations = [linear for linear, _ in pairs], [activation for _, activation in pairs]
        # names of activations, what kernels take of them, and what is known of the weights: in one, for threads
        self._settings: tuple = [], (), (), {}

    def __call__(self, x: Tensor) -> Tensor:
        names: Any = ["identity" if layer is None else activation_of(layer) for layer in self.activations]
        if None in names:
            return apply_layers(self.layers, x)
        settings = self._settings
        # slopes and the like can be set at any time
        if names != settings[0]:
            fs = check.activations("dense_chain", names, len(names))
            settings = names, [f.code for f in fs], [f.parameter for f in fs], {}
            if not torch.compiler.is_compiling():
                self._settings = settings
        _, codes, parameters, cache = settings
        # past nn.Module's __getattr__
        arrays: list[Any] = [linear._parameters for linear in self.linears]
        return chain(x, [a["weight"] for a in arrays], [a["bias"] for a in arrays], codes, parameters, None, cache)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settings": ([], (), (), {})}

    def __repr__(self) -> str:
        return "a chain of dense layers" if len(self.linears) > 1 else "a dense layer with its activation"


class ConvolutionStep:
    """A step: act(norm(conv(x))), where conv or norm may be None."""

    def __init__(self, conv: nn.Conv2d | None, norm: nn.Module | None, activation: nn.Module | None) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation
        self.layers = tuple(layer for layer in (conv, norm, activation) if layer is not None)

    def output(self, x: Tensor, last: bool) -> tuple[Tensor, bool]:
        """(y with channels last in memory, whether PyTorch's y would be channels_last). last: whether PyTorch's x would be."""
        f = "identity" if self.activation is None else pointwise_activation(self.activation)
        # PyTorch's layers take one image without a batch, too
        if f is None or (self.conv is not None and x.dim() != 4):
            return apply_layers(self.layers, in_memory_format(x, last) if x.dim() == 4 else x), True
        if self.norm is None:
            return convolve(self.conv, x, last, f)
        if self.conv is not None:
            x, last = convolve(self.conv, x, last)
        return normalise(self.norm, x, f), last

    def __repr__(self) -> str:
        f = (None if self.activation is None else pointwise_activation(self.activation)) or "identity"
        names = "convolution" if self.conv else "", "batch norm" if self.norm else "", f if isinstance(f, str) else f[0]
        return " and ".join(name for name in names if name not in ("", "identity"))


class LayerNormStep:
    """A step: act(norm(x)) of an nn.LayerNorm; activation may be None."""

    def __init__(self, norm: nn.Module, activation: nn.Module | None) -> None:
        self.norm, self.activation = norm, activation
        self.layers = tuple(layer for layer in (norm, activation) if layer is not None)

    def __call__(self, x: Tensor) -> Tensor:
        f = "identity" if self.activation is None else pointwise_activation(self.activation)
        if f is None or not normalises_rows(self.norm, x):
            return apply_layers(self.layers, x)
        return normalise_rows(self.norm, x, f)

    def __repr__(self) -> str:
        f = (None if self.activation is None else pointwise_activation(self.activation)) or "identity"
        return "layer norm" if f == "identity" else f"layer norm and {f if isinstance(f, str) else f[0]}"


def convolve(conv: Any, x: Tensor, last: bool, activation: str | tuple[str, float] = "identity") -> tuple[Tensor, bool]:
    """The output of an nn.Conv2d for x, with an activation; `last` and the result as of `ConvolutionStep.output`."""
    weight = conv.weight
    windows = conv.stride, conv.padding, conv.dilation, conv.groups
    y = conv2d_last(x, weight, conv.bias, None, windows, activation)
    return y, last or is_channels_last(weight)


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
    has_running = not norm.training or norm.track_running_stats
    running = (norm.running_mean, norm.running_var) if has_running else (None, None)
    gamma = x.new_ones(norm.num_features) if norm.weight is None else norm.weight
    beta = x.new_zeros(norm.num_features) if norm.bias is None else norm.bias
    options = norm.training or norm.running_mean is None, momentum, norm.eps
    return batch_norm_last(x, (gamma, beta), running, residual, options, activation)


def normalises_rows(norm: Any, x: Any, residual: Any = None) -> bool:
    """Whether `normalise_rows` takes these, and returns what PyTorch's layer would, strides included.

    Of others that says what is wrong, or can do it.
    """
    if type(x) not in TENSOR_TYPES or x.dtype not in FLOATS or not x.is_cpu or not x.numel():
        return False
    shape, others = norm.normalized_shape, (norm.weight, norm.bias, residual)
    return (
        x.shape[-len(shape) :] == shape
        and all(a is None or a.dtype is x.dtype for a in others)
        and all(a is None or a.shape == shape for a in (norm.weight, norm.bias))
        and (
            residual is None
            # a sum may have the strides of a residual that is not contiguous
            or (type(residual) in TENSOR_TYPES and residual.shape == x.shape and residual.is_contiguous())
        )
    )


def normalise_rows(
    norm: Any, x: Tensor, activation: str | tuple[str, float] = "identity", residual: Tensor | None = None
) -> Tensor:
    """The output of an nn.LayerNorm for x, with an activation and a residual."""
    gamma = x.new_ones(norm.normalized_shape) if norm.weight is None else norm.weight
    beta = x.new_zeros(norm.normalized_shape) if norm.bias is None else norm.bias
    return layer_norm(x, gamma, beta, eps=norm.eps, activation=activation, residual=residual)


class ResidualPattern:
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
        is_same = type(module).forward is self.forward and self.forward.__code__ is self.code
        if needs_original_layers() or not is_same:
            return None
        children, attributes = module._modules, module.__dict__
        for name, value in self.settings:
            # None may be a child's, and what is put in the place of a child is none of the module's own attributes
            now = attributes[name] if name in attributes else children.get(name, self)
            if now is not value and (type(now) is not type(value) or now != value):
                return None
        conv1, norm1, act1, conv2, norm2, act2 = self.main
        layers: list[Any] = []
        for name, kind in ((conv1, nn.Conv2d), (norm1, nn.BatchNorm2d), (conv2, nn.Conv2d), (norm2, nn.BatchNorm2d)):
            layer = children.get(name)
            if name in attributes or known_class(layer) is not kind:
                return None
            layers.append(layer)
        for at, act in ((2, act1), (5, act2)):
            f: Any = "relu"
            if act is not None:
                layer = children.get(act)
                f = None if act in attributes or known_class(layer) is None else pointwise_activation(layer)
            if f is None:
                return None
            layers.insert(at, f)
        if not self.shortcut:
            return [*layers, None, None]
        shortcut: Any = None if self.shortcut in attributes else children.get(self.shortcut)
        shortcut_class = known_class(shortcut)
        inner = tuple(shortcut._modules.values()) if shortcut_class is nn.Sequential else ()
        if shortcut_class is nn.Identity or (shortcut_class is nn.Sequential and not inner):
            return [*layers, None, None]
        if len(inner) != 2 or known_class(inner[0]) is not nn.Conv2d or known_class(inner[1]) is not nn.BatchNorm2d:
            return None
        return [*layers, *inner]

    def __call__(self, layers: list[Any], x: Tensor) -> Tensor:
        """The output of the block for x. layers: the result of `layers`."""
        conv1, norm1, act1, conv2, norm2, act2, conv, norm = layers
        last = is_channels_last(x)
        shortcut = x if conv is None else normalise(norm, convolve(conv, x, last)[0])
        z, last = convolve(conv1, x, last)
        z, last = convolve(conv2, normalise(norm1, z, act1), last)
        return in_memory_format(normalise(norm2, z, act2, shortcut), last)


def _steps(layers: Sequence[Any], classes: Sequence[type[nn.Module] | None]) -> list[Any]:
    """The steps that run layers: fused steps of known layers, and layers that stay as they are."""
    units: list[Any] = []
    at = 0
    while at < len(layers):
        unit, size = _first_unit(layers[at:], [*classes[at:], None, None])
        units.append(unit)
        at += size
    return chain_plan(units, lambda unit: isinstance(unit, tuple), _chain_step)


def _first_unit(layers: Sequence[Any], classes: Sequence[type[nn.Module] | None]) -> tuple[Any, int]:
    """What the first layers are, and how many these are: (linear, its activation or None), a convolution step, or a layer."""
    if classes[0] is nn.Linear:
        follows = classes[1] is not None and activation_of(layers[1]) is not None
        return (layers[0], layers[1] if follows else None), 1 + follows
    if classes[0] is nn.LayerNorm:
        follows = classes[1] is not None and pointwise_activation(layers[1]) is not None
        return (LayerNormStep(*layers[:2]), 2) if follows else (layers[0], 1)
    size = int(classes[0] is nn.Conv2d)
    conv = layers[0] if size else None
    norm = layers[size] if classes[size] in NORMS else None
    size += norm is not None
    # without convolution and norm there is nothing for an activation to be fused with
    follows = size > 0 and classes[size] is not None and pointwise_activation(layers[size]) is not None
    activation = layers[size] if follows else None
    size += follows
    return (ConvolutionStep(conv, norm, activation), size) if size > 1 else (layers[0], 1)


def _chain_step(pairs: list[Any]) -> Any:
    """The step of dense layers that follow each other; one alone, without an activation, stays as it is."""
    step = ChainStep(pairs)
    return step if len(step.layers) > 1 else step.layers[0]
