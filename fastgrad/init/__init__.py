"""Initial weights: f(shape, rng, dtype) draws them from a numpy Generator or a seed, with the same bits on every backend and thread count.

A float32 array gets the values of a float64 one, rounded. A model's `init` is a name of these, a pair of the name and an option
(("normal", 0.01), ("he_normal", "fan_out")), or a function of (shape, rng): functools.partial(fg.init.he_normal, activation="tanh").

fan_in is how many values go into one output, fan_out how many outputs one value goes into: C_in and C_out of a dense w (C_in, C_out), and
kh kw times as much of a convolution's (kh, kw, C_in / groups, C_out), where C_out counts whole, as in PyTorch. An LSTM's w_ih (C, 4H)
and w_hh (H, 4H) are four matrices side by side, a GRU's three: with gates=4 or 3, fan_out is H, and orthogonal draws each apart.

An L2 term of the weights in the loss, 0.5 * weight_decay * (params**2).sum(), is a setting of the optimiser, weight_decay: its gradient
is added to the loss's, and the loss that is reported is without it.
"""

from typing import TYPE_CHECKING, Any

from fastgrad.core.foreign_names import unknown_name
from fastgrad.init.choice import INITS as INITS
from fastgrad.init.distributions import constant, normal, truncated_normal, uniform, zeros
from fastgrad.init.gains import fans, gain
from fastgrad.init.scaled import (
    fan_in_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    orthogonal,
    xavier_normal,
    xavier_uniform,
)

__all__ = [
    "constant",
    "fan_in_uniform",
    "fans",
    "gain",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise unknown_name(__name__, name)
