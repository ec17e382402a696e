"""The settings of parameter groups, as a user writes them by patterns of names, and their checks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgrad.core import check

# settings by patterns
Groups = Mapping[str, Mapping[str, float | bool]]
SETTINGS = "lr", "weight_decay", "frozen"


def checked_groups(op: str, groups: Any) -> dict[str, dict[str, Any]] | None:
    """A copy of the groups of an optimiser, checked; None for None."""
    if groups is None:
        return None
    _check_mapping(op, "groups", groups, "a dictionary of settings by pattern")
    for pattern, settings in groups.items():
        if not isinstance(pattern, str):
            raise TypeError(f"{op}: a pattern in groups must be a str, got {type(pattern).__name__}")
        place = f"groups[{pattern!r}]"
        _check_mapping(op, place, settings, "a dictionary of settings")
        for name, value in settings.items():
            check.choice(op, f"a setting in {place}", name, SETTINGS)
            if name != "frozen":
                check.number(op, f"{name} in {place}", value)
            elif not isinstance(value, bool | np.bool_):
                raise TypeError(f"{op}: frozen in {place} must be True or False, got {type(value).__name__}")
    return {pattern: dict(settings) for pattern, settings in groups.items()}


def _check_mapping(op: str, name: str, value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{op}: {name} must be {what}, got {type(value).__name__}")
