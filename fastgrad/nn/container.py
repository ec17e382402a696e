"""Container, the base of models made of other models, and Sequential, which runs layers one after the other.

A Sequential runs neighbouring dense layers as one DenseChain: see nn/plan.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.random import generator
from fastgrad.nn.dense import Dense, DenseChain
from fastgrad.nn.model import Backward, ForwardContext, Model
from fastgrad.nn.plan import chain_plan
from fastgrad.nn.sequence import SequenceModel

# whose subclasses may compute something else
CHAINS: tuple[Any, ...] = Dense, DenseChain


class Container(SequenceModel):
    """A model made of other models, its checked `parts` by name. Their parameters move into its flat arrays, named "name.w", ..."""

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
    """The dtype of the parts that have parameters, or of the first part."""
    return next((part.dtype for part in parts.values() if part.params.size), next(iter(parts.values())).dtype)


def check_children(op: str, parts: dict[str, Any]) -> None:
    """Raise unless parts are models of one dtype that belong to no other model and are not on a GPU."""
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


class Sequential(Container):
    """Layers one after the other; their parameters move into its flat arrays, named "0.w", "0.b", "1.w", ...

    Views taken from a layer before it was handed over are not its parameters any more. Layers given no seed draw their
    initial weights in order from this one's, unless their weights were written since. Layers of rows beside an LSTM that
    does not pool are applied to every step of the sequences' own. A state is a list of the layers' states.
    """

    def __init__(self, *layers: Model, seed: int | None = None) -> None:
        op = type(self).__name__
        check.each(op, "layers", layers)
        check_children(op, {f"layers[{i}]": layer for i, layer in enumerate(layers)})
        _check_order(op, layers)
        self.layers = layers
        super().__init__({str(i): layer for i, layer in enumerate(layers)}, seed)
        self.output = layers[-1].output
        self.pools, self.keeps = any(layer.pools for layer in layers), all(layer.keeps for layer in layers)
        first = next((layer for layer in layers if not layer.keeps), layers[0])
        self.n_in, self.n_out = first.n_in, first.n_out
        for layer in layers:
            self.n_out = self.n_out if layer.keeps else layer.n_out

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        ends, backwards = [], []
        for step, step_context in self._contexts(context):
            x, end, step_backward = step._forward(x, step_context)
            ends.append(end)
            backwards.append(step_backward)

        def backward(dy: np.ndarray) -> np.ndarray:
            for step_backward in reversed(backwards):
                dy = step_backward(dy)
            return dy

        return x, self._state_of(ends), backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any]:
        ends = []
        for step, step_context in self._contexts(context):
            x, end = step._infer(x, step_context)
            ends.append(end)
        return x, self._state_of(ends)

    def _contexts(self, context: ForwardContext) -> Iterator[tuple[Model, ForwardContext]]:
        """Every step of the plan with its context."""
        op, starts = type(self).__name__, context.state
        if starts is not None:
            check.each(op, "state", starts, len(self.layers))
            for i, (layer, start) in enumerate(zip(self.layers, starts, strict=True)):
                if start is not None and not layer.recurrent:
                    raise ValueError(f"{op}: state[{i}] must be None, for layers[{i}] has no LSTM")
            starts = iter([start for layer, start in zip(self.layers, starts, strict=True) if layer.recurrent])
        inner, last = context._replace(logits=False, state=None), len(self._plan) - 1
        for i, step in enumerate(self._plan):
            own = inner
            if i == last:
                own = own._replace(logits=context.logits)
            if starts is not None and step.recurrent:
                own = own._replace(state=next(starts))
            yield step, own
            if i == 0:
                inner = inner._replace(want_dx=True)
            if step.pools:
                # what comes after a pool is a row of each sequence
                inner = inner._replace(packed=None)

    def _state_of(self, ends: list[Any]) -> list[Any] | None:
        """The state of each layer, from the states that the steps of the plan returned; None without an LSTM."""
        if not self.recurrent:
            return None
        states = iter([end for step, end in zip(self._plan, ends, strict=True) if step.recurrent])
        return [next(states) if layer.recurrent else None for layer in self.layers]

    def _home(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._home(params, grads)
        # what is called of the layers, in their order, and the one chain that this may be
        self._plan, offset = chain_plan(_leaves(self.layers), _is_chain, joined), 0
        for step in self._plan:
            end = offset + step.params.size
            step._home(params[offset:end], grads[offset:end])
            offset = end
        only = self._plan[0] if len(self._plan) == 1 else None
        self._chain = only if type(only) in CHAINS else None


def _is_chain(layer: Model) -> bool:
    return type(layer) in CHAINS


def joined(chains: Sequence[DenseChain]) -> DenseChain:
    """Chains that follow each other as one chain; `_home` binds it to the memory of their parameters."""
    if len(chains) == 1:
        return chains[0]
    first = chains[0]
    whole = object.__new__(type(first))
    whole._name = DenseChain._name
    sizes = [first.n_in, *(n for chain in chains for n in chain.sizes[1:])]
    activations = [f for chain in chains for f in chain._activations]
    whole._set_layers(sizes, activations, [bias for chain in chains for bias in chain._has_bias], first.dtype, None)
    return whole


def _leaves(layers: Sequence[Model]) -> list[Model]:
    """The layers in order, with the layers of inner Sequentials in their place, unless they have an LSTM: then their state is a list."""
    return [
        leaf
        for layer in layers
        for leaf in (_leaves(layer.layers) if type(layer) is Sequential and not layer.recurrent else [layer])
    ]


def _check_order(op: str, layers: tuple[Model, ...]) -> None:
    width, pooled = None, False
    for i, layer in enumerate(layers):
        if width is not None and layer.n_in is not None and layer.n_in != width:
            raise ValueError(f"{op}: layers[{i}] must take {width} columns, got {layer.n_in}")
        if pooled and (layer.recurrent or layer.images):
            kind = "sequences" if layer.recurrent else "images"
            raise ValueError(f"{op}: layers[{i}] must take rows (N, C), for a layer before it pools {kind}")
        width = width if layer.keeps else layer.n_out
        pooled = pooled or layer.pools
