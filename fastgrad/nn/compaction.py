"""The compaction of dense layers, in a chain or a row of layers: the same outputs, without the units that pruning has cut off."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from fastgrad.functional.dense import dense_chain
from fastgrad.kernels.types import SOFTMAX, Activation
from fastgrad.nn.context import activation_name
from fastgrad.nn.dropout import Dropout


def compact_chain(chain: Any, chain_type: Any) -> Any:
    """A new DenseChain (chain_type) of the same function, without hidden units whose incoming or whose outgoing weights are all 0.

    A unit without incoming weights has the same output for every row, which is added to the next layer's biases. A softmax inside the chain
    depends on all units of its layer, so that layer stays whole. Of a layer that would lose all units one stays.
    """
    if chain.on_gpu:
        on_host = deepcopy(chain)
        on_host.to("cpu")
        compact = compact_chain(on_host, chain_type)
        compact.to("cuda")
        return compact
    weights, biases, used = list(chain.weights), list(chain.biases), _used_units(chain)
    for layer, activation in enumerate(chain._activations[:-1]):
        w, b = weights[layer][used[layer]], biases[layer]
        constant = used[layer + 1] & ~w.any(axis=0)
        if activation.code == SOFTMAX or not constant.any():
            continue
        if constant.sum() == used[layer + 1].sum():
            constant[np.flatnonzero(constant)[0]] = False
        used[layer + 1] = used[layer + 1] & ~constant
        biases[layer + 1] = _biases_with_constants(activation, b, constant, weights[layer + 1], biases[layer + 1])
    bias = any(b is not None for b in biases)
    activations = [activation_name(f) for f in chain._activations]
    compact = chain_type([int(k.sum()) for k in used], activations, init="zeros", dtype=chain.dtype, bias=bias)
    for w, b, into_w, into_b, cut in zip(weights, biases, compact.weights, compact.biases, pairwise(used), strict=True):
        into_w[...] = w[np.ix_(*cut)]
        if b is not None and into_b is not None:
            into_b[...] = b[cut[1]]
    if chain._mask is not None:
        compact._set_mask(_masks(chain, chain._mask, compact, used))
    return compact


def compact_layers(
    layers: Sequence[Any],
    chain_type: Any,
    is_chain: Callable[[Any], bool],
    join: Callable[[list[Any]], Any],
    copied: Callable[[Any], Any],
) -> list[Any]:
    """Copies of layers in a row, in which dense layers that follow each other, or have dropout between them, are compacted as one chain.

    is_chain and join are those of the planner: whether a layer is dense, and dense layers as one chain. copied copies any other layer.
    """
    copies: list[Any] = []
    for dense, group in groupby(layers, lambda layer: is_chain(layer) or type(layer) is Dropout):
        run = list(group)
        chains = [layer for layer in run if is_chain(layer)]
        if dense and chains:
            small = iter(_split(compact_chain(_joined(chains, join), chain_type), chains))
            copies += [next(small) if is_chain(layer) else deepcopy(layer) for layer in run]
        else:
            copies += [copied(layer) for layer in run]
    for layer in copies:
        _keep(layer)
    return copies


def _joined(chains: list[Any], join: Callable[[list[Any]], Any]) -> Any:
    """One chain with the parameters and masks of these."""
    if len(chains) == 1:
        return chains[0]
    whole = join(chains)
    whole.params[...] = np.concatenate([chain.params for chain in chains])
    if any(chain._mask is not None for chain in chains):
        masks = [np.ones(chain.params.size, np.bool_) if chain._mask is None else chain._mask for chain in chains]
        whole._set_mask(np.concatenate(masks))
    return whole


def _split(whole: Any, like: list[Any]) -> list[Any]:
    """A chain as several, each of as many layers and of the type of one in `like`."""
    parts, layer, offset = [], 0, 0
    for chain in like:
        end = layer + len(chain.sizes) - 1
        part = object.__new__(type(chain))
        part._init = chain._init
        settings = whole._activations[layer:end], whole._has_bias[layer:end], whole.dtype, chain.seed
        part._set_layers(list(whole.sizes[layer : end + 1]), *settings)
        place = slice(offset, offset + part.params.size)
        part.params[...] = whole.params[place]
        if whole._mask is not None:
            part._set_mask(whole._mask[place].copy())
        parts.append(part)
        layer, offset = end, place.stop
    return parts


def _keep(model: Any) -> None:
    """Let a model that becomes part of another keep its weights and generators, whatever they are."""
    model._drawn = None
    for child in getattr(model, "children", {}).values():
        _keep(child)


def _used_units(chain: Any) -> list[np.ndarray]:
    """For the inputs of each layer, and for the outputs, bool: whether the output of the chain depends on them."""
    read = [np.ones(chain.n_out, np.bool_)]
    for w, activation in zip(chain.weights[:0:-1], chain._activations[-2::-1], strict=True):
        some: np.ndarray = np.any(w[:, read[0]], axis=1) | (activation.code == SOFTMAX)
        some[0] |= not some.any()
        read.insert(0, some)
    return [np.ones(chain.n_in, np.bool_), *read]


def _biases_with_constants(
    activation: Activation, b: np.ndarray | None, constant: np.ndarray, w: np.ndarray, into: np.ndarray | None
) -> np.ndarray | None:
    """The next layer's biases plus what constant units add to it: the output of two small layers, the first with an input of 0."""
    units, nothing = w[constant], np.zeros((1, int(constant.sum())), w.dtype)
    start = None if b is None else b[constant]
    y, _ = dense_chain(
        np.zeros((1, 1), w.dtype), [nothing, units], [start, into], [activation_name(activation), "identity"]
    )
    return y[0] if into is not None or y.any() else None


def _masks(chain: Any, mask: np.ndarray, compact: Any, used: list[np.ndarray]) -> np.ndarray:
    """The masks of the compact chain. A pruned bias is no longer pruned if constant units have been added to it."""
    masks = np.ones(compact.params.size, np.bool_)
    layers = [*zip(*chain._layers_of(mask), strict=True)], [*zip(*compact._layers_of(masks), strict=True)]
    for (w, b), (into_w, into_b), bias, cut in zip(*layers, compact.biases, pairwise(used), strict=True):
        into_w[...] = w[np.ix_(*cut)]
        if b is not None and into_b is not None:
            into_b[...] = b[cut[1]] | (bias != 0)
    return masks
