"""Whether the CUDA backend is taken, and the reason that is told where it is not."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import fastgrad as fg
import fastgrad.kernels.cuda
from fastgrad.core import device as gpu

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")


class FakeCuda:
    def __init__(self, devices, capability, cublas):
        self.runtime = SimpleNamespace(getDeviceCount=lambda: devices)
        self.Device = lambda: SimpleNamespace(compute_capability=capability)
        self.has_cublas = cublas

    @property
    def cublas(self):
        if not self.has_cublas:
            raise ImportError('Failure finding "libcublas.so.13": No such file\n  listdir("lib"):\n')


def fake_cupy(version="14.2.0", devices=1, capability="90", cublas=True):
    cuda = FakeCuda(devices, capability, cublas)
    return SimpleNamespace(__spec__="fake", __version__=version, cuda=cuda)


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (fake_cupy(version="12.3.0"), "CuPy must be at least 13.0, got 12.3.0"),
        (fake_cupy(devices=0), "there is no GPU"),
        (fake_cupy(capability="70"), "compute capability must be at least 7.5, got 7.0"),
        (fake_cupy(cublas=False), r'ImportError: Failure finding "libcublas.so.13": No such file$'),
        (SimpleNamespace(__spec__="fake", __version__="14.2.0"), "AttributeError: .* has no attribute 'cuda'"),
    ],
)
def test_the_reason_why_cuda_cannot_run(monkeypatch, cupy, reason):
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(fg.BackendError, match=f'the backend "cuda" cannot run here: {reason}'):
        fg.use_backend("cuda")


@pytest.mark.parametrize("capability", ["75", "90", "120"])
def test_a_good_gpu_is_taken(monkeypatch, capability):
    monkeypatch.setattr(gpu, "has_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(capability=capability))
    assert gpu.missing() == ""


def test_kernels_that_are_not_all_there_are_not_taken(monkeypatch):
    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setattr(fastgrad.kernels.cuda, "__all__", [])
    with pytest.raises(
        fg.BackendError, match=r'the backend "cuda" cannot run here: this version has no .*lstm_forward'
    ):
        fg.use_backend("cuda")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu, "has_driver", lambda: False)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.missing() == "missing the package numba-cuda, the package cupy, an NVIDIA driver"


def test_importing_the_kernels_needs_no_cupy():
    code = "import fastgrad.kernels.cuda, sys; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
