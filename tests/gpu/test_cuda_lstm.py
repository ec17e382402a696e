"""The LSTM on the CUDA backend: launches, traffic, and the reference's results in few blocks."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from launch_counts import names_of, traffic_of
from lstms import random_lstm
from tolerances import assert_close

from fastgrad.functional.packing import packed_batch
from fastgrad.kernels import reference, types
from fastgrad.kernels.cuda import packing
from fastgrad.kernels.cuda.engine import device


class LSTMCall:
    """The arguments of the LSTM's kernels for a problem of lstms.py, with NaN in what they write."""

    def __init__(self, problem, dtype, accumulate=False, apart=0, squared=False):
        p = self.problem = problem.map(lambda a: a.astype(dtype))
        self.batch = packed_batch("lstm", p.x.shape[:2], p.lengths, p.reverse)
        hidden, columns, rows = p.c_0.shape[1], p.h_0.shape[1], int(self.batch.offsets[-1])
        self.xs, self.dh = self._rows(p.x, 0), self._rows(p.dy, apart)
        gates, c, tanh_c = (np.full((rows, k * hidden), np.nan, dtype) for k in (4, 1, 1))
        # one direction of two has its rows apart
        h = np.full((rows, columns + apart), np.nan, dtype)[:, :columns]
        self.saved, self.start = types.LSTMSaved(gates, c, tanh_c, h), types.States(p.h_0, p.c_0)
        self.end, self.dstart = (types.States(*(np.full_like(a, np.nan) for a in self.start)) for _ in range(2))
        self.dxs, self.squares = np.full_like(self.xs, np.nan), np.full(rows, np.nan) if squared else None
        self.accumulate = accumulate
        value = 3.0 if accumulate else np.nan
        self.weights = types.LSTMWeights(*(getattr(p, name) for name in types.LSTMWeights._fields))
        self.dweights = types.LSTMWeights(*(None if w is None else np.full_like(w, value) for w in self.weights))

    def _rows(self, x, apart):
        rows = np.full((self.batch.offsets[-1], x.shape[2] + apart), np.nan, x.dtype)[:, : x.shape[2]]
        reference.gather_rows(x, self.batch, rows)
        return rows

    def forward(self, kernels):
        kernels.lstm_forward(self.xs, self.weights, self.start, self.batch, self.saved, self.end)

    def backward(self, kernels, in_place=False):
        upstream = types.LSTMUpstream(self.dh, self.problem.dh_n, self.problem.dc_n)
        self.dz = self.saved.gates if in_place else np.full_like(self.saved.gates, np.nan)
        gradients = types.LSTMGradients(self.dz, self.dxs, self.dweights, self.dstart, self.squares)
        kernels.lstm_backward(
            upstream, self.xs, self.weights, self.start, self.batch, self.saved, gradients, self.accumulate
        )

    def results(self):
        """What has been written, but squares."""
        gradients = [a for a in self.dweights if a is not None]
        return [*self.saved[1:], *self.end, self.dz, self.dxs, *gradients, *self.dstart]


LSTMS = {
    "plain": {},
    "no_bias": {"bias": False},
    "peephole": {"peephole": True, "lengths": "random"},
    "projection": {"projected": 5},
    "all": {"peephole": True, "projected": 5, "lengths": "random"},
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", LSTMS)
def test_an_lstm_on_cuda_is_the_reference(emulated, dtype, rng, options, reverse):
    """With dz in place of the gates, gradients that are added to, rows that lie apart and the norms of steps where it runs backwards."""
    problem = random_lstm(rng, 7, 4, 3, 9, reverse=reverse, **LSTMS[options])
    assert_lstm_is_the_reference(emulated, problem, dtype, reverse)


def assert_lstm_is_the_reference(emulated, problem, dtype, hard):
    calls = []
    for kernels, kind in ((emulated, dtype), (reference, np.dtype(np.float64))):
        call = LSTMCall(problem, kind, accumulate=hard, apart=2 * hard, squared=hard)
        call.forward(kernels)
        call.backward(kernels, in_place=hard)
        calls.append(call)
    ours, exact = calls
    for found, expected in zip(ours.results(), exact.results(), strict=True):
        assert_close("lstm", found, expected, size=np.abs(expected).max(), terms=4)
    if hard:
        assert_close("lstm", ours.squares.astype(dtype), exact.squares, terms=9)


def test_an_lstm_in_fewer_blocks_than_values_and_steps(emulated, dtype, rng, monkeypatch):
    """So that threads take several; and wider than a block, with more rows than one adds up."""
    monkeypatch.setattr(device, "MOST_BLOCKS", 2)
    monkeypatch.setattr(packing, "MOST_STEPS", 1)
    problem = random_lstm(rng, 9, 3, 2, 300, lengths=rng.integers(2, 4, 9), peephole=True)
    assert_lstm_is_the_reference(emulated, problem, dtype, True)


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", ["plain", "all"])
def test_a_step_of_an_lstm_is_one_launch_and_one_gemm(emulated, launches, emulator, rng, options, lengths):
    """With a projection one of each more."""
    problem = random_lstm(rng, 7, 6, 3, 9, **{**LSTMS[options], "lengths": lengths})
    call = LSTMCall(problem, np.dtype("float32"))
    call.forward(emulated)
    projects = options == "all"
    assert names_of(launches) == ["lstm_cells", *["lstm_outputs"] * projects] * 6
    # and one of all steps, with w_ih
    assert emulator.xp.products == 6 * (1 + projects) + 1
    launches.clear()
    emulator.xp.products = 0
    call.backward(emulated)
    step, sums = [*["lstm_upstream"] * projects, "lstm_gradients"], ["sum_gradients", *["add_rows"] * (1 + projects)]
    # h, and for peepholes c, of the steps before
    assert names_of(launches) == [*step * 6, *["rows_before"] * (1 + projects), *sums]
    # and dx and the gradients of the matrices
    assert emulator.xp.products == 6 * (1 + projects) + 3 + projects


def test_a_step_of_an_lstm_reads_and_writes_each_value_once(emulated, launches, dtype, rng):
    n, hidden, steps = 40, 33, 3
    call, m = LSTMCall(random_lstm(rng, n, steps, 5, hidden), dtype), n * hidden
    call.forward(emulated)
    for launch in launches:
        _, z, b, gates, state_c, c, tanh_c, r, h = traffic_of(launch, dtype)
        # the bias once for each sequence: caches hold it
        assert (z, b, gates, state_c) == ((4 * m, 0), (4 * m, 0), (4 * m, 4 * m), (m, m))
        assert c == tanh_c == r == h == (0, m)
    launches.clear()
    call.backward(emulated)
    *slopes, h_before, sums, added = launches
    for step, launch in enumerate(slopes):
        _, _, dh, from_after, dh_n, gates, tanh_c, c, c_0, state_dc, dz = traffic_of(launch, dtype)
        assert (dh, gates, tanh_c, state_dc, dz) == ((m, 0), (4 * m, 0), (m, 0), (m, m), (0, 4 * m))
        assert (from_after, dh_n) == (((0, 0), (m, 0)) if step == 0 else ((m, 0), (0, 0)))
        assert (c, c_0) == (((0, 0), (m, 0)) if step == steps - 1 else ((m, 0), (0, 0)))
    assert traffic_of(h_before, dtype)[2:] == [(m * (steps - 1), 0), (m, 0), (0, m * steps)]
    dz, _, parts = traffic_of(sums, dtype)
    assert dz == (4 * m * steps, 0)
    assert 0 < parts[1] <= m
    assert traffic_of(added, dtype) == [(parts[1], 0), (0, 4 * hidden)]
