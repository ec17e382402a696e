"""Weights of LSTM layers from and to other libraries' layouts; none of them is imported."""

from fastgrad.convert.lstm_keras import from_keras, to_keras
from fastgrad.convert.lstm_onnx import from_onnx, to_onnx
from fastgrad.convert.lstm_torch import from_torch, to_torch

__all__ = [
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_keras",
    "to_onnx",
    "to_torch",
]

for _public in from_keras, from_onnx, from_torch, to_keras, to_onnx, to_torch:
    # by this name a pickle finds it, whichever file it lies in
    _public.__module__ = __name__
