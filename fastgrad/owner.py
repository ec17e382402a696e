"""Models made of others."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.model import Model, generator
from fastgrad.sequences import SequenceModel


class Owner(SequenceModel):
    """A model made of others, its checked parts, by name; their parameters move into its flat arrays, named "name.w", ..."""

    def __init__(self, parts: dict[str, Model], seed: int | None) -> None:
        self.parts = parts
        shapes = {f"{name}.{key}": shape for name, part in parts.items() for key, shape in part._shapes.items()}
        values = np.concatenate([part.params for part in parts.values()])
        self.recurrent, self.images, self.bidirectional = (
            any(getattr(part, name) for part in parts.values()) for name in ("recurrent", "images", "bidirectional")
        )
        super().__init__(shapes, _dtype(parts), seed)
        self._params[...] = values
        if any(part._mask is not None for part in parts.values()):
            self._wear(np.concatenate([_mask(part) for part in parts.values()]))
        rng = generator(seed)
        for part in parts.values():
            part.owned = type(self).__name__
            part._restart(rng)

    def statistics(self) -> dict[str, np.ndarray]:
        return {f"{name}.{key}": a for name, part in self.parts.items() for key, a in part.statistics().items()}

    def _generators(self) -> list[np.random.Generator]:
        return [generator for part in self.parts.values() for generator in part._generators()]

    def _move_statistics(self, move: Callable[[Any], Any]) -> None:
        for part in self.parts.values():
            part._move_statistics(move)

    def _home(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._home(params, grads)
        offset = 0
        for part in self.parts.values():
            end = offset + part.params.size
            part._home(params[offset:end], grads[offset:end])
            offset = end

    def _wear(self, mask: np.ndarray | None) -> None:
        super()._wear(mask)
        offset = 0
        for part in self.parts.values():
            end = offset + part.params.size
            part._wear(None if mask is None else mask[offset:end])
            offset = end

    def _restart(self, rng: np.random.Generator) -> None:
        if self.seed is None:
            for part in self.parts.values():
                part._restart(rng)


def _mask(part: Model) -> np.ndarray:
    return np.ones(part.params.size, np.bool_) if part._mask is None else part._mask


def _dtype(parts: dict[str, Model]) -> np.dtype:
    """The one dtype; a part without parameters has any."""
    return next((part.dtype for part in parts.values() if part.params.size), next(iter(parts.values())).dtype)


def check_parts(op: str, parts: dict[str, Any]) -> None:
    """Parts must be models of one dtype, each of which nobody owns yet."""
    seen: list[Model] = []
    for label, part in parts.items():
        if not isinstance(part, Model):
            raise TypeError(f"{op}: {label} must be a layer of fastgrad.nn, got {type(part).__name__}")
        if part.owned or any(part is other for other in seen):
            raise ValueError(f"{op}: {label} is part of a {part.owned or op} already; a layer belongs to one")
        if not part.is_here:
            raise ValueError(
                f"{op}: {label} is on a GPU; make the model of parts that are not, and move it whole with to()"
            )
        seen.append(part)
    dtype = _dtype(parts)
    for label, part in parts.items():
        if part.dtype != dtype and part.params.size:
            raise TypeError(f"{op}: {label} must be {dtype}, got {part.dtype}")
