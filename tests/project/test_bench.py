"""The benchmarks' own foundations: the measured limit is real, workers end with the session, peers do the same work."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import fastgrad as fg
from bench import compare, limits_cuda, workers
from bench.harness.limits_cpu import ACCUMULATORS, Limits, fma_chains
from bench.harness.report import ALONE, FASTGRAD, HEALTH, PADDED, Row, markdown
from bench.harness.targets import Targets
from bench.harness.workers import PROCESS, Contender, Worker, WorkerError
from bench.peers import UnsupportedWorkload
from bench.peers.fastgrad_cpu import Blocks
from bench.workloads import ADAPTERS, CUDA, LSTMS, WORKLOADS
from bench.workloads.adapters import Shared
from bench.workloads.batch_norm import NORMS, BatchNorm
from bench.workloads.clip import CLIPS, Update
from bench.workloads.conv import CONVS
from bench.workloads.residual import BLOCKS, Dense, Mean, version_1
from fastgrad.core.backend import missing


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


@pytest.mark.parametrize("contender", ["fastgrad", "scikit-learn"])
def test_an_estimator_finds_the_losses_of_the_reference(contender):
    pytest.importorskip("sklearn", "1.7")
    answers = []
    for name in ("NumPy", contender):
        worker = Worker(name, 1)
        answers.append(worker.ask("load", "fit-digits", epochs=2, dtype="float64"))
        worker.close()
    np.testing.assert_allclose(*answers, rtol=1e-9)


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


def test_what_jax_calls_finds_the_same():
    pytest.importorskip("jax")
    answers = []
    for name in ("NumPy", "JAX"):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", name) for name in ("call", "call-back")])
        worker.close()
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("contender", "package"), [("fastgrad", "numpy"), ("PyTorch", "torch"), ("JAX", "jax")])
def test_a_peer_clips_as_the_reference(contender, package):
    pytest.importorskip(package)
    answers = []
    for name in ("NumPy", contender):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", clip.name, shapes=((4, 5), (7,)), dtype="float64") for clip in CLIPS])
        worker.close()
    for clip, expected, found in zip(CLIPS, *answers, strict=True):
        # PyTorch's update finds gradients that it has clipped before, and takes 1e-6 / norm off them again
        np.testing.assert_allclose(found, expected, rtol=1e-8 if isinstance(clip, Update) else 1e-12)


def small_loop(work):
    """Sizes at which the benchmarks of loops take no time, in float32."""
    if hasattr(work, "shapes"):
        return {"shapes": ((4, 5), (7,))}
    if hasattr(work, "sizes"):
        return {"sizes": (work.sizes[0], 8, 8, 10)}
    return small(work) | {"dtype": "float32"}


def test_pytorchs_loops_with_fastgrad_in_them_find_the_same():
    pytest.importorskip("torch")
    answers = []
    loops = [work for work in ADAPTERS if not isinstance(work, Shared)]
    for name in ("NumPy", "PyTorch", "fastgrad"):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", work.name, **small_loop(work)) for work in loops])
        worker.close()
    for expected, *found in zip(*answers, strict=True):
        for values in found:
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_a_loop_of_two_processes_finds_the_same():
    pytest.importorskip("torch")
    (loop,) = (work for work in ADAPTERS if isinstance(work, Shared))
    answers = []
    for name in ("NumPy", "fastgrad"):
        worker = Worker(name, 1)
        answers.append(worker.ask("load", loop.name, **small_loop(loop)))
        worker.close()
        assert worker.process.returncode == 0
    np.testing.assert_allclose(*answers, rtol=1e-4)


@pytest.mark.parametrize(("contender", "package"), [("fastgrad", "numpy"), ("PyTorch", "torch"), ("JAX", "jax")])
def test_a_peer_trains_residual_nets_as_the_reference(contender, package):
    """Losses and running statistics of three steps."""
    pytest.importorskip(package)
    answers = []
    for name in ("NumPy", contender):
        worker = Worker(name, 1)
        answers.append([worker.ask("load", net.name, batch=4, dtype="float64") for net in BLOCKS])
        worker.close()
    for expected, found in zip(*answers, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_the_residual_net_of_the_benchmarks_is_the_resnet_20():
    model = fg.nn.ResNet(3, 10, [3, 3, 3], 16, stem="3x3")
    made = Blocks.build(WORKLOADS["resnet-20"])
    x = WORKLOADS["resnet-20"].batches()[0][0][:2]
    model.params[...] = made.params
    np.testing.assert_array_equal(made.forward(x, training=True)[0], model.forward(x, training=True)[0])


@pytest.mark.skipif(not PROCESS.exists(), reason="peaks are read from /proc")
def test_a_peak_holds_the_parameters_their_gradients_and_the_data():
    worker = Worker("NumPy", 1)
    net = WORKLOADS["block-conv"]
    least = 2 * sum(array.nbytes for array in net.parameters()) + sum(x.nbytes for x, _ in net.batches())
    assert least < worker.ask("peak", net.name, 1) < 100 * least
    worker.close()


def test_memory_is_shown_in_mebibytes():
    row = Row("memory", "", {FASTGRAD: 3 << 20, "PyTorch": 6 << 20}, unit="bytes")
    machine = dict.fromkeys(("gflops_one", "gflops_all", "triad_gbytes"), 1.0)
    table = markdown([row], machine | {"processor": "", "threads": 1, "versions": {}, "gpu": ""})
    assert "3 MiB" in table
    assert "2.00 (PyTorch)" in table


@pytest.mark.parametrize(
    ("peers", "shown"), [({}, "2 x the best peer: not measured |"), ({"JAX": 3}, "2 x the best peer: 3.00 x, yes |")]
)
def test_a_target_without_its_peer_is_not_missed(peers, shown):
    row = Row("step", "", {FASTGRAD: 1} | peers).hold_against(Targets(target_ratio=2))
    machine = dict.fromkeys(("gflops_one", "gflops_all", "triad_gbytes"), 1.0)
    assert shown in markdown([row], machine | {"processor": "", "threads": 1, "versions": {}, "gpu": ""})


def small(lstm):
    """Sizes at which every row of the LSTM's benchmarks takes no time."""
    sizes = {"batch": min(lstm.batch, 3), "steps": 7, "n_in": 5, "hidden": 6, "dtype": "float64"}
    return sizes | {"shortest": lstm.shortest and 2, "proj_size": lstm.proj_size and 4}


