"""The report of a run: Row, the result of one workload; a Markdown table for each kind of workload, a JSON file and a chart."""

import json
from dataclasses import asdict, dataclass, field

from bench.harness.machine import describe
from bench.peers import FASTGRAD, MODULES, VARIANTS

PADDED, HEALTH, ALONE = "fastgrad, padded", "fastgrad, with health", "fastgrad, alone"
REACHED = {True: ", yes", False: ", no", None: ""}


@dataclass
class Row:
    """One workload: what a call costs by contender, and what the machine's limit would allow."""

    kind: str
    title: str
    costs: dict[str, float]  # contender -> seconds, or bytes
    skipped: dict[str, str] = field(default_factory=dict)  # contender -> why
    limit: float | None = None  # seconds
    target: str = ""
    figure: str = ""  # what is held against the target
    reached: bool | None = None
    unit: str = "seconds"  # or "bytes"

    @property
    def best_peer(self):
        return min((name for name in self.costs if name not in (FASTGRAD, *VARIANTS)), key=self.costs.get, default=None)

    @property
    def ratio(self):
        """The best peer's cost over fastgrad's."""
        return self.ratio_to(self.best_peer)

    def ratio_to(self, contender):
        """Its cost over fastgrad's, None if either is missing."""
        if FASTGRAD in self.costs and contender in self.costs:
            return self.costs[contender] / self.costs[FASTGRAD]

    @property
    def share(self):
        if FASTGRAD in self.costs and self.limit:
            return self.limit / self.costs[FASTGRAD]

    def hold_against(self, workload):
        """Set target, figure and reached from the workload's targets; reached is True if all of them are met."""
        if FASTGRAD not in self.costs:
            return self
        held = []  # (target, figure, or None where nothing was measured to hold against it, reached)
        peer = workload.target_peer or self.best_peer, workload.target_peer or "the best peer"
        for least, (contender, name) in (
            (workload.target_ratio, peer),
            (workload.target_alone, (ALONE, "one process")),
        ):
            if least:
                ratio = self.ratio_to(contender)
                held.append((f"{least:g} x {name}", ratio and f"{ratio:.2f} x", ratio and ratio >= least))
        if workload.target_share:
            target = f"{workload.target_share:.0%} of the limit"
            held.append((target, f"{self.share:.0%}", self.share >= workload.target_share))
        if workload.target_over_limit:
            over = self.costs[FASTGRAD] - self.limit
            target = f"{duration(workload.target_over_limit)} over the limit"
            held.append((target, duration(over), over <= workload.target_over_limit))
        if workload.target_padded:
            ratio = self.ratio_to(PADDED)
            part = ratio and 1 / ratio
            target = f"{workload.target_padded:g} of the padded time"
            held.append((target, part and f"{part:.2f}", part and part <= workload.target_padded))
        for contender, seconds in workload.target_more:
            target, cost = f"{contender} {duration(seconds)} more", self.costs.get(contender)
            more = None if cost is None else cost - self.costs[FASTGRAD]
            held.append((target, more and duration(more), None if more is None else more <= seconds))
        if workload.target_health:
            ratio = self.ratio_to(HEALTH)
            more = ratio and ratio - 1
            target = f"health for {workload.target_health:.0%}"
            held.append((target, ratio and f"{more:.1%}", ratio and more <= workload.target_health))
        if held:
            targets, figures, reached = zip(*held, strict=True)
            self.target = " and ".join(targets)
            self.figure = " and ".join(figure or "not measured" for figure in figures)
            # one that is missed is missed whatever the others are
            self.reached = False if False in reached else None if None in reached else True
        return self


def duration(seconds):
    scale, unit = (1e6, "us") if abs(seconds) < 0.01 else (1e3, "ms") if abs(seconds) < 10 else (1, "s")
    value = seconds * scale
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"


def memory(count):
    return f"{count / 2**20:.0f} MiB"


def _cells(row, contenders):
    shown = duration if row.unit == "seconds" else memory
    return [
        row.title,
        *(shown(row.costs[name]) if name in row.costs else "-" for name in contenders),
        f"{row.ratio:.2f} ({row.best_peer})" if row.ratio else "-",
        f"{row.share:.0%}" if row.share else "-",
        f"{row.target}: {row.figure}{REACHED[row.reached]}" if row.target else "",
    ]


def _table(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(f"| {line} |" for line in (head, " | ".join("-" * width for width in widths), *body))


def markdown(rows, machine):
    """A table for each kind of workload, why a contender is missing from a row, and the machine."""
    parts = []
    for kind in dict.fromkeys(row.kind for row in rows):
        group = [row for row in rows if row.kind == kind]
        contenders = [name for name in MODULES if any(name in row.costs for row in group)]
        head = [kind, *contenders, "best peer / fastgrad", "share of the limit", "target"]
        parts.append(_table([head, *(_cells(row, contenders) for row in group)]))
    missing = {}
    for row in rows:
        for name, why in row.skipped.items():
            missing.setdefault(f"{name}: {why}", []).append(row.title)
    parts.append("\n".join(f"- without {who} ({'; '.join(titles)})" for who, titles in missing.items()))
    parts.append(describe(machine))
    parts.append(f"{machine['gpu']}.")
    return "\n\n".join(filter(None, parts))


def write(rows, machine, folder):
    """results.json, table.md and, of times beside a peer's, chart.png in `folder`; returns the table and the folder, as text."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(rows, machine)
    (folder / "table.md").write_text(table + "\n")
    results = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    try:
        # needs matplotlib, which timing does not
        from bench.harness.chart import chart
    except ImportError as error:
        return f"{table}\n\nno chart: {error}"
    figure = chart(rows, machine)
    if figure is None:
        return f"{table}\n\ntable.md and results.json are in {folder}"
    figure.savefig(folder / "chart.png", dpi=150)
    return f"{table}\n\ntable.md, results.json and chart.png are in {folder}"
