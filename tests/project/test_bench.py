"""The benchmarks' own foundations: the measured limit is real, workers end with the session, peers do the same work."""

import importlib.util
import json
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_machine import MACHINE
from matplotlib import image

import bench
import fastgrad as fg
from bench import compare, conv_grid, scaling
from bench.harness import chart, comparison, limits_cpu, limits_cuda, machine, workers
from bench.harness.limits_cpu import ACCUMULATORS, Limits, fma_chains
from bench.harness.report import ALONE, HEALTH, PADDED, Row, markdown
from bench.harness.targets import Targets
from bench.harness.workers import PROCESS, Contender, Worker, WorkerError, Workers
from bench.peers import FASTGRAD, REFERENCE, UnsupportedWorkload, contenders
from bench.peers.fastgrad_cpu import Blocks
from bench.workloads import WORKLOADS
from bench.workloads.adapters import ADAPTERS, Shared
from bench.workloads.batch_norm import NORMS, BatchNorm
from bench.workloads.clip import CLIPS, Update
from bench.workloads.conv import CONVS
from bench.workloads.conv_grid import GRID, SHAPES
from bench.workloads.gpu import CUDA
from bench.workloads.layer_norm import LAYER_NORMS
from bench.workloads.lstm import LSTMS
from bench.workloads.residual import BLOCKS, Dense, Mean, version_1
from bench.workloads.scaling import BATCH_SIZES, LENGTHS, WIDTHS
from fastgrad.core.backend import missing

OTHERS = [("PyTorch", "torch"), ("JAX", "jax")]
ALL = [(FASTGRAD, "numpy"), *OTHERS]


class SingleThreadWorkers(Workers):
    """Workers of one thread, whatever a workload has."""

    def get(self, contender, threads=None, device="cpu"):
        return super().get(contender, 1, device)


@pytest.fixture(scope="module")
def shared_workers():
    """One process a contender for all tests of this file."""
    with SingleThreadWorkers() as shared:
        yield shared


@pytest.fixture(scope="module")
def answer(shared_workers):
    """(contender, workload, changes) -> what is compared; the reference's is computed once."""
    references = {}

    def ask(contender, workload, **changes):
        if contender != REFERENCE:
            return shared_workers.get(contender).ask("load", workload, **changes)
        key = workload, repr(changes)
        if key not in references:
            references[key] = shared_workers.get(contender).ask("load", workload, **changes)
        return references[key]

    return ask


@pytest.fixture
def agrees(answer):
    """Asserts that a contender's answer is the reference's."""

    def check(contender, work, changes, **tolerances):
        expected = answer(REFERENCE, work.name, **changes)
        np.testing.assert_allclose(answer(contender, work.name, **changes), expected, **tolerances)

    return check


def test_all_accumulators_of_the_fma_loop_are_in_the_machine_code():
    Limits(1)
    (code,) = fma_chains.inspect_asm().values()
    assert len(re.findall(r"\bvfn?madd|\bfmla", code)) >= ACCUMULATORS


def test_twice_the_fma_rounds_take_twice_the_time(monkeypatch):
    """In seconds of the processor: another process may have it meanwhile. Two hyperthreads share its units."""
    monkeypatch.setattr(limits_cpu, "time", SimpleNamespace(perf_counter=time.process_time))
    limits, counts = Limits(1), (500_000, 1_000_000)
    turns = [[limits.fma(count) for count in counts] for _ in range(20)]
    fastest = np.max(turns, axis=0)
    assert fastest[1] == pytest.approx(fastest[0], rel=0.5)


def test_a_worker_answers_refuses_and_ends():
    worker = Worker(REFERENCE, 1)
    assert len(worker.ask("load", "step-xor", dtype="float64")) == 3
    assert worker.ask("calibrate", 0.01) > 1
    with pytest.raises(WorkerError, match="KeyError"):
        worker.ask("load", "no such workload")
    worker.close()
    assert worker.process.returncode == 0


def test_a_contender_that_cannot_says_why(answer):
    with pytest.raises(WorkerError, match="no gemm"):
        answer("scikit-learn", "gemm-33x100x10-NN-all")


def test_no_file_of_a_peer_hides_a_library():
    files = list(Path(bench.__file__).with_name("peers").glob("*_*.py"))
    assert len(files) > 10
    assert [file.name for file in files if file.stem != "__init__" and importlib.util.find_spec(file.stem)] == []


