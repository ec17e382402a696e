"""PyTorch tensors as NumPy arrays over the same memory: checks, channels-last layouts, addresses, and what autograd may save."""

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.backend import kernels
from fastgrad.kernels import types

TENSOR_TYPES = {torch.Tensor, torch.nn.Parameter}
FLOATS = torch.float32, torch.float64
DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# of a tensor (N, C), (N, C, L) or (N, C, H, W) the axes of its array, channels last, and the way back
LAST_AXES = {2: (0, 1), 3: (0, 2, 1), 4: (0, 2, 3, 1)}
SECOND_AXES = {2: (0, 1), 3: (0, 2, 1), 4: (0, 3, 1, 2)}
# activations whose result PyTorch saves; what the others, and layers without one, return may be written to in place
RESULT_SAVED = frozenset({types.RELU, types.SIGMOID, types.TANH, types.SOFTMAX})


def array(op: str, name: str, value: Any) -> np.ndarray:
    """A tensor's values, shared, with its strides. Raises TypeError for what is no dense tensor of floats on the CPU.

    Those of a negated view, such as conj().imag, are a copy: in memory they have the other sign.
    """
    try:
        # most tensors are as they should be, and to ask takes longer than to have it done
        values = value.detach().numpy() if value.requires_grad else value.numpy()
    except (AttributeError, TypeError, RuntimeError):
        check_tensor(op, name, value)
        if not value.is_neg():
            raise
        values = value.detach().resolve_neg().numpy()
    if values.dtype not in check.FLOATS:
        check_tensor(op, name, value)
    return values


def integers(op: str, name: str, value: Any) -> np.ndarray:
    """The values of a tensor of integers as an array, shared."""
    _check_dense(op, name, value)
    if value.dtype.is_floating_point or value.dtype.is_complex:
        raise TypeError(f"{op}: {name} must be integers, got {value.dtype}")
    return value.detach().numpy()


def check_tensor(op: str, name: str, value: Any) -> None:
    """value must be a dense tensor of float32 or float64 on the CPU."""
    _check_dense(op, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be torch.float32 or torch.float64, got {value.dtype}")


def _check_dense(op: str, name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be dense, got {value.layout}; its to_dense() is")
    if not value.is_cpu:
        raise TypeError(f"{op}: {name} must be on the CPU, got {value.device}")


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) as (N, ..., C), a view."""
    return array.transpose(LAST_AXES[array.ndim])


def channels_second(array: np.ndarray) -> torch.Tensor:
    """(N, ..., C) as a tensor (N, C, ...), a view."""
    return torch.from_numpy(array.transpose(SECOND_AXES[array.ndim]))


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether PyTorch treats images x as memory_format=torch.channels_last: by all strides, also of axes of size 1."""
    if x.dim() != 4:
        return False
    strides, shape = x.stride(), x.shape
    smallest = 0
    if strides[1] == 0:
        return False
    for axis in (1, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < smallest or (axis == 0 and smallest == strides[1]):
            return False
        smallest = strides[axis] * max(shape[axis], 1)
    return True


def in_memory_format(y: torch.Tensor, last: bool) -> torch.Tensor:
    """y (N, C, ...), which has channels last in memory, in the format of PyTorch's result: channels last too, or contiguous."""
    if last or y.dim() == 2:
        return y
    if not y.is_contiguous():
        return y.contiguous()
    _, channels, *pixels = y.shape
    # of one channel or one pixel: the strides of what is one long still tell how it is meant
    return y.permute(LAST_AXES[y.dim()]).view(y.shape) if channels == 1 or prod(pixels) == 1 else y


def saves_copy(code: int) -> bool:
    """Whether the backward of this activation reads an array that must not be y itself: z, or a copy of y."""
    return code not in RESULT_SAVED and code != types.IDENTITY


def saved_copy(f: types.Activation, y: np.ndarray) -> np.ndarray:
    """A copy of y for the backward of an activation; an empty array if that reads y itself, z, or neither."""
    return y.copy() if saves_copy(f.code) and not f.needs_input else np.empty(0, y.dtype)


def has_saved_tensor_hooks() -> bool:
    """Whether hooks handle what autograd saves, as of a checkpoint or save_on_cpu: then nothing else may hold the saved arrays."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def empty_channels_last(x: torch.Tensor, shape: Iterable[int] | None = None) -> torch.Tensor:
    """An uninitialised tensor like x, or of this shape, with channels last in memory."""
    n, channels, *rest = x.shape if shape is None else shape
    order = (0, len(rest) + 1, *range(1, len(rest) + 1))
    return x.new_empty(n, *rest, channels).permute(order)


def arrays(op: str, name: str, tensors: Iterable[torch.Tensor]) -> list[np.ndarray]:
    """`array` of many tensors that do not require gradients; they are checked only if the conversion of one fails."""
    values = list(tensors)
    try:
        return list(map(torch.Tensor.numpy, values))
    except (TypeError, RuntimeError):
        return [array(op, f"{name}[{i}]", value) for i, value in enumerate(values)]


def address_list(tensors: list[torch.Tensor], like: Any = None) -> Any:
    """The addresses of many tensors, as an AddressList for kernels: arrays take longer to make than a small parameter's update.

    None if the kernels of the backend take arrays only, or a tensor is not contiguous, is negated or is no dense float on the CPU. like: an
    earlier result, of the parameters of which these tensors are the gradients: they have the same sizes, dtype and device.
    """
    address_list_class = getattr(kernels(), "AddressList", None)
    if address_list_class is None or not set(map(type, tensors)) <= TENSOR_TYPES:
        return None
    try:
        if not all(map(torch.Tensor.is_contiguous, tensors)) or any(map(torch.Tensor.is_neg, tensors)):
            return None
        addresses = np.fromiter(map(torch.Tensor.data_ptr, tensors), np.int64, len(tensors))
    except RuntimeError:
        return None
    if like is not None:
        return address_list_class(addresses, like.sizes, like[0].dtype)
    dtype = DTYPES.get(tensors[0].dtype)
    if dtype is None or len({t.dtype for t in tensors}) > 1 or not all(t.is_cpu for t in tensors):
        return None
    return address_list_class(addresses, np.fromiter(map(torch.Tensor.numel, tensors), np.int64, len(tensors)), dtype)
