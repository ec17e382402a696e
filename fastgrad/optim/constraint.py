"""What weights are held to after each update, in the optimiser's pass over them: settings, in fastgrad.optim."""

from dataclasses import dataclass

import numpy as np

from fastgrad.core import check
from fastgrad.functional.clip import PER, units
from fastgrad.kernels import types


class Constraint:
    """What trainers ask of a constraint's settings."""

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        """As the kernels read it, for arrays like these."""
        raise NotImplementedError


@dataclass(frozen=True)
class MaxValue(Constraint):
    """Each value to -limit .. limit, as clip_weights does; NaN stays."""

    limit: float

    def __post_init__(self) -> None:
        check.number("MaxValue", "limit", self.limit)

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        return types.Constraint(types.MAX_VALUE, float(self.limit), np.zeros(len(arrays), np.int64))


@dataclass(frozen=True)
class MaxNorm(Constraint):
    """Weights to the norm max_norm where theirs is larger: of each unit, of each array, or of all together, as project_weights does.

    Arrays of one axis (biases, gamma and beta of a normalisation) are left alone. Srivastava et al. 2014, section 5.1: 3 or 4 a unit.
    """

    max_norm: float
    per: str = "unit"

    def __post_init__(self) -> None:
        check.number("MaxNorm", "max_norm", self.max_norm, zero=False)
        check.choice("MaxNorm", "per", self.per, PER)

    def over(self, op: str, name: str, arrays: list[np.ndarray]) -> types.Constraint:
        weights = np.array([a.ndim > 1 for a in arrays], np.int64)  # (n,)
        widths = weights * units(op, name, arrays) if self.per == "unit" else weights
        kind = types.MAX_NORM if self.per == "all" else types.MAX_NORM_EACH
        return types.Constraint(kind, float(self.max_norm), widths)


def checked(op: str, constraint: Constraint | None, name: str, arrays: list[np.ndarray]) -> types.Constraint | None:
    """The constraint over these arrays."""
    if constraint is None:
        return None
    if not isinstance(constraint, Constraint):
        raise TypeError(
            f"{op}: constraint must be MaxValue or MaxNorm of fastgrad.optim, got {type(constraint).__name__}"
        )
    return constraint.over(op, name, arrays)
