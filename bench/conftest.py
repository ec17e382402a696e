"""Fixtures and options of the benchmarks.

`pytest --benchmark-only` runs this folder, plain `pytest` the tests. A run ends with the tables of harness/report.py.
"""

import pathlib

import pytest

from bench.harness import report
from bench.harness.comparison import Comparison
from bench.harness.machine import machine
from bench.harness.workers import Workers
from bench.peers import FASTGRAD, contenders

ROWS = pytest.StashKey[list[report.Row]]()
MACHINE = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption("--bench-rounds", type=int, default=5, help="turns of each contender (default: 5)")
    group.addoption("--bench-results", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results",
                    help="folder for the tables, the JSON file and the chart (default: bench/results)")  # fmt: skip


def pytest_configure(config):
    config.stash[ROWS] = []
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        # --benchmark-skip in addopts would do for the tests, but pytest-benchmark refuses it beside --benchmark-only
        only = config.getoption("benchmark_only")
        config.args = [path for path in config.args if (pathlib.Path(path).name == "bench") == only]


@pytest.fixture(scope="session")
def workers(pytestconfig):
    with Workers() as workers:
        pytestconfig.stash[MACHINE] = machine(workers)
        yield workers


@pytest.fixture
def add_row(pytestconfig):
    return pytestconfig.stash[ROWS].append


@pytest.fixture
def progress(pytestconfig):
    """Lets progress bars through to the terminal."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield


@pytest.fixture
def compare(benchmark, workers, pytestconfig, add_row, progress):
    """Runs a workload's rounds: pytest-benchmark times fastgrad's turns, the others' are its setup."""

    def run(workload):
        rounds = pytestconfig.getoption("bench_rounds")
        with Comparison(workers, workload, contenders(workload), rounds) as comparison:
            if FASTGRAD in comparison.skipped:
                pytest.fail(f"{workload.name}: {comparison.skipped[FASTGRAD]}")
            benchmark.pedantic(
                comparison.turn, (FASTGRAD,), setup=comparison.peer_turns, rounds=max(1, comparison.rounds_left)
            )
        row = comparison.row()
        benchmark.extra_info.update(seconds=row.costs, skipped=row.skipped, limit=row.limit)
        add_row(row)

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section("fastgrad beside its peers")
        terminalreporter.write_line(report.write(rows, config.stash[MACHINE], config.getoption("bench_results")))