@pytest.mark.parametrize(
    ("padded", "ratio", "reached"),
    [(1.6, 3, True), (1.6, 5, False), (1.2, 3, False), (None, 3, None), (None, 5, False)],
)
def test_a_row_meets_its_target_if_it_meets_all_of_them(padded, ratio, reached):
    seconds = {FASTGRAD: 1, "PyTorch": 4, "JAX": 2} | ({PADDED: padded} if padded else {})
    row = Row("lstm", "", seconds)
    row.hold_against(Targets(target_ratio=ratio, target_peer="PyTorch", target_padded=0.7))
    assert row.reached == reached
    assert row.best_peer == "JAX"  # fastgrad itself, padded, is none


@pytest.mark.parametrize(("watched", "reached"), [(1.02, True), (1.04, False), (None, None)])
def test_health_is_held_against_the_step_without_it(watched, reached):
    row = Row("step", "", {FASTGRAD: 1, "JAX": 2} | ({HEALTH: watched} if watched else {}))
    row.hold_against(Targets(target_health=0.03))
    assert row.reached == reached
    assert row.best_peer == "JAX"


@pytest.mark.parametrize(("alone", "reached"), [(1.8, True), (1.6, False), (None, None)])
def test_several_processes_are_held_against_one(alone, reached):
    row = Row("step", "", {FASTGRAD: 1} | ({ALONE: alone} if alone else {}))
    row.hold_against(Targets(target_alone=1.7))
    assert (row.target, row.reached) == ("1.7 x one process", reached)
    assert row.figure == (f"{alone:.2f} x" if alone else "not measured")


@pytest.mark.parametrize(("costs", "figure", "reached"), [
    ({"PyTorch": 30e-6, "JAX": 70e-6}, "10.0 us and 50.0 us", True),
    ({"PyTorch": 36e-6, "JAX": 70e-6}, "16.0 us and 50.0 us", False),
    ({"PyTorch": 30e-6}, "10.0 us and not measured", None),
])  # fmt: skip
def test_what_adapters_may_take_more_is_held_against_each(costs, figure, reached):
    row = Row("call", "", {FASTGRAD: 20e-6, **costs}).hold_against(WORKLOADS["call"])
    assert (row.figure, row.reached) == (figure, reached)


class Here:
    """Workers of this process, in which a GPU may be a fake one."""

    def __init__(self):
        self.started = {}

    def get(self, name, threads=1, device="cpu"):
        contender = self.started.setdefault((name, device), Contender(name, 1, device))

        def ask(request, *arguments, **options):
            try:
                return getattr(contender, request)(*arguments, **options)
            except UnsupportedWorkload as error:
                raise WorkerError(str(error)) from error

        return SimpleNamespace(contender=name, ask=ask)


