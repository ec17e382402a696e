"""Benchmarks of matrix products: all layouts, one thread and all, awkward sizes; and the latency of single calls beside a busy process."""

import subprocess
import sys
from operator import attrgetter

import pytest
from tqdm import tqdm

from bench.harness.comparison import clock, load, reference
from bench.harness.report import Row
from bench.harness.workers import WorkerError
from bench.peers import FASTGRAD
from bench.workloads import WORKLOADS
from bench.workloads.gemm import GEMMS


@pytest.mark.benchmark(timer=clock, group="gemm")
@pytest.mark.parametrize("gemm", GEMMS, ids=attrgetter("name"))
def test_gemm(gemm, compare):
    compare(gemm)


@pytest.mark.benchmark(group="latency")
def test_gemm_beside_a_busy_process(benchmark, workers, add_row, progress):
    """A thread pool that waits for a processor that another process holds shows in the 99th percentile."""
    gemm = WORKLOADS["gemm-128x784x64-NN-all"]
    skipped, ready = {}, {}
    expected = reference(workers, gemm)
    for contender in (FASTGRAD, "PyTorch"):
        try:
            load(workers.get(contender), gemm, expected)
            ready[contender] = workers.get(contender)
        except WorkerError as error:
            skipped[contender] = str(error)

    def latencies(state):
        """{"median" or "99th percentile": {contender: seconds}} of two seconds of calls each."""
        answers = {}
        for contender, worker in tqdm(ready.items(), desc=f"{gemm.name}, {state}", leave=False):
            answers[contender] = worker.ask("latencies", 2)
        return {name: {contender: answers[contender][name] for contender in ready} for name in answers[FASTGRAD]}

    assert FASTGRAD in ready, skipped[FASTGRAD]
    quiet = latencies("quiet")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            busy = benchmark.pedantic(latencies, ("busy",), rounds=1)
        finally:
            process.kill()
    rows = {
        f"gemm 128x784x64, single calls, {state}: {name}": Row("latency", "", seconds, skipped)
        for state, figures in (("quiet", quiet), ("beside a busy process", busy))
        for name, seconds in figures.items()
    }
    for title, row in rows.items():
        row.title = title
        add_row(row)
    times = busy["99th percentile"][FASTGRAD] / quiet["99th percentile"][FASTGRAD]
    row.target, row.figure, row.reached = "99th percentile 3 x the quiet one", f"{times:.1f} x", times <= 3
