"""Report: the health of every layer as a table, as numbers for loggers, as a picture, and with a verdict on each layer.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastgrad.kernels import types
from fastgrad.kernels.types import HEALTH, Activation

RANGE, FAR, LARGE, UPDATE, HALF = 1e3, 1e6, 1e3, 0.1, 0.5
RELUS = types.RELU, types.LEAKY_RELU, types.CLIPPED_RELU, types.ELU, types.GELU, types.GELU_TANH, types.SILU
TITLES = "grad norm", "largest", "zeros", "bad", "mean", "spread", "satur.", "dead", "update"
# inits that keep a signal's size through relu and its like, and through other activations
RELU_INITS = "he_normal", "he_uniform", "orthogonal"
OTHER_INITS = "xavier_uniform", "xavier_normal", "lecun_uniform", "lecun_normal", "orthogonal"


class Traits(NamedTuple):
    """Facts about a layer and its model, so that the advice leaves out what the model already has or cannot have."""

    # what its gradient may be held against: that of other layers of this kind
    kind: str = ""
    # of what drew its weights; None where that cannot be chosen, or where a batch norm follows, for which it is all the same
    init: str | None = ""
    # whether it is in a Residual, whose sum passes gradients by it
    in_residual: bool = False
    # whether the model has any
    batch_norm: bool = False
    residual: bool = False
    # an LSTM with this forget_bias
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


@dataclass(frozen=True)
class Report:
    """The health of every layer: print it, or take parts of it. Trainer.health and health.of make it.

    L is the number of layers, T that of the steps in the history. The class attribute `columns` names the 9
    measurements in the order of values: grad_norm, largest, zeros, nonfinite, mean, spread, saturated, dead and
    update_ratio.

    Args:
        layers: The layers' names.
        activations: The activation of each layer's output; None where it is not known.
        traits: What is known of each layer and of its model, for the verdicts.
        step: How many updates were made before the measurement.
        values: The measurements (L, 9), NaN where something is not known.
        steps: How many updates were made before each step of the history (T,).
        history: The measurements of the run so far (T, L, 9), of as many steps as are kept.

    Example:
        >>> report = fg.health.of([np.full((2, 2), 0.5)], names=["layer"])
        >>> report.columns[0], report.values[0, 0].item()
        ('grad_norm', 1.0)
    """

    layers: list[str]
    activations: Sequence[Activation | None]
    traits: Sequence[Traits]
    step: int
    values: np.ndarray
    steps: np.ndarray
    history: np.ndarray
    columns = tuple(HEALTH)

    def as_dict(self) -> dict[str, float]:
        """Numbers for any logger: {"layers.0/grad_norm": 0.013, ...}.

        Returns:
            A dictionary of Python floats, by layer and column.

        Example:
            >>> fg.health.of(np.full(4, 0.5)).as_dict()["0/largest"]
            0.5
        """
        return {
            f"{layer}/{column}": value
            for layer, row in zip(self.layers, self.values.tolist(), strict=True)
            for column, value in zip(self.columns, row, strict=True)
        }

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each layer, by its name: illness, cause and cure."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.values.tolist()]
        # of each kind the last layer's
        norms = {traits.kind: row["grad_norm"] for traits, row in zip(self.traits, rows, strict=True)}
        layers = zip(self.layers, rows, self.traits, self.activations, strict=True)
        return {
            layer: verdict(row, norms[traits.kind], rows[-1]["grad_norm"], traits, activation)
            for layer, row, traits, activation in layers
        }

    def __str__(self) -> str:
        width = max([len("layer"), *map(len, self.layers)])
        lines = [f"{'layer':{width}}" + "".join(f"{title:>10}" for title in TITLES) + "  verdict"]
        verdicts = self.verdicts
        for layer, row in zip(self.layers, self.values.tolist(), strict=True):
            cells = "".join(f"{_cell(c, v):>10}" for c, v in zip(self.columns, row, strict=True))
            lines.append(f"{layer:{width}}{cells}  {verdicts[layer].illness}")
        # of layers that are ill alike, the first one's cause is written
        groups: dict[tuple[str, str], list[str]] = {}
        for layer, judgement in verdicts.items():
            if judgement.illness != "healthy":
                groups.setdefault((judgement.illness, judgement.cure), []).append(layer)
        for (illness, cure), layers in groups.items():
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            lines.append(f"{layers[0]}{more}: {illness}, {verdicts[layers[0]].cause}; try {cure}")
        return "\n".join(lines)

    def plot(self, path: Any = None) -> Any:
        """Gradient norm by layer and over time, as a picture. Needs fastgrad[plot].

        Args:
            path: A file that the picture is written to; None writes none.

        Returns:
            A matplotlib Figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('Report.plot needs matplotlib: pip install "fastgrad[plot]"') from error
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        by_layer, over_time = figure.subplots(1, 2, sharey=True)
        # on a log scale there is no 0
        norms = np.where(self.history[:, :, 0] > 0, self.history[:, :, 0], np.nan)
        numbers = range(len(self.layers))
        if len(norms) > 1:
            by_layer.plot(numbers, norms[0], "o-", color="grey", markersize=3, label=f"step {self.steps[0]}")
        now = np.where(self.values[:, 0] > 0, self.values[:, 0], np.nan)
        by_layer.plot(numbers, now, "o-", markersize=3, label=f"step {self.step}")
        by_layer.set(xlabel="layer", ylabel="gradient norm", yscale="log")
        by_layer.xaxis.get_major_locator().set_params(integer=True)
        by_layer.legend()
        # a few layers, from the first to the last
        for i in np.unique(np.linspace(0, len(self.layers) - 1, min(len(self.layers), 8)).astype(int)):
            color = colormaps["viridis"](i / max(len(self.layers) - 1, 1))
            over_time.plot(self.steps, norms[:, i], color=color, label=self.layers[i])
        over_time.set(xlabel="step", yscale="log")
        over_time.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def verdict(
    values: dict[str, float], of_kind: float, last: float, traits: Traits, activation: Activation | None
) -> Verdict:
    """The verdict on a layer with these values.

    of_kind, last: the gradient norms of the last layer of its kind, and of the model's last layer.
    """
    norm, dead, saturated, ratio = (values[name] for name in ("grad_norm", "dead", "saturated", "update_ratio"))
    code = None if activation is None else activation.code
    # an LSTM has its activations within, and none may be in a Residual
    lstm = traits.forget_bias is not None
    clip = ["clip_norm=1.0" if traits.clip_norm == math.inf else "a smaller clip_norm"] if traits.clip_norm > 1 else []
    rate, init = "a smaller learning rate", _init(traits, code)
    batch_norm = [] if traits.batch_norm or lstm else ["nn.BatchNorm before the activation"]
    residual = [] if traits.residual or lstm else ["nn.Residual around the layers"]
    # residuals alone let gradients grow, beside batch norm they keep them
    hold = batch_norm or residual
    if values["nonfinite"]:
        cause = f"{values['nonfinite']:.0f} values of the gradient are NaN or infinite"
        return Verdict("exploding", cause, _either(*clip, rate, *init, *hold))
    limits = {f"{LARGE:g}": LARGE}
    limits |= {f"{factor:g} times {of} {n:.2g}": factor * n for factor, of, n in _references(of_kind, last)}
    for limit, most in limits.items():
        if norm > most > 0:
            return Verdict("exploding", f"grad_norm {norm:.2g} over {limit}", _either(*clip, rate, *init, *hold))
    # outputs of 0 have a slope but where 0 is a limit, or where they are what is left of gelu and silu
    if dead >= HALF and (saturated >= HALF or code in (types.GELU, types.GELU_TANH, types.SILU)):
        leaky = ["activation='leaky_relu'"] if code in (types.RELU, types.CLIPPED_RELU) else []
        cause = f"{dead:.0%} of the units at {HALF:.0%} or more"
        return Verdict("dead", cause, _either(rate, *leaky, *init, *batch_norm))
    if saturated >= HALF and code not in (types.RELU, types.CLIPPED_RELU):
        scaled = [] if traits.batch_norm else ["inputs scaled to about 1"]
        cause = f"{saturated:.0%} of the outputs at {HALF:.0%} or more"
        return Verdict("saturated", cause, _either(*init, *scaled, *batch_norm, rate))
    if UPDATE < ratio < math.inf:
        return Verdict("exploding", f"update_ratio {ratio:.2g} over {UPDATE:g}", rate)
    for factor, of, n in _references(of_kind, 0.0 if traits.in_residual else last):
        if norm < n / factor:
            cause = f"grad_norm {norm:.2g} under {1 / factor:g} times {of} {n:.2g}" if norm else "grad_norm of 0"
            # sigmoid's slope is a quarter at most, so that no weights keep a gradient's size
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


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if column == "nonfinite":
        return f"{value:.0f}"
    return f"{value:.1%}" if column in ("zeros", "saturated", "dead") else f"{value:.2e}"
