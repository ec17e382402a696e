"""One workload, its contenders side by side: checked against the float64 reference, then timed in turns (A B C A B C).

python -m bench.compare step-784 step-100 --peers PyTorch JAX --rounds 9
"""

import argparse
import statistics
import time

import numpy as np
from tqdm import tqdm

from bench import report
from bench.peers import MODULES, VARIANTS, contenders, device
from bench.workers import WorkerError, Workers, available_threads
from bench.workloads import WORKLOADS
from fastgrad.core.backend import missing

FASTGRAD, REFERENCE = "fastgrad", "NumPy"
TURN = 0.2  # seconds of calls in a row
PAUSE = 0.15  # seconds before a turn: OpenBLAS spins for 0.11 after its last call
LONGEST = 25  # seconds that a workload's rounds may take together; three are run in any case


def clock():
    """What fastgrad's calls took, added up turn by turn: with this timer pytest-benchmark reads a turn as one call."""
    return clock.seconds


clock.seconds = 0.0


def reference(workers, workload):
    """The answer in float64, by the NumPy backend."""
    return workers.get(REFERENCE, workload.threads).ask("load", workload.name, dtype="float64")


def load(worker, workload, expected):
    """Build a workload in a worker; a WorkerError if its answer is not the reference's."""
    answer = worker.ask("load", workload.name)
    allowed = workload.tolerance * np.max(np.abs(expected))
    error = np.max(np.abs(np.subtract(answer, expected)))
    if not error <= allowed:
        raise WorkerError(f"wrong result: {error:.1e} from the float64 reference, allowed {allowed:.1e}")


class Comparison:
    """The turns of one workload's contenders, and what they took."""

    def __init__(self, workers, workload, contenders, rounds):
        self.workload = workload
        self.limits = workers.get("limits", workload.threads, device(workload))
        self.skipped = {}
        self.counts = {}  # calls in a turn
        self.fma, self.bandwidth = [], []
        self.progress = tqdm(total=rounds, desc=workload.name, leave=False)
        self._load(workers, contenders)
        start = time.perf_counter()
        self.round()
        longest = int(LONGEST / (time.perf_counter() - start))
        self.progress.total = min(rounds, max(3, longest))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.progress.close()

    @property
    def rounds_left(self):
        """The first is run when the contenders are ready, and shows how many there is time for."""
        return self.progress.total - 1

    def _load(self, workers, contenders):
        """Build, check and warm up the workload in every worker."""
        place = self.workload.threads, device(self.workload)
        started = {contender: workers.get(contender, *place) for contender in contenders}
        self.progress.set_postfix_str("the float64 reference")
        expected = reference(workers, self.workload)
        loaded = self._able(started, "loading", lambda worker: load(worker, self.workload, expected))
        self.workers = self._able(loaded, "warming up", self._calibrate)
        self.seconds = {contender: [] for contender in self.workers}  # of a call, an entry a turn

    def _calibrate(self, worker):
        self.counts[worker.contender] = worker.ask("calibrate", TURN)

    def _able(self, workers, doing, action):
        """The workers whose action succeeds; the others are skipped, with the reason."""
        able = {}
        for contender, worker in workers.items():
            self.progress.set_postfix_str(f"{contender}: {doing}")
            try:
                action(worker)
            except WorkerError as error:
                self.skipped[contender] = str(error)
            else:
                able[contender] = worker
        return able

    def turn(self, contender):
        self.progress.set_postfix_str(contender)
        time.sleep(PAUSE)
        count = self.counts[contender]
        seconds = self.workers[contender].ask("time", count) / count
        self.seconds[contender].append(seconds)
        if contender == FASTGRAD:
            clock.seconds += seconds
            self.progress.update()

    def others(self):
        """The turns of a round before fastgrad's: the machine's limits, then the peers."""
        self.progress.set_postfix_str("limits")
        time.sleep(PAUSE)
        self.fma.append(self.limits.ask("limit", "fma"))
        if self.workload.memory_bytes:
            self.bandwidth.append(self.limits.ask("limit", "triad"))
        for contender in self.workers:
            if contender != FASTGRAD:
                self.turn(contender)

    def round(self):
        self.others()
        if FASTGRAD in self.workers:
            self.turn(FASTGRAD)

    def row(self):
        # a vector holds half as many in float64
        limit = self.workload.flops * np.dtype(self.workload.dtype).itemsize / 4 / statistics.median(self.fma)
        if self.workload.memory_bytes:
            limit += self.workload.memory_bytes / statistics.median(self.bandwidth)
        seconds = {contender: statistics.median(times) for contender, times in self.seconds.items()}
        row = report.Row(self.workload.kind, self.workload.title, seconds, self.skipped, limit)
        return row.hold_against(self.workload)


def machine(workers):
    """What the figures were taken on, and its limits."""

    def limit(name, threads):
        worker = workers.get("limits", threads)
        return statistics.median(worker.ask("limit", name) for _ in range(5))

    return {
        "processor": report.processor(),
        "threads": available_threads(),
        "gflops_one": limit("fma", 1) / 1e9,
        "gflops_all": limit("fma", None) / 1e9,
        "triad_gbytes": limit("triad", None) / 1e9,
        "versions": report.versions(),
        "gpu": graphics(workers),
    }


def graphics(workers):
    """The GPU, and what it can do at most; or why no workload runs on one."""
    if lacks := missing("cuda"):
        return f"Nothing ran on a GPU: {lacks}"
    worker = workers.get("limits", device="cuda")
    gflops, gbytes = (statistics.median(worker.ask("limit", name) for _ in range(5)) / 1e9 for name in ("fma", "triad"))
    return (
        f"{worker.ask('limit', 'name')}. Limits measured in this run: float32 matrix product {gflops:.0f} GFLOP/s; "
        f"memory (copy) {gbytes:.0f} GB/s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help=f"part of a name: {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", nargs="+", choices=MODULES, default=list(MODULES), metavar="PEER",
                        help=f"of {', '.join(MODULES)}; default: all")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with Workers() as workers:
        for workload in WORKLOADS.values():
            asked = any(part in workload.name for part in options.workloads)
            if asked and not (device(workload) == "cuda" and missing("cuda")):
                chosen = [name for name in contenders(workload) if name in (FASTGRAD, *VARIANTS, *options.peers)]
                with Comparison(workers, workload, chosen, options.rounds) as comparison:
                    for _ in range(comparison.rounds_left):
                        comparison.round()
                rows.append(comparison.row())
        print(report.markdown(rows, machine(workers)))


if __name__ == "__main__":
    main()
