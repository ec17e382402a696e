"""The layers that fusion takes: whether a layer is exactly PyTorch's own at this moment, and the activation that it computes.

Parameters, settings, hooks and methods are read at every call, since they may change at any time.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from fastgrad.core import check
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES

Tensor = torch.Tensor
is_exporting = getattr(torch.compiler, "is_exporting", bool)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SELU: "selu",
    nn.SiLU: "silu",
}
# what an instance has only if someone put it there in the place of its class's
PATCHES = frozenset((
    "forward", "_call_impl", "_compiled_call_impl", "_wrapped_call_impl", "_slow_forward", "_conv_forward", "_check_input_dim",
))  # fmt: skip
# of a module whose forward may be a replacement of fastgrad's
OTHER_PATCHES = PATCHES - {"forward"}
# the dictionaries of hooks on all modules
GLOBAL_HOOKS: list[Any] = [
    getattr(torch.nn.modules.module, f"_global_{name}_hooks")
    for name in ("forward", "forward_pre", "backward", "backward_pre")
]
NORMS = nn.BatchNorm1d, nn.BatchNorm2d
# the layers with a weight and a bias, either of which a norm may lack
WEIGHTED = nn.Linear, nn.Conv2d, nn.LayerNorm, *NORMS
SEQUENTIAL = nn.Sequential.forward, nn.Sequential.__iter__


def _methods(kind: type[nn.Module]) -> tuple[Any, ...]:
    """The methods with which a class computes its output."""
    last = {nn.Conv2d: "_conv_forward", nn.Sequential: "__iter__"}.get(kind, "forward")
    last = "_check_input_dim" if kind in NORMS else last
    return tuple(getattr(kind, name) for name in ("forward", "__call__", "_call_impl", "_wrapped_call_impl", last))


def _are_pytorchs(methods: Iterable[Any]) -> bool:
    """Whether methods are those of PyTorch's source, and not patched before this import."""
    root = os.path.dirname(torch.__file__)
    codes = [getattr(method, "__code__", None) for method in methods]
    return all(code is not None and code.co_filename.startswith(root) for code in codes)


# the classes that are known, with the methods that each is known by
METHODS: dict[Any, tuple[Any, ...]] = {
    kind: methods
    for kind in (*WEIGHTED, *ACTIVATIONS, nn.LeakyReLU, nn.ELU, nn.GELU, nn.Softmax, nn.Sequential)
    if _are_pytorchs(methods := _methods(kind))
}


def unpatched(kind: Any) -> bool:
    """Whether a known class still computes with these methods. Spelled out, so that torch.compile can trace it."""
    forward, call, implementation, wrapped, last = METHODS[kind]
    if kind is nn.Conv2d:
        method: Any = kind._conv_forward
    elif kind in NORMS:
        method = kind._check_input_dim
    else:
        method = kind.__iter__ if kind is nn.Sequential else forward
    return (
        kind.forward is forward
        and kind.__call__ is call
        and kind._call_impl is implementation
        and kind._wrapped_call_impl is wrapped
        and method is last
    )


def known_class(layer: Any, patches: frozenset[str] = PATCHES) -> type[nn.Module] | None:
    """The class of a layer that is exactly PyTorch's own: no subclass, nothing patched, hooked or parametrised; or None.

    Parameters must be dense floats on the CPU. Asked at every call, under torch.compile too. patches: the attributes that
    it must not have.
    """
    kind = type(layer)
    if kind not in METHODS or not unpatched(kind):
        return None
    if has_hooks(layer):
        return None
    attributes = layer.__dict__
    for name in patches:
        if name in attributes:
            return None
    if kind is nn.Conv2d and layer.padding_mode != "zeros":
        return None
    if kind in WEIGHTED:
        parameters = attributes["_parameters"]
        if "weight" not in parameters or "bias" not in parameters:
            return None
        weight, bias = parameters["weight"], parameters["bias"]
        is_norm = kind is nn.LayerNorm or kind in NORMS
        if not (is_dense(weight) or (weight is None and is_norm)) or not (bias is None or is_dense(bias)):
            return None
        if kind is nn.Conv2d and not _is_known_convolution(layer, weight, bias):
            return None
    return kind


def _is_known_convolution(conv: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a convolution's settings are pairs, as nn.Conv2d makes them, the weight and the bias have the sizes that they say, and
    no window lies in the padding alone, which kernels do not know. PyTorch takes others, if someone sets them."""
    size, padding, dilation = conv.kernel_size, conv.padding, conv.dilation
    is_text = isinstance(padding, str)
    for setting in (size, conv.stride, dilation, size if is_text else padding):
        if not isinstance(setting, tuple) or len(setting) != 2:
            return False
    if weight.shape != (conv.out_channels, conv.in_channels // conv.groups, *size):
        return False
    if bias is not None and bias.shape != (conv.out_channels,):
        return False
    return is_text or (padding[0] <= dilation[0] * (size[0] - 1) and padding[1] <= dilation[1] * (size[1] - 1))


def is_dense(value: Any) -> bool:
    """Whether operators can use a parameter: a dense tensor of float32 or float64 on the CPU."""
    return type(value) in TENSOR_TYPES and value.dtype in FLOATS and value.is_cpu and value.layout is torch.strided


def needs_original_layers() -> bool:
    """Whether calls are traced, exported, transformed or observed by tools that know PyTorch's own layers and operators only."""
    if any(GLOBAL_HOOKS):
        return True
    if torch.compiler.is_compiling():
        return is_exporting()
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
    return ACTIVATIONS.get(kind)


def runs_layers_in_order(module: nn.Module) -> bool:
    """Whether a module calls its layers one after the other, as nn.Sequential does."""
    kind: Any = type(module)
    return kind.forward is SEQUENTIAL[0] and kind.__iter__ is SEQUENTIAL[1]


def has_hooks(layer: nn.Module) -> bool:
    """Whether this layer has hooks of its own."""
    hooks = layer.__dict__
    return bool(
        hooks["_forward_hooks"]
        or hooks["_forward_pre_hooks"]
        or hooks["_backward_hooks"]
        or hooks["_backward_pre_hooks"]
    )


def hooks_of(layer: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries of a layer's own hooks."""
    return [layer.__dict__[f"_{name}_hooks"] for name in ("forward", "forward_pre", "backward", "backward_pre")]


def pointwise_activation(layer: Any) -> str | tuple[str, float] | None:
    """As `activation_of`, without the softmax: it is over channels, the last axis here and not in PyTorch's images."""
    f = activation_of(layer)
    return None if f == "softmax" else f


def activation_layer(name: str | tuple[str, float]) -> nn.Module:
    """PyTorch's layer for an activation of fastgrad."""
    kind, *parameter = (name,) if isinstance(name, str) else name
    classes: dict[str, Any] = {
        **{known: layer for layer, known in ACTIVATIONS.items()},
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU("tanh"),
        "softmax": lambda: nn.Softmax(-1),
    }
    check.choice("MLP", "activation", kind, classes)
    return classes[kind](*parameter)
