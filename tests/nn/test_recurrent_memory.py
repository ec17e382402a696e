"""What the LSTM layer holds and copies: rows on the way in and out, the gates' memory, and what is kept for backward."""

import numpy as np
import pytest
from arrays import bits
from lstms import lstm_layer, random_states, sequences

import fastgrad as fg
from fastgrad.core import allocator
from fastgrad.core.backend import kernels
from fastgrad.nn import LSTM, Dense, Sequential

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


def calls(monkeypatch, *names):
    """The arguments with which kernels of these names are called from now on."""
    found = {name: [] for name in names}
    for name in names:
        inner = getattr(kernels(), name)

        def seen(*arguments, name=name, inner=inner):
            found[name].append(arguments)
            return inner(*arguments)

        monkeypatch.setattr(kernels(), name, seen)
    return found


@pytest.mark.emulated(0)
def test_rows_are_copied_on_the_way_in_and_out_alone(in_force, monkeypatch):
    layer, x = lstm_layer(num_layers=3, bidirectional=True), sequences()
    found = calls(monkeypatch, "gather_rows", "scatter_rows")
    y, backward = layer.forward(x, True)
    backward(y)
    assert [len(seen) for seen in found.values()] == [1, 0]
    y, backward = layer.forward(x, True, lengths=[4, 2, 7, 1])
    backward(y)
    assert [len(seen) for seen in found.values()] == [3, 2]
    stacked = Sequential(LSTM(3, 5, 1, True), LSTM(10, 5, 1, True), Dense(10, 2), LSTM(2, 2), seed=0)
    y, backward = stacked.forward(x.astype(np.float32), True)
    backward(y)
    assert [len(seen) for seen in found.values()] == [4, 2]


def test_evaluation_keeps_nothing_for_backward(in_force, monkeypatch):
    layer, x = lstm_layer(num_layers=2), sequences()
    found = calls(monkeypatch, "lstm_forward")["lstm_forward"]

    def saved(arguments):
        *_, saved, _ = arguments
        return saved.c, saved.tanh_c

    layer.predict(x)
    layer.run(x, random_states(layer))
    assert [saved(arguments) for arguments in found] == [(None, None)] * 4
    del found[:]
    layer.forward(x)
    assert all(a is not None for arguments in found for a in saved(arguments))


@pytest.mark.parametrize(
    "options", [{}, {"peephole": True}, {"proj_size": 3}, {"peephole": True, "bidirectional": True}]
)
def test_training_takes_the_gates_memory_and_makes_the_same_gradients(in_force, dtype, rng, options):
    model = fg.nn.LSTM(4, 9, num_layers=2, dtype=dtype.name, **options)
    x = rng.standard_normal((5, 7, 4)).astype(dtype)
    found = []
    for training in (False, True):
        y, backward = model.forward(x, training, lengths=[7, 2, 0, 5, 7])
        dx = backward(np.cos(y))
        found.append([bits(a) for a in (y, dx, model.grads)])
    assert found[0] == found[1]
    with pytest.raises(RuntimeError, match="backward has run"):
        backward(np.cos(y))


def test_no_more_is_held_for_backward_than_gates_cells_and_the_input(in_force, rng, monkeypatch):
    # powers of two, which memory does not round
    rows, columns, hidden = 8 * 64, 16, 32
    model = fg.nn.LSTM(columns, hidden)
    monkeypatch.setattr(allocator, "LARGE", 1)
    monkeypatch.setattr(allocator, "_memory", allocator.Allocator())
    y, _backward = model.forward(rng.standard_normal((8, 64, columns), np.float32), training=True)
    lent = [
        (size, count > allocator.FREE)
        for size, blocks in allocator._memory._blocks.items()
        for count in allocator.counts(blocks, len(blocks))
    ]
    # those it begins with; the last ones are let go with the state
    states = 2 * 8 * hidden
    held = sum(size for size, is_lent in lent if is_lent) // 4 - y.size - states
    assert held == rows * (4 * hidden + hidden + hidden + columns)
