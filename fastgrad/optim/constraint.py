"""Constraints on weights, MaxValue and MaxNorm: settings. The kernels apply them in the optimiser's update."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core import check
from fastgrad.functional.clip import PER
from fastgrad.functional.units import unit_counts
from fastgrad.kernels import types


class Constraint:
    """The base class of constraints: settings alone."""

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        """The constraint as the kernels read it, for arrays like these.

        Args:
            op: The name of the caller, for errors.
            name: What the caller calls the arrays, for errors.
            arrays: The parameters, or arrays of their shapes.

        Returns:
            The kind, the limit, and for MaxNorm the number of units of each array, 0 where it is left alone; MaxValue
            limits all arrays.

        Raises:
            ValueError: An array whose units are limited has not 1, 2 or 4 axes.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MaxValue(Constraint):
    """Each value is held to -limit .. limit after each update, as clip_weights does; NaN stays.

    Args:
        limit: The largest magnitude, at least 0.

    Raises:
        ValueError: limit is negative or not finite.
        TypeError: limit is no number.

    Example:
        >>> p = np.array([0.5, -3.0])
        >>> updater = fg.Updater([p], fg.optim.SGD(0.1), constraint=fg.optim.MaxValue(1.0))
        >>> norm = updater.step([np.zeros(2)])
        >>> p.tolist()
        [0.5, -1.0]
    """

    limit: float

    def __post_init__(self) -> None:
        check.number("MaxValue", "limit", self.limit)

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        return types.Constraint(types.MAX_VALUE, float(self.limit), np.zeros(len(arrays), np.int64))


@dataclass(frozen=True)
class MaxNorm(Constraint):
    """Weights are scaled to the norm max_norm where theirs is larger, after each update, as project_weights does.

    Arrays of one axis (biases, gamma and beta of a normalisation) are left alone.

    Args:
        max_norm: The largest norm, above 0. For units 3 or 4 in the paper.
        per: Whose norm: "unit", each column of the last axis, "array", or "all" arrays together.

    Raises:
        ValueError: max_norm is not above 0 and finite, or per is unknown; and where the constraint is used, for units
            of arrays that have not 1, 2 or 4 axes.
        TypeError: max_norm is no number.

    Example:
        >>> w = np.array([[3.0, 0.3], [4.0, 0.4]])
        >>> updater = fg.Updater([w], fg.optim.SGD(0.1), constraint=fg.optim.MaxNorm(1.0))
        >>> norm = updater.step([np.zeros((2, 2))])
        >>> w.round(3).tolist()
        [[0.6, 0.3], [0.8, 0.4]]

    References:
        Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", section 5.1.
    """

    max_norm: float
    per: str = "unit"

    def __post_init__(self) -> None:
        check.number("MaxNorm", "max_norm", self.max_norm, zero=False)
        check.choice("MaxNorm", "per", self.per, PER)

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        weights = np.array([a.ndim > 1 for a in arrays], np.int64)  # (n,)
        widths = weights * unit_counts(op, name, arrays) if self.per == "unit" else weights
        kind = types.MAX_NORM if self.per == "all" else types.MAX_NORM_EACH
        return types.Constraint(kind, float(self.max_norm), widths)


def kernel_constraint(
    op: str, constraint: Constraint | None, name: str, arrays: list[np.ndarray], groups: np.ndarray | None
) -> types.Constraint | None:
    """The constraint as the kernels read it, for these arrays; None for None. groups (n,): see UpdateRule."""
    if constraint is None:
        return None
    if not isinstance(constraint, Constraint):
        raise TypeError(
            f"{op}: constraint must be MaxValue or MaxNorm of fastgrad.optim, got {type(constraint).__name__}"
        )
    over = constraint.over(op, name, arrays)
    if groups is not None:
        over.widths[groups == types.FROZEN] = 0
    return over
