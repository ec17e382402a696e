"""The rule by which layers in a row become chains: dense layers that follow each other run as one. fastgrad.torch plans by it too."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from fastgrad.nn.dense import Dense, DenseChain

# these classes exactly: a subclass may compute something else
CHAINS: tuple[Any, ...] = Dense, DenseChain


def chain_plan(layers: Iterable[Any], is_dense: Callable[[Any], bool], joined: Callable[[list[Any]], Any]) -> list[Any]:
    """The steps that run layers: of each run of dense layers the one step that `joined` makes of them, and the others as they are."""
    steps: list[Any] = []
    for dense, run in groupby(layers, is_dense):
        group = list(run)
        steps += [joined(group)] if dense else group
    return steps


def is_chain(layer: Any) -> bool:
    return type(layer) in CHAINS


def join_chains(chains: Sequence[DenseChain]) -> DenseChain:
    """Chains that follow each other as one chain; `_bind_parameters` binds it to the memory of their parameters."""
    if len(chains) == 1:
        return chains[0]
    first = chains[0]
    whole = object.__new__(type(first))
    whole._name = DenseChain._name
    sizes = [first.n_in, *(n for chain in chains for n in chain.sizes[1:])]
    activations = [f for chain in chains for f in chain._activations]
    whole._set_layers(sizes, activations, [bias for chain in chains for bias in chain._has_bias], first.dtype, None)
    return whole
