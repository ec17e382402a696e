"""LSTMs with layer norm, zoneout and recurrent dropout: the reference against central differences, every backend against PyTorch."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from arrays import all_bits, assert_is_gradient, bits, with_threads
from lstm_variants import INPUTS, KEY, NORMS, OPTIONS, drawn, forward, loss, random_variant, run, torch_run
from recurrent_problem import assert_arrays_close
from tolerances import assert_close

import fastgrad as fg

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


def assert_matches_reference(problem, scale=1):
    """Results and gradients of the backend in force, in the problem's dtype, against the reference in float64."""
    found = run(problem)
    with fg.use_backend("numpy"):
        expected = run(problem.map(lambda a: a.astype(np.float64)))
    assert {a.dtype for a in found.values()} == {problem.x.dtype}
    assert_arrays_close("lstm_variant", found, expected, least=1, scale=scale)
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_reference_gradients_are_central_differences(numpy_backend, options, reverse, rng):
    problem = random_variant(rng, 3, 3, 2, 3, lengths=[2, 0, 3], reverse=reverse, **OPTIONS[options])
    found = run(problem)
    for name, array in problem.named(INPUTS).items():
        assert_is_gradient(found[f"d{name}"], lambda: loss(problem), array)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 9, 1, 4, 9, 7, 2]], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS)
def test_matches_a_loop_in_pytorch(in_force, dtype, options, lengths, reverse, rng, torch):
    problem = random_variant(rng, 7, 9, 5, 17, dtype, lengths=lengths, reverse=reverse, **OPTIONS[options])
    expected, cells, norms = torch_run(torch, problem)
    assert_arrays_close("lstm_variant", run(problem), expected, least=1)
    (*_, c), backward = forward(problem, cells=True)
    assert_close("lstm_variant", c, cells, size=1)
    step_norms = np.empty(9)
    backward(problem.dy, problem.dh_n, problem.dc_n, step_norms=step_norms)
    assert_close("lstm_variant", step_norms.astype(dtype), norms, size=norms.max())


