"""ParameterGroups: what kernels read of an optimiser's groups over arrays with names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from fastgrad.kernels.types import FROZEN
from fastgrad.optim.group_settings import Groups
from fastgrad.optim.optimizer import Optimizer
from fastgrad.schedule import Schedule, base_rate

# the place of the decay in hyper
DECAY = 4


class ParameterGroups(NamedTuple):
    """The groups of arrays, as kernels read them.

    hyper (G, 7) and group_numbers (n,): hyper and groups of UpdateRule; of a single group (7,) and None. factors (G,): the rate of each
    group over that of the optimiser, if that has a schedule. The first group has the optimiser's own settings. frozen_statistics: their
    names.
    """

    hyper: np.ndarray
    group_numbers: np.ndarray | None
    factors: np.ndarray
    frozen_statistics: list[str]

    def set_rate(self, rate: float) -> None:
        """Set the rates of the next update from the optimiser's, which is a schedule's."""
        if self.group_numbers is None:
            self.hyper[0] = rate
        else:
            self.hyper[:, 0] = rate * self.factors

    def rates(self, rates: np.ndarray) -> np.ndarray:
        """The rates of some updates (U,), or of each group (U, G), from the optimiser's (U,), which are a schedule's."""
        return rates if self.group_numbers is None else rates[:, None] * self.factors

    def constant_rates(self, updates: int) -> np.ndarray:
        """The rates of this many updates, where they are not a schedule's."""
        return (
            np.full(updates, self.hyper[0]) if self.group_numbers is None else np.tile(self.hyper[:, 0], (updates, 1))
        )


def parameter_groups(
    op: str, optimizer: Optimizer, parameters: Sequence[str], statistics: Sequence[str] = ()
) -> ParameterGroups:
    """The groups of an optimiser over arrays with these names.

    Raises:
        ValueError: A pattern matches no name, or a schedule that begins with 0 has no rate to compare a group's with.
    """
    groups, hyper = optimizer.groups, optimizer.hyper
    if not groups:
        return ParameterGroups(hyper, None, np.ones(1), [])
    settings = _settings(op, groups, parameters, statistics)
    # rows of hyper by what they set; the first is the optimiser's
    rows: dict[tuple[float | None, float | None], int] = {(None, None): 0}
    numbers = [
        FROZEN if own.get("frozen") else rows.setdefault((own.get("lr"), own.get("weight_decay")), len(rows))
        for own in (settings[name] for name in parameters)
    ]
    frozen = [name for name in statistics if settings[name].get("frozen")]
    if not any(numbers):
        return ParameterGroups(hyper, None, np.ones(1), frozen)
    all_hyper, factors = np.tile(hyper, (len(rows), 1)), np.ones(len(rows))
    for (lr, decay), row in rows.items():
        if decay is not None:
            all_hyper[row, DECAY] = decay
        if lr is not None:
            all_hyper[row, 0] = lr
            if isinstance(optimizer.lr, Schedule):
                factors[row] = lr / _base(op, optimizer.lr)
                all_hyper[row, 0] = hyper[0] * factors[row]
    return ParameterGroups(all_hyper, np.array(numbers, np.int64), factors, frozen)


def _settings(
    op: str, groups: Groups, parameters: Sequence[str], statistics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The settings of each name: each is that of the last pattern that matches the name and has it."""
    settings: dict[str, dict[str, Any]] = {name: {} for name in (*parameters, *statistics)}
    for pattern, values in groups.items():
        # rates and decays are those of parameters
        known = settings if "frozen" in values else parameters
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"{op}: optimizer.groups[{pattern!r}] must match one of {', '.join(known)}")
        for name in names:
            settings[name].update(values)
    return settings


def _base(op: str, schedule: Schedule) -> float:
    if (base := base_rate(schedule)) > 0:
        return base
    name = type(schedule).__name__
    raise ValueError(
        f"{op}: lr of a group follows the schedule from its first rate, and {name} begins with 0; WarmUp grows from 0"
    )
