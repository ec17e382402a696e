"""What the operations of a Tape are: activations, sums, operations on images in any memory format."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastgrad.torch.layers import OTHER_PATCHES, PATCHES, WEIGHTED, has_hooks, known_class, pointwise_activation
from fastgrad.torch.ops.conv_norm_layer import overruns
from fastgrad.torch.stand_ins import OPERATORS, Method, Value
from fastgrad.torch.tape import Operation, Read

# activations as functions or methods, which end with _ in place, and their parameter with its default
ACTIVATIONS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("relu", "relu6", "silu", "sigmoid", "tanh", "selu"), ("", None)),
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "gelu": ("approximate", "none"),
}
# packages whose code a call of may be repeated
QUIET = "torch.", "torchvision.", "fastgrad."
ADDITIONS = {"add", "add_", "iadd"}
# operations that make a new tensor, or write in place, and whose values do not depend on the memory format of images, which it follows
AGNOSTIC = {
    *ACTIVATIONS,
    *"hardswish hardsigmoid hardtanh mish softplus logsigmoid clamp exp log sqrt rsqrt abs neg pow square softmax".split(),
    *"add sub mul truediv div maximum minimum iadd isub imul itruediv cat concat mean sum amax amin".split(),
    *"max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate batch_norm dropout2d pad".split(),
}
WRITERS = {"setitem", *(f"i{name.rstrip('_')}" for name in OPERATORS)}
# what makes no tensor, or one that shares its memory with the argument
VIEWS = set(
    "size dim numel getattr getitem flatten view reshape permute transpose chunk split squeeze unsqueeze contiguous".split()
)
AGNOSTIC_LAYERS = {
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Mish,
    nn.Softplus, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.Dropout2d, nn.Dropout, nn.ZeroPad2d,
}  # fmt: skip


def name_of(operation: Operation) -> str:
    """The name of a function or method of PyTorch's, or of an operator; "" for anything else."""
    function = operation.function
    if isinstance(function, Method):
        return function.name
    if operation.module is not None or isinstance(function, Read):
        return ""
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return function.__name__ if package in ("torch", "_operator") or function is getattr else ""


def is_known_layer(layer: Any) -> bool:
    """Whether a layer is PyTorch's own, one of those whose operation does not depend on the memory format."""
    if known_class(layer) is not None:
        return True
    if type(layer) not in AGNOSTIC_LAYERS or has_hooks(layer) or not PATCHES.isdisjoint(layer.__dict__):
        return False
    # what it drops depends on the order in memory
    return type(layer) is not nn.Dropout or not layer.training


def is_pytorchs(operation: Operation) -> bool:
    """Whether an operation is code of PyTorch's or torchvision's alone, without hooks: nobody sees a call of it."""
    if operation.module is not None:
        return all(map(_is_plain, operation.module.modules()))
    if name_of(operation) or isinstance(operation.function, Read):
        return True
    return (getattr(operation.function, "__module__", None) or "").startswith(QUIET)


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer).__module__.startswith(QUIET) and not has_hooks(layer) and OTHER_PATCHES.isdisjoint(layer.__dict__)
    )


def writes_outside(operations: list[Operation], inputs: int) -> bool:
    """Whether operations may write to an input (these are the first values), a parameter or a buffer, or to what shares their memory."""
    shared = set(range(inputs))
    for operation in operations:
        if isinstance(operation.function, Read):
            shared.add(operation.output)
        elif not shared.isdisjoint(values_of((operation.args, operation.kwargs))):
            # operators and methods in place write to the first argument alone
            is_in_place = name_of(operation).endswith("_") or name_of(operation) in WRITERS
            if _may_write(operation) and not (is_in_place and shared.isdisjoint(values_of(operation.args[:1]))):
                return True
            if not _makes_new(operation):
                shared.add(operation.output)
    return False


def _may_write(operation: Operation) -> bool:
    """Whether an operation may write to an argument."""
    if operation.module is not None:
        return any(getattr(layer, "inplace", False) or not _is_plain(layer) for layer in operation.module.modules())
    name, kwargs = name_of(operation), operation.kwargs
    is_in_place = kwargs.get("inplace", False) or "out" in kwargs or any(a is True for a in operation.args[1:])
    return not name or name.endswith("_") or name in {*WRITERS, "batch_norm"} or is_in_place


def _makes_new(operation: Operation) -> bool:
    """Whether what an operation returns surely shares no memory with an argument, if it does not write."""
    if operation.module is not None:
        return known_class(operation.module) in WEIGHTED
    return name_of(operation) in (AGNOSTIC - {"pad", "dropout2d", "interpolate"})


def is_agnostic(operation: Operation) -> bool:
    """Whether an operation may get images with channels last in memory where PyTorch's would be contiguous."""
    layer: Any = operation.module
    if layer is not None:
        return is_known_layer(layer) and not (isinstance(layer, nn.Conv2d) and overruns(layer))
    name = name_of(operation)
    if name == "getattr" or name in ("size", "dim", "numel"):
        return True
    if name == "dropout":
        return operation.kwargs.get("training", True) is False
    return name.rstrip("_") in AGNOSTIC


def is_pure(operation: Operation) -> bool:
    """Whether an operation writes to none of its arguments."""
    name = name_of(operation)
    is_in_place = operation.kwargs.get("inplace", False) or any(a is True for a in operation.args[1:])
    if operation.module is not None:
        return is_known_layer(operation.module) and not getattr(operation.module, "inplace", False)
    is_known = name in VIEWS or (name in AGNOSTIC and name not in ("iadd", "isub", "imul", "itruediv"))
    return not is_in_place and (is_known or isinstance(operation.function, Read))


def known_layer(operation: Operation) -> type[nn.Module] | None:
    """The class of the layer of PyTorch's own that an operation calls with one argument, or None."""
    is_call = operation.module is not None and len(operation.args) == 1 and not operation.kwargs
    return known_class(operation.module) if is_call else None


def is_addition(operation: Operation) -> bool:
    """Whether an operation adds two values."""
    two = len(operation.args) == 2 and not operation.kwargs and all(isinstance(a, Value) for a in operation.args)
    return two and name_of(operation) in ADDITIONS


def activation_name(operation: Operation) -> str | tuple[str, float] | None:
    """The activation that an operation computes of its one tensor, as fastgrad names it, or None."""
    first, *rest = (*operation.args, None)
    rest, kwargs = rest[:-1], dict(operation.kwargs)
    if not isinstance(first, Value):
        return None
    if operation.module is not None:
        is_plain = not rest and not kwargs and known_class(operation.module) is not None
        return pointwise_activation(operation.module) if is_plain else None
    name = name_of(operation).rstrip("_")
    if name not in ACTIVATIONS:
        return None
    kwargs.pop("inplace", None)
    parameter, value = ACTIVATIONS[name]
    if parameter:
        value = kwargs.pop(parameter, rest.pop(0) if rest else value)
    if kwargs or not all(isinstance(r, bool) for r in rest) or isinstance(value, Value):
        return None
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(value)
    if not parameter:
        return name
    return (name, float(value)) if value >= 0 else None


def values_of(structure: Any) -> Iterator[int]:
    """The indices of the values in a nested structure."""
    if isinstance(structure, Value):
        yield structure.fg_index
    elif isinstance(structure, slice):
        yield from values_of((structure.start, structure.stop, structure.step))
    elif isinstance(structure, tuple | list | dict):
        for item in structure.values() if isinstance(structure, dict) else structure:
            yield from values_of(item)
