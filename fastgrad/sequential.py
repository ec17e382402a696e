"""Layers one after the other."""

import numpy as np

from fastgrad import check
from fastgrad.model import Backward, Model, generator


class Sequential(Model):
    """Layers one after the other; their parameters move into its flat arrays, named "0.w", "0.b", "1.w", ...

    Views taken from a layer before it was handed over are not its parameters any more. Layers given no seed draw their
    initial weights in order from this one's, unless their weights were written since.
    """

    def __init__(self, *layers: Model, seed: int | None = None) -> None:
        _check_layers(layers)
        self.layers = layers
        self.n_in, self.n_out = layers[0].n_in, layers[-1].n_out
        self.output = layers[-1].output
        shapes = {f"{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer._shapes.items()}
        values = np.concatenate([layer.params for layer in layers])
        super().__init__(shapes, layers[0].dtype, seed)
        self._params[...] = values
        rng = generator(seed)
        for layer in layers:
            layer.owned = True
            layer._restart(rng)

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        backwards = []
        for layer in self.layers:
            x, layer_backward = layer.forward(x, training, logits=logits and layer is self.layers[-1])
            backwards.append(layer_backward)

        def backward(dy: np.ndarray) -> np.ndarray:
            for layer_backward in reversed(backwards):
                dy = layer_backward(dy)
            return dy

        return x, backward

    def predict(self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False) -> np.ndarray:
        if batch_size is not None:
            return super().predict(x, batch_size, logits=logits)
        for layer in self.layers:
            x = layer.predict(x, logits=logits and layer is self.layers[-1])
        return x

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
