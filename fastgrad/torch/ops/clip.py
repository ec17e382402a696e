"""Clipping the gradients of parameters by their norm."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fastgrad.core.array_list import ArrayList
from fastgrad.core.backend import kernels
from fastgrad.functional.clip import clip_together
from fastgrad.torch.registration import Operator
from fastgrad.torch.tensors import address_list, arrays

Tensor = torch.Tensor
OP = "clip_grad_norm_"


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: Any,
    norm_type: Any = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ in two passes over memory.

    grads *= min(1, max_norm / (norm + 1e-6)), norm = (sum |g|^p)^(1/p) of all values together

    What kernels do not take is left to PyTorch's function: gradients of several dtypes or of 16 bits, a max_norm of 0,
    a norm_type of 0 or below.

    Args:
        parameters: A tensor or an iterable of tensors, whose gradients are written; those without one are passed over.
        max_norm: The largest norm.
        norm_type: p: 1, 2, infinity ("inf" too) or another number.
        error_if_nonfinite: Raise for a norm that is not finite, and write nothing.
        foreach: PyTorch's; it changes nothing here.

    Returns:
        The norm before, a tensor of one value; 0 where there are no gradients.

    Raises:
        RuntimeError: The norm is not finite, and error_if_nonfinite is set.
        ValueError: max_norm is negative or NaN, or a string is no number.
        TypeError: max_norm or norm_type is no number.

    Example:
        >>> p = torch.zeros(2, requires_grad=True)
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> norm = fgt.clip_grad_norm_([p], max_norm=1.0)
        >>> norm.item(), [round(g, 3) for g in p.grad.tolist()]
        (5.0, [0.6, 0.8])

    References:
        Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    max_norm, norm_type = _number("max_norm", max_norm), _number("norm_type", norm_type)
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [p.grad for p in tensors if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    dtypes = {grad.dtype for grad in grads}
    is_known = dtypes <= {torch.float32} or dtypes <= {torch.float64}
    if max_norm == 0 or norm_type <= 0 or (not is_known and all(map(_plain, grads))):
        return nn.utils.clip_grad_norm_(tensors, max_norm, norm_type, error_if_nonfinite)
    # a norm of which nothing is clipped is PyTorch's way to ask for it
    limit = sys.float_info.max if max_norm == np.inf else max_norm
    if torch.compiler.is_compiling():
        return _clip.op(grads, limit, norm_type, error_if_nonfinite)
    return clip_gradients(grads, limit, norm_type, error_if_nonfinite)


def _number(name: str, value: Any) -> float:
    """What PyTorch takes as a number: tensors of one value, and strings such as "inf"."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise type(error)(f"{OP}: {name} must be a number, got {value!r}") from None


def _plain(grad: Tensor) -> bool:
    return grad.is_cpu and grad.layout is torch.strided and grad.is_floating_point()


class _TensorList:
    """The gradients by their addresses, as the functions of functional/clip.py take an ArrayList."""

    def __init__(self, addresses: Any) -> None:
        self.flat, self.kernels = addresses, kernels()

    def write(self) -> None:
        """Nothing: none is a copy."""


def clip_gradients(grads: Sequence[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    handling = "raise" if error_if_nonfinite else "ignore"
    # a negated view is scaled where its values lie, and these have the same norm
    grads = [torch._neg_view(grad) if grad.is_neg() else grad for grad in grads]
    addresses = address_list(grads)
    gradients = (
        _TensorList(addresses) if addresses is not None else ArrayList(OP, "gradients", arrays(OP, "gradients", grads))
    )
    try:
        clipped = clip_together(OP, gradients, max_norm, norm_type, None, handling)
    except FloatingPointError as error:
        raise RuntimeError(str(error)) from None
    if clipped.scale != 1:
        torch.autograd.graph.increment_version(grads)
    return torch.tensor(clipped.norm, dtype=grads[0].dtype)


def _fake(grads: Sequence[Tensor], max_norm: Any, norm_type: Any, error_if_nonfinite: Any) -> Tensor:
    return grads[0].new_empty(())


_clip = Operator(
    f"{OP}(Tensor(a!)[] grads, float max_norm, float norm_type, bool error_if_nonfinite) -> Tensor",
    clip_gradients,
    _fake,
    ("grads",),
)
