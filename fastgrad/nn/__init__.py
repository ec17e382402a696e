"""Layers, and models made of them."""

from typing import TYPE_CHECKING, Any

from fastgrad.core.foreign_names import unknown_name
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Sequential
from fastgrad.nn.conv import Conv2d
from fastgrad.nn.dense import Dense, DenseChain
from fastgrad.nn.dropout import Dropout
from fastgrad.nn.gru import GRU
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.lstm import LSTM
from fastgrad.nn.model import Model
from fastgrad.nn.pool import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from fastgrad.nn.residual import Residual
from fastgrad.nn.resnet import ResNet

__all__ = [
    "GRU",
    "LSTM",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "DenseChain",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "LayerNorm",
    "MaxPool2d",
    "Model",
    "ResNet",
    "Residual",
    "Sequential",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise unknown_name(__name__, name)
