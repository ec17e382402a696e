"""Speed-up over the peers against size: width of a net, length of sequences, rows of a batch. Draws a picture of three panels.

python -m bench.scaling --peers PyTorch JAX --rounds 5
"""

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from tqdm import tqdm

from bench.harness.chart import COLOURS, PEERS
from bench.harness.comparison import compare
from bench.harness.machine import describe, machine
from bench.harness.workers import Workers
from bench.peers import FASTGRAD, contenders
from bench.workloads.scaling import BATCH_SIZES, LENGTHS, WIDTHS

TITLE = "fastgrad beside its peers, by size: time of each peer / time of fastgrad"
# (title, label of the horizontal axis, {size: workload})
PANELS = (
    ("Training step: width", "width of 3 hidden layers, N = 32", WIDTHS),
    ("LSTM: length", "steps of a sequence, N = 32, C = 64, H = 128", LENGTHS),
    ("Training step: batch", "rows of a batch, 3 hidden layers of 128", BATCH_SIZES),
)
DEFAULT_PEERS = ["NumPy", "PyTorch", "JAX"]
QUICK = 4  # sizes of a panel


def spread(sizes, count):
    """So many of the sizes, the first and the last among them, evenly."""
    return [sizes[round(i * (len(sizes) - 1) / (count - 1))] for i in range(count)]


def measure(workers, panels, peers, rounds):
    """[{size: Row}, ...], a dictionary a panel; a workload's results are checked against the float64 reference before it is timed."""
    curves = []
    with tqdm(total=sum(len(workloads) for *_, workloads in panels), desc="sizes") as progress:
        for *_, workloads in panels:
            curve = {}
            for size, workload in workloads.items():
                progress.set_postfix_str(workload.title)
                names = [name for name in contenders(workload) if name == FASTGRAD or name in peers]
                curve[size] = compare(workers, workload, names, rounds)
                progress.update()
            curves.append(curve)
    return curves


def picture(panels, curves, machine, rounds):
    """The figure: a panel a curve, a line a peer, on logarithmic axes."""
    figure = Figure(figsize=(12, 4.8))
    axes = figure.subplots(1, len(panels), sharey=True)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.83, bottom=0.24, wspace=0.06)
    for axis, (title, label, _), curve in zip(axes, panels, curves, strict=True):
        for peer in PEERS:
            ratios = {size: row.ratio_to(peer) for size, row in curve.items() if row.ratio_to(peer)}
            if ratios:
                axis.plot(ratios.keys(), ratios.values(), "o-", ms=4, lw=1.5, color=COLOURS[peer], label=peer)
        axis.axhline(1, color="black", lw=1.2)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_title(title, fontsize=10, weight="bold")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(list(curve)[:: -(-len(curve) // 7)], list(curve)[:: -(-len(curve) // 7)])
        axis.grid(color="#eeeeee", lw=0.6)
    low, high = axes[0].get_ylim()
    low, high = min(low, 0.7), max(high, 1.5)
    axes[0].set(ylim=(low, high), ylabel="times as fast as the peer")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
    axes[0].set_yticks(ticks)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].yaxis.set_minor_locator(NullLocator())
    for text, va, offset in (("fastgrad faster", "bottom", 2), ("fastgrad slower", "top", -2)):
        axes[0].annotate(text, (0.01, 1), (0, offset), xycoords=axes[0].get_yaxis_transform(), fontsize=7, va=va,
                         textcoords="offset points", color="#555555")  # fmt: skip
    figure.suptitle(TITLE, x=0.01, y=0.98, ha="left", fontsize=13, weight="bold")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper right", ncols=max(1, len(handles)), frameon=False)
    figure.text(0.01, 0.02, caption(machine, rounds), fontsize=7, va="bottom", color="#444444")
    return figure


def caption(machine, rounds):
    """How and on what machine the times were measured, in lines of the picture's width."""
    text = (
        f"float32; a step is forward, loss, backward and Adam; an LSTM's time is that of forward and backward. Medians of at most {rounds} "
        "turns, each library in a process of its own; results checked against the float64 reference. "
    )
    return "\n".join(textwrap.wrap(text + describe(machine), 215))


def write(panels, curves, machine, rounds, folder):
    """scaling.png and scaling.json in `folder`."""
    results = {
        title: {size: asdict(row) for size, row in curve.items()}
        for (title, *_), curve in zip(panels, curves, strict=True)
    }
    (folder / "scaling.json").write_text(json.dumps({"machine": machine, "panels": results}, indent=1))
    picture(panels, curves, machine, rounds).savefig(folder / "scaling.png", dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=DEFAULT_PEERS, metavar="PEER",
                        help=f"of {', '.join(PEERS)}; default: {', '.join(DEFAULT_PEERS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} sizes of each panel")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results",
                        help="folder for scaling.png and scaling.json (default: bench/results)")  # fmt: skip
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    panels = PANELS
    if options.quick:
        panels = [(*words, {size: sizes[size] for size in spread(list(sizes), QUICK)}) for *words, sizes in PANELS]
    with Workers() as workers:
        curves = measure(workers, panels, options.peers, options.rounds)
        write(panels, curves, machine(workers), options.rounds, options.output)
    for reason in dict.fromkeys(
        f"without {name}: {why} ({row.title})"
        for curve in curves for row in curve.values() for name, why in row.skipped.items()
    ):  # fmt: skip
        print(reason)
    print(f"scaling.png and scaling.json are in {options.output}")


if __name__ == "__main__":
    main()