@pytest.mark.parametrize("options", ["layer_norm", "all", "recurrent_dropout"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"),
    # one step and one unit, past a vector, past a block of the GEMM, past the threading threshold
    [(1, 1, 1, 1), (5, 2, 3, 9), (33, 6, 20, 33), (40, 6, 64, 128), (6, 3, 2, 300)],
)
def test_matches_the_reference_at_awkward_shapes(in_force, dtype, options, n, steps, c, hidden, rng):
    for lengths in (None, "random"):
        assert_matches_reference(random_variant(rng, n, steps, c, hidden, dtype, lengths=lengths, **OPTIONS[options]))


@pytest.mark.parametrize("given", ["dy", "dh_n", "dc_n"])
@pytest.mark.parametrize("options", ["layer_norm", "all"])
def test_any_upstream_gradient_may_be_missing(in_force, dtype, options, given, rng):
    problem = random_variant(rng, 7, 5, 3, 9, dtype, lengths="random", **OPTIONS[options])
    for name in {"dy", "dh_n", "dc_n"} - {given}:
        setattr(problem, name, None)
    assert_matches_reference(problem)


def test_values_far_from_zero_are_normalised_as_exactly(in_force, dtype, rng):
    """With weights whose columns share a large part, the mean of a row is a hundred times its deviation."""
    problem = random_variant(rng, 9, 5, 4, 17, dtype, layer_norm=True)
    problem.w_ih += dtype.type(50)
    problem.w_hh += dtype.type(50)
    assert_matches_reference(problem, scale=400)


def test_padding_changes_no_bit(in_force, dtype, rng):
    """NaN past the ends, in x and dy."""
    ends = np.array([3, 6, 0, 1, 6, 2, 0, 5, 3])
    problem = random_variant(rng, 9, 6, 3, 9, dtype, lengths=ends, **OPTIONS["all"])
    clean = all_bits(run(problem))
    for n, end in enumerate(ends):
        problem.x[n, end:] = problem.dy[n, end:] = np.nan
    assert all_bits(run(problem)) == clean


def test_nan_in_gives_nan_out_for_its_sequence_alone(in_force, dtype, rng):
    problem = random_variant(rng, 4, 3, 2, 9, dtype, **OPTIONS["all"])
    problem.x[1, 1, 0] = np.nan
    found = run(problem)
    assert np.isnan(found["y"][1, 1:]).all(axis=1).any()
    assert np.isnan(found["h_n"][1]).any()
    assert not np.isnan(found["y"][[0, 2, 3]]).any()
    assert np.isnan(found["dw_ih"]).any()


@pytest.mark.parametrize("options", ["layer_norm", "all"])
def test_infinite_inputs_do_as_in_pytorch(in_force, dtype, options, rng, torch):
    """What is infinite and what is NaN then, and all that stays finite."""
    for name, value in product(("x", "w_ih", "w_hh", "b", "h_0", "c_0"), (np.inf, -np.inf)):
        problem = random_variant(rng, 3, 3, 2, 9, dtype, **OPTIONS[options])
        array = getattr(problem, name)
        array[tuple(n // 2 for n in array.shape)] = value
        expected, *_ = torch_run(torch, problem)
        for key, found in run(problem).items():
            np.testing.assert_allclose(
                found, expected[key], rtol=1e-3, atol=1e-3, err_msg=f"{key} of {value} in {name}"
            )


@pytest.mark.parametrize("options", ["layer_norm", "all"])
@pytest.mark.parametrize(("n", "steps", "c"), [(0, 4, 3), (4, 0, 3), (4, 3, 0), (0, 0, 0)])
def test_no_sequences_no_steps_and_no_inputs(in_force, dtype, options, n, steps, c, rng):
    """States pass through no steps, and nothing gives zero gradients."""
    problem = random_variant(rng, n, steps, c, 9, dtype, **OPTIONS[options])
    found = assert_matches_reference(problem)
    if n * steps == 0:
        for name, start in {"h_n": problem.h_0, "c_n": problem.c_0, "dh_0": problem.dh_n, "dc_0": problem.dc_n}.items():
            assert bits(found[name]) == bits(start)
        assert not any(found[f"d{name}"].any() for name in problem.named(("w_ih", "w_hh", "b", *NORMS)))


def test_an_empty_sequence_passes_its_states_through(in_force, dtype, rng):
    problem = random_variant(rng, 4, 3, 2, 9, dtype, lengths=np.array([2, 0, 3, 0]), **OPTIONS["all"])
    found, empty = run(problem), [1, 3]
    np.testing.assert_array_equal(found["y"][empty], 0)
    for name, start in {"h_n": problem.h_0, "c_n": problem.c_0, "dh_0": problem.dh_n, "dc_0": problem.dc_n}.items():
        assert bits(found[name][empty]) == bits(start[empty])


@pytest.mark.parametrize("options", ["layer_norm", "zoneout", "all"])
@pytest.mark.parametrize(("n", "steps", "c", "hidden"), [(17, 3, 3, 9), (131, 7, 40, 65), (7, 4, 300, 129)])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, n, steps, c, hidden, options, rng):
    problem = random_variant(rng, n, steps, c, hidden, dtype, lengths="random", **OPTIONS[options])
    first, *others = with_threads(lambda: all_bits(run(problem)))
    assert all(other == first for other in others)


@pytest.mark.parametrize("options", ["layer_norm", "all_in_evaluation"])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, options, rng):
    problem = random_variant(rng, 37, 6, 40, 65, dtype, lengths=rng.integers(1, 7, 37), **OPTIONS[options])
    together = run(problem)
    for i in (0, 20, 36):
        end, one = problem.ends()[i], problem.only(slice(i, i + 1))
        one.lengths, one.x, one.dy = None, one.x[:, :end], one.dy[:, :end]
        alone = run(one)
        for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
            whole = together[name][i, :end] if name in ("y", "dx") else together[name][i]
            assert bits(alone[name][0]) == bits(whole), name


def test_masks_depend_on_no_length_and_no_other_sequence(in_force, dtype, rng):
    """The first sequences of a batch, and their first steps, are what they are without the others."""
    problem = random_variant(rng, 5, 6, 3, 9, dtype, **OPTIONS["all"])
    (y, _, _), _ = forward(problem)
    part = problem.only(slice(0, 3))
    part.x = part.x[:, :4]
    (shorter, _, _), _ = forward(part)
    assert_close("lstm_variant", shorter, y[:3, :4], size=1)


def test_a_key_draws_its_masks_and_another_key_others(in_force, dtype, rng):
    problem = random_variant(rng, 5, 6, 3, 9, dtype, **OPTIONS["all"])
    first = all_bits(run(problem))
    assert all_bits(run(problem)) == first
    problem.options = problem.options | {"key": 7}
    assert all_bits(run(problem)) != first


def test_the_masks_keep_their_share(in_force, rng):
    """Of c: with forget gates open and nothing new, a unit either keeps c_0 or takes the new value."""
    problem = random_variant(rng, 40, 5, 2, 64, zoneout=(0.3, 0.0), key=KEY)
    (y, _, _), _ = forward(problem)
    before = np.concatenate([problem.h_0[:, None], y[:, :-1]], axis=1)
    keeps = y == before
    np.testing.assert_array_equal(keeps, ~drawn(KEY, 2, 0.3, 40, 5, 64))
    assert abs(keeps.mean() - 0.3) < 0.02


def test_a_key_changes_nothing_without_rates(in_force, dtype, rng):
    problem = random_variant(rng, 5, 6, 3, 9, dtype, layer_norm=True)
    assert all_bits(run(problem)) == all_bits(run(replace(problem, options={"key": KEY})))


def test_without_a_key_recurrent_dropout_is_the_plain_lstm(in_force, dtype, rng):
    problem = random_variant(rng, 5, 6, 3, 9, dtype, recurrent_dropout=0.4)
    plain = fg.lstm(problem.x, problem.w_ih, problem.w_hh, problem.b, h_0=problem.h_0, c_0=problem.c_0)[0]
    assert_arrays_close(
        "lstm_variant", dict(zip("abc", forward(problem)[0], strict=True)), dict(zip("abc", plain, strict=True))
    )


def test_backward_may_be_called_again_and_inputs_stay(in_force, dtype, rng):
    problem = random_variant(rng, 13, 5, 3, 17, dtype, lengths="random", **OPTIONS["all"])
    before = all_bits(problem.named())
    _, backward = forward(problem)
    first = backward(problem.dy, problem.dh_n, problem.dc_n)
    second = backward(problem.dy, problem.dh_n, problem.dc_n)
    assert [bits(a) for a in first] == [bits(a) for a in second]
    assert all_bits(problem.named()) == before


def test_weights_of_pytorch_are_read_as_they_lie(in_force, dtype, rng):
    """(4H, C) and (4H, H), given as w.T."""
    problem = random_variant(rng, 17, 5, 3, 33, dtype, layer_norm=True)
    for name in ("w_ih", "w_hh"):
        setattr(problem, name, np.ascontiguousarray(getattr(problem, name).T).T)
    assert_matches_reference(problem)


ERRORS = {
    "layer_norm of three": ({"layer_norm": (1, 2, 3)}, ValueError, "lstm: layer_norm must have length 4, got 3"),
    "layer_norm of a wrong shape": (
        {"layer_norm": (np.ones(16), np.ones(16), np.ones(16), np.ones(4))},
        ValueError,
        r"lstm: gamma_c of layer_norm must be \(H,\) = \(4,\), got \(16,\)",
    ),
    "zoneout of one": ({"zoneout": (0.1,)}, ValueError, "lstm: zoneout must have length 2, got 1"),
    "zoneout of 1": ({"zoneout": (0.1, 1)}, ValueError, r"lstm: zoneout\[1\] must be at least 0 and below 1, got 1"),
    "dropout of -1": ({"recurrent_dropout": -1}, ValueError, "lstm: recurrent_dropout must be at least 0 and below 1"),
    "a large key": ({"key": 2**64}, ValueError, "lstm: key must be an integer of at most"),
    "eps": ({"eps": -1}, ValueError, "lstm: eps must be at least 0 and finite, got -1"),
    "peepholes": (
        {"zoneout": (0.1, 0), "peephole": np.ones((3, 4))},
        ValueError,
        "lstm: layer_norm, zoneout and recurrent_dropout come without peepholes",
    ),
    "a projection": (
        {"recurrent_dropout": 0.1, "w_proj": np.ones((4, 4))},
        ValueError,
        "lstm: layer_norm, zoneout and recurrent_dropout come without a projection",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_option_out_of_range_is_named(numpy_backend, case):
    options, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text):
        fg.lstm(np.ones((2, 3, 5)), np.ones((5, 16)), np.ones((4, 16)), np.ones(16), **options)
