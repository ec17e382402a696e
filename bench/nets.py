"""Nets of torchvision beside themselves under `fgt.accelerate`: the seconds of a training step, and their ratio, as a table and a chart.

python -m bench.nets --nets resnet18 mobilenet_v2 --rounds 5
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from tqdm import tqdm

from bench.harness.machine import describe, machine
from bench.harness.workers import WorkerError, Workers
from bench.peers import FASTGRAD
from bench.workloads.nets import OUTSIDE

PEER = "PyTorch"
NETS = list(dict.fromkeys(net.builder for net in OUTSIDE))
ROW = 0.24  # inches
TURN = 0.5  # seconds of steps in a row
WARM_UP = 12  # steps before a net is timed: `accelerate` compares whole steps in its first ten or so
# largest relative difference of the first losses; the second step's has passed through every gradient
TOLERANCE = 0.02


def compare(workers, net, rounds, progress):
    """{contender: seconds of a step, the median of its turns}; a WorkerError where one fails or their losses differ."""
    contenders = {name: workers.get(name) for name in (PEER, FASTGRAD)}
    losses = {}
    for name, worker in contenders.items():
        progress.set_postfix_str(f"{net.title}: {name} loads and warms up")
        losses[name] = worker.ask("load", net.name)
    if not np.allclose(losses[FASTGRAD], losses[PEER], rtol=TOLERANCE):
        raise WorkerError(f"the losses differ: {losses[FASTGRAD]}, PyTorch's {losses[PEER]}")
    for worker in contenders.values():
        worker.ask("time", WARM_UP)
    counts = {name: worker.ask("calibrate", TURN) for name, worker in contenders.items()}
    seconds = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, worker in contenders.items():
            progress.set_postfix_str(f"{net.title}: {name}, turn {turn + 1} of {rounds}")
            seconds[name].append(worker.ask("time", counts[name]) / counts[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(workers, nets, rounds):
    """{net: result of `compare`}; a net that fails is left out, with a line that says why. If interrupted, the nets so far."""
    results = {}
    progress = tqdm(nets, desc="nets")
    try:
        for net in progress:
            try:
                results[net] = compare(workers, net, rounds, progress)
            except WorkerError as error:
                progress.write(f"without {net.title}: {error}")
    except KeyboardInterrupt:
        progress.write("interrupted: the table has what was measured")
    return results


def ratio(seconds):
    """Time of PyTorch / time of the accelerated net."""
    return seconds[PEER] / seconds[FASTGRAD]


def summary(results):
    """A sentence: the least and the geometric mean of the ratios."""
    if not results:
        return "no net was measured"
    ratios = {net: ratio(seconds) for net, seconds in results.items()}
    worst = min(ratios, key=ratios.get)
    mean = np.exp(np.mean(np.log(list(ratios.values()))))
    return f"{len(ratios)} nets: geometric mean {mean:.2f}, least {ratios[worst]:.2f} ({worst.title})"


def table(results, machine):
    """The results in Markdown."""
    lines = ["| net | PyTorch | accelerated | ratio |", "|---|---|---|---|"]
    for net, seconds in results.items():
        lines.append(
            f"| {net.title} | {seconds[PEER] * 1e3:.1f} ms | {seconds[FASTGRAD] * 1e3:.1f} ms | {ratio(seconds):.2f} x |"
        )
    return "\n".join([*lines, "", f"{summary(results)}. {describe(machine)}", ""])


def picture(results):
    """The figure: a bar a net, sorted, from the line of 1."""
    nets = sorted(results, key=lambda net: ratio(results[net]))
    figure = Figure(figsize=(7, ROW * len(nets) + 1.2), layout="constrained")
    axes = figure.subplots()
    ratios = [ratio(results[net]) for net in nets]
    axes.barh([net.title for net in nets], np.subtract(ratios, 1), left=1,
              color=["#2a6f97" if value >= 1 else "#c1554d" for value in ratios])  # fmt: skip
    for row, value in enumerate(ratios):
        axes.text(1.01, row, f"{value:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    # an axis with some length where all ratios are near 1
    axes.set_xlim(min(0.8, *ratios) * 0.9, max(1.25, *ratios) * 1.1)
    axes.margins(y=0.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_major_locator(FixedLocator([0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    axes.set_title("Training step of torchvision's nets: time of PyTorch / time under accelerate", fontsize=10)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", nargs="+", choices=NETS, default=NETS, metavar="NET", help=f"of {', '.join(NETS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results",
                        help="folder for nets.md, nets.json and nets.png (default: bench/results)")  # fmt: skip
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with Workers() as workers:
        about = machine(workers)
        results = measure(workers, [net for net in OUTSIDE if net.builder in options.nets], options.rounds)
    seconds = {net.title: row for net, row in results.items()}
    (options.output / "nets.json").write_text(json.dumps({"machine": about, "seconds": seconds}, indent=1))
    if results:
        (options.output / "nets.md").write_text(table(results, about))
        picture(results).savefig(options.output / "nets.png", dpi=150)
    print(summary(results))
    print(f"nets.md, nets.json and nets.png are in {options.output}")


if __name__ == "__main__":
    main()
