"""LazyScalar: a number on the GPU that is copied to the host when it is first used."""

import operator
from collections.abc import Callable
from typing import Any


class LazyScalar:
    """A float that is copied from the GPU at its first use, which waits for the GPU; if its step failed, that use raises the error.

    number: an array () on the GPU. status: another, the step's status as of kernels/types.py. fail: raises the error.
    """

    def __init__(self, number: Any, status: Any, fail: Callable[[], Any]) -> None:
        self._number, self._status, self._fail = number, status, fail
        self._value: float | None = None

    def __float__(self) -> float:
        if self._value is None:
            if int(self._status):
                self._fail()
            self._value = float(self._number)
        return self._value

    def __repr__(self) -> str:
        return repr(float(self))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec)

    def __bool__(self) -> bool:
        return bool(float(self))

    def __hash__(self) -> int:
        return hash(float(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)


def _first(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *others: function(float(self), *(float(x) if isinstance(x, LazyScalar) else x for x in others))


def _second(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: function(other, float(self))


for _name in "lt le eq ne gt ge neg pos abs add sub mul truediv pow".split():
    setattr(LazyScalar, f"__{_name}__", _first(getattr(operator, f"__{_name}__")))
for _name in "add sub mul truediv pow".split():
    setattr(LazyScalar, f"__r{_name}__", _second(getattr(operator, f"__{_name}__")))
