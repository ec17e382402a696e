"""On a GPU: a chain's training step and an LSTM, beside PyTorch's CUDA and torch.compile; skipped, with the reason, where there is none."""

from itertools import pairwise

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.backend import missing

pytestmark = [pytest.mark.device, pytest.mark.skipif(bool(missing("cuda")), reason=f"needs a GPU: {missing('cuda')}")]

SIZES, BATCH = [784, 512, 512, 10], 256
STEPS, WIDTH, HIDDEN, SEQUENCES = 100, 64, 256, 64


def ours_step():
    import cupy

    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal((BATCH, SIZES[0]), np.float32))
    y = cupy.asarray(rng.integers(0, SIZES[-1], BATCH))
    trainer = fg.Trainer(fg.nn.DenseChain(SIZES, "relu", "softmax", seed=0).to("cuda"), clip_norm=1.0)
    return lambda: trainer.step(x, y), cupy.cuda.runtime.deviceSynchronize


def ours_lstm():
    import cupy

    x, w_ih, w_hh = (cupy.asarray(a) for a in lstm_arrays())

    def run():
        (y, _, _), backward = fg.lstm(x, w_ih, w_hh)
        return backward(y)

    return run, cupy.cuda.runtime.deviceSynchronize


def lstm_arrays():
    rng = np.random.default_rng(0)
    shapes = (SEQUENCES, STEPS, WIDTH), (WIDTH, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN)
    return [rng.standard_normal(shape, np.float32) / 16 for shape in shapes]


def torch_step(compiled):
    import torch

    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((BATCH, SIZES[0]), np.float32), device="cuda")
    y = torch.tensor(rng.integers(0, SIZES[-1], BATCH), device="cuda")
    layers = [torch.nn.Linear(n, m) for n, m in pairwise(SIZES)]
    model = torch.nn.Sequential(*[f for layer in layers for f in (layer, torch.nn.ReLU())][:-1]).cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    forward = torch.compile(model) if compiled else model

    def run():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run, torch.cuda.synchronize


def torch_lstm(compiled):
    import torch

    x = torch.tensor(lstm_arrays()[0], device="cuda", requires_grad=True)
    lstm = torch.nn.LSTM(WIDTH, HIDDEN, batch_first=True, bias=False).cuda()
    forward = torch.compile(lstm) if compiled else lstm

    def run():
        y, _ = forward(x)
        y.backward(y.detach())

    return run, torch.cuda.synchronize


WORK = {"step-784-512-512-10": (ours_step, torch_step), "lstm-64x100x64-256": (ours_lstm, torch_lstm)}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("contender", ["fastgrad", "PyTorch", "torch.compile"])
def test_cuda(benchmark, name, contender):
    ours, theirs = WORK[name]
    if contender == "fastgrad":
        run, synchronize = ours()
    else:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs PyTorch with CUDA")
        run, synchronize = theirs(contender == "torch.compile")
    benchmark.group = name

    def finished():
        run()
        synchronize()

    benchmark.pedantic(finished, rounds=50, warmup_rounds=10)
