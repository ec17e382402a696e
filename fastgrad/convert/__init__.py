"""Conversion from and to PyTorch, Keras and ONNX: whole models, and the weights of LSTM and GRU layers.

A library is imported only where a model of its own is made."""

from fastgrad.convert.keras_source import model_from_keras
from fastgrad.convert.keras_target import model_to_keras
from fastgrad.convert.recurrent_keras import from_keras, to_keras
from fastgrad.convert.recurrent_onnx import from_onnx, to_onnx
from fastgrad.convert.recurrent_torch import from_torch, to_torch
from fastgrad.convert.torch_source import model_from_torch
from fastgrad.convert.torch_target import model_to_torch

__all__ = [
    "from_keras",
    "from_onnx",
    "from_torch",
    "model_from_keras",
    "model_from_torch",
    "model_to_keras",
    "model_to_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
]

for _public in (
    from_keras,
    from_onnx,
    from_torch,
    model_from_keras,
    model_from_torch,
    model_to_keras,
    model_to_torch,
    to_keras,
    to_onnx,
    to_torch,
):
    # by this name a pickle finds it, whichever file it lies in
    _public.__module__ = __name__
