"""fg.health, the health of layers: `of` makes the Report of a list of gradients; Trainer.health returns a Report too.

layers.py measures a layer's health, verdict.py says what is wrong and what to try, history.py keeps measurements, report.py prints them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.array_list import ArrayList
from fastgrad.core.backend import kernels
from fastgrad.health.layers import GRADIENTS
from fastgrad.health.report import Report
from fastgrad.health.verdict import Traits
from fastgrad.kernels.types import HEALTH

__all__ = ["Report", "of"]


def of(grads: Any, names: Sequence[str] | None = None) -> Report:
    """The report of gradients alone, for training code of any kind.

    Args:
        grads: An array or a list of arrays of one dtype, from the first layer's to the last's.
        names: The name of each array; without them "0", "1", ...

    Returns:
        A Report. What is not known of outputs and updates is NaN in it.

    Raises:
        ValueError: The list is empty, or names are of another number.
        TypeError: grads are no arrays of float32 or float64, or of several dtypes.

    Example:
        >>> report = fg.health.of([np.zeros((2, 2)), np.full((2, 2), 0.5)], names=["first", "last"])
        >>> report.as_dict()["last/grad_norm"]
        1.0
        >>> {name: verdict.illness for name, verdict in report.verdicts.items()}
        {'first': 'vanishing', 'last': 'healthy'}
    """
    op = "health.of"
    arrays = ArrayList(op, "grads", grads, written=False)
    if names is not None:
        check.sequence(op, "names", names, len(arrays.flat))
    values = np.full((len(arrays.flat), len(HEALTH)), np.nan)
    gradients = np.empty((len(values), 4))
    kernels().array_health(arrays.flat, gradients)
    values[:, GRADIENTS] = gradients
    labels = [str(i) for i in range(len(values))] if names is None else list(names)
    nothing = [None] * len(values), [Traits()] * len(values)
    return Report(labels, *nothing, 0, values, np.zeros(1, np.int64), values[None])
