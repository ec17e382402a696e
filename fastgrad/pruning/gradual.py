"""GradualPruning: a schedule of pruning while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrad.core import check
from fastgrad.nn.model import Model
from fastgrad.pruning.magnitude import SCOPES, names_of, prune


@dataclass(frozen=True)
class GradualPruning:
    """The share that is pruned grows from `initial` to `final` between updates `begin` and `end`.

    share(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3 for begin <= t <= end

    It grows quickly while there is much to prune, and then ever more slowly. A Trainer prunes its model after the
    updates that are due, with begin = 0 before the first one too; other training code asks next_due and share.

    Args:
        final: The last share, from 0 to 1.
        begin: The number of updates before the first pruning, from 0.
        end: The number of updates before the last pruning, above begin.
        every: The number of updates from one pruning to the next, at least 1.
        initial: The first share, from 0 to final.
        scope: "array" or "global", as of prune.
        units: Whether whole units are pruned, as of prune.
        names: Names of the model's arrays that are pruned, as of prune.

    Raises:
        ValueError: A setting is out of its range.
        TypeError: A setting is no number or no integer.

    Example:
        >>> pruning = fg.GradualPruning(final=0.8, begin=0, end=100, every=50)
        >>> [round(pruning.share(step), 2) for step in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]
        >>> [pruning.next_due(step) for step in (-1, 0, 50, 100)]
        [0, 50, 100, None]

    References:
        Zhu & Gupta 2017, "To prune, or not to prune", section 3.
    """

    final: float
    begin: int
    end: int
    every: int
    initial: float = 0.0
    scope: str = "array"
    units: bool = False
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        op = "GradualPruning"
        check.keep(
            self, **{name: check.number(op, name, getattr(self, name), most=1.0) for name in ("final", "initial")}
        )
        if self.initial > self.final:
            raise ValueError(f"{op}: initial must be at most final, {self.final}, got {self.initial}")
        check.keep(
            self, begin=check.count(op, "begin", self.begin, least=0), every=check.count(op, "every", self.every)
        )
        check.keep(self, end=check.count(op, "end", self.end, least=self.begin + 1))
        check.choice(op, "scope", self.scope, SCOPES)

    def share(self, step: int) -> float:
        """The share that is pruned after so many updates.

        Args:
            step: The number of updates.

        Returns:
            The share, from 0 to 1: `initial` up to begin, `final` from end on.
        """
        remainder = min(max((self.end - step) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * remainder**3

    def next_due(self, step: int) -> int | None:
        """The next number of updates after `step` at which to prune: begin, begin + every, ... and end.

        Args:
            step: The number of updates so far, or -1 for the first number of all.

        Returns:
            The number, or None from end on.
        """
        if step >= self.end:
            return None
        intervals = max(step - self.begin, -1) // self.every + 1
        return min(self.begin + intervals * self.every, self.end)

    def check(self, model: Model) -> None:
        """Raise for names that the model has not.

        Args:
            model: The model that is to be pruned.

        Raises:
            ValueError: One of names is no array of two or more axes of the model, or there is nothing to prune.
        """
        names_of("GradualPruning", model, self.names, self.units)

    def prune(self, model: Model, step: int) -> None:
        """Prune a model as is due after so many updates.

        Args:
            model: The model, which keeps its masks.
            step: The number of updates.
        """
        prune(model, self.share(step), scope=self.scope, units=self.units, names=self.names)
