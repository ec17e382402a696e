"""The bits of an LSTM: on any number of threads, of a sequence alone and in a batch, with and without padding."""

from itertools import product

import numpy as np
import pytest
from arrays import all_bits, bits, with_threads
from lstms import (
    OPTIONS,
    forward,
    random_lstm,
    run,
)

from fastgrad.functional.lstm import run_rows
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import LSTMWeights, States

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_no_bit(in_force, dtype, reverse, rng):
    """NaN past the ends, in x and dy: results and gradients are as they were, y and dx zero there."""
    ends = np.array([3, 6, 0, 1, 6, 2, 0, 5, 3])
    problem = random_lstm(rng, 9, 6, 3, 9, dtype, lengths=ends, reverse=reverse, peephole=True, projected=5)
    clean = run(problem)
    for n, end in enumerate(ends):
        problem.x[n, end:] = problem.dy[n, end:] = np.nan
    found = run(problem)
    assert all_bits(found) == all_bits(clean)
    assert not any(np.isnan(a).any() for a in found.values())
    for n, end in enumerate(ends):
        np.testing.assert_array_equal(found["y"][n, end:], 0)
        np.testing.assert_array_equal(found["dx"][n, end:], 0)


def test_lengths_that_are_all_the_longest_change_no_bit(in_force, dtype, rng):
    problem = random_lstm(rng, 5, 6, 3, 9, dtype)
    expected = all_bits(run(problem))
    problem.lengths = np.full(5, 6)
    assert all_bits(run(problem)) == expected


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"),
    # below and above the size at which threads start, odd rows for every share, few rows of a wide layer
    [(17, 3, 3, 9), (131, 7, 40, 65), (7, 4, 300, 129)],
    ids=["small", "many_rows", "wide"],
)
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, n, steps, c, hidden, options, lengths, reverse, rng):
    problem = random_lstm(rng, n, steps, c, hidden, dtype, lengths=lengths, reverse=reverse, **OPTIONS[options])
    first, *others = with_threads(lambda: all_bits(run(problem)))
    assert all(other == first for other in others)


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
def test_a_forward_that_keeps_nothing_has_the_same_bits(cpu, dtype, options, lengths, rng):
    """As layers predict, on any number of threads."""
    problem = random_lstm(rng, 131, 7, 40, 65, dtype, lengths=lengths, **OPTIONS[options])
    weights = LSTMWeights(**{name: getattr(problem, name) for name in LSTMWeights._fields})
    batch = packed_batch("lstm", problem.x.shape[:2], problem.lengths)
    start = States(problem.h_0, problem.c_0)
    kept = [bits(a) for a in forward(problem)[0]]

    def predict():
        xs = pack(problem.x, batch)
        h, end = np.empty((len(xs), len(problem.w_hh)), dtype), States(*map(np.empty_like, start))
        run_rows(xs, weights, start, batch, h, end, keep=False)
        return [bits(a) for a in (unpack(h, batch), *end)]

    assert with_threads(predict) == [kept] * 4


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"), [(37, 5, 3, 9), (131, 7, 40, 65)], ids=["small", "many_rows"]
)  # fmt: skip
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, n, steps, c, hidden, options, reverse, rng):
    """Full and ragged; alone, in pairs and in nines; cut to its length; on any number of threads."""
    problem = random_lstm(rng, n, steps, c, hidden, dtype, reverse=reverse, **OPTIONS[options])
    names = ("y", "h_n", "c_n", "dx", "dh_0", "dc_0")

    def compare():
        for lengths in (None, rng.integers(0, steps + 1, n)):
            problem.lengths = lengths
            together = run(problem)
            for i, size in product((0, n // 2, n - 1), (1, 2, 9)):
                rows = slice(i, i + size)
                alone = run(problem.only(rows))
                for name in names:
                    assert bits(alone[name]) == bits(together[name][rows]), f"{name} of rows {i} to {i + size}"
            for i in (0, n // 2, n - 1):
                end, one = problem.ends()[i], problem.only(slice(i, i + 1))
                one.lengths, one.x, one.dy = None, one.x[:, :end], one.dy[:, :end]
                alone = run(one)
                for name in names:
                    whole = together[name][i, :end] if name in ("y", "dx") else together[name][i]
                    assert bits(alone[name][0]) == bits(whole), f"{name} of row {i} cut to {end}"

    with_threads(compare)
