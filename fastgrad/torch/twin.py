"""`twin`: a copy of a module over the memory of its parameters, for calls that nobody may see; and the same of its arguments."""

from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [value] if isinstance(value, Tensor) else []


def detached(value: Any) -> Any:
    """A value whose tensors are leaves over the same memory."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        items = map(detached, value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def twin(module: Any, memo: dict[int, Any]) -> Any:
    """A copy of a module and its children, or None: parameters share their memory, buffers are copied, no forward is replaced.

    memo: the twins by the ids of what they are of; what occurs twice has one twin.
    """
    if module is None or id(module) in memo:
        return memo.get(id(module))
    copied = memo[id(module)] = object.__new__(type(module))
    attributes = dict(vars(module))
    if hasattr(getattr(attributes.get("forward"), "__self__", None), "fused"):
        attributes.pop("forward")
    parameters, buffers = {}, {}
    for name, p in module._parameters.items():
        if p is not None and id(p) not in memo:
            memo[id(p)] = nn.Parameter(p.detach(), p.requires_grad)
        parameters[name] = None if p is None else memo[id(p)]
    for name, b in module._buffers.items():
        buffers[name] = None if b is None else b.detach().clone()
    children = {name: twin(child, memo) for name, child in module._modules.items()}
    copied.__dict__.update({**attributes, "_parameters": parameters, "_buffers": buffers, "_modules": children})
    return copied
