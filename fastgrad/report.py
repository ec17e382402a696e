"""What is told of a model's health: a table, numbers for loggers, pictures, and a verdict on every layer.

Signals must keep their size through all layers (Glorot & Bengio 2010, section 4; He et al. 2015, section 2.2). So a layer's gradient is
held against that of the last layer, where gradients come from: a factor of a thousand is 50 layers that each lose or gain a seventh, more
than any difference in the layers' sizes makes. The other thresholds are absolute.

    exploding  NaN or infinity; or a gradient's norm over 1000 times the last layer's, or over 1000: that of a mean loss is about 1, and
               common limits for clipping are 1 to 100 (Pascanu et al. 2013, section 3.2); or an update over a tenth of the weights, where
               a thousandth is right (Karpathy, CS231n, "Ratio of weights:updates")
    dead       half of the units or more are 0, or past the last slope, for a whole batch: no gradient brings them back (Maas et al. 2013)
    saturated  half of the outputs or more are at the ends of tanh, sigmoid and their like, where slopes are near 0 (Glorot & Bengio 2010,
               section 3); of relu, of which half is at 0 when all is well, not said
    vanishing  a gradient's norm under a thousandth of the last layer's, or 0

They are looked for in this order, so that a cause comes before its effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastgrad.kernels import names
from fastgrad.kernels.names import HEALTH, Activation

RANGE, LARGE, UPDATE, HALF = 1e3, 1e3, 0.1, 0.5
RELUS = names.RELU, names.LEAKY_RELU, names.CLIPPED_RELU, names.ELU, names.GELU, names.GELU_TANH, names.SILU
TITLES = "grad norm", "largest", "zeros", "bad", "mean", "spread", "satur.", "dead", "update"


class Verdict(NamedTuple):
    """What is the matter with a layer: illness is one of vanishing, exploding, dead, saturated and healthy; cause names what was
    measured and the threshold; cure is what to try. Both are empty where it is healthy."""

    illness: str
    cause: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """The health of every layer: print it, or take parts of it.

    layers: their names; step: how many updates were before it; values (L, 9) in the order of `columns`, NaN where something is not known;
    steps (T,) and history (T, L, 9): of the run so far, as many steps as are kept.
    """

    layers: list[str]
    activations: Sequence[Activation | None]
    step: int
    values: np.ndarray
    steps: np.ndarray
    history: np.ndarray
    columns = tuple(HEALTH)

    def as_dict(self) -> dict[str, float]:
        """Numbers for any logger: {"layers.0/grad_norm": 0.013, ...}."""
        return {
            f"{layer}/{column}": value
            for layer, row in zip(self.layers, self.values.tolist(), strict=True)
            for column, value in zip(self.columns, row, strict=True)
        }

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each layer."""
        last = self.values[-1, 0] if len(self.values) else math.nan
        return {
            layer: verdict(dict(zip(self.columns, row, strict=True)), last, activation)
            for layer, row, activation in zip(self.layers, self.values.tolist(), self.activations, strict=True)
        }

    def __str__(self) -> str:
        width = max([len("layer"), *map(len, self.layers)])
        lines = [f"{'layer':{width}}" + "".join(f"{title:>10}" for title in TITLES) + "  verdict"]
        verdicts = self.verdicts
        for layer, row in zip(self.layers, self.values.tolist(), strict=True):
            cells = "".join(f"{_cell(c, v):>10}" for c, v in zip(self.columns, row, strict=True))
            lines.append(f"{layer:{width}}{cells}  {verdicts[layer].illness}")
        # of layers that are ill alike, one is told of
        told: dict[tuple[str, str], list[str]] = {}
        for layer, found in verdicts.items():
            if found.illness != "healthy":
                told.setdefault((found.illness, found.cure), []).append(layer)
        for (illness, cure), layers in told.items():
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            lines.append(f"{layers[0]}{more}: {illness}, {verdicts[layers[0]].cause}; try {cure}")
        return "\n".join(lines)

    def plot(self, path: Any = None) -> Any:
        """Gradient norm by layer and over time, as a matplotlib Figure; written to path too, if given."""
        try:
            from matplotlib import colormaps
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('Report.plot needs matplotlib: pip install "fastgrad[plot]"') from error
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        by_layer, over_time = figure.subplots(1, 2, sharey=True)
        # on a log scale there is no 0
        norms = np.where(self.history[:, :, 0] > 0, self.history[:, :, 0], np.nan)
        places = range(len(self.layers))
        if len(norms) > 1:
            by_layer.plot(places, norms[0], "o-", color="grey", markersize=3, label=f"step {self.steps[0]}")
        now = np.where(self.values[:, 0] > 0, self.values[:, 0], np.nan)
        by_layer.plot(places, now, "o-", markersize=3, label=f"step {self.step}")
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


def verdict(values: dict[str, float], last: float, activation: Activation | None) -> Verdict:
    """The verdict on a layer with these values, where the last layer's gradient has the norm `last`."""
    norm, dead, saturated, ratio = (values[name] for name in ("grad_norm", "dead", "saturated", "update_ratio"))
    relu = activation is not None and activation.code in RELUS
    init = "init='he_normal'" if relu else "init='xavier_uniform'"
    blocks = "nn.BatchNorm or nn.Residual around the layers"
    if values["nonfinite"]:
        cause = f"{values['nonfinite']:.0f} values of the gradient are NaN or infinite"
        return Verdict("exploding", cause, f"clip_norm=1.0, a smaller learning rate, {init}, or {blocks}")
    if dead >= HALF:
        cure = (
            "a smaller learning rate, activation='leaky_relu', init='he_normal', or nn.BatchNorm before the activation"
        )
        return Verdict("dead", f"{dead:.0%} of the units at {HALF:.0%} or more", cure)
    clipped = activation is not None and activation.code in (names.RELU, names.CLIPPED_RELU)
    if saturated >= HALF and not clipped:
        cure = f"{init}, inputs scaled to about 1, or nn.BatchNorm before the activation"
        return Verdict("saturated", f"{saturated:.0%} of the outputs at {HALF:.0%} or more", cure)
    if norm > LARGE or norm > RANGE * last > 0:
        limit = f"{LARGE:g}" if norm > LARGE else f"{RANGE:g} times the last layer's {last:.2g}"
        return Verdict("exploding", f"grad_norm {norm:.2g} over {limit}", f"clip_norm=1.0, {init}, or {blocks}")
    if UPDATE < ratio < math.inf:
        return Verdict("exploding", f"update_ratio {ratio:.2g} over {UPDATE:g}", "a smaller learning rate")
    if norm == 0 or norm < last / RANGE:
        limit = f"under {1 / RANGE:g} times the last layer's {last:.2g}"
        cause = f"grad_norm {norm:.2g} {limit}" if norm else "grad_norm of 0"
        # sigmoid's slope is a quarter at most, so that no weights keep a gradient's size
        change = "activation='tanh'" if activation is not None and activation.code == names.SIGMOID else init
        return Verdict("vanishing", cause, f"{change}, {blocks}")
    return Verdict("healthy")


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if column == "nonfinite":
        return f"{value:.0f}"
    return f"{value:.1%}" if column in ("zeros", "saturated", "dead") else f"{value:.2e}"
