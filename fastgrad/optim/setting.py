"""`setting`: a property of Trainer and Updater that is checked when it is assigned; and checks of the settings that both have."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.optim.optimizer import Optimizer

NO_LOCK = nullcontext()
CLIP_NORM = "The largest norm of the gradient; infinity where nothing is clipped."


def setting(checked: Callable[[Any, Any], Any], doc: str) -> Any:
    """A property that is checked as it is assigned and takes effect at the next update.

    checked(owner, value) returns the value to keep, in the attribute of the name with an underscore. Then the owner's `_bind` computes from
    its settings what its updates read, under its `lock` if it has one.
    """
    return _Setting(checked, doc)


class _Setting(property):
    def __init__(self, checked: Callable[[Any, Any], Any], doc: str) -> None:
        super().__init__(lambda owner: getattr(owner, self._attribute), self._assign)
        # the class has an empty docstring, which hides that of property
        self.__doc__, self._checked = doc, checked

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = f"_{name}"

    def _assign(self, owner: Any, value: Any) -> None:
        value = self._checked(owner, value)
        with getattr(owner, "lock", NO_LOCK):
            setattr(owner, self._attribute, value)
            owner._bind()


def clip_norm_of(op: str, clip_norm: Any) -> float:
    """The limit of a gradient's norm, infinity for None."""
    if clip_norm is None or (isinstance(clip_norm, float | np.floating) and clip_norm == math.inf):
        return math.inf
    return check.number(op, "clip_norm", clip_norm, zero=False)


def checked_optimizer(op: str, optimizer: Any, before: Optimizer | None = None) -> Optimizer:
    """optimizer, checked. before: the one whose state it goes on with, which must be of the same kind."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{op}: optimizer must be one of fastgrad.optim, got {type(optimizer).__name__}")
    if before is not None and (optimizer.code, optimizer.state_rows) != (before.code, before.state_rows):
        raise ValueError(
            f"{op}: optimizer must be {type(before).__name__} with {before.state_rows} values of state a parameter, as the one before, "
            f"whose state goes on, got {type(optimizer).__name__} with {optimizer.state_rows}; another kind needs a new {op}"
        )
    return optimizer
