"""Weights of rows in a training: sample_weight, and class_weight of fit, which is one for each label."""

from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.functional.loss_arguments import checked_weights
from fastgrad.kernels import types


def checked_sample_weight(
    op: str, value: Any, rows: tuple[int, ...], like: Any, values: bool = True
) -> np.ndarray | None:
    """sample_weight like `rows`, (N,) or of sequences (N, T), in which it may also be (N,); None for None."""
    if value is None:
        return None
    by_sequence = len(rows) == 2 and len(np.shape(value)) < 2
    form = "(N,)" if by_sequence or len(rows) == 1 else "(N, T)"
    weights = checked_weights(op, "sample_weight", value, form, rows[:1] if by_sequence else rows, like, values=values)
    return weights[:, None].repeat(rows[1], 1) if by_sequence else weights


def class_weights(op: str, value: Any, loss: types.Loss, classes: int | None, like: Any) -> np.ndarray | None:
    """class_weight of fit, a dictionary or numbers (C,), as an array (C,); None for "balanced"."""
    if not loss.by_row and not (loss.code == types.BINARY_CROSS_ENTROPY and classes == 1):
        raise ValueError(
            f"{op}: class_weight is for cross_entropy, and for binary_cross_entropy of one output; "
            "fg.loss.BinaryCrossEntropy has pos_weight"
        )
    classes = (classes or 0) if loss.by_row else 2
    if isinstance(value, str):
        check.choice(op, "class_weight", value, ("balanced",))
        return None
    if isinstance(value, dict):
        for label in value:
            if not 0 <= check.integer(op, "class_weight: a class", label) < classes:
                raise ValueError(f"{op}: class_weight must have classes in 0..{classes - 1}, got {label}")
        value = [value.get(label, 1.0) for label in range(classes)]
    return checked_weights(op, "class_weight", value, "(C,)", (classes,), like)


def by_class(
    y: np.ndarray,
    weights: np.ndarray | None,
    lengths: np.ndarray | None,
    loss: types.Loss,
    of_class: np.ndarray | None,
    classes: int | None,
    dtype: np.dtype,
) -> np.ndarray:
    """The rows' weights times those of their classes, of_class (C,); None balances them over the labels that are counted.

    As scikit-learn has it, a balanced class has the weight n / (the number of classes that occur, times the number of its rows).
    """
    xp: Any = np if isinstance(y, np.ndarray) else device.cuda_device().xp
    if not loss.by_row:
        labels, classes = (y[..., 0] > 0.5).astype(np.int64), 2
    else:
        classes = classes or 0
        labels = y if y.dtype == np.int64 else y.argmax(axis=-1)
    known = (labels >= 0) & (labels < classes) & (labels != loss.ignore_index)
    labels = xp.where(known, labels, 0)
    if of_class is None:
        if lengths is not None and labels.ndim == 2:
            known = known & (xp.arange(labels.shape[1]) < xp.asarray(lengths)[:, None])
        counts = xp.bincount(labels[known], minlength=classes)
        occurring = max(int((counts > 0).sum()), 1)
        of_class = counts.sum() / (occurring * xp.maximum(counts, 1))
    of_row = of_class.astype(dtype)[labels]
    return check.contiguous(of_row if weights is None else of_row * weights)
