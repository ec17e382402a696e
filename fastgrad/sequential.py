"""Layers one after the other."""

from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.model import Backward, Model
from fastgrad.owner import Owner, check_parts


class Sequential(Owner):
    """Layers one after the other; their parameters move into its flat arrays, named "0.w", "0.b", "1.w", ...

    Views taken from a layer before it was handed over are not its parameters any more. Layers given no seed draw their
    initial weights in order from this one's, unless their weights were written since. Dense layers beside an LSTM that
    does not pool are applied to every step, those past a sequence's end too. A state is a list of the layers' states.
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

    def _forward(
        self, x: np.ndarray, training: bool, logits: bool, lengths: Any, state: Any, dx: bool
    ) -> tuple[np.ndarray, Any, Backward]:
        states, backwards = [], []
        for i, (layer, start) in enumerate(self._starts(lengths, state)):
            ends = lengths if layer.recurrent else None
            last = layer is self.layers[-1]
            x, end, layer_backward = layer._forward(x, training, logits and last, ends, start, dx or i > 0)
            states.append(end)
            backwards.append(layer_backward)

        def backward(dy: np.ndarray) -> np.ndarray:
            for layer_backward in reversed(backwards):
                dy = layer_backward(dy)
            return dy

        return x, states, backward

    def _infer(self, x: np.ndarray, logits: bool, lengths: Any, state: Any) -> tuple[np.ndarray, Any]:
        states = []
        for layer, start in self._starts(lengths, state):
            x, end = layer._infer(x, logits and layer is self.layers[-1], lengths if layer.recurrent else None, start)
            states.append(end)
        return x, states

    def _starts(self, lengths: Any, state: Any) -> list[tuple[Model, Any]]:
        """Every layer with the state it begins from."""
        op = type(self).__name__
        if not self.recurrent and (lengths is not None or state is not None):
            raise ValueError(f"{op}: lengths and state are for models with an LSTM")
        if state is None:
            return [(layer, None) for layer in self.layers]
        check.each(op, "state", state, len(self.layers))
        return list(zip(self.layers, state, strict=True))


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
