"""Cross entropy with its gradient in one pass: the operator."""

import math
from typing import Any

import torch

from fastgrad.core import check
from fastgrad.functional import loss as losses
from fastgrad.torch.registration import Operator, autograd_function, refuse_tangents, skips_dispatcher
from fastgrad.torch.tensors import array, integers

Tensor = torch.Tensor
OP = "cross_entropy"


def cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.cross_entropy, whose gradient comes out of the same pass.

    Args:
        logits: (N, C), float32 or float64.
        target: Class numbers (N,), integers in 0..C - 1, or probabilities (N, C) of the dtype of logits. The -100 of
            ignore_index is an error.
        reduction: Over the N rows: "mean", "sum", or "none".

    Returns:
        The loss, a tensor of one value, or (N,) with "none". The mean of no rows is NaN, as PyTorch's.

    Raises:
        ValueError: A class number is out of range, a shape is another one, or reduction is unknown.
        TypeError: An argument is no tensor of a dtype that is taken.

    Example:
        >>> logits = torch.zeros(1, 2, requires_grad=True)
        >>> loss = fgt.cross_entropy(logits, torch.tensor([1]))
        >>> loss.backward()
        >>> round(loss.item(), 4), logits.grad.tolist()
        (0.6931, [[0.5, -0.5]])
    """
    check.choice(OP, "reduction", reduction, losses.REDUCTIONS)
    refuse_tangents(OP, logits, target)
    if not skips_dispatcher(OP, logits):
        return _forward.op(logits, target, reduction)[0]
    if torch.is_grad_enabled():
        return _CrossEntropy.apply(logits, target, reduction)
    return _run(logits, target, reduction)[0]


def _run(logits: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss and dlogits."""
    values = array(OP, "logits", logits)
    floats = isinstance(target, torch.Tensor) and target.is_floating_point()
    labels = array(OP, "target", target) if floats else integers(OP, "target", target)
    loss, dlogits = losses.cross_entropy(values, labels, reduction)
    if reduction == "mean" and not len(values):
        # of no rows, as PyTorch has it
        loss = math.nan
    losses_tensor = torch.tensor(loss, dtype=logits.dtype) if isinstance(loss, float) else torch.from_numpy(loss)
    return losses_tensor, torch.from_numpy(dlogits)


def _run_backward(dloss: Tensor, dlogits: Tensor) -> Tensor:
    return dlogits * (dloss[:, None] if dloss.dim() else dloss)


def _fake(logits: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    loss = logits.new_empty(logits.shape[:1] if reduction == "none" else ())
    return loss, torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _differentiate(ctx: Any, dloss: Tensor, *unused: Any) -> tuple:
    return _backward(dloss, *ctx.saved_tensors), None, None


_forward = Operator(f"{OP}(Tensor logits, Tensor target, str reduction) -> (Tensor, Tensor)", _run, _fake)
_backward = Operator(
    f"{OP}_backward(Tensor dloss, Tensor dlogits) -> Tensor", _run_backward, _run_backward
).without_derivative()
_forward.set_derivative(_save, _differentiate)
_CrossEntropy = autograd_function(OP, _run, _save, _differentiate)
