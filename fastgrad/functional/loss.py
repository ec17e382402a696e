"""Losses with their gradients: (loss, dlogits) in one pass."""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """-log softmax(logits)[label], with logits (N, C) and labels (N,) integers, or (N, C) one-hot or probabilities.

    Returns (loss, dlogits). The reduction is over the N rows: "mean" (0.0 for an empty batch), "sum", or "none": losses
    (N,) and the gradient of their sum.
    """
    logits = check.contiguous(check.array("cross_entropy", "logits", logits, "(N, C)", (None, None)))
    rows, classes = logits.shape
    if not classes:
        raise ValueError(f"cross_entropy: logits must have at least one class, got {logits.shape}")
    labels = check.labels("cross_entropy", "labels", labels, (rows, classes), logits)
    return _run("cross_entropy", logits, labels, (rows,), reduction)


def binary_cross_entropy(
    logits: np.ndarray, targets: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """-t log sigmoid(logits) - (1 - t) log(1 - sigmoid(logits)), with logits and targets t of one shape and dtype.

    Returns (loss, dlogits). The reduction is over all elements: "mean" (0.0 if there are none), "sum", or "none":
    losses like logits and the gradient of their sum.
    """
    return _elementwise("binary_cross_entropy", "logits", logits, "targets", targets, reduction)


def mse(y: np.ndarray, target: np.ndarray, reduction: str = "mean") -> tuple[float | np.ndarray, np.ndarray]:
    """(y - target)^2, with y and target of one shape and dtype.

    Returns (loss, dy). The reduction is over all elements: "mean" (0.0 if there are none), "sum", or "none": losses
    like y and the gradient of their sum.
    """
    return _elementwise("mse", "y", y, "target", target, reduction)


def poisson_nll(
    log_rates: np.ndarray, counts: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """exp(z) - z count, for counts that are Poisson-distributed of the rate exp(z), with log_rates z and counts of one shape and dtype.

    Returns (loss, dlog_rates). The reduction is over all elements: "mean" (0.0 if there are none), "sum", or "none": losses
    like log_rates and the gradient of their sum.
    """
    return _elementwise("poisson_nll", "log_rates", log_rates, "counts", counts, reduction)


def _elementwise(
    op: str, name: str, y: Any, target_name: str, target: Any, reduction: str
) -> tuple[float | np.ndarray, np.ndarray]:
    y = check.contiguous(check.floating(op, name, y))
    target = check.contiguous(check.array(op, target_name, target, f"like {name}", y.shape, y))
    # kernels are compiled for two axes
    rows = (len(y) if y.ndim == 2 else 1, -1) if y.size else (0, 1)
    loss, dy = _run(op, y.reshape(rows), target.reshape(rows), None, reduction)
    return loss if isinstance(loss, float) else loss.reshape(y.shape), dy.reshape(y.shape)


def _run(
    op: str, y: np.ndarray, target: np.ndarray, shape: tuple[int, ...] | None, reduction: str
) -> tuple[float | np.ndarray, np.ndarray]:
    check.choice(op, "reduction", reduction, REDUCTIONS)
    losses = empty(shape or y.shape, y)
    dy = empty(y.shape, y)
    scale = 1 / max(losses.size, 1) if reduction == "mean" else 1.0
    total = getattr(kernels(y), op)(y, target, losses, dy, scale)
    return losses if reduction == "none" else float(total) * scale, dy
