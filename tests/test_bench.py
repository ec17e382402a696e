"""The benchmarks' own foundations: the measured limit is real, and workers end with the session."""

import re

import pytest

from bench.limits import ACCUMULATORS, Limits, fma_chains
from bench.workers import Worker, WorkerError


def test_all_accumulators_of_the_fma_loop_are_in_the_machine_code():
    Limits(1)
    (code,) = fma_chains.inspect_asm().values()
    assert len(re.findall(r"\bvfn?madd|\bfmla", code)) >= ACCUMULATORS


def test_twice_the_fma_rounds_take_twice_the_time():
    limits = Limits(1)
    rates = [max(limits.fma(count) for _ in range(5)) for count in (500_000, 1_000_000)]
    assert rates[1] == pytest.approx(rates[0], rel=0.5)


def test_a_worker_answers_refuses_and_ends():
    worker = Worker("NumPy", 1)
    assert len(worker.ask("load", "step-xor", dtype="float64")) == 3
    assert worker.ask("calibrate", 0.01) > 1
    with pytest.raises(WorkerError, match="KeyError"):
        worker.ask("load", "no such workload")
    worker.close()
    assert worker.process.returncode == 0


def test_a_contender_that_cannot_says_why():
    worker = Worker("scikit-learn", 1)
    with pytest.raises(WorkerError, match="no gemm"):
        worker.ask("load", "gemm-33x100x10-NN-all")
    worker.close()
