"""A chain's step, an LSTM's sequence and an update are captured as graphs: they make no memory, wait for nothing and copy nothing there.

fakegpu.py refuses each of these while a graph is captured, and runs again what was.
"""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from tolerances import assert_close

import fastgrad as fg
from fastgrad import gpu

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from fakegpu import FakeCublas, FakeStream

from fastgrad.kernels.cuda.engine.cublas import Products


def drawn(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def check_replays(fake_gpu, function, inputs, changed, results):
    """A replay over new values gives the bits of a call; `results` are the arrays that it leaves, of what it returns."""
    for seed in (1, 2):
        for a, new in zip(inputs, drawn(seed, *(a.shape for a in inputs)), strict=True):
            a[...] = new
        kept = [a.get() for a in changed]
        function_result = [a.get() for a in results(function())]
        for a, before in zip(changed, kept, strict=True):
            a[...] = before
        if seed == 1:
            captured = gpu.capture(function)
            for a, before in zip(changed, kept, strict=True):
                a[...] = before
        with fake_gpu.counted() as counts:
            found = captured()
        assert counts["waits"] == counts["copies"] == counts["allocations"] == 0
        for ours, wanted in zip(results(found), function_result, strict=True):
            assert ours.get().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("make", ["chain", "layers"])
def test_a_step(fake_gpu, make):
    x, y = fake_gpu.array(np.zeros((9, 6), np.float32)), fake_gpu.array(np.arange(9) % 3)
    if make == "chain":
        model = fg.nn.DenseChain([6, 5, 3], "silu", "softmax", seed=0)
    else:
        model = fg.nn.Sequential(fg.nn.Dense(6, 5, "tanh"), fg.nn.BatchNorm(5), fg.nn.Dense(5, 3, "softmax"), seed=0)
    trainer = fg.Trainer(model.to("cuda"), optimizer=fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
    trainer.step(x, y)

    def results(loss):
        return [model.params, trainer.state, *model.statistics().values(), loss._number]

    changed = [model.params, trainer.state, *model.statistics().values()]
    check_replays(fake_gpu, lambda: trainer.step(x, y), [x], changed, results)


def test_an_lstm_sequence(fake_gpu):
    x, w_ih, w_hh, b, dy = (fake_gpu.array(a) for a in drawn(0, (3, 4, 2), (2, 12), (3, 12), (12,), (3, 4, 3)))

    def run():
        (y, h_n, c_n), backward = fg.lstm(x, w_ih, w_hh, b, lengths=[4, 0, 2])
        return [y, h_n, c_n, *backward(dy)]

    check_replays(fake_gpu, run, [x, dy], [], lambda found: found)


def test_an_update(fake_gpu):
    w, b, dw, db = (fake_gpu.array(a) for a in drawn(0, (7, 3), (3,), (7, 3), (3,)))
    updater = fg.Updater([w, b], fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
    updater.step([dw, db])
    changed = [w, b, updater.state]
    check_replays(fake_gpu, lambda: updater.step([dw, db]), [dw, db], changed, lambda norm: [*changed, norm._number])


OPTIMIZERS = {
    "adam": lambda: fg.optim.Adam(0.1),
    "eps_hat": lambda: fg.optim.Adam(0.1, eps=0.1, eps_hat=True),
    "adamw": lambda: fg.optim.AdamW(0.1, weight_decay=0.1),
    "amsgrad": lambda: fg.optim.Adam(0.1, amsgrad=True),
    "momentum": lambda: fg.optim.SGD(0.1, momentum=0.9),
    "nesterov": lambda: fg.optim.SGD(0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_replays_are_updates_one_after_the_other(fake_gpu, optimizer, dtype):
    """From the first one on, and two in a graph: Adam's corrections and momentum's first step are those of their number."""
    w, dw = (fake_gpu.array(a.astype(dtype)) for a in drawn(0, (40,), (40,)))
    plain = fake_gpu.array(w.get())
    updater, other = (fg.Updater([a], OPTIMIZERS[optimizer](), clip_norm=1.0) for a in (w, plain))

    def twice():
        updater.step([dw])
        return updater.step([dw])

    captured = gpu.capture(twice)
    with fake_gpu.counted() as counts:
        for _ in range(3):
            captured()
    # what was captured has run once before that
    for _ in range(8):
        other.step([dw])
    # of each: the squares, what goes with Adam's step, and the update
    assert counts["launches"] == 3 * 2 * (2 if isinstance(updater.optimizer, fg.optim.SGD) else 3)
    for ours, theirs in ((w, plain), (updater.state, other.state)):
        within = 1e-5 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(ours.get(), theirs.get(), rtol=within, atol=within)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replays_are_updates_of_groups(fake_gpu, optimizer):
    """Each update counts once, however many groups it has; what is frozen is not launched."""
    arrays, grads = (
        [fake_gpu.array(a.astype(np.float64)) for a in drawn(seed, (40,), (3, 5), (7,))] for seed in (0, 1)
    )
    plain = [fake_gpu.array(a.get()) for a in arrays]
    groups = {"1": {"lr": 0.02, "weight_decay": 0.3}, "2": {"frozen": True}}
    rule = replace(OPTIMIZERS[optimizer](), groups=groups)
    updater, other = (fg.Updater(params, rule, clip_norm=1.0) for params in (arrays, plain))
    captured = gpu.capture(lambda: updater.step(grads))
    with fake_gpu.counted() as counts:
        for _ in range(3):
            captured()
    for _ in range(4):
        other.step(grads)
    assert counts["launches"] == 3 * 2 * (2 if isinstance(rule, fg.optim.SGD) else 3)
    for ours, theirs in zip((*arrays, updater.state), (*plain, other.state), strict=True):
        np.testing.assert_allclose(ours.get(), theirs.get(), rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(arrays[2].get(), drawn(0, (40,), (3, 5), (7,))[2])


def test_replays_are_steps_of_a_chain(fake_gpu):
    x, y = fake_gpu.array(drawn(0, (9, 6))[0]), fake_gpu.array(np.arange(9) % 3)
    trainers = [
        fg.Trainer(fg.nn.DenseChain([6, 5, 3], "silu", "softmax", seed=0).to("cuda"), optimizer=fg.optim.Adam(0.01))
        for _ in range(2)
    ]
    captured = gpu.capture(lambda: trainers[0].step(x, y))
    for _ in range(3):
        captured()
    for _ in range(4):
        trainers[1].step(x, y)
    np.testing.assert_allclose(trainers[0].model.params.get(), trainers[1].model.params.get(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", ["chain", "layers"])
def test_a_step_with_health_cannot_be_captured(fake_gpu, make):
    x, y = fake_gpu.array(np.ones((9, 6), np.float32)), fake_gpu.array(np.arange(9) % 3)
    model = fg.nn.DenseChain([6, 3], "silu", "softmax", seed=0)
    if make == "layers":
        model = fg.nn.Sequential(fg.nn.Dense(6, 5, "tanh"), fg.nn.BatchNorm(5), fg.nn.Dense(5, 3, "softmax"), seed=0)
    trainer = fg.Trainer(model.to("cuda"), health=2)
    before = model.params.get()
    with pytest.raises(RuntimeError, match="a step with health cannot be captured"):
        gpu.capture(lambda: trainer.step(x, y))
    np.testing.assert_array_equal(model.params.get(), before)
    trainer.step(x, y)
    assert trainer.health().step == 0


def test_what_waits_cannot_be_captured(fake_gpu):
    x = fake_gpu.array(np.ones((2, 2), np.float32))
    with pytest.raises(AssertionError, match="a graph cannot wait"):
        gpu.capture(lambda: fg.mse(x, x))
    assert fake_gpu.capturing is False
    assert fake_gpu.xp is fake_gpu.module


LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "part of wider rows": lambda a: np.concatenate([a, a], -1)[..., : a.shape[-1]],
    "part of longer columns": lambda a: (
        np.concatenate([a, a], -2).swapaxes(-1, -2).copy().swapaxes(-1, -2)[..., : a.shape[-2], :]
    ),
    "every other value": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "one row for all": lambda a: np.broadcast_to(a[..., :1, :], a.shape),
    "one column for all": lambda a: np.broadcast_to(a[..., :1].copy(), a.shape),
}


def products(fake_gpu, library=None):
    return Products(fake_gpu.xp, FakeStream(fake_gpu, 19), library or FakeCublas(fake_gpu.done))


@pytest.mark.parametrize(
    "shape", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (3, 0, 5), (0, 4, 5), (3, 4, 0)]
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_products_of_a_graph(fake_gpu, dtype, rng, shape, batch):
    """As NumPy's, of operands and into arrays that lie in any way."""
    (m, k, n), ours = shape, products(fake_gpu)
    a, b = rng.standard_normal((*batch, m, k)).astype(dtype), rng.standard_normal((*batch, k, n)).astype(dtype)
    for turn_a in LAYOUTS.values():
        for turn_b in LAYOUTS.values():
            given = turn_a(a), turn_b(b)
            expected = np.matmul(*given)
            assert_close("dense_chain", ours.matmul(*map(fake_gpu.over, given)).get(), expected, size=5, terms=4)
    for name in ("rows", "columns", "part of wider rows", "every other value"):
        whole = LAYOUTS[name](np.full((*batch, m, n), np.nan, dtype))
        out = fake_gpu.over(whole)
        assert ours.matmul(fake_gpu.over(a), fake_gpu.over(b), out=out) is out
        assert_close("dense_chain", whole, a @ b, size=5, terms=4)


def test_products_of_a_graph_have_their_stream_and_its_memory(fake_gpu):
    ours = products(fake_gpu)
    a = fake_gpu.array(np.ones((2, 2), np.float32))
    ours.matmul(a, a)
    stream, workspace = ours.library.set
    assert stream == (17, 19)
    assert workspace == (17, ours.workspace.data.ptr, 32 << 20)


def test_a_product_that_cublas_refuses(fake_gpu):
    library = FakeCublas(fake_gpu.done)
    library.cublasSgemm_v2 = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 13)
    a = fake_gpu.array(np.ones((2, 2), np.float32))
    with pytest.raises(RuntimeError, match="cublasSgemm_v2 failed with cuBLAS status 13"):
        products(fake_gpu, library).matmul(a, a)


def test_cupy_captures_no_product(fake_gpu, monkeypatch):
    """The reason for all of it."""
    monkeypatch.setattr(Products, "matmul", lambda self, *arguments, **options: self.xp.matmul(*arguments, **options))
    a = fake_gpu.array(np.ones((2, 2), np.float32))
    with pytest.raises(NotImplementedError, match="stream capture"):
        gpu.capture(lambda: fg.dense(a, a))
    assert fake_gpu.xp is fake_gpu.module
