"""Pruning little by little, as training goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastgrad import check
from fastgrad.model import Model
from fastgrad.prune import SCOPES, names_of, prune


@dataclass(frozen=True)
class GradualPruning:
    """The share that is pruned grows from `initial` to `final` between updates `begin` and `end`, every so many updates.

    share(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^3, quickly while there is much to prune and then ever more
    slowly: Zhu & Gupta 2017, "To prune, or not to prune", section 3. A Trainer prunes its model after the updates that are due, the
    others as `prune` does with scope, units and names. Other training code asks `next_due` and `share`.
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
        for name in ("final", "initial"):
            check.number(op, name, getattr(self, name), most=1.0)
        if self.initial > self.final:
            raise ValueError(f"{op}: initial must be at most final, {self.final}, got {self.initial}")
        check.count(op, "begin", self.begin, least=0)
        check.count(op, "end", self.end, least=self.begin + 1)
        check.count(op, "every", self.every)
        check.choice(op, "scope", self.scope, SCOPES)

    def share(self, step: int) -> float:
        """The share that is pruned after so many updates."""
        left = min(max((self.end - step) / (self.end - self.begin), 0.0), 1.0)
        return self.final + (self.initial - self.final) * left**3

    def next_due(self, step: int) -> int | None:
        """The next number of updates after `step` at which to prune: begin, begin + every, ... and end."""
        if step >= self.end:
            return None
        passed = max(step - self.begin, -1) // self.every + 1
        return min(self.begin + passed * self.every, self.end)

    def check(self, model: Model) -> None:
        """Raise for names that the model has not."""
        names_of("GradualPruning", model, self.names, self.units)

    def prune(self, model: Model, step: int) -> None:
        """Prune a model as is due after so many updates."""
        prune(model, self.share(step), scope=self.scope, units=self.units, names=self.names)
