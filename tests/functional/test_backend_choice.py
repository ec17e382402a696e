"""use_backend, set_num_threads and what an import loads."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from dense_inputs import DENSE, arrays
from error_messages import refuses

import fastgrad as fg

pytestmark = pytest.mark.cuda


def test_the_backend_in_force():
    before = fg.backend()
    with fg.use_backend("numpy"):
        assert fg.backend() == "numpy"
        with fg.use_backend("cpu"):
            assert fg.backend() == "cpu"
        assert fg.backend() == "numpy"
    assert fg.backend() == before
    with pytest.raises(KeyError), fg.use_backend("numpy"):
        raise KeyError
    assert fg.backend() == before


def test_a_with_block_is_seen_by_its_own_thread_only():
    before, seen = fg.backend(), []
    other = "cpu" if before == "numpy" else "numpy"
    with fg.use_backend(other):
        thread = threading.Thread(target=lambda: seen.append(fg.backend()))
        thread.start()
        thread.join()
    assert seen == [before]


def test_a_plain_call_holds_for_the_process_on_the_main_thread_and_else_for_its_own():
    before, seen = fg.backend(), []

    def choose():
        fg.use_backend("cpu")
        seen.append(fg.backend())

    try:
        fg.use_backend("numpy")
        for target in (lambda: seen.append(fg.backend()), choose):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        assert [*seen, fg.backend()] == ["numpy", "cpu", "numpy"]
        with fg.use_backend("cpu"):
            pass
        assert fg.backend() == "numpy"
    finally:
        fg.use_backend(before)


def test_backward_runs_on_the_backend_of_its_forward(monkeypatch):
    from fastgrad.core.backend import load

    x, w, _, _ = arrays(np.float32, **DENSE).values()
    called = []
    backward_of = load("numpy").dense_chain_backward
    monkeypatch.setattr(load("numpy"), "dense_chain_backward", lambda *a: called.append(1) or backward_of(*a))
    with fg.use_backend("numpy"):
        y, backward = fg.dense(x, w)
    backward(y)
    assert called == [1]


def test_unknown_and_missing_backends():
    before = fg.backend()
    message = "use_backend: the backend must be one of cpu, cuda, numpy; got 'gpu'"
    refuses(ValueError, message, fg.use_backend, "gpu")
    with pytest.raises(fg.BackendError, match=r'the backend "cuda" cannot run here: missing .*an NVIDIA driver'):
        fg.use_backend("cuda")
    assert fg.backend() == before


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("numpy", "numpy"),
        ("cuda", 'BackendError the backend "cuda" cannot run here'),
        ("nope", "ValueError FASTGRAD_BACKEND: the backend must be one of cpu, cuda, numpy; got 'nope'"),
    ],
)
def test_the_environment_names_the_first_backend_and_never_falls_back(name, outcome):
    code = """
import fastgrad as fg, numpy as np
try:
    fg.mse(np.ones(3), np.ones(3))
    print(fg.backend())
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "FASTGRAD_BACKEND": name}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(outcome)


def test_threads_are_counted_from_one():
    before = fg.get_num_threads()
    try:
        fg.set_num_threads(1)
        assert fg.get_num_threads() == 1
        refuses(ValueError, "set_num_threads: count must be an integer of at least 1, got 0", fg.set_num_threads, 0)
        refuses(TypeError, "set_num_threads: count must be an integer, got float", fg.set_num_threads, 1.0)
        assert fg.get_num_threads() == 1
    finally:
        fg.set_num_threads(before)


def test_import_is_light_and_compiles_nothing():
    code = """
import sys, fastgrad
loaded = {"torch", "jax", "matplotlib", "tqdm", "safetensors", "numba", "scipy", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "library", "message"),
    [
        ("torch", "torch", 'fastgrad.torch needs PyTorch from 2.4 on: pip install "fastgrad[torch]"'),
        ("jax", "jax", 'fastgrad.jax needs JAX from 0.5 on: pip install "fastgrad[jax]"'),
        ("sklearn", "sklearn", 'fastgrad.sklearn needs scikit-learn from 1.7 on: pip install "fastgrad[sklearn]"'),
    ],
)
def test_an_adapter_without_its_library_tells_what_to_install(module, library, message):
    code = f"""
import sys
sys.modules["{library}"] = None
try:
    import fastgrad.{module}
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == message


def test_public_names_are_what_they_say():
    for name in fg.__all__:
        assert getattr(fg, name) is not None
    assert callable(fg.backend)
    assert callable(fg.dense)
    with pytest.raises(AttributeError, match="has no attribute 'lstm_cells'"):
        _ = fg.lstm_cells


@pytest.mark.parametrize("n", [4097, 65_536, 2**63])
def test_more_threads_than_any_machine_has_are_refused(n):
    """A launch counts its parts in 16 bits: 65,536 threads were waited for forever."""
    with pytest.raises(ValueError, match=f"set_num_threads: count must be an integer of at most 4096, got {n}"):
        fg.set_num_threads(n)
