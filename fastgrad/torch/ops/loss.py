"""Cross entropy with its gradient in one pass: the operator."""

import math
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.functional import loss as losses
from fastgrad.torch.registration import Operator, autograd_function, refuse_tangents, skips_dispatcher
from fastgrad.torch.tensors import array, integers

Tensor = torch.Tensor
OP = "cross_entropy"


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """torch.nn.functional.cross_entropy, whose gradient comes out of the same pass.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...), float32 or float64.
        target: Class numbers (), (N,) or (N, d1, ...), integers in 0..C - 1; or probabilities of the shape and dtype of
            logits, by which nothing is differentiated.
        reduction: Over all class numbers: "mean", "sum", or "none".
        weight: The weights of the classes (C,), finite and at least 0, of the dtype of logits; None is 1 for all.
        ignore_index: The class number that is left out; of probabilities it must be negative, and means nothing.
        label_smoothing: From 0 to 1.

    Returns:
        The loss, a tensor of one value, or of the shape of class numbers with "none". The mean of nothing, since there
        are no rows or all are ignored, is NaN, as PyTorch's; its gradient is 0.

    Raises:
        ValueError: A class number is out of range, a shape is another one, or an option is unknown or out of range.
        TypeError: An argument is no tensor of a dtype that is taken.

    Example:
        >>> logits = torch.zeros(1, 2, requires_grad=True)
        >>> loss = fgt.cross_entropy(logits, torch.tensor([1]))
        >>> loss.backward()
        >>> round(loss.item(), 4), logits.grad.tolist()
        (0.6931, [[0.5, -0.5]])
    """
    check.choice(OP, "reduction", reduction, losses.REDUCTIONS)
    ignore_index = check.integer(OP, "ignore_index", ignore_index)
    label_smoothing = check.number(OP, "label_smoothing", label_smoothing, most=1.0)
    options = reduction, weight, ignore_index, label_smoothing
    refuse_tangents(OP, logits, target)
    if not skips_dispatcher(OP, logits):
        return _forward.op(logits, target, *options)[0]
    if torch.is_grad_enabled():
        return _CrossEntropy.apply(logits, target, *options)
    return _run(logits, target, *options)[0]


def _run(
    logits: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The loss and dlogits."""
    values, axis = array(OP, "logits", logits), min(logits.dim() - 1, 1)
    if axis < 0:
        raise ValueError(f"{OP}: logits must be (C,), (N, C) or (N, C, d1, ...), got {values.shape}")
    floats = isinstance(target, torch.Tensor) and target.is_floating_point()
    labels = array(OP, "target", target) if floats else integers(OP, "target", target)
    shape = (*values.shape[:axis], *values.shape[axis + 1 :])
    if labels.shape != (values.shape if floats else shape):
        raise ValueError(
            f"{OP}: target must be integers {shape} or {logits.dtype} {values.shape}, got {target.dtype} {labels.shape}"
        )
    # rows of classes; copies where there are axes behind
    by_class = np.moveaxis(values, axis, -1)
    rows = (
        by_class.reshape(-1, values.shape[axis])
        if values.size
        else np.empty((math.prod(shape), values.shape[axis]), values.dtype)
    )
    labels = np.moveaxis(labels, axis, -1).reshape(rows.shape) if floats else labels.reshape(-1)
    weights = None if weight is None else array(OP, "weight", weight)
    ignored = None if floats and ignore_index < 0 else ignore_index
    loss, dlogits = losses.cross_entropy(
        rows, labels, reduction, weights=weights, ignore_index=ignored, label_smoothing=label_smoothing
    )
    if reduction == "mean" and loss == 0.0:
        counted = np.ones(len(rows)) if floats else (labels != ignore_index).astype(np.float64)
        if weights is not None and not floats:
            counted *= weights[np.where(counted > 0, labels, 0)]
        if not counted.any():
            # of nothing, as PyTorch has it
            loss = math.nan
    gradient = np.ascontiguousarray(np.moveaxis(dlogits.reshape(by_class.shape), -1, axis))
    is_one = isinstance(loss, float)
    losses_tensor = torch.tensor(loss, dtype=logits.dtype) if is_one else torch.from_numpy(np.reshape(loss, shape))
    return losses_tensor, torch.from_numpy(gradient)


def _run_backward(dloss: Tensor, dlogits: Tensor) -> Tensor:
    return dlogits * (dloss.unsqueeze(1) if dloss.dim() else dloss)


def _fake(
    logits: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    loss = logits.new_empty((*logits.shape[:1], *logits.shape[2:])[: logits.dim() - 1] if reduction == "none" else ())
    return loss, torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _differentiate(ctx: Any, dloss: Tensor, *unused: Any) -> tuple:
    return _backward(dloss, *ctx.saved_tensors), None, None, None, None, None


_forward = Operator(
    f"{OP}(Tensor logits, Tensor target, str reduction, Tensor? weight=None, int ignore_index=-100, float label_smoothing=0.0) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dloss, Tensor dlogits) -> Tensor", _run_backward, _run_backward
).without_derivative()
_forward.set_derivative(_save, _differentiate)
_CrossEntropy = autograd_function(OP, _run, _save, _differentiate)
