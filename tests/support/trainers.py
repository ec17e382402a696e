"""Small models of both forms, and their data, for tests of a Trainer."""

from itertools import pairwise

import numpy as np

from fastgrad.nn import Dense, DenseChain, Sequential

SIZES = [4, 6, 3]


def model(form="chain", output="softmax", dtype="float32", sizes=SIZES, seed=7):
    if form == "chain":
        return DenseChain(sizes, "tanh", output, dtype=dtype, seed=seed)
    layers = [Dense(*pair, "tanh", dtype=dtype) for pair in pairwise(sizes[:-1])]
    return Sequential(*layers, Dense(*sizes[-2:], output, dtype=dtype), seed=seed)


def data(loss="cross_entropy", dtype="float32", n=20):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, SIZES[0])).astype(dtype)
    if loss == "cross_entropy":
        return x, rng.integers(0, 3, n)
    return x, rng.integers(0, 2, (n, 3)).astype(dtype)
