"""A model as a flat list of its layers: those of an inner Sequential or a DenseChain one by one. The writers of other libraries use it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastgrad.convert.recurrent_arrays import kind
from fastgrad.nn import summary
from fastgrad.nn.container import Sequential
from fastgrad.nn.context import activation_name
from fastgrad.nn.dense import Dense, DenseChain
from fastgrad.nn.model import Model


def check_model(op: str, model: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"{op}: model must be a model of fastgrad.nn, got {kind(model)}")
    if model.on_gpu:
        raise ValueError(f'{op}: the model is on a GPU; model.to("cpu") moves it')


def leaves(model: Model, path: str = "") -> Iterator[tuple[str, Model]]:
    """(path, layer) of each layer. Layers of a DenseChain are Dense."""
    if isinstance(model, Sequential):
        for key, child in model.children.items():
            yield from leaves(child, summary.join(path, key))
    elif isinstance(model, DenseChain) and not isinstance(model, Dense):
        for i, (w, b, f) in enumerate(zip(model.weights, model.biases, model._activations, strict=True)):
            n_in, n_out = w.shape
            layer = Dense(n_in, n_out, activation_name(f), bias=b is not None, dtype=w.dtype, seed=0)
            layer.w[...] = w
            if b is not None:
                np.copyto(layer.parameters()["b"], b)
            yield summary.join(path, str(i)), layer
    else:
        yield path, model


def takes_images(model: Model, image_size: Any) -> bool:
    """Whether a model is one of images. Norms and dropout alone take any shape: then it is if an image_size is given."""
    if model.images or image_size is None or model.recurrent:
        return model.images
    return not any(isinstance(layer, Dense) for _, layer in leaves(model))


def place_of(path: str, layer: Model) -> str:
    kind = type(layer).__name__
    return f'layer "{path}" ({kind})' if path else f"the model ({kind})"
