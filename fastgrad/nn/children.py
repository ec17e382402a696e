"""The children of a container: their slices of its flat arrays, their masks and dtype, and the check before they become part of it."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fastgrad.nn.model import Model


def slices(models: Iterable[Model]) -> Iterator[tuple[Model, slice]]:
    """Each model with its part of the flat arrays of all."""
    offset = 0
    for model in models:
        yield model, slice(offset, offset + model.params.size)
        offset += model.params.size


def mask_of(child: Model) -> np.ndarray:
    return np.ones(child.params.size, np.bool_) if child._mask is None else child._mask


def dtype_of(children: dict[str, Model]) -> np.dtype:
    """The dtype of the children that have parameters, or of the first child."""
    return next((child.dtype for child in children.values() if child.params.size), next(iter(children.values())).dtype)


def check_children(op: str, children: dict[str, Any]) -> None:
    """Raise unless children are models of one dtype that belong to no other model and are not on a GPU."""
    earlier: list[Model] = []
    for label, child in children.items():
        if not isinstance(child, Model):
            raise TypeError(f"{op}: {label} must be a layer of fastgrad.nn, got {type(child).__name__}")
        if child.container_type or any(child is other for other in earlier):
            raise ValueError(f"{op}: {label} is part of a {child.container_type or op} already; a layer belongs to one")
        if child.on_gpu:
            raise ValueError(
                f"{op}: {label} is on a GPU; make the model of parts that are not, and move it whole with to()"
            )
        earlier.append(child)
    dtype = dtype_of(children)
    for label, child in children.items():
        if child.dtype != dtype and child.params.size:
            raise TypeError(f"{op}: {label} must be {dtype}, got {child.dtype}")
