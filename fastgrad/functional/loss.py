"""Loss functions, each with its gradient in the same pass: cross_entropy, binary_cross_entropy, mse, mae, huber and poisson_nll."""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.loss_arguments import checked_labels, checked_weights, class_loss, huber_loss
from fastgrad.kernels import types

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    reduction: str = "mean",
    *,
    weights: np.ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float | np.ndarray, np.ndarray]:
    """Cross entropy over the softmax of logits, and its gradient.

    loss = -sum_c w_c t_c log softmax(logits)_c of each row, for a class number -w[label] log softmax(logits)[label]

    The numbers are those of PyTorch's, options too: the mean of labels is the sum of the losses over the sum of their
    classes' weights, that of probabilities is over the rows. Where PyTorch has 0 / 0 = NaN, since all rows are
    ignored or have the weight 0, the mean is 0.0 here, and so are the gradients.

    Args:
        logits: (N, C), float32 or float64, of at least one class.
        labels: Class numbers (N,), integers in 0..C - 1, or one-hot rows or probabilities t (N, C) of the dtype of
            logits.
        reduction: Over the N rows: "mean" (0.0 for an empty batch), "sum", or "none".
        weights: The weights w of the classes (C,), finite and at least 0, of the dtype of logits; None is 1 for all.
        ignore_index: A class number of rows that are left out: of no loss, no gradient and no weight in the mean. It
            may lie outside 0..C - 1; None leaves out nothing. PyTorch's default is -100.
        label_smoothing: s from 0 to 1, with which targets are (1 - s) t + s / C (Szegedy et al. 2016).

    Returns:
        (loss, dlogits). The loss is a float; with "none" it is an array (N,), and dlogits (N, C) the gradient of its
        sum.

    Raises:
        ValueError: A shape is another one, a class number is out of range, there is no class, reduction is unknown, an
            option is out of its range, or there are probabilities and an ignore_index.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dlogits = fg.cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))
        >>> round(loss, 4), dlogits.tolist()
        (0.6931, [[0.5, -0.5]])
    """
    op = "cross_entropy"
    logits = check.contiguous(check.array(op, "logits", logits, "(N, C)", (None, None)))
    rows, classes = logits.shape
    if not classes:
        raise ValueError(f"{op}: logits must have at least one class, got {logits.shape}")
    if weights is not None:
        weights = checked_weights(
            op, "weights", check.floating(op, "weights", weights, logits), "(C,)", (classes,), logits
        )
    loss = class_loss(op, weights, ignore_index, label_smoothing)
    labels = checked_labels(op, "labels", labels, (rows, classes), logits, ignore_index=loss.ignore_index)
    return _run(op, loss, logits, labels, reduction)


def binary_cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    reduction: str = "mean",
    *,
    pos_weight: float | np.ndarray | None = None,
) -> tuple[float | np.ndarray, np.ndarray]:
    """Binary cross entropy over the sigmoid of logits, and its gradient.

    loss = -p t log sigmoid(logits) - (1 - t) log(1 - sigmoid(logits)) of each element

    Args:
        logits: Any shape, float32 or float64.
        targets: t, of the shape and dtype of logits.
        reduction: Over all elements: "mean" (0.0 if there are none), "sum", or "none".
        pos_weight: The weight p of positive targets, finite and at least 0: a number, or an array (K,) of one for each
            of the last axis, of the dtype of logits; None is 1. The mean is over the elements, whatever p is.

    Returns:
        (loss, dlogits). The loss is a float; with "none" it is an array like logits, and dlogits the gradient of its
        sum.

    Raises:
        ValueError: targets or pos_weight have another shape, or reduction is unknown, or a weight is out of range.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dlogits = fg.binary_cross_entropy(np.array([[0.0]]), np.array([[1.0]]))
        >>> round(loss, 4), dlogits.tolist()
        (0.6931, [[-0.5]])
    """
    op = "binary_cross_entropy"
    logits = check.floating(op, "logits", logits)
    loss = types.LOSSES[op]
    if pos_weight is not None:
        columns = logits.shape[-1] if logits.ndim else 1
        if isinstance(pos_weight, np.ndarray) or device.on_gpu(pos_weight):
            pos_weight = check.floating(op, "pos_weight", pos_weight, logits)
        weights = checked_weights(op, "pos_weight", pos_weight, "a number or (K,)", (columns,), logits, scalar=True)
        loss = loss._replace(weights=weights)
    return _elementwise(op, loss, "logits", logits, "targets", targets, reduction)


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
    return _elementwise("mse", types.LOSSES["mse"], "y", y, "target", target, reduction)


