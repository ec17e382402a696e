"""Layers one after the other."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.model import Backward, ForwardContext, Model
from fastgrad.owner import Owner, check_parts


class Sequential(Owner):
    """Layers one after the other; their parameters move into its flat arrays, named "0.w", "0.b", "1.w", ...

    Views taken from a layer before it was handed over are not its parameters any more. Layers given no seed draw their
    initial weights in order from this one's, unless their weights were written since. Layers of rows beside an LSTM that
    does not pool are applied to every step of the sequences' own. A state is a list of the layers' states.
    """

    def __init__(self, *layers: Model, seed: int | None = None) -> None:
        op = type(self).__name__
        check.each(op, "layers", layers)
        check_parts(op, {f"layers[{i}]": layer for i, layer in enumerate(layers)})
        _check_order(op, layers)
        super().__init__({str(i): layer for i, layer in enumerate(layers)}, seed)
        self.layers = layers
        self.output = layers[-1].output
        self.pools, self.keeps = any(layer.pools for layer in layers), all(layer.keeps for layer in layers)
        first = next((layer for layer in layers if not layer.keeps), layers[0])
        self.n_in, self.n_out = first.n_in, first.n_out
        for layer in layers:
            self.n_out = self.n_out if layer.keeps else layer.n_out

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        states, backwards = [], []
        for layer, layer_context in self._contexts(context):
            x, end, layer_backward = layer._forward(x, layer_context)
            states.append(end)
            backwards.append(layer_backward)

        def backward(dy: np.ndarray) -> np.ndarray:
            for layer_backward in reversed(backwards):
                dy = layer_backward(dy)
            return dy

        return x, states if self.recurrent else None, backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any]:
        states = []
        for layer, layer_context in self._contexts(context):
            x, end = layer._infer(x, layer_context)
            states.append(end)
        return x, states if self.recurrent else None

    def _contexts(self, context: ForwardContext) -> Iterator[tuple[Model, ForwardContext]]:
        """Every layer with its context."""
        op, starts = type(self).__name__, context.state
        if starts is not None:
            check.each(op, "state", starts, len(self.layers))
            for i, (layer, start) in enumerate(zip(self.layers, starts, strict=True)):
                if start is not None and not layer.recurrent:
                    raise ValueError(f"{op}: state[{i}] must be None, for layers[{i}] has no LSTM")
        inner = context._replace(logits=False, state=None)
        for i, layer in enumerate(self.layers):
            own = inner
            if layer is self.layers[-1]:
                own = own._replace(logits=context.logits)
            if starts is not None:
                own = own._replace(state=starts[i])
            yield layer, own
            if i == 0:
                inner = inner._replace(want_dx=True)
            if layer.pools:
                # what comes after a pool is a row of each sequence
                inner = inner._replace(packed=None)


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
