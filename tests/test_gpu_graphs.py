"""A chain's step, an LSTM's sequence and an update are captured as graphs: they make no memory, wait for nothing and copy nothing there.

fakegpu.py refuses each of these while a graph is captured, and runs again what was.
"""

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import gpu

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")


def drawn(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def check_replays(there, function, inputs, changed, results):
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
        with there.counted() as counts:
            found = captured()
        assert counts["waits"] == counts["copies"] == counts["allocations"] == 0
        for ours, wanted in zip(results(found), function_result, strict=True):
            assert ours.get().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("make", ["chain", "layers"])
def test_a_step(there, make):
    x, y = there.array(np.zeros((9, 6), np.float32)), there.array(np.arange(9) % 3)
    if make == "chain":
        model = fg.nn.DenseChain([6, 5, 3], "silu", "softmax", seed=0)
    else:
        model = fg.nn.Sequential(fg.nn.Dense(6, 5, "tanh"), fg.nn.BatchNorm(5), fg.nn.Dense(5, 3, "softmax"), seed=0)
    trainer = fg.Trainer(model.to("cuda"), optimizer=fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
    trainer.step(x, y)

    def results(loss):
        return [model.params, trainer.state, *model.statistics().values(), loss._number]

    changed = [model.params, trainer.state, *model.statistics().values()]
    check_replays(there, lambda: trainer.step(x, y), [x], changed, results)


def test_an_lstm_sequence(there):
    x, w_ih, w_hh, b, dy = (there.array(a) for a in drawn(0, (3, 4, 2), (2, 12), (3, 12), (12,), (3, 4, 3)))

    def run():
        (y, h_n, c_n), backward = fg.lstm(x, w_ih, w_hh, b, lengths=[4, 0, 2])
        return [y, h_n, c_n, *backward(dy)]

    check_replays(there, run, [x, dy], [], lambda found: found)


def test_an_update(there):
    w, b, dw, db = (there.array(a) for a in drawn(0, (7, 3), (3,), (7, 3), (3,)))
    updater = fg.Updater([w, b], fg.optim.SGD(0.1, momentum=0.9), clip_norm=1.0)
    updater.step([dw, db])
    changed = [w, b, updater.state]
    check_replays(there, lambda: updater.step([dw, db]), [dw, db], changed, lambda norm: [*changed, norm._number])


def test_what_waits_cannot_be_captured(there):
    x = there.array(np.ones((2, 2), np.float32))
    with pytest.raises(AssertionError, match="a graph cannot wait"):
        gpu.capture(lambda: fg.mse(x, x))
    assert there.capturing is False
