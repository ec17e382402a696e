"""ForwardContext: the settings of one forward pass, which a model passes to all of its layers; and the Observer of their outputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastgrad.core.check import PARAMETERS
from fastgrad.functional.packing import PackedBatch
from fastgrad.kernels.types import ACTIVATIONS, SIGMOID, SOFTMAX, Activation

Backward = Callable[[np.ndarray], np.ndarray]
IDENTITY = ACTIVATIONS["identity"]


class Observer(Protocol):
    """An object that gets the output of each layer in a forward pass: HealthObserver."""

    def observe(self, first: np.ndarray, y: np.ndarray, activation: Activation) -> None:
        """Take the output y (..., K), after the activation, of the layer whose first parameter is `first`."""


class ForwardContext(NamedTuple):
    """The settings of one forward pass, which every layer in it gets."""

    training: bool = False
    # a last softmax or sigmoid is left out
    logits: bool = False
    # the packing of sequences whose own steps are the rows x (R, C); None where x is the user's array
    packed: PackedBatch | None = None
    # the initial state of recurrent layers
    state: Any = None
    # whether backward has to return dx; that of a first layer need not
    want_dx: bool = True
    # gets the output of each layer
    observer: Observer | None = None
    # running statistics that training does not move
    frozen: Sequence[np.ndarray] = ()

    def is_frozen(self, layer: Any) -> bool:
        """Whether one of the layer's running statistics is frozen; then the layer takes them all as they are."""
        return any(a is statistic for a in self.frozen for statistic in layer.statistics().values())

    def observe(self, first: np.ndarray, y: np.ndarray, activation: Activation) -> None:
        """Pass the output of the layer whose first parameter is `first` to the observer, if there is one."""
        if self.observer is not None:
            self.observer.observe(first, y, activation)


def before_loss(activation: Activation, logits: bool) -> Activation:
    """The activation; but identity for a softmax or sigmoid if logits are asked for."""
    return IDENTITY if logits and activation.code in (SOFTMAX, SIGMOID) else activation


def activation_name(activation: Activation) -> str | tuple[str, float]:
    """An activation as a user writes it: a name, or a pair of a name and a parameter."""
    exact = [name for name, known in ACTIVATIONS.items() if known == activation]
    return (
        exact[0]
        if exact
        else next((name, activation.parameter) for name in PARAMETERS if ACTIVATIONS[name].code == activation.code)
    )
