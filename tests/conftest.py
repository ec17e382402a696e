"""Options, backends and fixtures. Every test that asks for `backend` or `in_force` runs over all backends that its marks name."""

import contextlib
import importlib
import os
import sys

import numpy as np
import pytest
from backends import BACKENDS
from selection import split_full, split_quick
from summary import summary_lines

# tests compare what is on stderr, in this process and in those that they start
os.environ.setdefault("FASTGRAD_QUIET", "1")
# of each function so many cases on emulated kernels, whose launches take milliseconds; a mark `emulated` says another number
EMULATED_CASES = int(os.environ.get("FASTGRAD_EMULATED_CASES", "2"))
# options that choose tests by hand, of which none is then left out
CHOICES = ("keyword", "markexpr", "lf")
# of several gigabytes each
MOST_PROCESSES = 4
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK = pytest.StashKey[bool]()
# of the processes of pytest-xdist, what they say at their ends
WORKER_LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser):
    parser.getgroup("fastgrad").addoption(
        "--full", action="store_true", help="all cases of all tests, not two of each function (the quick run)"
    )


def pytest_generate_tests(metafunc):
    names, marker = [*BACKENDS], metafunc.definition.get_closest_marker
    if marker("cuda") and not marker("host"):
        names += ["cuda"]
        if not no_gpu():
            names.append(pytest.param("device", marks=pytest.mark.device))
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names, indirect=True, scope="session")
    if "in_force" in metafunc.fixturenames:
        metafunc.parametrize("in_force", names, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """All tests run in a process a core, where pytest-xdist is installed; tests chosen by hand run in this one, as -n 0 asks for."""
    option = config.option
    # a process of pytest-xdist comes here too
    if hasattr(config, "workerinput"):
        return
    alone = option.usepdb or config.getoption("benchmark_only", False)
    if getattr(option, "numprocesses", 0) is None and runs_all(config) and not alone:
        # the cores that this process may use, not those of the machine
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        option.numprocesses, option.dist = min(cores, MOST_PROCESSES), "worksteal"


def runs_all(config):
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(
        config.getoption(name, False) for name in CHOICES
    )


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        # the processes of pytest-xdist have all cores already
        os.environ.setdefault("FASTGRAD_COMPILE_PROCESSES", "1")
    quick = runs_all(config) and not any(config.getoption(name, False) for name in ("full", "benchmark_only"))
    # a process of pytest-xdist is told by the first one, whose command line it does not see
    config.stash[QUICK] = getattr(config, "workerinput", {}).get("quick", quick)
    # most of JAX's time in tests is that of XLA, which makes fast code for small arrays; benchmarks measure that code
    if not config.getoption("benchmark_only", False):
        os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
        # of PyTorch, and in processes of pytest-xdist of NumPy's products, which read it when NumPy is imported: with small arrays a
        # second thread only waits, for long beside a busy process
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["quick"] = node.config.stash[QUICK]


# after -k and -m
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    items[:], left_out = split_full(items, EMULATED_CASES)
    if config.stash[QUICK]:
        items[:], others = split_quick(items)
        left_out += others
    config.hook.pytest_deselected(items=left_out)


def no_gpu():
    """Why kernels cannot run on a GPU here, or an empty string."""
    from fastgrad.core.backend import missing

    return missing("cuda")


@pytest.fixture(autouse=True)
def share_of_threads(request):
    """In a process of pytest-xdist a test has that process's share of the cores: a call of more threads waits for ones that do not run.

    Kernels are tested on all threads, and tests of threads set their own number.
    """
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)
    if workers == 1 or "kernels" in request.path.parts:
        yield
        return
    import fastgrad

    before = fastgrad.get_num_threads()
    fastgrad.set_num_threads(max(1, before // workers))
    yield
    fastgrad.set_num_threads(before)


@pytest.fixture(autouse=True)
def fused_ways(request, monkeypatch):
    """In tests of adapters accelerated models are fused wherever they can be; tests of the choice set their own times."""
    choice = sys.modules.get("fastgrad.torch.choice")
    if choice is not None and request.path.parent.name == "adapters":
        monkeypatch.setattr(choice, "speed_ratio", lambda unit, args, times: 2.0)


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


@pytest.fixture
def launches(emulator):
    """Launches from here on."""
    emulator.launches.clear()
    emulator.xp.products = 0
    return emulator.launches


@pytest.fixture(scope="session")
def emulated(emulator):
    """The CUDA backend's kernels, emulated."""
    return importlib.import_module("fastgrad.kernels.cuda")


@pytest.fixture(scope="session")
def fake_device():
    pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")
    from fakegpu import FakeGPU

    return FakeGPU()


@pytest.fixture
def fake_gpu(fake_device, monkeypatch):
    """A fake GPU in place of a real one; its `array` makes arrays on it."""
    from fastgrad.core import device as gpu
    from fastgrad.core.host_transfer import HostArrayAdapter
    from fastgrad.kernels import cuda
    from fastgrad.kernels.cuda.engine import array_table, device

    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setitem(importlib.import_module("fastgrad.core.backend")._loaded, "cuda", HostArrayAdapter(cuda))
    monkeypatch.setattr(fake_device, "current", 0)
    before = device.use(fake_device)
    # caches hold arrays of another device
    for kept in (gpu.cuda_device, array_table._table):
        kept.cache_clear()
    yield fake_device
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
    """PyTorch as an oracle."""
    return pytest.importorskip("torch")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["summary"] = summary_lines(session.config.stash)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash.setdefault(WORKER_LINES, []).extend(getattr(node, "workeroutput", {}).get("summary", ()))


def pytest_terminal_summary(terminalreporter, config):
    for line in [*config.stash.get(WORKER_LINES, ()), *summary_lines(config.stash)]:
        terminalreporter.write_line(line)
