"""Chains without their pruned units."""

from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fastgrad.check import PARAMETERS
from fastgrad.dense import dense_chain
from fastgrad.kernels.names import ACTIVATIONS, SOFTMAX, Activation

if TYPE_CHECKING:
    from fastgrad.chains import DenseChain


def compacted(chain: "DenseChain") -> "DenseChain":
    """A new chain of the same function, without units that nothing reads and units that read nothing.

    What reads nothing is the same for every row, and goes into the next layer's biases. A softmax inside the chain sees the whole of
    its row, and so its layer stays whole; of a layer of which nothing would stay one unit does.
    """
    from fastgrad.chains import DenseChain

    if not chain.is_here:
        here = deepcopy(chain)
        here.to("cpu")
        compact = compacted(here)
        compact.to("cuda")
        return compact
    weights, biases, kept = list(chain.weights), list(chain.biases), _read(chain)
    for layer, activation in enumerate(chain._activations[:-1]):
        w, b = weights[layer][kept[layer]], biases[layer]
        constant = kept[layer + 1] & ~w.any(axis=0)
        if activation.code == SOFTMAX or not constant.any():
            continue
        if constant.sum() == kept[layer + 1].sum():
            constant[np.flatnonzero(constant)[0]] = False
        kept[layer + 1] = kept[layer + 1] & ~constant
        biases[layer + 1] = _folded(activation, b, constant, weights[layer + 1], biases[layer + 1])
    bias = any(b is not None for b in biases)
    activations = [_name(f) for f in chain._activations]
    compact = DenseChain([int(k.sum()) for k in kept], activations, init="zeros", dtype=chain.dtype, bias=bias)
    for w, b, into_w, into_b, cut in zip(weights, biases, compact.weights, compact.biases, pairwise(kept), strict=True):
        into_w[...] = w[np.ix_(*cut)]
        if b is not None and into_b is not None:
            into_b[...] = b[cut[1]]
    if chain._mask is not None:
        compact._wear(_masks(chain, chain._mask, compact, kept))
    return compact


def _read(chain: "DenseChain") -> list[np.ndarray]:
    """Of each layer's inputs, and the outputs, which are read, directly or not."""
    read = [np.ones(chain.n_out, np.bool_)]
    for w, activation in zip(chain.weights[:0:-1], chain._activations[-2::-1], strict=True):
        some = w[:, read[0]].any(axis=1) | (activation.code == SOFTMAX)
        some[0] |= not some.any()
        read.insert(0, some)
    return [np.ones(chain.n_in, np.bool_), *read]


def _folded(
    activation: Activation, b: np.ndarray | None, constant: np.ndarray, w: np.ndarray, into: np.ndarray | None
) -> np.ndarray | None:
    """The next layer's biases, with what constant units give it: two small layers, of which the first reads a 0."""
    units, nothing = w[constant], np.zeros((1, int(constant.sum())), w.dtype)
    start = None if b is None else b[constant]
    y, _ = dense_chain(np.zeros((1, 1), w.dtype), [nothing, units], [start, into], [_name(activation), "identity"])
    return y[0] if into is not None or y.any() else None


def _name(activation: Activation) -> str | tuple[str, float]:
    """As a user gives it."""
    exact = [name for name, known in ACTIVATIONS.items() if known == activation]
    return (
        exact[0]
        if exact
        else next((name, activation.parameter) for name in PARAMETERS if ACTIVATIONS[name].code == activation.code)
    )


def _masks(chain: "DenseChain", mask: np.ndarray, compact: "DenseChain", kept: list[np.ndarray]) -> np.ndarray:
    """The masks of what stays. A pruned bias lives again where it has become what constant units give."""
    found = np.ones(compact.params.size, np.bool_)
    parts = [*zip(*chain._layers_of(mask), strict=True)], [*zip(*compact._layers_of(found), strict=True)]
    for (w, b), (into_w, into_b), bias, cut in zip(*parts, compact.biases, pairwise(kept), strict=True):
        into_w[...] = w[np.ix_(*cut)]
        if b is not None and into_b is not None:
            into_b[...] = b[cut[1]] | (bias != 0)
    return found
