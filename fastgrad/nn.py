"""Layers, and models made of them."""

from fastgrad.chains import Dense, DenseChain
from fastgrad.dropout import Dropout
from fastgrad.images import AvgPool2d, Conv2d, Flatten, GlobalAvgPool2d, MaxPool2d
from fastgrad.model import Model
from fastgrad.norm import BatchNorm
from fastgrad.recurrent import LSTM
from fastgrad.residual import Residual
from fastgrad.resnet import ResNet
from fastgrad.sequential import Sequential

__all__ = [
    "LSTM",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dense",
    "DenseChain",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "MaxPool2d",
    "Model",
    "ResNet",
    "Residual",
    "Sequential",
]
