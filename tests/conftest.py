"""Every test that asks for `backend` runs over all of them; counts of the ONNX cases are printed at the end."""

import importlib

import numpy as np
import pytest

BACKENDS = {"numpy": "fastgrad.kernels.reference", "cpu": "fastgrad.kernels.cpu"}
ONNX_COUNTS = pytest.StashKey()


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request):
    return importlib.import_module(BACKENDS[request.param])


@pytest.fixture(params=BACKENDS)
def in_force(request):
    """Tests of the public API: the backend that runs them."""
    import fastgrad

    with fastgrad.use_backend(request.param):
        yield request.param


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
