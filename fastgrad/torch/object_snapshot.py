"""ObjectSnapshot: which objects a model and an optimizer had when they were read, to be compared at every step, in C where it can be."""

import operator
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch

Tensor = torch.Tensor
FLAGS = operator.attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")


class ObjectSnapshot:
    """The objects of some dictionaries and lists, and of parameters where they lie, whether they are trained and their hooks.

    views: lists and views of dictionaries, whose objects are compared by identity; dicts: dictionaries whose number of names is compared;
    hooks: dictionaries that were empty.
    """

    def __init__(self, views: list[Iterable[Any]], dicts: list[dict], hooks: list[dict], params: list[Tensor]) -> None:
        self._views, self._dicts, self._hooks, self._params = views, dicts, hooks, params
        self._objects, self._sizes = list(chain.from_iterable(views)), list(map(len, dicts))
        self._memory = self._memory_now()

    def is_current(self) -> bool:
        """Whether all is as it was."""
        objects = list(chain.from_iterable(self._views))
        return (
            len(objects) == len(self._objects)
            and all(map(operator.is_, objects, self._objects))
            and list(map(len, self._dicts)) == self._sizes
            and not any(self._hooks)
            and self._memory_now() == self._memory
        )

    def _memory_now(self) -> list[Any]:
        params = self._params
        return [
            *map(Tensor.data_ptr, params), *map(Tensor.numel, params), *map(Tensor.is_contiguous, params), *map(FLAGS, params),
        ]  # fmt: skip
