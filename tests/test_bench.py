"""The benchmarks' own foundations: the measured limit is real, workers end with the session, peers do the same work."""

import re

import numpy as np
import pytest

from bench.limits import ACCUMULATORS, Limits, fma_chains
from bench.report import FASTGRAD, PADDED, Row
from bench.workers import Worker, WorkerError
from bench.workloads import CONVS, LSTMS, NORMS, BatchNorm, Targets


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


@pytest.mark.parametrize(("contender", "package"), [("PyTorch", "torch"), ("JAX", "jax")])
def test_a_peer_finds_the_lstms_gradients(contender, package):
    pytest.importorskip(package)
    answers = []
    for name in ("NumPy", contender):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", lstm.name, **small(lstm)) for lstm in LSTMS])
        worker.close()
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def small_image(workload):
    """Sizes at which the benchmarks of convolution and normalisation take no time."""
    if isinstance(workload, BatchNorm):
        return {"shape": (2,) * (len(workload.shape) - 1) + (5,), "dtype": "float64"}
    return {"batch": 2, "side": 9, "n_in": min(workload.n_in, 4), "n_out": 6, "dtype": "float64"}


@pytest.mark.parametrize(("contender", "package"), [("fastgrad", "numpy"), ("PyTorch", "torch"), ("JAX", "jax")])
def test_a_peer_finds_the_gradients_of_images(contender, package):
    pytest.importorskip(package)
    answers = []
    for name in ("NumPy", contender):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", work.name, **small_image(work)) for work in (*CONVS, *NORMS)])
        worker.close()
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def small(lstm):
    """Sizes at which every row of the LSTM's benchmarks takes no time."""
    sizes = {"batch": min(lstm.batch, 3), "steps": 7, "n_in": 5, "hidden": 6, "dtype": "float64"}
    return sizes | {"shortest": lstm.shortest and 2, "proj_size": lstm.proj_size and 4}


@pytest.mark.parametrize(
    ("padded", "ratio", "reached"), [(1.6, 3, True), (1.6, 5, False), (1.2, 3, False), (None, 3, False)]
)
def test_a_row_meets_its_target_if_it_meets_all_of_them(padded, ratio, reached):
    seconds = {FASTGRAD: 1, "PyTorch": 4, "JAX": 2} | ({PADDED: padded} if padded else {})
    row = Row("lstm", "", seconds)
    row.hold_against(Targets(target_ratio=ratio, target_peer="PyTorch", target_padded=0.7))
    assert row.reached == reached
    assert row.best_peer == "JAX"  # fastgrad itself, padded, is none
