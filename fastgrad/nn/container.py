"""Container, the base of models made of other models, and Sequential, which runs layers one after the other.

A Sequential runs neighbouring dense layers as one DenseChain: see nn/plan.py.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.nn import summary
from fastgrad.nn.children import check_children, dtype_of, mask_of, slices
from fastgrad.nn.compaction import compact_layers
from fastgrad.nn.context import Backward, ForwardContext
from fastgrad.nn.dense import DenseChain
from fastgrad.nn.model import Model
from fastgrad.nn.plan import chain_plan, is_chain, join_chains
from fastgrad.nn.sequence import SequenceModel


class Container(SequenceModel):
    """A model made of other models, its `children` by name, checked. Their parameters move into its flat arrays, named "name.w", ..."""

    def __init__(self, children: dict[str, Model], seed: int | None) -> None:
        self.children = children
        shapes = {f"{name}.{key}": shape for name, child in children.items() for key, shape in child._shapes.items()}
        values = np.concatenate([child.params for child in children.values()])
        self.recurrent, self.images, self.reads_ahead = (
            any(getattr(child, name) for child in children.values()) for name in ("recurrent", "images", "reads_ahead")
        )
        super().__init__(shapes, dtype_of(children), seed)
        self._params[...] = values
        if any(child._mask is not None for child in children.values()):
            self._set_mask(np.concatenate([mask_of(child) for child in children.values()]))
        rng = generator(seed, type(self).__name__)
        for child in children.values():
            # an `init` of the user's may fail
            child._restart(rng)
        for child in children.values():
            child.container_type = type(self).__name__

    def __repr__(self) -> str:
        return summary.table(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for child in self.children.values():
            child.container_type = type(self).__name__

    def statistics(self) -> dict[str, np.ndarray]:
        return {f"{name}.{key}": a for name, child in self.children.items() for key, a in child.statistics().items()}

    def _generators(self) -> list[np.random.Generator]:
        return [generator for child in self.children.values() for generator in child._generators()]

    def _move_statistics(self, move: Callable[[Any], Any]) -> None:
        for child in self.children.values():
            child._move_statistics(move)

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        for child, part in slices(self.children.values()):
            child._bind_parameters(params[part], grads[part])

    def _set_mask(self, mask: np.ndarray | None) -> None:
        super()._set_mask(mask)
        for child, part in slices(self.children.values()):
            child._set_mask(None if mask is None else mask[part])

    def _path(self, step: int) -> str:
        """The path from this model to the child that runs in a step of its forward pass, for errors: ".layers[2]"."""
        raise NotImplementedError

    def _inside(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a child's function returns. Its errors get the child's path: "Sequential.layers[2].body: Conv2d: ..."."""
        try:
            return function(*arguments)
        except (ValueError, TypeError) as error:
            # an inner container has written the end of the path
            end, message = getattr(error, "_layer", ("", error.args[0] if len(error.args) == 1 else None))
            if isinstance(message, str):
                path = self._path(step) + end
                error._layer = path, message  # type: ignore[union-attr]
                error.args = (f"{type(self).__name__}{path}: {message}",)
            raise

    def _restart(self, rng: np.random.Generator) -> None:
        if self.seed is None:
            for child in self.children.values():
                child._restart(rng)


