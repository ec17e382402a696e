"""Speed-up with threads: training steps, an LSTM and a convolution on 1, 2, 4, ... threads, beside PyTorch and JAX. Draws a picture.

python -m bench.threads --peers PyTorch --rounds 3
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.harness.chart import COLOURS
from bench.harness.machine import describe, machine
from bench.harness.workers import Workers, available_threads
from bench.peers import FASTGRAD
from bench.scaling import measure
from bench.workloads.scaling import THREADS

TITLE = "Speed on more threads: time of fastgrad on one thread / time"
PEERS = ["PyTorch", "JAX"]


def panels(most):
    """(title, label, {threads: workload}) of each workload, on no more threads than the machine has."""
    return [
        (workloads[1].title, "threads", {n: workload for n, workload in workloads.items() if n <= most})
        for workloads in THREADS
    ]


def picture(panels, curves, machine):
    """The figure: a panel a workload, a line a library; all are held against fastgrad on one thread."""
    figure = Figure(figsize=(3.2 * len(panels), 4.2), layout="constrained")
    (all_axes,) = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, label, _), curve in zip(all_axes, panels, curves, strict=True):
        one = curve[1].costs[FASTGRAD]
        for name in (FASTGRAD, *PEERS):
            speeds = {n: one / row.costs[name] for n, row in curve.items() if name in row.costs}
            if speeds:
                axis.plot(speeds.keys(), speeds.values(), "o-", ms=4, color=COLOURS.get(name, "black"), label=name)
        axis.plot([*curve], [*curve], ":", lw=1, color="#999999", label="as many times as threads")
        axis.set(xscale="log", yscale="log", xlabel=label, xticks=[*curve], xticklabels=[*curve])
        axis.set_title(title, fontsize=8)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}x"))
        axis.minorticks_off()
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(color="#eeeeee", lw=0.6)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"{TITLE}\n{describe(machine)}", x=0.01, ha="left", fontsize=8, wrap=True)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help="default: PyTorch JAX")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results",
                        help="folder for threads.png and threads.json (default: bench/results)")  # fmt: skip
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    shown = panels(available_threads())
    with Workers() as workers:
        curves = measure(workers, shown, options.peers, options.rounds)
        about = machine(workers)
    rows = {
        title: {n: asdict(row) for n, row in curve.items()} for (title, *_), curve in zip(shown, curves, strict=True)
    }
    (options.output / "threads.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    picture(shown, curves, about).savefig(options.output / "threads.png", dpi=150)
    print(f"threads.png and threads.json are in {options.output}")


if __name__ == "__main__":
    main()
