"""The CUDA backend on a GPU. Where there is one, the tests of each op run there too, as the backend "device" (see conftest.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import bits
from conftest import no_gpu
from tolerances import assert_close

import fastgrad as fg
from fastgrad import gpu
from fastgrad.core import device
from fastgrad.kernels.types import ACTIVATIONS

pytestmark = [pytest.mark.device, pytest.mark.skipif(bool(no_gpu()), reason=f"needs a GPU: {no_gpu()}")]

# of these the GPU does nothing that is rounded otherwise than here
EXACT = ["identity", "relu", "leaky_relu", "relu6", "clipped_relu"]


@pytest.mark.parametrize("name", EXACT)
def test_the_gpu_gives_the_emulators_bits(on_device, name, dtype, rng):
    from emulation import Emulator, on

    from fastgrad.kernels import cuda

    z, dy = rng.standard_normal((2, 100, 33)).astype(dtype)
    f, found = ACTIVATIONS[name], []
    for kernels, executor in ((on_device, on_device.gpu), (cuda, Emulator())):
        with on(executor):
            y, dz = np.empty_like(z), np.empty_like(z)
            kernels.activation_forward(z, y, f)
            kernels.activation_backward(dy, z, y, dz, f)
        found.append((bits(y), bits(dz)))
    assert found[0] == found[1]


@pytest.fixture
def xp(on_device):
    """CuPy, with its arrays taken by the GPU."""
    from emulation import on

    with on(on_device.gpu):
        yield on_device.gpu.xp


def problem(xp, kind):
    """(function of a graph, the array that changes between its runs, arrays that it leaves)."""
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return xp.asarray(rng.standard_normal(shape, np.float32))

    if kind == "step":
        x, y = drawn(64, 20), xp.asarray(rng.integers(0, 10, 64))
        model = fg.nn.DenseChain([20, 33, 17, 10], "silu", "softmax", seed=0).to("cuda")
        trainer = fg.Trainer(model, optimizer=fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
        trainer.step(x, y)
        return lambda: trainer.step(x, y), x, [model.params, trainer.state]
    if kind == "update":
        w, dw = drawn(300, 40), drawn(300, 40)
        updater = fg.Updater([w], fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
        updater.step([dw])
        return lambda: updater.step([dw]), dw, [w, updater.state]
    x, w_ih, w_hh, b = drawn(8, 9, 5), drawn(5, 64), drawn(16, 64), drawn(64)
    left = [xp.empty_like(a) for a in (x, w_ih, w_hh, b)]

    def run():
        (y, _, _), backward = fg.lstm(x, w_ih, w_hh, b, lengths=[9, 7, 0, 1, 5, 8, 9, 3])
        for gradient, into in zip(backward(y), left, strict=True):
            into[...] = gradient

    return run, x, left


@pytest.mark.parametrize("kind", ["step", "update", "lstm"])
def test_a_graph_replays_what_a_call_does(xp, kind):
    results = []
    for captured in (False, True):
        function, x, left = problem(xp, kind)
        kept = [a.copy() for a in left]
        run = gpu.capture(function) if captured else function
        for a, before in zip(left, kept, strict=True):
            a[...] = before
        for scale in (1.5, -0.5, 2.0):
            x *= scale
            run()
        results.append([bits(a.get()) for a in left])
    assert results[0] == results[1]


def test_health_and_shared_steps_are_those_of_the_cpu(xp):
    rng = np.random.default_rng(0)
    x, y, found = rng.standard_normal((64, 20), np.float32), rng.integers(0, 10, 64), []
    for place in ("cpu", "cuda"):
        parts = fg.nn.Dense(20, 33, "tanh"), fg.nn.BatchNorm(33, "relu"), fg.nn.Dense(33, 10, "softmax")
        model = fg.nn.Sequential(*parts, seed=0).to(place)
        trainer = fg.Trainer(model, clip_norm=1.0, health=2, reduce=lambda values: None)
        losses = [float(trainer.step(x, y)) for _ in range(3)]
        trainer.fit(x, y, batch_size=20, shuffle=False)
        found.append((losses, trainer.health().history, device.to_host(model.params)))
    for here, on_gpu in zip(*found, strict=True):
        np.testing.assert_allclose(on_gpu, here, rtol=1e-3, atol=1e-5)


def test_tensors_of_pytorch_are_taken_where_they_lie(xp):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x, w = torch.randn(300, 70, device="cuda"), torch.randn(70, 30, device="cuda")
        for _ in range(50):
            # the library's stream has to come to this before x is read
            x = torch.tanh(x @ w @ w.T)
        y = torch.from_dlpack(fg.dense(x, w, activation="tanh")[0])
        expected = torch.tanh(x @ w)
    torch.cuda.synchronize()
    assert_close("dense_chain", y.cpu().numpy(), expected.cpu().numpy(), size=100, terms=70)
    before = x.data_ptr()
    fg.clip_grad_value(x, 0.25)
    assert x.data_ptr() == before
    assert float(x.abs().max()) <= 0.25
    with torch.cuda.stream(stream):
        for limit in (0.2, 0.1):
            fg.clip_grad_value(x, limit)
            # and the library's to this after x is written
            assert float(x.abs().max()) <= limit


SANITIZER = shutil.which("compute-sanitizer")
SANITIZED = [
    f"kernels/test_{op}.py"
    for op in ("activation", "dense", "loss", "optim", "clip", "batch_norm", "conv", "pool", "lstm", "training_step")
]


@pytest.mark.full
@pytest.mark.skipif(not SANITIZER, reason="needs compute-sanitizer on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_the_sanitizer_finds_nothing(tool):
    tests = [str(Path(__file__).parent.parent / name) for name in SANITIZED]
    # libraries try calls of the driver that it may not have
    options = "--tool", tool, "--error-exitcode", "99", "--report-api-errors", "no"
    command = [
        SANITIZER,
        *options,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "device",
    ]
    # an array that shares no memory with others is one whose bounds memcheck knows
    environment = {**os.environ, "FASTGRAD_DEVICE_POOL": "0"}
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:]
