"""The rule by which layers in a row become chains: dense layers that follow each other run as one. fastgrad.torch plans by it too."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any


def chain_plan(layers: Iterable[Any], is_dense: Callable[[Any], bool], joined: Callable[[list[Any]], Any]) -> list[Any]:
    """The steps that run layers: of each run of dense layers the one step that `joined` makes of them, and the others as they are."""
    steps: list[Any] = []
    for dense, run in groupby(layers, is_dense):
        group = list(run)
        steps += [joined(group)] if dense else group
    return steps
