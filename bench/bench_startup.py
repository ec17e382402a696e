"""Benchmarks of a new process: the import, and the first training step with a warm and a cold cache of compiled kernels."""

import json
import os
import statistics
import subprocess
import sys
import time

import pytest

from bench.harness.report import Row, duration

FIRST_STEP = """
import json, time, numpy as np, fastgrad as fg
model = fg.nn.DenseChain([784, 64, 64, 10], activation="relu", output="softmax", seed=0)
trainer = fg.Trainer(model, loss="cross_entropy", optimizer=fg.optim.Adam(1e-3))
x, y = np.ones((128, 784), "f4"), np.arange(128) % 10
start = time.perf_counter()
trainer.step(x, y)
print(json.dumps(time.perf_counter() - start))
"""


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, check=True, capture_output=True, text=True
    ).stdout


def row(title, seconds, target, figure, reached):
    return Row("startup", title, {"fastgrad": seconds}, target=target, figure=figure, reached=reached)


@pytest.mark.benchmark(group="startup")
def test_import(benchmark, add_row, workers):
    base = []

    def run_base():
        start = time.perf_counter()
        run("import numpy, numba")
        base.append(time.perf_counter() - start)

    run("import fastgrad")
    benchmark.pedantic(run, ("import fastgrad",), setup=run_base, rounds=9)
    seconds = benchmark.stats.stats.median
    over = seconds - statistics.median(base)
    add_row(row("import fastgrad", seconds, "0.15 s over numpy and numba", duration(over), over <= 0.15))


@pytest.mark.benchmark(group="startup")
@pytest.mark.parametrize(("cache", "rounds", "target"), [("warm", 5, 0.6), ("cold", 1, 20)])
def test_first_step(benchmark, add_row, workers, tmp_path, cache, rounds, target):
    """784-64-64-10 in a new process, from its start to its end."""
    variables = {"FASTGRAD_CACHE_DIR": str(tmp_path)} if cache == "cold" else {}
    if cache == "warm":
        run(FIRST_STEP)
    steps = []
    benchmark.pedantic(lambda: steps.append(json.loads(run(FIRST_STEP, **variables))), rounds=rounds)
    seconds = benchmark.stats.stats.median
    figure = f"{duration(seconds)}, of which in the step {duration(statistics.median(steps))}"
    add_row(row(f"first step in a process, {cache} cache", seconds, f"{target} s", figure, seconds <= target))