@foreign_keywords
class Sequential(Container):
    """Layers one after the other.

    The layers' parameters move into the flat arrays of this model, named "0.w", "0.b", "1.w", ...: views taken from a
    layer before are not its parameters any more. Neighbouring dense layers run as one call. Layers of rows beside an
    LSTM or a GRU that does not pool are applied to every step within the sequences' lengths. A state is a list of the
    layers' states.

    Args:
        *layers: Layers and other models of fg.nn, of one dtype, each part of no other model and not on a GPU.
        seed: The seed by which layers that have none draw their initial weights, in their order, unless they were
            written since; None as 0.

    Raises:
        ValueError: There is no layer, one is part of a model or on a GPU, or the outputs of one do not fit the next.
        TypeError: A layer is no model of fg.nn, or of another dtype.

    Example:
        >>> model = fg.nn.Sequential(fg.nn.LSTM(3, 8, pool="last"), fg.nn.Dense(8, 2, "softmax"), seed=0)
        >>> model.predict(np.zeros((2, 5, 3), np.float32)).shape
        (2, 2)
        >>> list(model.parameters())
        ['0.0.w_ih', '0.0.w_hh', '0.0.b', '1.w', '1.b']
    """

    def __init__(self, *layers: Model, seed: int | None = None) -> None:
        op = type(self).__name__
        check.sequence(op, "layers", layers)
        check_children(op, {f"layers[{i}]": layer for i, layer in enumerate(layers)})
        _check_order(op, layers)
        self.layers = layers
        super().__init__({str(i): layer for i, layer in enumerate(layers)}, seed)
        self.output = layers[-1].output
        self.pools, self.keeps_width = any(layer.pools for layer in layers), all(layer.keeps_width for layer in layers)
        first = next((layer for layer in layers if not layer.keeps_width), layers[0])
        self.n_in, self.n_out = first.n_in, first.n_out
        for layer in layers:
            self.n_out = self.n_out if layer.keeps_width else layer.n_out

    def compact(self) -> "Sequential":
        """A new model with the same outputs, without the hidden units of dense layers that pruning has cut off.

        Those are units between two dense layers, or with dropout between these too, whose incoming or whose outgoing
        weights are all 0, as of DenseChain.compact. Units that another layer reads stay, and other layers are copied.

        Returns:
            A Sequential with the masks of the weights that are left.

        Example:
            >>> layers = fg.nn.Dense(4, 8, "relu"), fg.nn.Dropout(0.5), fg.nn.Dense(8, 3)
            >>> model = fg.nn.Sequential(*layers, seed=0)
            >>> masks = fg.prune(model, amount=0.5, units=True)
            >>> {name: array.shape for name, array in model.compact().parameters().items()}
            {'0.w': (4, 4), '0.b': (4,), '2.w': (4, 3), '2.b': (3,)}
        """
        if self.on_gpu:
            on_host: Sequential = deepcopy(self)
            on_host.to("cpu")
            small = on_host.compact()
            small.to("cuda")
            return small
        layers = compact_layers(self.layers, DenseChain, is_chain, join_chains, _compact_copy)
        return Sequential(*layers, seed=self.seed)

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        ends, backwards = [], []
        for i, (step, step_context) in enumerate(self._contexts(context)):
            x, end, step_backward = self._inside(i, step._forward, x, step_context)
            ends.append(end)
            backwards.append(step_backward)

        def backward(dy: np.ndarray) -> np.ndarray:
            for step_backward in reversed(backwards):
                dy = step_backward(dy)
            return dy

        return x, self._state_of(ends), backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any]:
        ends = []
        for i, (step, step_context) in enumerate(self._contexts(context)):
            x, end = self._inside(i, step._infer, x, step_context)
            ends.append(end)
        return x, self._state_of(ends)

    def _rows(self, name: str, shape: summary.Shape) -> tuple[list[summary.Row], summary.Shape]:
        rows = []
        for key, layer in self.children.items():
            layer_rows, shape = layer._rows(summary.join(name, key), shape)
            rows += layer_rows
        return rows, shape

    def _path(self, step: int) -> str:
        # of layers that run as one chain the first one's
        paths = chain_plan(_leaves(self.layers), lambda leaf: is_chain(leaf[1]), lambda run: run[0])
        return paths[step][0]

    def _contexts(self, context: ForwardContext) -> Iterator[tuple[Model, ForwardContext]]:
        """Every step of the plan with its context."""
        op, starts = type(self).__name__, context.state
        if starts is not None:
            check.sequence(op, "state", starts, len(self.layers))
            for i, (layer, start) in enumerate(zip(self.layers, starts, strict=True)):
                if start is not None and not layer.recurrent:
                    raise ValueError(f"{op}: state[{i}] must be None, for layers[{i}] has no LSTM and no GRU")
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
                # after a pool there is one row for each sequence
                inner = inner._replace(packed=None)

    def _state_of(self, ends: list[Any]) -> list[Any] | None:
        """The state of each layer, from the states that the steps of the plan returned; None if none is recurrent."""
        if not self.recurrent:
            return None
        states = iter([end for step, end in zip(self._plan, ends, strict=True) if step.recurrent])
        return [next(states) if layer.recurrent else None for layer in self.layers]

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        # the models that a forward calls, in order; and the chain, if that is all there is
        self._plan = chain_plan([layer for _, layer in _leaves(self.layers)], is_chain, join_chains)
        for step, part in slices(self._plan):
            step._bind_parameters(params[part], grads[part])
        only = self._plan[0] if len(self._plan) == 1 else None
        self._chain = only if only is not None and is_chain(only) else None


def _compact_copy(layer: Model) -> Model:
    """A copy of a layer that is not dense: of an inner Sequential a compact one."""
    return layer.compact() if type(layer) is Sequential else deepcopy(layer)


def _leaves(layers: Sequence[Model], path: str = "") -> list[tuple[str, Model]]:
    """The layers in order, each after its path.

    The layers of inner Sequentials stand in their place, unless they have an LSTM or a GRU: then their state is a list.
    """
    leaves: list[tuple[str, Model]] = []
    for i, layer in enumerate(layers):
        place = f"{path}.layers[{i}]"
        if type(layer) is Sequential and not layer.recurrent:
            leaves += _leaves(layer.layers, place)
        else:
            leaves.append((place, layer))
    return leaves


def _check_order(op: str, layers: tuple[Model, ...]) -> None:
    width, pooled = None, False
    for i, layer in enumerate(layers):
        if width is not None and layer.n_in is not None and layer.n_in != width:
            raise ValueError(f"{op}: layers[{i}] must take {width} columns, got {layer.n_in}")
        if pooled and (layer.recurrent or layer.images):
            kind = "sequences" if layer.recurrent else "images"
            raise ValueError(f"{op}: layers[{i}] must take rows (N, C), for a layer before it pools {kind}")
        width = width if layer.keeps_width else layer.n_out
        pooled = pooled or layer.pools