def small_on_gpu(work):
    """Sizes that a fake GPU has done at once."""
    changes = {
        "Step": {"batch": 8, "data": "digits", "sizes": (64, 9, 10)},
        "Blocks": {"batch": 2, "data": "noise3", "layers": (version_1(3, 4), Mean(), Dense(4, 10))},
        "BatchNorm": {"shape": (2, 5, 5, 6)},
        "Update": {"shapes": ((4, 5), (7,))},
        "Lstm": {"batch": 3, "steps": 7, "n_in": 5, "hidden": 6},
    }
    return replace(work, **changes[work.runner])


@pytest.fixture
def gpu_of_benchmarks(there, monkeypatch, numpy_backend, torch):
    """A fake GPU for all that the benchmarks run on one; PyTorch's arrays are on the CPU instead."""
    from bench.peers import torch_cuda

    compiled = torch.compile
    for owner, name, value in (
        (torch_cuda, "DEVICE", "cpu"),
        (torch.cuda, "synchronize", lambda: None),
        (torch, "compile", lambda function: compiled(function, backend="eager")),
        *((torch.backends.cudnn, name, getattr(torch.backends.cudnn, name)) for name in ("allow_tf32", "benchmark")),
        (compare, "TURN", 1e-3),
        (compare, "PAUSE", 0),
        (compare, "missing", lambda name: ""),
        (limits_cuda, "SIDE", 8),
        (limits_cuda, "COPIED", 64),
    ):
        monkeypatch.setattr(owner, name, value)
    return there


@pytest.mark.parametrize("name", [work.name for work in CUDA])
def test_a_row_of_the_gpu_is_checked_and_timed(gpu_of_benchmarks, monkeypatch, name):
    monkeypatch.setitem(WORKLOADS, name, small_on_gpu(WORKLOADS[name]))
    work, here = WORKLOADS[name], Here()
    with compare.Comparison(here, work, compare.contenders(work), 1) as comparison:
        comparison.round()
    row = comparison.row()
    skipped = {"torch.compile": "its fused update is PyTorch's"} if work.runner == "Update" else {}
    assert row.skipped == skipped
    assert row.costs.keys() == {FASTGRAD, "PyTorch", "torch.compile"} - skipped.keys()
    assert all(seconds > 0 for seconds in row.costs.values())
    # before the calls and after them
    with gpu_of_benchmarks.counted() as counts:
        here.started[FASTGRAD, "cuda"].runner.seconds(3)
    assert (counts["waits"], counts["copies"]) == (2, 0)
    assert counts["launches"] > 0


def test_a_wrong_row_of_the_gpu_is_not_timed(gpu_of_benchmarks, monkeypatch):
    from bench.peers import fastgrad_cuda

    monkeypatch.setitem(WORKLOADS, "cuda-update", small_on_gpu(WORKLOADS["cuda-update"]))
    monkeypatch.setattr(fastgrad_cuda.Update, "call", lambda self: None)
    comparison = compare.Comparison(Here(), WORKLOADS["cuda-update"], [FASTGRAD], 1)
    assert "wrong result" in comparison.skipped[FASTGRAD]


def test_the_gpu_of_the_report(gpu_of_benchmarks, monkeypatch):
    assert re.fullmatch(r"fake GPU\. Limits .* product \d+ GFLOP/s; memory \(copy\) \d+ GB/s", compare.graphics(Here()))
    monkeypatch.setattr(compare, "missing", lambda name: "missing an NVIDIA driver")
    found = compare.graphics(Here())
    machine = dict.fromkeys(("gflops_one", "gflops_all", "triad_gbytes"), 1.0)
    table = markdown([], machine | {"processor": "", "threads": 1, "versions": {}, "gpu": found})
    assert table.endswith("\n\nNothing ran on a GPU: missing an NVIDIA driver.")


def test_only_workers_of_the_gpu_see_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    shown = [workers.environment("PyTorch", 1, device)["CUDA_VISIBLE_DEVICES"] for device in ("cpu", "cuda")]
    assert shown == ["", "0"]


@pytest.mark.skipif(not missing("cuda"), reason="there is a GPU")
@pytest.mark.parametrize("contender", [FASTGRAD, "PyTorch", "torch.compile"])
def test_a_worker_of_the_gpu_says_that_there_is_none(contender):
    worker = Worker(contender, 1, "cuda")
    with pytest.raises(WorkerError, match=r"cannot run here|no PyTorch with CUDA|not installed"):
        worker.ask("load", "cuda-update")
    worker.close()
