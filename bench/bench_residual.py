"""Benchmarks of residual nets (dense blocks, a block of convolutions, ResNet-20): training steps, and their peak memory."""

from operator import attrgetter

import pytest
from tqdm import tqdm

from bench.harness.comparison import clock, load, reference
from bench.harness.report import Row
from bench.harness.targets import Targets
from bench.harness.workers import PROCESS, WorkerError, Workers
from bench.peers import FASTGRAD, contenders
from bench.workloads.residual import BLOCKS


@pytest.mark.benchmark(timer=clock, group="block")
@pytest.mark.parametrize("net", BLOCKS, ids=attrgetter("name"))
def test_block(net, compare):
    compare(net)


@pytest.mark.skipif(not PROCESS.exists(), reason="peaks are read from /proc")
@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("net", [net for net in BLOCKS if net.target_memory], ids=attrgetter("name"))
def test_peak_memory(net, benchmark, workers, add_row, progress):
    """Of five steps in a new process, over what the library takes by itself."""
    skipped, expected = {}, reference(workers, net)

    def measure():
        peaks = {}
        for contender in tqdm(contenders(net), desc=f"memory, {net.name}", leave=False):
            try:
                # compiling, where the cache is cold, is not what is measured
                load(workers.get(contender), net, expected)
                with Workers() as fresh:
                    peaks[contender] = fresh.get(contender).ask("peak", net.name, 5)
            except WorkerError as error:
                skipped[contender] = str(error)
        return peaks

    peaks = benchmark.pedantic(measure, rounds=1)
    assert FASTGRAD in peaks, skipped[FASTGRAD]
    row = Row("memory", f"{net.title}: peak", peaks, skipped, unit="bytes")
    add_row(row.hold_against(Targets(target_ratio=net.target_memory, target_peer="PyTorch")))
