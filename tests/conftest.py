"""Every test that asks for `backend` runs over all of them; counts of the ONNX cases are printed at the end."""

import importlib
import os

import numpy as np
import pytest

BACKENDS = {"numpy": "fastgrad.kernels.reference", "cpu": "fastgrad.kernels.cpu"}
# the files whose tests over all backends run over the CUDA backend too: those of ops that it has
ON_CUDA = {
    "test_activation", "test_api", "test_backends", "test_clip", "test_constraint", "test_dense", "test_loss", "test_optim", "test_updater",
}  # fmt: skip
# of each such test so many cases, since an emulated launch takes milliseconds; on a GPU all run
EMULATED_CASES = int(os.environ.get("FASTGRAD_EMULATED_CASES", "2"))
# and of these, of hundreds of launches, one
LONG = {
    "test_matches_pytorch_for_100_updates",
    "test_matches_keras_formula_for_100_updates",
    "test_dense_gradients_come_in_the_order_of_the_given_inputs",
}
# of those files, what needs ops that the CUDA backend has not
NEEDS_MORE = {"test_a_trainer_holds_its_model"}
ONNX_COUNTS = pytest.StashKey()
# (registers, bytes of shared memory) by kernel, dtype and compute capability
CUDA_RESOURCES = pytest.StashKey()


def pytest_generate_tests(metafunc):
    names = [*BACKENDS]
    if metafunc.module.__name__ in ON_CUDA and metafunc.function.__name__ not in NEEDS_MORE:
        names += ["cuda"]
        if not no_gpu():
            names.append(pytest.param("device", marks=pytest.mark.device))
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, indirect=True, scope="session")
    if "in_force" in metafunc.fixturenames:
        # NumPy arrays do not choose a GPU
        metafunc.parametrize("in_force", [name for name in names if isinstance(name, str)], indirect=True)


def pytest_collection_modifyitems(config, items):
    """Thin out the emulated cases of each test, evenly in a fixed order that is none of the parameters'."""
    emulated = {}
    for item in items:
        if hasattr(item, "callspec") and "cuda" in (item.callspec.params.get(name) for name in ("backend", "in_force")):
            emulated.setdefault((item.path, item.originalname), []).append(item)
    surplus = set()
    for (_, name), cases in emulated.items():
        order = np.random.default_rng(0).permutation(len(cases))
        surplus |= {cases[i].nodeid for i in order[1 if name in LONG else EMULATED_CASES :]}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in surplus])
    items[:] = [item for item in items if item.nodeid not in surplus]


def no_gpu():
    """Why kernels cannot run on a GPU here, or an empty string."""
    from fastgrad.backend import missing

    return missing("cuda")


@pytest.fixture(scope="session")
def emulator():
    """The CUDA backend's executor from here on: ptxsim, or in a process for it Numba's simulator."""
    pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")
    from emulation import Emulator, Simulator
    from fastgrad.kernels.cuda import device

    emulator = Simulator() if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else Emulator()
    device.use(emulator)
    yield emulator
    device.use(None)


@pytest.fixture(scope="session")
def emulated(emulator):
    """The CUDA backend's kernels, emulated."""
    return importlib.import_module("fastgrad.kernels.cuda")


@pytest.fixture(scope="session")
def on_device():
    """The CUDA backend's kernels on a GPU, over NumPy arrays."""
    from emulation import OnDevice

    return OnDevice(importlib.import_module("fastgrad.kernels.cuda"))


@pytest.fixture(scope="session")
def backend(request):
    other = {"cuda": "emulated", "device": "on_device"}.get(request.param)
    return request.getfixturevalue(other) if other else importlib.import_module(BACKENDS[request.param])


@pytest.fixture
def in_force(request):
    """Tests of the public API: the backend that runs them."""
    import fastgrad

    loaded = importlib.import_module("fastgrad.backend")._loaded
    if request.param == "cuda":
        # as if there were a GPU
        loaded["cuda"] = request.getfixturevalue("emulated")
    with fastgrad.use_backend(request.param):
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
    for (name, dtype, (major, minor)), (registers, shared) in sorted(config.stash.get(CUDA_RESOURCES, {}).items()):
        terminalreporter.write_line(f"sm_{major}{minor} {name} {dtype}: {registers} registers, {shared} bytes shared")