@pytest.mark.parametrize(("contender", "package"), OTHERS)
def test_a_peer_finds_the_lstms_gradients(contender, package, agrees):
    pytest.importorskip(package)
    # some differ in sizes alone
    for lstm in {replace(lstm, **small(lstm)).title: lstm for lstm in LSTMS}.values():
        agrees(contender, lstm, small(lstm), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("contender", [FASTGRAD, "scikit-learn"])
def test_an_estimator_finds_the_losses_of_the_reference(contender, agrees):
    pytest.importorskip("sklearn", "1.7")
    agrees(contender, WORKLOADS["fit-digits"], {"epochs": 2, "dtype": "float64"}, rtol=1e-9)


def small_image(workload):
    """Sizes at which the benchmarks of convolution and normalisation take no time."""
    if isinstance(workload, BatchNorm):
        return {"shape": (2,) * (len(workload.shape) - 1) + (5,), "dtype": "float64"}
    n_in, groups = (6, 6) if workload.groups > 1 else (min(workload.n_in, 4), 1)
    return {"batch": 2, "side": 9, "n_in": n_in, "n_out": 6, "groups": groups, "dtype": "float64"}


@pytest.mark.parametrize(("contender", "package"), ALL)
def test_a_peer_finds_the_gradients_of_images(contender, package, agrees):
    pytest.importorskip(package)
    depthwise = [GRID[(8, 58, 58, 3, 1, 58), 1, direction] for direction in ("y", "dx", "dw")]
    for work in (*CONVS, *depthwise, *NORMS, *LAYER_NORMS):
        agrees(contender, work, small_image(work), rtol=1e-9, atol=1e-11)


def test_what_jax_calls_finds_the_same(agrees):
    pytest.importorskip("jax")
    for name in ("call", "call-back"):
        agrees("JAX", WORKLOADS[name], {}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("contender", "package"), ALL)
def test_a_peer_clips_as_the_reference(contender, package, agrees):
    pytest.importorskip(package)
    for clip in CLIPS:
        # PyTorch's update finds gradients that it has clipped before, and takes 1e-6 / norm off them again
        rtol = 1e-8 if isinstance(clip, Update) else 1e-12
        agrees(contender, clip, {"shapes": ((4, 5), (7,)), "dtype": "float64"}, rtol=rtol)


def small_loop(work):
    """Sizes at which the benchmarks of loops take no time, in float32."""
    if hasattr(work, "shapes"):
        return {"shapes": ((4, 5), (7,))}
    if hasattr(work, "sizes"):
        return {"sizes": (work.sizes[0], 8, 8, 10)}
    return small(work) | {"dtype": "float32"}


@pytest.mark.full
def test_pytorchs_loops_with_fastgrad_in_them_find_the_same(agrees):
    pytest.importorskip("torch")
    for loop in ADAPTERS:
        if not isinstance(loop, Shared):
            for contender in ("PyTorch", FASTGRAD):
                agrees(contender, loop, small_loop(loop), rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_a_loop_of_two_processes_finds_the_same(answer):
    pytest.importorskip("torch")
    (loop,) = (work for work in ADAPTERS if isinstance(work, Shared))
    # one of its own, which is to end with its processes
    worker = Worker(FASTGRAD, 1)
    shared = worker.ask("load", loop.name, **small_loop(loop))
    worker.close()
    assert worker.process.returncode == 0
    np.testing.assert_allclose(shared, answer(REFERENCE, loop.name, **small_loop(loop)), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(("contender", "package"), ALL)
def test_a_peer_trains_residual_nets_as_the_reference(contender, package, agrees):
    """Losses and running statistics of three steps."""
    pytest.importorskip(package)
    for net in BLOCKS:
        agrees(contender, net, {"batch": 4, "dtype": "float64"}, rtol=1e-9, atol=1e-11)


def test_the_residual_net_of_the_benchmarks_is_the_resnet_20(numpy_backend):
    model = fg.nn.ResNet(3, 10, [3, 3, 3], 16, stem="3x3")
    net = Blocks.build(WORKLOADS["resnet-20"])
    x = WORKLOADS["resnet-20"].batches()[0][0][:2]
    model.params[...] = net.params
    np.testing.assert_array_equal(net.forward(x, training=True)[0], model.forward(x, training=True)[0])


@pytest.mark.skipif(not PROCESS.exists(), reason="peaks are read from /proc")
def test_a_peak_holds_the_parameters_their_gradients_and_the_data():
    # a new process, which has freed nothing
    worker, net = Worker(REFERENCE, 1), replace(WORKLOADS["block-conv"], batch=2)
    least = 2 * sum(array.nbytes for array in net.parameters()) + sum(x.nbytes for x, _ in net.batches())
    assert least < worker.ask("peak", net.name, 1, batch=2) < 100 * least
    worker.close()


def test_the_command_prints_the_table(shared_workers, monkeypatch, capsys):
    quick(monkeypatch, shared_workers, compare)
    compare.main(["step-xor", "--peers", REFERENCE, "--rounds", "1"])
    table = capsys.readouterr().out
    assert "step 2-1 on XOR" in table
    assert re.search(r"\| +\d+\.\d+ \(NumPy\) +\|", table)
    assert "a processor, 1 threads" in table


def quick(monkeypatch, shared_workers, command):
    """A command on the shared workers, with turns of a millisecond."""
    monkeypatch.setattr(comparison, "TURN", 1e-3)
    monkeypatch.setattr(comparison, "PAUSE", 0)
    monkeypatch.setattr(command, "Workers", lambda: nullcontext(shared_workers))
    monkeypatch.setattr(command, "machine", lambda workers: MACHINE)


def rows_of_a_chart():
    return [
        Row("lstm", "a short LSTM", {FASTGRAD: 1, "PyTorch": 1.5, PADDED: 1.2}),
        Row("step", "a step without a peer", {FASTGRAD: 1, HEALTH: 1.1}),
        Row("lstm", "a long LSTM", {FASTGRAD: 2, "PyTorch": 1, "JAX": 8}),
        Row("step", "a small step", {FASTGRAD: 1, "PyTorch": 3}),
        Row("memory", "a peak", {FASTGRAD: 1, "PyTorch": 3}, unit="bytes"),
        Row("conv", "a failed convolution", {"PyTorch": 3}),
        Row("step", "a tiny step", {FASTGRAD: 1, "PyTorch": 9}),
    ]


def texts(figure):
    """All that can be read in a figure, axes by axes from the top."""
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    return written + [text.get_text() for text in figure.texts]


def test_the_chart_has_a_title_a_caption_and_its_rows_in_groups():
    figure = chart.chart(rows_of_a_chart(), MACHINE)
    assert figure.get_suptitle() == chart.TITLE
    written = texts(figure)
    assert "a processor, 1 threads" in written[-1].replace("\n", " ")
    names = [
        text for text in written if re.match(r"a (small|tiny|short|long) ", text) or text in chart.HEADINGS.values()
    ]
    # groups in the order of HEADINGS, rows from the largest ratio
    assert names == ["training step", "a tiny step", "a small step", "LSTM", "a short LSTM", "a long LSTM"]
    for absent in ("a step without a peer", "a peak", "a failed convolution"):
        assert absent not in written
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["PyTorch", "JAX"]
    assert any("slower" in text for text in written)
    assert any("faster" in text for text in written)


def test_the_marks_of_the_chart_are_the_ratios_in_the_peers_colours():
    (axes,) = chart.chart(rows_of_a_chart(), MACHINE).axes
    assert axes.get_xscale() == "log"
    marks = [(line.get_xdata()[0], line.get_color()) for line in axes.lines if line.get_marker() == "o"]
    pytorch, jax = chart.COLOURS["PyTorch"], chart.COLOURS["JAX"]
    assert marks == [(9, pytorch), (3, pytorch), (1.5, pytorch), (0.5, pytorch), (4, jax)]
    low, high = axes.get_xlim()
    assert low < 0.5 < 9 < high


def test_without_a_peer_there_is_no_chart():
    assert chart.chart([Row("step", "", {FASTGRAD: 1})], MACHINE) is None


def test_a_chart_of_a_hundred_rows_is_one_page():
    rows = [Row(f"kind {i % 9}", "", {FASTGRAD: 1, "JAX": 2}) for i in range(100)]
    assert chart.chart(rows, MACHINE).get_size_inches() == pytest.approx(chart.PAGE)


def test_the_curves_of_sizes_are_measured_and_drawn(shared_workers, monkeypatch, tmp_path):
    panels = [
        (title, label, {size: sizes[size] for size in few})
        for (title, label, _), sizes, few in zip(
            scaling.PANELS, (WIDTHS, LENGTHS, BATCH_SIZES), ((8, 16), (1, 2), (1, 2)), strict=True
        )
    ]
    quick(monkeypatch, shared_workers, scaling)
    monkeypatch.setattr(scaling, "PANELS", panels)
    scaling.main(["--quick", "--peers", REFERENCE, "--rounds", "1", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert results["machine"] == MACHINE
    assert {title: [*curve] for title, curve in results["panels"].items()} == {
        title: [str(size) for size in sizes] for title, _, sizes in panels
    }
    for curve in results["panels"].values():
        for row in curve.values():
            assert row["skipped"] == {}
            assert row["costs"].keys() == {FASTGRAD, REFERENCE}
    assert image.imread(tmp_path / "scaling.png").shape[1] > 1000


def test_the_picture_of_sizes_has_a_curve_for_each_peer():
    curves = [
        {size: Row("step", "", {FASTGRAD: 1, "PyTorch": 4, "JAX": 1 / size}) for size in sizes}
        for *_, sizes in scaling.PANELS
    ]
    figure = scaling.picture(scaling.PANELS, curves, MACHINE, 5)
    assert figure.get_suptitle() == scaling.TITLE
    assert "a processor, 1 threads" in texts(figure)[-1].replace("\n", " ")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["PyTorch", "JAX"]
    for axes, (title, label, sizes) in zip(figure.axes, scaling.PANELS, strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (title, label)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        pytorch, jax, one = axes.lines
        np.testing.assert_array_equal(pytorch.get_xydata(), [(size, 4) for size in sizes])
        np.testing.assert_allclose(jax.get_xydata(), [(size, 1 / size) for size in sizes])
        assert list(one.get_ydata()) == [1, 1]


def test_the_sizes_are_those_that_are_promised():
    assert (min(WIDTHS), max(WIDTHS), min(BATCH_SIZES), max(BATCH_SIZES)) == (8, 4096, 1, 1024)
    assert scaling.spread(list(WIDTHS), scaling.QUICK) == [8, 64, 512, 4096]


def test_the_grid_has_the_convolutions_of_the_nets():
    assert {net: len(shapes) for (net, _), shapes in SHAPES.items()} == {
        "ResNet-18": 11, "ResNet-50": 18, "MobileNet-V2": 30, "EfficientNet-B0": 22, "ShuffleNet-V2": 16, "VGG-11": 7, "ResNet-20": 6,
    }  # fmt: skip
    stem, depthwise = (7, 2, 1), (3, 1, 144)
    assert (224, 3, 64, *stem) in SHAPES["ResNet-18", 224]
    assert (16, 144, 144, *depthwise) in SHAPES["MobileNet-V2", 64]


def test_the_grid_is_measured_and_drawn(shared_workers, monkeypatch, tmp_path):
    shapes = (4, 116, 116, 3, 1, 116), (4, 116, 116, 1, 1, 1)
    quick(monkeypatch, shared_workers, conv_grid)
    monkeypatch.setattr(conv_grid, "PEER", REFERENCE)
    monkeypatch.setattr(conv_grid, "GRID", {cell: work for cell, work in GRID.items() if cell[0] in shapes})
    conv_grid.main(["--nets", "ShuffleNet-V2", "--batches", "1", "--rounds", "1", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "conv_grid.json").read_text())
    assert len(results["ratios"]) == 6
    assert all(ratio > 0 for ratio in results["ratios"].values())
    assert "conv 3x3 depthwise 116 to 116, 4x4, N=1, dw" in results["ratios"]
    assert image.imread(tmp_path / "conv_grid.png").shape[1] > 900


def test_the_grid_says_how_many_convolutions_are_as_fast():
    cells = list(GRID)[:4]
    ratios = dict(zip(cells, (2, 0.5, 1, np.nan), strict=True))
    figure = conv_grid.picture(ratios, MACHINE, 3)
    assert f"3 cells: 67% at or above 1, geometric mean 1.00, worst 0.50 ({GRID[cells[1]].title})" in texts(figure)[
        -1
    ].replace("\n", " ")
    assert [text for text in texts(figure) if re.fullmatch(r"\d\.\d\d", text)] == ["2.00", "0.50", "1.00"]


def test_memory_is_shown_in_mebibytes():
    row = Row("memory", "", {FASTGRAD: 3 << 20, "PyTorch": 6 << 20}, unit="bytes")
    table = markdown([row], MACHINE)
    assert "3 MiB" in table
    assert "2.00 (PyTorch)" in table


@pytest.mark.parametrize(
    ("peers", "shown"), [({}, "2 x the best peer: not measured |"), ({"JAX": 3}, "2 x the best peer: 3.00 x, yes |")]
)
def test_a_target_without_its_peer_is_not_missed(peers, shown):
    row = Row("step", "", {FASTGRAD: 1} | peers).hold_against(Targets(target_ratio=2))
    assert shown in markdown([row], MACHINE)


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


@pytest.mark.parametrize(("with_health", "reached"), [(1.02, True), (1.04, False), (None, None)])
def test_health_is_held_against_the_step_without_it(with_health, reached):
    row = Row("step", "", {FASTGRAD: 1, "JAX": 2} | ({HEALTH: with_health} if with_health else {}))
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


class LocalWorkers:
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
def gpu_of_benchmarks(fake_gpu, monkeypatch, numpy_backend, torch):
    """A fake GPU for all that the benchmarks run on one; PyTorch's arrays are on the CPU instead."""
    from bench.peers import torch_cuda

    compiled = torch.compile
    for owner, name, value in (
        (torch_cuda, "DEVICE", "cpu"),
        (torch.cuda, "synchronize", lambda: None),
        (torch, "compile", lambda function: compiled(function, backend="eager")),
        *((torch.backends.cudnn, name, getattr(torch.backends.cudnn, name)) for name in ("allow_tf32", "benchmark")),
        (comparison, "TURN", 1e-3),
        (comparison, "PAUSE", 0),
        (machine, "missing", lambda name: ""),
        (limits_cuda, "SIDE", 8),
        (limits_cuda, "COPIED", 64),
    ):
        monkeypatch.setattr(owner, name, value)
    return fake_gpu


@pytest.mark.parametrize("name", [work.name for work in CUDA])
def test_a_row_of_the_gpu_is_checked_and_timed(gpu_of_benchmarks, monkeypatch, name):
    monkeypatch.setitem(WORKLOADS, name, small_on_gpu(WORKLOADS[name]))
    work, local = WORKLOADS[name], LocalWorkers()
    row = comparison.compare(local, work, contenders(work), 2)
    skipped = {"torch.compile": "its fused update is PyTorch's"} if work.runner == "Update" else {}
    assert row.skipped == skipped
    assert row.costs.keys() == {FASTGRAD, "PyTorch", "torch.compile"} - skipped.keys()
    assert all(seconds > 0 for seconds in row.costs.values())
    # before the calls and after them
    with gpu_of_benchmarks.counted() as counts:
        local.started[FASTGRAD, "cuda"].runner.seconds(3)
    assert (counts["waits"], counts["copies"]) == (2, 0)
    assert counts["launches"] > 0


def test_a_wrong_row_of_the_gpu_is_not_timed(gpu_of_benchmarks, monkeypatch):
    from bench.peers import fastgrad_cuda

    monkeypatch.setitem(WORKLOADS, "cuda-update", small_on_gpu(WORKLOADS["cuda-update"]))
    monkeypatch.setattr(fastgrad_cuda.Update, "call", lambda self: None)
    row = comparison.compare(LocalWorkers(), WORKLOADS["cuda-update"], [FASTGRAD], 1)
    assert "wrong result" in row.skipped[FASTGRAD]


def test_the_gpu_of_the_report(gpu_of_benchmarks, monkeypatch):
    assert re.fullmatch(
        r"fake GPU\. Limits .* product \d+ GFLOP/s; memory \(copy\) \d+ GB/s", machine.graphics(LocalWorkers())
    )
    monkeypatch.setattr(machine, "missing", lambda name: "missing an NVIDIA driver")
    table = markdown([], MACHINE | {"gpu": machine.graphics(LocalWorkers())})
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
