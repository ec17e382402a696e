"""The chart of a run, on one page: for every workload and peer, the time of the peer / the time of fastgrad.

A mark is one ratio; right of the line of 1 fastgrad is faster. Rows are grouped by kind of workload and sorted by the ratio to the best
peer, whose number stands at the right.
"""

import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from bench.harness.machine import describe
from bench.peers import FASTGRAD, MODULES, VARIANTS

TITLE = "fastgrad beside its peers: time of each peer / time of fastgrad"
# of groups, by kind, in their order on the page
HEADINGS = {
    "step": "training step",
    "fit": "scikit-learn's classifier",
    "block": "step of a residual net",
    "forward": "forward of a dense net",
    "gemm": "matrix product",
    "latency": "latency of a product",
    "lstm": "LSTM",
    "gru": "GRU",
    "conv": "convolution",
    "batch_norm": "batch normalisation",
    "layer_norm": "layer normalisation",
    "clip": "clipping and update",
    "init": "initial weights",
    "torch": "PyTorch with fastgrad in it",
    "call": "call from an adapter",
    "cuda": "on a GPU",
}
# a colour stays with its peer, whichever peers are in a chart
PEERS = [name for name in MODULES if name not in (FASTGRAD, *VARIANTS)]
COLOURS = dict(zip(PEERS, ("#8c8c8c", "#d62728", "#ff9a3c", "#1f77b4", "#2ca02c", "#9467bd"), strict=True))
PAGE = 8.3, 11.7  # inches of A4
ROW = 0.145  # inches of a row at most
LEFT, RIGHT = 0.40, 0.93  # where the axes begin and end, as shares of the page's width


def groups_of(rows):
    """[(heading, rows), ...]: rows of times that have a peer, by kind, each group sorted from the largest ratio."""
    groups = {}
    for row in rows:
        if row.ratio and row.unit == "seconds":
            groups.setdefault(row.kind, []).append(row)
    kinds = sorted(groups, key=lambda kind: [*HEADINGS, kind].index(kind))
    return [(HEADINGS.get(kind, kind), sorted(groups[kind], key=lambda row: -row.ratio)) for kind in kinds]


def colour_legend(peers):
    """Handles of a legend, a mark a peer."""
    return [Line2D([], [], marker="o", ls="", ms=5, color=COLOURS[name], label=name) for name in peers]


def chart(rows, machine):
    """The figure, or None where no row has a peer."""
    groups = groups_of(rows)
    if not groups:
        return None
    # a line for each heading and row, and half a line after a group
    lines = sum(len(group) + 1.5 for _, group in groups)
    margin = 2.0  # inches above and below
    row_height = min(ROW, (PAGE[1] - margin) / lines)
    height = max(3.2, lines * row_height + margin)
    figure = Figure(figsize=(PAGE[0], height))
    axes = figure.add_axes((LEFT, 0.9 / height, RIGHT - LEFT, (height - margin) / height))
    size = min(7.5, 50 * row_height)
    peers = [name for name in PEERS if any(name in row.costs for _, group in groups for row in group)]
    _draw_groups(axes, groups, peers, size)
    _dress_axis(axes, groups, peers, lines)
    figure.suptitle(TITLE, x=0.02, y=1 - 0.12 / height, ha="left", va="top", fontsize=13, weight="bold")
    figure.legend(handles=colour_legend(peers), loc="upper right", ncols=len(peers), fontsize=8, frameon=False,
                  bbox_to_anchor=(0.995, 1 - 0.4 / height), handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    figure.text(0.02, 0.1 / height, caption(machine), fontsize=7, va="bottom", color="#444444")
    return figure


def caption(machine):
    """How and on what machine the times were measured, in lines of the page's width."""
    text = "Medians of runs in turns, each library in a process of its own; large marks and the numbers at the right: the best peer. "
    text += describe(machine)
    if not machine["gpu"].startswith("Nothing"):
        text += f" GPU: {machine['gpu']}."
    return "\n".join(textwrap.wrap(text, 150))


def _draw_groups(axes, groups, peers, size):
    """Marks, names and headings from the top down."""
    y = 0.0
    of_page = axes.get_yaxis_transform()  # x as a share of the axes, y in rows
    for heading, group in groups:
        axes.text(-0.015, y, heading, transform=of_page, ha="right", va="center", fontsize=size + 1, weight="bold")
        axes.axhline(y, color="#dddddd", lw=0.6, zorder=0)
        for row in group:
            y += 1
            ratios = {name: row.ratio_to(name) for name in peers if name in row.costs}
            axes.plot([1, max(*ratios.values(), 1)], [y, y], color="#c8c8c8", lw=0.8, zorder=1)
            axes.plot([1, min(*ratios.values(), 1)], [y, y], color="#c8c8c8", lw=0.8, zorder=1)
            for name, ratio in ratios.items():
                best = name == row.best_peer
                axes.plot(ratio, y, "o", ms=4.5 if best else 3.2, color=COLOURS[name], zorder=4 if best else 3)
            axes.text(-0.015, y, row.title, transform=of_page, ha="right", va="center", fontsize=size)
            axes.text(1.015, y, f"{row.ratio:.2f}", transform=of_page, ha="left", va="center", fontsize=size,
                      weight="bold", color="black" if row.ratio >= 1 else "#b00000")  # fmt: skip
        y += 1.5


def _dress_axis(axes, groups, peers, lines):
    ratios = [row.ratio_to(name) for _, group in groups for row in group for name in peers if name in row.costs]
    low, high = min(0.5, *ratios) / 1.15, max(2, *ratios) * 1.15
    axes.set(xscale="log", xlim=(low, high), ylim=(lines - 0.7, -0.8), yticks=[])
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks], fontsize=8)
    axes.tick_params(axis="x", top=True, labeltop=True, length=3)
    axes.grid(axis="x", color="#eeeeee", lw=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", lw=1.1, zorder=2)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    # beside the line of 1, above the ticks
    for text, x, ha in (
        ("\N{LEFTWARDS ARROW} fastgrad slower  ", 1, "right"),
        ("  fastgrad faster \N{RIGHTWARDS ARROW}", 1, "left"),
    ):
        axes.annotate(text, (x, 1), (0, 17), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha=ha,
                      va="bottom", fontsize=8, weight="bold")  # fmt: skip
    axes.annotate("best peer", (1.015, 1), (-8, 17), xycoords="axes fraction", textcoords="offset points", fontsize=8,
                  va="bottom", weight="bold")  # fmt: skip
