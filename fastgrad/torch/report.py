"""The Report of `accelerate`: what was replaced, what was left, which way is faster; and choices that are stored."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastgrad.torch.choice import WAYS, Choice

NO_NAME = "(the model)"
# the unit of the whole model's choice
WHOLE = "(in the whole)"
FORM = 'a dictionary {unit: {shape and mode: {"way": "fastgrad" or "PyTorch", "ratio": a number or null}}}'


class Report:
    """What `accelerate` did: print it, store its choices, or undo it.

    `replaced` and `left` are lists of pairs: the name of a module, as of model.named_modules(), or of the first and the last
    of some in a row, and what became of it or why it was left. Printed, a report tells too what has been timed since.
    """

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str]] = []
        self.left: list[tuple[str, str]] = []
        self._choices: dict[str, Choice] = {}
        # the rows of what is fused in a graph, and the graph's name
        self._graphs: dict[tuple[str, str], str] = {}
        self._undo: list[Callable[[], Any]] = []
        self._is_undone = False

    def undo(self) -> None:
        """Put everything back."""
        self._is_undone = True
        while self._undo:
            self._undo.pop()()

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The choices so far, {unit: {shape and mode: {"way": ..., "ratio": ...}}}, for `accelerate(model, choose=...)`."""
        return {name or NO_NAME: choice.to_dict() for name, choice in self._choices.items() if choice.ways}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the choices so far to a JSON file, for `accelerate(model, choose=path)`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")

    def __str__(self) -> str:
        went_back = {name for name, choice in self._choices.items() if choice.ways and not any(choice.ways.values())}
        replaced = [row for row in self.replaced if self._graphs.get(row, row[0]) not in went_back]
        left = [*self.left, *(row for row in self.replaced if self._graphs.get(row, row[0]) in went_back)]
        lines = ["undone: all is PyTorch's own again; it was"] if self._is_undone else []
        for title, rows in (("replaced", replaced), ("left", left)):
            lines.append(f"{title}:" if rows else f"{title}: nothing")
            for name, what in rows:
                choice = None if (name, what) in self._graphs else self._choices.get(name)
                lines += [
                    f"  {name or NO_NAME}: {what}",
                    *(f"    {line}" for line in (choice.lines() if choice else [])),
                ]
        if WHOLE in self._choices and self._choices[WHOLE].ways:
            lines += ["in the whole:", *(f"  {line}" for line in self._choices[WHOLE].lines())]
        return "\n".join(lines)

    def _record(self, name: str, choice: Choice | None, undo: Callable[[], Any] | None) -> None:
        """Know the choice of a unit, and how it is undone, if there are any."""
        if choice is not None:
            self._choices[name] = choice
        if undo is not None:
            self._undo.append(undo)

    def _install(self, name: str, replacement: Any) -> None:
        """Replace a module's forward, and know of it."""
        replacement.install()
        self._record(name, replacement.choice, partial(replacement.undo, replacement.module))

    def _use(self, stored: dict[str, dict[str, Any]]) -> None:
        """Have units choose as it is stored. Raises ValueError if a name is of none of them."""
        names = {name or NO_NAME: choice for name, choice in self._choices.items()}
        for name in stored:
            if name not in names:
                known = ", ".join(names) or "none"
                raise ValueError(f"accelerate: choose: the model has no unit {name!r}; it has {known}")
        for name, ways in stored.items():
            names[name].stored = ways


def stored_choices(choose: Any) -> dict[str, dict[str, Any]]:
    """The choices of a report, of its to_dict(), or of a file that it saved, checked."""
    source = "it"
    if isinstance(choose, Report):
        return choose.to_dict()
    if isinstance(choose, str | os.PathLike):
        source = os.fspath(choose)
        try:
            choose = json.loads(Path(choose).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"accelerate: choose: {source} must be {FORM}, got no JSON: {error}") from error
    elif not isinstance(choose, dict):
        raise TypeError(
            "accelerate: choose must be True, False, a report, its to_dict() or the path of a file that it saved,"
            f" got {type(choose).__name__}"
        )
    if not isinstance(choose, dict) or not all(_are_ways(ways) for ways in choose.values()):
        raise ValueError(f"accelerate: choose: {source} must be {FORM}")
    return choose


def _are_ways(ways: Any) -> bool:
    return isinstance(ways, dict) and all(
        isinstance(entry, dict) and entry.get("way") in WAYS and isinstance(entry.get("ratio"), int | float | None)
        for entry in ways.values()
    )
