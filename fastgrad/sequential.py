"""Layers one after the other."""

from typing import Any

import numpy as np

from fastgrad import check
from fastgrad.model import Backward, Model, generator
from fastgrad.sequences import SequenceModel


class Sequential(SequenceModel):
    """Layers one after the other; their parameters move into its flat arrays, named "0.w", "0.b", "1.w", ...

    Views taken from a layer before it was handed over are not its parameters any more. Layers given no seed draw their
    initial weights in order from this one's, unless their weights were written since. Dense layers beside an LSTM that
    does not pool are applied to every step, those past a sequence's end too. A state is a list of the layers' states.
    """

    def __init__(self, *layers: Model, seed: int | None = None) -> None:
        _check_layers(layers)
        self.layers = layers
        self.n_in, self.n_out = layers[0].n_in, layers[-1].n_out
        self.output = layers[-1].output
        self.recurrent, self.pools, self.bidirectional = (
            any(getattr(layer, name) for layer in layers) for name in ("recurrent", "pools", "bidirectional")
        )
        shapes = {f"{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer._shapes.items()}
        values = np.concatenate([layer.params for layer in layers])
        super().__init__(shapes, layers[0].dtype, seed)
        self._params[...] = values
        rng = generator(seed)
        for layer in layers:
            layer.owned = True
            layer._restart(rng)

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

    def _generators(self) -> list[np.random.Generator]:
        return [generator for layer in self.layers for generator in layer._generators()]

    def _home(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._home(params, grads)
        offset = 0
        for layer in self.layers:
            end = offset + layer.params.size
            layer._home(params[offset:end], grads[offset:end])
            offset = end

    def _restart(self, rng: np.random.Generator) -> None:
        if self.seed is None:
            for layer in self.layers:
                layer._restart(rng)


def _check_layers(layers: tuple[Model, ...]) -> None:
    check.each("Sequential", "layers", layers)
    for i, layer in enumerate(layers):
        if not isinstance(layer, Model):
            raise TypeError(f"Sequential: layers[{i}] must be a layer of fastgrad.nn, got {type(layer).__name__}")
        if layer.owned or any(layer is other for other in layers[:i]):
            raise ValueError(f"Sequential: layers[{i}] is part of a Sequential already; a layer belongs to one")
        if layer.dtype != layers[0].dtype:
            raise TypeError(f"Sequential: layers[{i}] must be {layers[0].dtype}, got {layer.dtype}")
        if i and layer.n_in != layers[i - 1].n_out:
            raise ValueError(f"Sequential: layers[{i}] must take {layers[i - 1].n_out} columns, got {layer.n_in}")
        if layer.recurrent and any(before.pools for before in layers[:i]):
            raise ValueError(f"Sequential: layers[{i}] must take rows (N, C), for a layer before it pools sequences")
