"""Every test that asks for `backend` runs over all of them; counts of the ONNX cases are printed at the end."""

import contextlib
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
# what tests share, for this process and for those that it starts
SHARED = [str(TESTS / name) for name in ("support", "training", "nn", "kernels")]
sys.path[:0] = SHARED
# bench/, of which there are tests
sys.path.append(str(TESTS.parent))
os.environ["PYTHONPATH"] = os.pathsep.join([*SHARED, *filter(None, [os.environ.get("PYTHONPATH")])])

BACKENDS = {"numpy": "fastgrad.kernels.reference", "cpu": "fastgrad.kernels.cpu"}
# the files whose tests over all backends run over the CUDA backend too: those of ops that it has
ON_CUDA = {
    "test_activation",
    "test_functions",
    "test_backends",
    "test_batch_norm",
    "test_clip",
    "test_constraint",
    "test_conv",
    "test_dense",
    "test_dropout",
    "test_health",
    "test_init",
    "test_loss",
    "test_lstm",
    "test_optim",
    "test_padding",
    "test_pool",
    "test_pruning",
    "test_recurrent",
    "test_sparse",
    "test_training_step",
    "test_updater",
}
# of each such test so many cases, since an emulated launch takes milliseconds; on a GPU all run
EMULATED_CASES = int(os.environ.get("FASTGRAD_EMULATED_CASES", "2"))
# and of these, of hundreds of launches, one, as of each test of some files
LONG = {
    "test_a_trainer_holds_its_model",
    "test_health",
    "test_lstm",
    "test_padding",
    "test_pruning",
    "test_recurrent",
    "test_100_steps_match_pytorch",
    "test_matches_pytorch_for_100_updates",
    "test_matches_keras_formula_for_100_updates",
    "test_dense_gradients_come_in_the_order_of_the_given_inputs",
}
# a BLAS does not promise that a row has its bits in whatever number of rows
OF_OWN_GEMMS = {"test_a_sequence_has_the_same_bits_alone_and_in_a_batch"}
# and of many hundreds none: what they prove is the same on any backend, or proven by tests against PyTorch
TOO_LONG = {
    "test_batch_norm.py::test_any_shapes_and_activations",
    "test_batch_norm.py::test_gradients_are_central_differences",
    "test_batch_norm.py::test_matches_the_reference_past_the_caches",
    "test_conv.py::test_gradients_come_in_the_order_of_the_given_inputs",
    "test_health.py::test_a_report_does_not_change_with_later_steps",
    "test_health.py::test_convolutions_batch_norm_and_lstms_look_as_in_pytorch",
    "test_health.py::test_fit_leaves_what_steps_leave_and_trains_as_without",
    "test_health.py::test_healthy_nets_are_healthy",
    "test_health.py::test_history_is_bounded_and_covers_the_whole_run",
    "test_health.py::test_plot_writes_a_picture",
    "test_lstm.py::test_cell_gradients_are_central_differences",
    "test_lstm.py::test_gradients_come_in_the_order_of_the_given_inputs",
    "test_lstm.py::test_matches_the_reference_at_awkward_shapes",
    "test_lstm.py::test_matches_the_reference_at_large_shapes",
    "test_padding.py::test_training_and_its_reports_do_not_see_the_padding",
    "test_padding.py::test_windows_do_not_see_the_padding",
    "test_pruning.py::test_a_pruned_chain_trains_as_pytorchs",
    "test_pruning.py::test_epochs_prune_when_steps_do",
    "test_pruning.py::test_training_goes_on_from_a_file_with_the_same_bits",
    "test_recurrent.py::test_a_sequential_runs_from_the_states_of_its_layers",
    "test_recurrent.py::test_copies_are_whole_and_apart",
    "test_recurrent.py::test_dropout_is_for_training_alone_and_from_the_seed",
    "test_recurrent.py::test_forward_predict_run_and_call_agree",
    "test_recurrent.py::test_gradients_are_central_differences",
    "test_recurrent.py::test_gradients_through_dropout_are_central_differences",
    "test_recurrent.py::test_pools_are_of_the_sequences_own_steps",
    "test_recurrent.py::test_rows_are_copied_on_the_way_in_and_out_alone",
    "test_training_step.py::test_training_lowers_the_loss_to_nothing",
}
ONNX_COUNTS = pytest.StashKey()
# (registers, bytes of shared memory) by kernel, dtype and compute capability
CUDA_RESOURCES = pytest.StashKey()


