"""The verdict on the health of a layer: vanishing, exploding, dead, saturated or healthy, with its cause and cures to try.

Signals must keep their size through all layers (Glorot & Bengio 2010, section 4; He et al. 2015, section 2.2). So the norm of a layer's
gradient is compared with that of the last layer of its kind. The limit is a factor of 1000: 50 layers that each lose or gain a seventh. Two
layers are of one kind if they are of one class, at one place in their residual blocks, and a batch norm follows both or neither: it cancels
the scale of the weights before it, so that their gradient is proportional to the inverse of that scale. Layers of different kinds may
differ far more and still train: compared with the model's last layer, where gradients come from, the limit is a factor of a million. The
other thresholds are absolute.

    exploding  NaN or infinity; or a gradient norm over 1000 times that of the last layer of its kind, or over 1000: that of a mean loss
               is about 1, and common limits for clipping are 1 to 100 (Pascanu et al. 2013, section 3.2)
    dead       half of the units or more are 0, or flat, for a whole batch: no gradient brings them back (Maas et al. 2013)
    saturated  half of the outputs or more are at the limits of tanh, sigmoid and the like, where slopes are near 0 (Glorot & Bengio
               2010, section 3); not of relu, of which half are at 0 in a healthy layer
    exploding  also an update of over a tenth of the weights; a thousandth is right (Karpathy, CS231n, "Ratio of weights:updates")
    vanishing  a gradient norm under a thousandth of that of the last layer of its kind

The verdicts are tried in this order, so that a cause comes before its effect. The advice names nothing that the model already has.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastgrad.kernels import types
from fastgrad.kernels.types import Activation
from fastgrad.nn.batch_norm import BatchNorm
from fastgrad.nn.container import Container
from fastgrad.nn.context import IDENTITY
from fastgrad.nn.dense import DenseChain
from fastgrad.nn.layer_norm import LayerNorm
from fastgrad.nn.model import Model
from fastgrad.nn.recurrent import RecurrentModel
from fastgrad.nn.residual import Residual

RANGE, FAR, LARGE, UPDATE, HALF = 1e3, 1e6, 1e3, 0.1, 0.5
NORMS = {BatchNorm: "batch norm", LayerNorm: "layer norm"}
RELUS = types.RELU, types.LEAKY_RELU, types.CLIPPED_RELU, types.ELU, types.GELU, types.GELU_TANH, types.SILU
# inits that keep a signal's size through relu and its like, and through other activations
RELU_INITS = "he_normal", "he_uniform", "orthogonal"
OTHER_INITS = "xavier_uniform", "xavier_normal", "lecun_uniform", "lecun_normal", "orthogonal"


class Traits(NamedTuple):
    """Facts about a layer and its model, so that the advice leaves out what the model already has or cannot have."""

    # its gradient is compared with that of other layers of this kind
    kind: str = ""
    # the name of its init; None where it has none, or where a norm follows, which cancels the scale
    init: str | None = ""
    # whether it is in a Residual, whose sum passes gradients by it
    in_residual: bool = False
    # whether the model has any of them
    norm: bool = False
    residual: bool = False
    # the forget_bias of an LSTM; NaN of a GRU, which has none; None of what is not recurrent
    forget_bias: float | None = None
    clip_norm: float = math.inf


class Verdict(NamedTuple):
    """What is the matter with a layer.

    Args:
        illness: One of "vanishing", "exploding", "dead", "saturated" and "healthy".
        cause: What was measured, and the threshold; empty for a healthy layer.
        cure: What to try; empty for a healthy layer.
    """

    illness: str
    cause: str = ""
    cure: str = ""


def verdict(
    values: dict[str, float], of_kind: float, last: float, traits: Traits, activation: Activation | None
) -> Verdict:
    """The verdict on a layer with these values.

    of_kind, last: the gradient norms of the last layer of its kind, and of the model's last layer.
    """
    norm, dead, saturated, ratio = (values[name] for name in ("grad_norm", "dead", "saturated", "update_ratio"))
    code = None if activation is None else activation.code
    # an LSTM or a GRU has no choice of activation, and none can be in a Residual
    recurrent = traits.forget_bias is not None
    clip = ["clip_norm=1.0" if traits.clip_norm == math.inf else "a smaller clip_norm"] if traits.clip_norm > 1 else []
    rate, init = "a smaller learning rate", _init(traits, code)
    batch_norm = [] if traits.norm or recurrent else ["nn.BatchNorm before the activation"]
    residual = [] if traits.residual or recurrent else ["nn.Residual around the layers"]
    # residuals let gradients grow unless there is batch norm too
    hold = batch_norm or residual
    if values["nonfinite"]:
        cause = f"{values['nonfinite']:.0f} values of the gradient are NaN or infinite"
        return Verdict("exploding", cause, _either(*clip, rate, *init, *hold))
    limits = {f"{LARGE:g}": LARGE}
    limits |= {f"{factor:g} times {of} {n:.2g}": factor * n for factor, of, n in _references(of_kind, last)}
    for limit, most in limits.items():
        if norm > most > 0:
            return Verdict("exploding", f"grad_norm {norm:.2g} over {limit}", _either(*clip, rate, *init, *hold))
    # an output of 0 has no slope only if 0 is a limit of the activation, or its tail as of gelu and silu
    if dead >= HALF and (saturated >= HALF or code in (types.GELU, types.GELU_TANH, types.SILU)):
        leaky = ["activation='leaky_relu'"] if code in (types.RELU, types.CLIPPED_RELU) else []
        cause = f"{dead:.0%} of the units at {HALF:.0%} or more"
        return Verdict("dead", cause, _either(rate, *leaky, *init, *batch_norm))
    if saturated >= HALF and code not in (types.RELU, types.CLIPPED_RELU):
        scaled = [] if traits.norm else ["inputs scaled to about 1"]
        cause = f"{saturated:.0%} of the outputs at {HALF:.0%} or more"
        return Verdict("saturated", cause, _either(*init, *scaled, *batch_norm, rate))
    if UPDATE < ratio < math.inf:
        return Verdict("exploding", f"update_ratio {ratio:.2g} over {UPDATE:g}", rate)
    for factor, of, n in _references(of_kind, 0.0 if traits.in_residual else last):
        if norm < n / factor:
            cause = f"grad_norm {norm:.2g} under {1 / factor:g} times {of} {n:.2g}" if norm else "grad_norm of 0"
            # the slope of sigmoid is at most a quarter: no init keeps the size of a gradient
            change = ["activation='tanh'"] if code == types.SIGMOID else init
            forget = ["forget_bias=1.0"] if traits.forget_bias == 0 else []
            return Verdict("vanishing", cause, _either(*change, *forget, *batch_norm, *residual, rest="fewer layers"))
    return Verdict("healthy")


def _references(of_kind: float, last: float) -> list[tuple[float, str, float]]:
    """The norms that a gradient norm is compared with: (factor, whose norm, norm) of each."""
    return [(RANGE, "the last layer's", of_kind), (FAR, "the model's last layer's", last)]


def _init(traits: Traits, code: int | None) -> list[str]:
    """The init to try, unless the layer has one like it."""
    inits = RELU_INITS if code in RELUS else OTHER_INITS
    return [] if traits.init is None or traits.init in inits else [f"init={inits[0]!r}"]


def _either(*cures: str, rest: str = "") -> str:
    """Cures as a text with "or"; `rest` if there is none."""
    *first, last = cures or (rest,)
    return f"{', '.join(first)}{',' if len(first) > 1 else ''} or {last}" if first else last


def model_traits(model: Model) -> list[Traits]:
    """The traits of each layer of a model, for the verdicts."""
    leaves = list(_leaves(model, None, ()))
    norms, residuals = any(type(leaf) in NORMS for leaf, *_ in leaves), any(block for _, block, _ in leaves)
    traits = []
    for i, (leaf, block, place) in enumerate(leaves):
        after, its_block = next(((other, b) for other, b, _ in leaves[i + 1 :] if other.params.size), (None, None))
        # a norm after a block's sum normalises no single layer
        normed = type(after) in NORMS and its_block is block and leaf.output == IDENTITY
        parts = list(dict.fromkeys(key.rpartition(".")[0] for key in leaf._shapes))
        for part in parts:
            followed = normed and part == parts[-1]
            dense = isinstance(leaf, DenseChain)
            kind = " ".join(
                [
                    "Dense" if dense else type(leaf).__name__,
                    *place,
                    *([f"before a {NORMS[type(after)]}"] if followed else []),
                ]
            )
            init = getattr(leaf, "_init", None)
            name = None if init is None or followed else getattr(getattr(init, "func", init), "__name__", "")
            forget_bias = getattr(leaf, "forget_bias", math.nan) if isinstance(leaf, RecurrentModel) else None
            traits.append(Traits(kind, name, block is not None, norms, residuals, forget_bias))
    return traits


def _leaves(
    model: Model, block: Residual | None, place: tuple[str, ...]
) -> Iterator[tuple[Model, Any, tuple[str, ...]]]:
    """The layers that are no containers, each with its Residual, or None, and its place in that."""
    if not isinstance(model, Container):
        yield model, block, place
        return
    for name, child in model.children.items():
        if isinstance(model, Residual):
            yield from _leaves(child, model, (name,))
        else:
            yield from _leaves(child, block, (*place, name) if block else ())
