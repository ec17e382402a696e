"""Report: the health of every layer as a table, as numbers for loggers, and as a picture, with the verdict on each layer of verdict.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgrad.health.verdict import Traits, Verdict, verdict
from fastgrad.kernels.types import HEALTH, Activation

TITLES = "grad norm", "largest", "zeros", "bad", "mean", "spread", "satur.", "dead", "update"


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
        # the norm of the last layer of each kind
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
        # of layers with one illness and cure, the cause of the first
        groups: dict[tuple[str, str], list[str]] = {}
        for layer, judgement in verdicts.items():
            if judgement.illness != "healthy":
                groups.setdefault((judgement.illness, judgement.cure), []).append(layer)
        for (illness, cure), layers in groups.items():
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            lines.append(f"{layers[0]}{more}: {illness}, {verdicts[layers[0]].cause}; try {cure}")
        return "\n".join(lines)

    # a notebook shows this
    __repr__ = __str__

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
            from matplotlib.ticker import LogLocator
        except ImportError as error:
            raise ImportError('Report.plot needs matplotlib: pip install "fastgrad[plot]"') from error
        figure = Figure(figsize=(9, 4), layout="constrained")
        by_layer, over_time = figure.subplots(1, 2, sharey=True)
        norms, now = self.history[:, :, 0], self.values[:, 0]
        shown = np.append(norms, now)
        shown = shown[np.isfinite(shown) & (shown > 0)]
        if len(shown):
            by_layer.set_yscale("log")
        if len(shown) and (np.append(norms, now) == 0).any():
            # a log scale has no 0: it gets a place below all that is shown
            low, high = shown.min(), shown.max()
            zero = low * (low / (10 * high)) ** 0.15
            norms, now = np.where(norms == 0, zero, norms), np.where(now == 0, zero, now)
            ticks = [tick for tick in LogLocator().tick_values(low, high) if low <= tick <= high] or [low]
            by_layer.set_yticks([zero, *ticks], ["0", *(f"{tick:.2g}" for tick in ticks)])
        # a line a kind: a batch norm's gradient is of another size than a dense layer's, and one line would jump between them
        kinds = np.array([traits.kind for traits in self.traits])
        for number, kind in enumerate(dict.fromkeys(kinds.tolist())):
            layers = np.flatnonzero(kinds == kind)
            line: dict[str, Any] = {"marker": "o", "markersize": 3, "color": f"C{number}"}
            if len(norms) > 1:
                by_layer.plot(layers + 1, norms[0, layers], alpha=0.3, **line)
            by_layer.plot(layers + 1, now[layers], label=kind, **line)
        if any(kinds.tolist()):
            by_layer.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        # a few layers, from the first to the last
        for i in np.unique(np.linspace(0, len(self.layers) - 1, min(len(self.layers), 8)).astype(int)):
            color = colormaps["viridis"](i / max(len(self.layers) - 1, 1))
            over_time.plot(self.steps, norms[:, i], marker="o", markersize=2, color=color, label=self.layers[i])
        over_time.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        before = f"step {self.steps[0]}, pale, and " if len(norms) > 1 else ""
        by_layer.set(title=f"{before}step {self.step}", xlabel="layer", ylabel="gradient norm")
        over_time.set(title="some layers", xlabel="step")
        for axes in (by_layer, over_time):
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.title.set_fontsize("medium")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if column == "nonfinite":
        return f"{value:.0f}"
    return f"{value:.1%}" if column in ("zeros", "saturated", "dead") else f"{value:.2e}"
