"""The comparison of the contenders of one workload: a check against the float64 reference, then timing in turns (A B C A B C)."""

import statistics
import time

import numpy as np
from tqdm import tqdm

from bench.harness.report import Row
from bench.harness.workers import WorkerError
from bench.peers import FASTGRAD, REFERENCE, device

TURN = 0.2  # seconds of calls in a row
PAUSE = 0.15  # seconds before a turn: OpenBLAS spins for 0.11 after its last call
LONGEST = 25  # seconds that a workload's rounds may take together; three are run in any case


def clock():
    """Seconds of fastgrad's calls, added up turn by turn: with this timer pytest-benchmark reads a turn as one call."""
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
    """The turns of one workload's contenders, and the seconds of each.

    skipped says why a contender is left out: contender -> reason.
    """

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
        all_workers = {contender: workers.get(contender, *place) for contender in contenders}
        self.progress.set_postfix_str("the float64 reference")
        expected = reference(workers, self.workload)
        loaded = self._try(all_workers, "loading", lambda worker: load(worker, self.workload, expected))
        self.workers = self._try(loaded, "warming up", self._calibrate)
        self.seconds = {contender: [] for contender in self.workers}  # of a call, an entry a turn

    def _calibrate(self, worker):
        self.counts[worker.contender] = worker.ask("calibrate", TURN)

    def _try(self, workers, label, action):
        """The workers whose action succeeds; the others are skipped, with the reason."""
        successful = {}
        for contender, worker in workers.items():
            self.progress.set_postfix_str(f"{contender}: {label}")
            try:
                action(worker)
            except WorkerError as error:
                self.skipped[contender] = str(error)
            else:
                successful[contender] = worker
        return successful

    def turn(self, contender):
        self.progress.set_postfix_str(contender)
        time.sleep(PAUSE)
        count = self.counts[contender]
        seconds = self.workers[contender].ask("time", count) / count
        self.seconds[contender].append(seconds)
        if contender == FASTGRAD:
            clock.seconds += seconds
            self.progress.update()

    def peer_turns(self):
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
        self.peer_turns()
        if FASTGRAD in self.workers:
            self.turn(FASTGRAD)

    def row(self):
        # a vector holds half as many in float64
        limit = self.workload.flops * np.dtype(self.workload.dtype).itemsize / 4 / statistics.median(self.fma)
        if self.workload.memory_bytes:
            limit += self.workload.memory_bytes / statistics.median(self.bandwidth)
        seconds = {contender: statistics.median(times) for contender, times in self.seconds.items()}
        row = Row(self.workload.kind, self.workload.title, seconds, self.skipped, limit)
        return row.hold_against(self.workload)


def compare(workers, workload, contenders, rounds):
    """The row of a workload, after so many rounds."""
    with Comparison(workers, workload, contenders, rounds) as comparison:
        for _ in range(comparison.rounds_left):
            comparison.round()
    return comparison.row()
