"""Convolutions of well-known nets beside PyTorch's: the time of PyTorch / the time of fastgrad of each, as a heat map.

python -m bench.conv_grid --nets ResNet-18 MobileNet-V2 --batches 8
"""

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from tqdm import tqdm

from bench.harness.comparison import compare
from bench.harness.machine import describe, machine
from bench.harness.workers import Workers
from bench.peers import FASTGRAD
from bench.workloads.conv_grid import BATCHES, DIRECTIONS, GRID, NETS, SHAPES

PEER = "PyTorch"
LARGE = 128  # side of an image; larger ones are in the left half of the picture
MOST = 4.0  # times faster or slower, where the colours end
ROW = 0.16  # inches


def measure(workers, cells, rounds):
    """{cell: ratio}, or NaN where a contender failed; each result is checked against the float64 reference.

    If interrupted, the cells so far.
    """
    ratios = {}
    progress = tqdm(cells, desc="convolutions")
    try:
        for cell in progress:
            progress.set_postfix_str(GRID[cell].title)
            row = compare(workers, GRID[cell], [PEER, FASTGRAD], rounds)
            ratios[cell] = row.ratio_to(PEER) or np.nan
            for contender, why in row.skipped.items():
                progress.write(f"{row.title}: without {contender}: {why}")
    except KeyboardInterrupt:
        progress.write("interrupted: the picture has what was measured")
    return ratios


def summary(ratios):
    """A sentence: the share of the cells at or above 1, the worst and the geometric mean."""
    values = np.array([ratio for ratio in ratios.values() if np.isfinite(ratio)])
    if not len(values):
        return "no cell was measured"
    worst = min((ratio, cell) for cell, ratio in ratios.items() if np.isfinite(ratio))
    return (
        f"{len(values)} cells: {np.mean(values >= 1):.0%} at or above 1, geometric mean {np.exp(np.log(values).mean()):.2f}, "
        f"worst {worst[0]:.2f} ({GRID[worst[1]].title})"
    )


def halves(ratios):
    """[[(net, [shape, ...]), ...], ...]: what was measured, on large images and on small ones; a half without any is left out."""
    measured = {shape for shape, *_ in ratios}
    result = []
    for large in (True, False):
        nets = {net: shapes for (net, side), shapes in SHAPES.items() if (side >= LARGE) == large}
        rows = [(net, [shape for shape in shapes if shape in measured]) for net, shapes in nets.items()]
        result.append([(net, shapes) for net, shapes in rows if shapes])
    return [half for half in result if half]


def picture(ratios, machine, rounds):
    """The figure: a row a convolution, a column a batch and direction; the number in a cell is the ratio."""
    panels = halves(ratios)
    columns = [(batch, direction) for direction in DIRECTIONS for batch in BATCHES]
    lines = max(sum(len(shapes) + 1.4 for _, shapes in panel) for panel in panels)
    height = lines * ROW + 1.6
    figure = Figure(figsize=(6.2 * len(panels), height))
    norm = LogNorm(1 / MOST, MOST)
    for i, panel in enumerate(panels):
        axes = figure.add_axes(((i + 0.33) / len(panels), 0.45 / height, 0.65 / len(panels), (height - 1.6) / height))
        axes.set(xlim=(0, len(columns)), ylim=(lines, 0), xticks=np.arange(len(columns)) + 0.5, yticks=[])
        axes.set_xticklabels([f"{direction}\nN={batch}" for batch, direction in columns], fontsize=7)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        y = 0.0
        for net, shapes in panel:
            axes.text(-0.1, y + 0.8, net, ha="right", va="center", fontsize=8, weight="bold")
            y += 1.2
            values = np.array([[ratios.get((shape, *column), np.nan) for column in columns] for shape in shapes])
            edges = np.arange(len(columns) + 1), y + np.arange(len(shapes) + 1)
            mesh = axes.pcolormesh(
                *edges, np.clip(values, 1 / MOST, MOST), norm=norm, cmap="RdBu", lw=0.5, edgecolor="white"
            )
            for row, shape in enumerate(shapes):
                axes.text(-0.1, y + row + 0.5, label(shape), ha="right", va="center", fontsize=7)
                for column, ratio in enumerate(values[row]):
                    if np.isfinite(ratio):
                        dark = not 0.5 < ratio < 2
                        axes.text(column + 0.5, y + row + 0.5, f"{ratio:.2f}", ha="center", va="center", fontsize=5.5,
                                  color="white" if dark else "black")  # fmt: skip
            y += len(shapes) + 0.2
    bar = figure.colorbar(
        mesh, cax=figure.add_axes((0.72, 1 - 0.42 / height, 0.25, 0.12 / height)), orientation="horizontal"
    )
    bar.ax.xaxis.set_major_locator(FixedLocator([1 / MOST, 0.5, 1, 2, MOST]))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=7)
    figure.suptitle("Convolutions: time of PyTorch / time of fastgrad", x=0.01, y=1 - 0.1 / height, ha="left", va="top",
                    fontsize=12, weight="bold")  # fmt: skip
    text = (
        f"{summary(ratios)}. float32, channels last; medians of {rounds} turns, each library in a process of its own. "
    )
    text += describe(machine)
    figure.text(
        0.01,
        0.08 / height,
        "\n".join(textwrap.wrap(text, 105 * len(panels))),
        fontsize=6.5,
        va="bottom",
        color="#444444",
    )
    return figure


def label(shape):
    side, channels, outputs, size, stride, groups = shape
    kind = "depthwise" if groups > 1 else f"to {outputs}"
    return f"{size}x{size}{f'/{stride}' if stride > 1 else ''} {channels} {kind}, {side}x{side}"


def write(ratios, machine, rounds, folder):
    """conv_grid.png and conv_grid.json in `folder`."""
    results = {GRID[cell].title: ratio for cell, ratio in ratios.items()}
    (folder / "conv_grid.json").write_text(json.dumps({"machine": machine, "ratios": results}, indent=1))
    if ratios:
        picture(ratios, machine, rounds).savefig(folder / "conv_grid.png", dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", nargs="+", choices=NETS, default=list(NETS), metavar="NET", help=f"of {', '.join(NETS)}; default: all"
    )
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES), help="default: all")
    parser.add_argument("--images", choices=("large", "small"), help="of 224 pixels, or of 64 and 32, alone")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results",
                        help="folder for conv_grid.png and conv_grid.json (default: bench/results)")  # fmt: skip
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    shapes = {
        shape for (net, side), shapes in SHAPES.items() for shape in shapes
        if net in options.nets and options.images in (None, "large" if side >= LARGE else "small")
    }  # fmt: skip
    cells = [cell for cell in GRID if cell[0] in shapes and cell[1] in options.batches]
    with Workers() as workers:
        about = machine(workers)
        ratios = measure(workers, cells, options.rounds)
    write(ratios, about, options.rounds, options.output)
    print(summary(ratios))
    print(f"conv_grid.png and conv_grid.json are in {options.output}")


if __name__ == "__main__":
    main()
