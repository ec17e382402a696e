"""Loss functions, each with its gradient in the same pass: cross_entropy, binary_cross_entropy, mse and poisson_nll."""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels

REDUCTIONS = ("mean", "sum", "none")
INT64 = np.dtype(np.int64)


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """Cross entropy over the softmax of logits, and its gradient.

    loss = -sum_c t_c log softmax(logits)_c of each row, for a class number -log softmax(logits)[label]

    Args:
        logits: (N, C), float32 or float64, of at least one class.
        labels: Class numbers (N,), integers in 0..C - 1, or one-hot rows or probabilities t (N, C) of the dtype of
            logits.
        reduction: Over the N rows: "mean" (0.0 for an empty batch), "sum", or "none".

    Returns:
        (loss, dlogits). The loss is a float; with "none" it is an array (N,), and dlogits (N, C) the gradient of its
        sum.

    Raises:
        ValueError: A shape is another one, a class number is out of range, there is no class, or reduction is unknown.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dlogits = fg.cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))
        >>> round(loss, 4), dlogits.tolist()
        (0.6931, [[0.5, -0.5]])
    """
    logits = check.contiguous(check.array("cross_entropy", "logits", logits, "(N, C)", (None, None)))
    rows, classes = logits.shape
    if not classes:
        raise ValueError(f"cross_entropy: logits must have at least one class, got {logits.shape}")
    labels = checked_labels("cross_entropy", "labels", labels, (rows, classes), logits)
    return _run("cross_entropy", logits, labels, (rows,), reduction)


def binary_cross_entropy(
    logits: np.ndarray, targets: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """Binary cross entropy over the sigmoid of logits, and its gradient.

    loss = -t log sigmoid(logits) - (1 - t) log(1 - sigmoid(logits)) of each element

    Args:
        logits: Any shape, float32 or float64.
        targets: t, of the shape and dtype of logits.
        reduction: Over all elements: "mean" (0.0 if there are none), "sum", or "none".

    Returns:
        (loss, dlogits). The loss is a float; with "none" it is an array like logits, and dlogits the gradient of its
        sum.

    Raises:
        ValueError: targets have another shape, or reduction is unknown.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dlogits = fg.binary_cross_entropy(np.array([[0.0]]), np.array([[1.0]]))
        >>> round(loss, 4), dlogits.tolist()
        (0.6931, [[-0.5]])
    """
    return _elementwise("binary_cross_entropy", "logits", logits, "targets", targets, reduction)


def mse(y: np.ndarray, target: np.ndarray, reduction: str = "mean") -> tuple[float | np.ndarray, np.ndarray]:
    """Squared error, and its gradient.

    loss = (y - target)^2 of each element

    Args:
        y: Any shape, float32 or float64.
        target: Of the shape and dtype of y.
        reduction: Over all elements: "mean" (0.0 if there are none), "sum", or "none".

    Returns:
        (loss, dy). The loss is a float; with "none" it is an array like y, and dy the gradient of its sum.

    Raises:
        ValueError: target has another shape, or reduction is unknown.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dy = fg.mse(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
        >>> loss, dy.tolist()
        (2.0, [0.0, 2.0])
    """
    return _elementwise("mse", "y", y, "target", target, reduction)


def poisson_nll(
    log_rates: np.ndarray, counts: np.ndarray, reduction: str = "mean"
) -> tuple[float | np.ndarray, np.ndarray]:
    """Negative log likelihood of counts that are Poisson-distributed of the rate exp(z), and its gradient.

    loss = exp(z) - z count of each element, without the term log(count!), which does not depend on z

    Args:
        log_rates: z, any shape, float32 or float64.
        counts: Of the shape and dtype of log_rates.
        reduction: Over all elements: "mean" (0.0 if there are none), "sum", or "none".

    Returns:
        (loss, dlog_rates). The loss is a float; with "none" it is an array like log_rates, and dlog_rates the gradient
        of its sum.

    Raises:
        ValueError: counts have another shape, or reduction is unknown.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dlog_rates = fg.poisson_nll(np.array([0.0]), np.array([3.0]))
        >>> loss, dlog_rates.tolist()
        (1.0, [-2.0])
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


def checked_labels(
    op: str, name: str, value: Any, shape: tuple[int, ...], like: Any, values: bool = True, *, of_model: bool = False
) -> np.ndarray:
    """Labels, C-contiguous, on the device of `like`: class numbers as int64 (N,), or one-hot rows or probabilities (N, C).

    shape: (N, C); or of sequences (N, T, C), with class numbers (N, T). like: an array, or a dtype. values=False leaves out the check that
    class numbers are in range.
    """
    dtype = getattr(like, "dtype", like)
    value = check.place(op, name, value, None if like is dtype else like)
    integers, floats = ("(N,)", "(N, C)") if len(shape) == 2 else ("(N, T)", "(N, T, C)")
    if value.ndim > 1 and value.dtype.kind == "f":
        form = f"{integers} integers or {floats}"
        return check.contiguous(check.array(op, name, value, form, shape, like, of_model=of_model))
    if value.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: {name} must be integers {integers} or {dtype} {floats}, got {value.dtype} {value.shape}"
        )
    rows, classes = shape[:-1], shape[-1]
    if value.shape != rows:
        raise ValueError(f"{op}: {name} must be integers {rows} or {dtype} {shape}, got integers {value.shape}")
    numbers = _class_numbers(value)
    if not values:
        return numbers
    # a negative number is a huge one without its sign
    unsigned = numbers.view(np.uint64)
    host = type(numbers) is np.ndarray
    if numbers.size and (np.maximum.reduce(unsigned, axis=None) if host else unsigned.max()) >= classes:
        value = value if isinstance(value, np.ndarray) else value.get()
        index = tuple(int(i) for i in np.argwhere((value < 0) | (value >= classes))[0])
        where = index[0] if len(index) == 1 else index
        raise ValueError(f"{op}: {name} must be in 0..{classes - 1}, got {value[index]} at index {where}")
    return numbers


def _class_numbers(value: Any) -> Any:
    """Class numbers as int64, C-contiguous."""
    if isinstance(value, np.ndarray):
        fits = type(value) is np.ndarray and value.dtype is INT64 and value.flags.carray
        return value if fits else np.array(value, np.int64)
    return check.contiguous(value.astype(np.int64, copy=False))