def mae(y: np.ndarray, target: np.ndarray, reduction: str = "mean") -> tuple[float | np.ndarray, np.ndarray]:
    """Absolute error, and its gradient, which is 0 where y is the target.

    loss = |y - target| of each element

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
        >>> loss, dy = fg.mae(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
        >>> loss, dy.tolist()
        (1.0, [0.0, 0.5])
    """
    return _elementwise("mae", types.LOSSES["mae"], "y", y, "target", target, reduction)


def huber(
    y: np.ndarray, target: np.ndarray, reduction: str = "mean", *, delta: float = 1.0
) -> tuple[float | np.ndarray, np.ndarray]:
    """Huber loss, squares of small errors and absolute values of large ones, and its gradient.

    loss = d^2 / 2 if |d| < delta, else delta (|d| - delta / 2) of each element, d = y - target

    Args:
        y: Any shape, float32 or float64.
        target: Of the shape and dtype of y.
        reduction: Over all elements: "mean" (0.0 if there are none), "sum", or "none".
        delta: The size of an error from which on the loss is linear, above 0.

    Returns:
        (loss, dy). The loss is a float; with "none" it is an array like y, and dy the gradient of its sum.

    Raises:
        ValueError: target has another shape, reduction is unknown, or delta is not above 0.
        TypeError: A dtype is another one, or an argument is no array.

    Example:
        >>> loss, dy = fg.huber(np.array([1.5, 3.0]), np.array([1.0, 1.0]), "sum")
        >>> loss, dy.tolist()
        (1.625, [0.5, 1.0])

    References:
        Huber 1964, Robust Estimation of a Location Parameter.
    """
    return _elementwise("huber", huber_loss("huber", delta), "y", y, "target", target, reduction)


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
    return _elementwise("poisson_nll", types.LOSSES["poisson_nll"], "log_rates", log_rates, "counts", counts, reduction)


def _elementwise(
    op: str, loss: types.Loss, name: str, y: Any, target_name: str, target: Any, reduction: str
) -> tuple[float | np.ndarray, np.ndarray]:
    y = check.contiguous(check.floating(op, name, y))
    target = check.contiguous(check.array(op, target_name, target, f"like {name}", y.shape, y))
    # kernels are compiled for two axes, of which the last one has the weights
    keeps_columns = y.ndim == 2 or (loss.weights is not None and y.ndim)
    rows = (
        (-1, y.shape[-1] if keeps_columns else y.size)
        if y.size
        else (0, y.shape[-1] if loss.weights is not None else 1)
    )
    value, dy = _run(op, loss, y.reshape(rows), target.reshape(rows), reduction)
    return value if isinstance(value, float) else value.reshape(y.shape), dy.reshape(y.shape)


def _run(
    op: str, loss: types.Loss, y: np.ndarray, target: np.ndarray, reduction: str
) -> tuple[float | np.ndarray, np.ndarray]:
    check.choice(op, "reduction", reduction, REDUCTIONS)
    losses = empty(y.shape[:1] if loss.by_row else y.shape, y)
    dy = empty(y.shape, y)
    sums = kernels(y).loss_gradient(y, target, loss, losses, dy, mean=reduction == "mean")
    return losses if reduction == "none" else float(sums[0]), dy