def pytest_generate_tests(metafunc):
    names, module = [*BACKENDS], metafunc.module.__name__
    if module in ON_CUDA and metafunc.function.__name__ not in OF_OWN_GEMMS:
        names += ["cuda"]
        if not no_gpu():
            names.append(pytest.param("device", marks=pytest.mark.device))
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, indirect=True, scope="session")
    if "in_force" in metafunc.fixturenames:
        metafunc.parametrize("in_force", names, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Thin out the emulated cases of each test, evenly in a fixed order that is none of the parameters'."""
    emulated = {}
    for item in items:
        if hasattr(item, "callspec") and "cuda" in (item.callspec.params.get(name) for name in ("backend", "in_force")):
            emulated.setdefault((item.path, item.originalname), []).append(item)
    surplus = set()
    for (path, name), cases in emulated.items():
        order = np.random.default_rng(0).permutation(len(cases))
        kept = 0 if f"{path.name}::{name}" in TOO_LONG else 1 if LONG & {name, path.stem} else EMULATED_CASES
        surplus |= {cases[i].nodeid for i in order[kept:]}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in surplus])
    items[:] = [item for item in items if item.nodeid not in surplus]


def no_gpu():
    """Why kernels cannot run on a GPU here, or an empty string."""
    from fastgrad.core.backend import missing

    return missing("cuda")


@pytest.fixture(scope="session")
def emulator():
    """The CUDA backend's executor from here on: ptxsim, or in a process for it Numba's simulator."""
    pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")
    from emulation import Emulator, Simulator
    from fastgrad.kernels.cuda.engine import device

    emulator = Simulator() if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else Emulator()
    device.use(emulator)
    yield emulator
    device.use(None)


@pytest.fixture(scope="session")
def emulated(emulator):
    """The CUDA backend's kernels, emulated."""
    return importlib.import_module("fastgrad.kernels.cuda")


@pytest.fixture(scope="session")
def fake_gpu():
    pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")
    from fakegpu import FakeGPU

    return FakeGPU()


@pytest.fixture
def there(fake_gpu, monkeypatch):
    """A fake GPU in the place of one, for arrays that lie there."""
    from fastgrad.kernels import cuda
    from fastgrad.kernels.cuda.engine import array_table, device

    from fastgrad.core import device as gpu
    from fastgrad.core.host_transfer import HostArrayAdapter

    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setitem(importlib.import_module("fastgrad.core.backend")._loaded, "cuda", HostArrayAdapter(cuda))
    monkeypatch.setattr(fake_gpu, "current", 0)
    before = device.use(fake_gpu)
    # what is kept is of another's arrays
    for kept in (gpu.cuda_device, array_table._table):
        kept.cache_clear()
    yield fake_gpu
    device.use(before)
    for kept in (gpu.cuda_device, array_table._table):
        kept.cache_clear()


@pytest.fixture(scope="session")
def on_device():
    """The CUDA backend's kernels on a GPU, over NumPy arrays."""
    from emulation import OnDevice

    kernels = OnDevice(importlib.import_module("fastgrad.kernels.cuda"))
    if os.environ.get("FASTGRAD_DEVICE_POOL") == "0":
        kernels.gpu.xp.cuda.set_allocator(None)
    return kernels


@pytest.fixture(scope="session")
def backend(request):
    other = {"cuda": "emulated", "device": "on_device"}.get(request.param)
    return request.getfixturevalue(other) if other else importlib.import_module(BACKENDS[request.param])


@pytest.fixture
def in_force(request):
    """Tests of the public API: the backend that runs them."""
    import fastgrad

    loaded = importlib.import_module("fastgrad.core.backend")._loaded
    name, where = request.param, contextlib.nullcontext()
    if name == "cuda":
        # as if there were a GPU
        loaded["cuda"] = request.getfixturevalue("emulated")
    elif name == "device":
        from emulation import on

        name, loaded["cuda"] = "cuda", request.getfixturevalue("on_device")
        where = on(loaded["cuda"].gpu)
    with where, fastgrad.use_backend(name):
        yield request.param
    loaded.pop("cuda", None)


@pytest.fixture
def cpu():
    """The compiled kernels, in force."""
    import fastgrad

    with fastgrad.use_backend("cpu"):
        yield importlib.import_module(BACKENDS["cpu"])


@pytest.fixture
def numpy_backend():
    import fastgrad

    with fastgrad.use_backend("numpy"):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def torch():
    """PyTorch as an oracle. On one thread: with small arrays a second one only waits, for long beside a busy process."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(ONNX_COUNTS, ()):
        terminalreporter.write_line(line)
    for line in resource_table(config.stash.get(CUDA_RESOURCES, {})):
        terminalreporter.write_line(line)


def resource_table(resources):
    """Lines of a row a kernel: registers of a thread + bytes of a block's shared memory, for each dtype and compute capability."""
    if not resources:
        return []
    places = sorted({(dtype, cc) for _, dtype, cc in resources})
    lines = [["registers + shared bytes", *(f"{dtype} sm_{major}{minor}" for dtype, (major, minor) in places)]]
    for name in sorted({name for name, _, _ in resources}):
        found = [resources.get((name, *place)) for place in places]
        lines.append([name, *("-" if needs is None else f"{needs[0]} + {needs[1]}" for needs in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
