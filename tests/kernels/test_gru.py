"""The GRU through the public API: the reference against central differences and PyTorch, every backend against the reference."""

from itertools import product

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, bits, laid_out, numerical_gradient, with_threads
from error_messages import refuses, refuses_other_types
from grus import INPUTS, UPSTREAMS, assert_all_close, forward, loss, random_gru, run, torch_run, torch_steps
from lstms import flipped
from tolerances import assert_close

import fastgrad as fg

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

RESETS = pytest.mark.parametrize("reset_after", [True, False], ids=["reset_after", "reset_before"])
REVERSE = pytest.mark.parametrize("reverse", [False, True])
LENGTHS = pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])


def assert_matches_reference(problem, least=1):
    """Results and gradients of the backend in force, in the problem's dtype, against the reference in float64."""
    found = run(problem)
    with fg.use_backend("numpy"):
        expected = run(problem.map(lambda a: a.astype(np.float64)))
    assert {a.dtype for a in found.values()} == {problem.x.dtype}
    assert_all_close(found, expected, least=least)
    return found


@RESETS
@REVERSE
@pytest.mark.parametrize("given", [("dy",), ("dh_n",), UPSTREAMS], ids="+".join)
@pytest.mark.parametrize("lengths", [None, [2, 0, 3]], ids=["full", "ragged"])
def test_reference_gradients_are_central_differences(numpy_backend, given, reverse, lengths, reset_after, rng):
    problem = random_gru(rng, 3, 3, 2, 3, lengths=lengths, reverse=reverse, reset_after=reset_after)
    for name in set(UPSTREAMS) - set(given):
        setattr(problem, name, None)
    found = run(problem)
    for name, array in problem.named(INPUTS).items():
        assert_close("numerical", found[f"d{name}"], numerical_gradient(lambda: loss(problem), array), size=10)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("given", [(), ("b",), ("b_hn",), ("h_0",), ("b", "h_0"), ("b_hn", "h_0"), ("b", "b_hn")])
def test_gradients_come_in_the_order_of_the_given_inputs(in_force, given, rng):
    problem = random_gru(rng, 3, 2, 2, 3, lengths=[1, 2, 0])
    for name in {"b", "b_hn", "h_0"} - set(given):
        setattr(problem, name, None)
    _, backward = forward(problem)
    inputs = problem.named(INPUTS)
    for gradient, array in zip(backward(problem.dy, problem.dh_n), inputs.values(), strict=True):
        assert_close("numerical", gradient, numerical_gradient(lambda: loss(problem), array), size=10)


@REVERSE
@pytest.mark.parametrize("lengths", ["full", "ragged"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"), [(3, 5, 4, 6), (7, 9, 5, 17), (32, 9, 20, 33), (40, 6, 64, 128)]
)
def test_matches_pytorch(in_force, dtype, n, steps, c, hidden, lengths, reverse, rng, torch):
    """Both sides of a vector and of a register tile, then past a block of the GEMM and the threading threshold."""
    ends = rng.integers(1, steps + 1, n) if lengths == "ragged" else None
    problem = random_gru(rng, n, steps, c, hidden, dtype, lengths=ends, reverse=reverse)
    found = run(problem)
    assert {a.dtype for a in found.values()} == {dtype}
    assert_all_close(found, torch_run(torch, problem))


@RESETS
@REVERSE
@LENGTHS
def test_matches_the_formulas_step_by_step_and_norms_of_steps(
    in_force, dtype, lengths, reverse, reset_after, rng, torch
):
    problem = random_gru(rng, 11, 8, 5, 9, dtype, lengths=lengths, reverse=reverse, reset_after=reset_after)
    expected, expected_norms = torch_steps(torch, problem)
    assert_all_close(run(problem), expected, least=1)
    norms = np.full(8, np.nan)
    _, backward = forward(problem)
    with_norms = backward(problem.dy, problem.dh_n, step_norms=norms)
    assert_close("gru", norms.astype(dtype), expected_norms, size=np.abs(expected_norms).max())
    assert [bits(a) for a in with_norms] == [bits(a) for a in backward(problem.dy, problem.dh_n)]


@RESETS
@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize("hidden", [1, 5, 8, 9, 31, 33])
@pytest.mark.parametrize("n", [1, 2, 5, 7, 13, 33])
def test_matches_the_reference_at_awkward_shapes(in_force, dtype, n, hidden, reset_after, rng):
    """Both sides of a register tile and of vectors; full and ragged; one step has no recurrence, two have one."""
    for steps, c, lengths, bias in product((1, 2, 7), (1, 17), (None, "random"), (True, False)):
        problem = random_gru(rng, n, steps, c, hidden, dtype, lengths=lengths, bias=bias, reset_after=reset_after)
        # a dw_hh of one value is a sum of 231 terms that cancel
        assert_matches_reference(problem, least=2)


@RESETS
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"state": False}, {"reverse": True}], ids=str)
def test_every_option(in_force, dtype, options, reset_after, rng):
    for n, hidden, lengths in ((1, 9, None), (7, 17, "random"), (13, 33, "random")):
        problem = random_gru(rng, n, 5, 3, hidden, dtype, lengths=lengths, reset_after=reset_after, **options)
        assert_matches_reference(problem)


@RESETS
@LENGTHS
@pytest.mark.parametrize("name", UPSTREAMS)
def test_an_upstream_gradient_may_be_missing(in_force, dtype, name, lengths, reset_after, rng):
    """As if it were zero."""
    problem = random_gru(rng, 7, 5, 3, 9, dtype, lengths=lengths, reset_after=reset_after)
    zero = np.zeros_like(getattr(problem, name))
    setattr(problem, name, None)
    found = assert_matches_reference(problem)
    setattr(problem, name, zero)
    assert_all_close(run(problem), found, least=1)


@RESETS
@pytest.mark.emulated(0)
@pytest.mark.parametrize(("n", "steps", "c", "hidden"), [(257, 9, 40, 65), (33, 70, 3, 20), (2, 5, 300, 257)])
def test_matches_the_reference_at_large_shapes(in_force, dtype, n, steps, c, hidden, reset_after, rng):
    assert_matches_reference(random_gru(rng, n, steps, c, hidden, dtype, lengths="random", reset_after=reset_after))


@RESETS
@LENGTHS
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"), [(0, 4, 3, 5), (4, 0, 3, 5), (4, 3, 0, 5), (4, 3, 2, 0), (0, 0, 0, 0)]
)
def test_no_sequences_no_steps_and_zero_widths(in_force, dtype, n, steps, c, hidden, lengths, reset_after, rng):
    """States pass through no steps, and nothing gives zero gradients."""
    problem = random_gru(rng, n, steps, c, hidden, dtype, lengths=lengths, reset_after=reset_after)
    found = assert_matches_reference(problem)
    if n * steps == 0:
        assert bits(found["h_n"]) == bits(problem.h_0)
        assert bits(found["dh_0"]) == bits(problem.dh_n)
        assert not any(found[f"d{name}"].any() for name in problem.named(("w_ih", "w_hh", "b", "b_hn")))


@RESETS
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_closed_and_open_gates_reach_their_limits(in_force, dtype, size, reset_after, rng):
    """z = 1 keeps h and lets its gradient through; z = 0 writes n = +-1 and blocks every gradient."""
    signs = np.array(list(product((-1, 1), repeat=3)), dtype).T
    problem = random_gru(rng, 3, 4, 1, 8, dtype, reset_after=reset_after)
    problem.w_ih, problem.x = signs.reshape(1, -1), np.full_like(problem.x, size)
    found, kept = run(problem), signs[1] > 0
    assert_close("gru", found["h_n"], np.where(kept, problem.h_0, signs[2]))
    dh = problem.dy.sum(axis=1) + problem.dh_n
    assert_close("gru", found["dh_0"], np.where(kept, dh, 0), size=np.abs(dh).max())
    np.testing.assert_array_equal(found["dx"], 0)


@RESETS
def test_infinite_inputs_do_as_in_pytorch(in_force, dtype, reset_after, rng, torch):
    """What is infinite and what is NaN then, and all that stays finite."""
    for name, value in product(("x", "w_ih", "w_hh", "b", "h_0"), (np.inf, -np.inf)):
        problem = random_gru(rng, 3, 3, 2, 9, dtype, reset_after=reset_after)
        array = getattr(problem, name)
        array[tuple(n // 2 for n in array.shape)] = value
        expected, _ = torch_steps(torch, problem)
        for key, found in run(problem).items():
            np.testing.assert_allclose(
                found, expected[key], rtol=1e-4, atol=1e-4, err_msg=f"{key} of {value} in {name}"
            )


@RESETS
@REVERSE
@pytest.mark.parametrize("lengths", [None, [4, 6, 5, 0, 6, 3, 1]], ids=["full", "ragged"])
def test_nan_stays_in_its_sequence_and_goes_on_from_its_step(in_force, dtype, lengths, reverse, reset_after, rng):
    problem = random_gru(
        rng, 7, 6, 3, 9, dtype, lengths=lengths and np.array(lengths), reverse=reverse, reset_after=reset_after
    )
    clean = run(problem)
    problem.x[2, 3, 1] = np.nan
    found, others = run(problem), np.arange(7) != 2
    for name in ("y", "h_n", "dx", "dh_0"):
        assert bits(found[name][others]) == bits(clean[name][others]), name
    before, after = (slice(4, 5), slice(0, 4)) if reverse else (slice(0, 3), slice(3, 5))
    assert bits(found["y"][2, before]) == bits(clean["y"][2, before])
    assert np.isnan(found["y"][2, after]).all()
    for name in ("h_n", "dx", "dh_0"):
        assert np.isnan(found[name][2][:5]).all(), name
    for name in problem.named(("w_ih", "w_hh", "b", "b_hn")):
        assert np.isnan(found[f"d{name}"]).any(), name


@RESETS
@REVERSE
def test_padding_changes_no_bit(in_force, dtype, reverse, reset_after, rng):
    """NaN past the ends, in x and dy: results and gradients are as they were, y and dx zero there."""
    ends = np.array([3, 6, 0, 1, 6, 2, 0, 5, 3])
    problem = random_gru(rng, 9, 6, 3, 9, dtype, lengths=ends, reverse=reverse, reset_after=reset_after)
    clean = run(problem)
    for n, end in enumerate(ends):
        problem.x[n, end:] = problem.dy[n, end:] = np.nan
    found = run(problem)
    assert all_bits(found) == all_bits(clean)
    for n, end in enumerate(ends):
        np.testing.assert_array_equal(found["y"][n, end:], 0)
        np.testing.assert_array_equal(found["dx"][n, end:], 0)


@RESETS
@REVERSE
@LENGTHS
@pytest.mark.parametrize(("n", "steps", "c", "hidden"), [(17, 3, 3, 9), (131, 7, 40, 65), (7, 4, 300, 129)])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, n, steps, c, hidden, lengths, reverse, reset_after, rng):
    problem = random_gru(rng, n, steps, c, hidden, dtype, lengths=lengths, reverse=reverse, reset_after=reset_after)
    first, *others = with_threads(lambda: all_bits(run(problem)))
    assert all(other == first for other in others)


@RESETS
@REVERSE
@pytest.mark.parametrize(("n", "steps", "c", "hidden"), [(37, 5, 3, 9), (131, 7, 40, 65)])
def test_a_sequence_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, n, steps, c, hidden, reverse, reset_after, rng):
    problem = random_gru(rng, n, steps, c, hidden, dtype, reverse=reverse, reset_after=reset_after)
    names = ("y", "h_n", "dx", "dh_0")

    def compare():
        for lengths in (None, rng.integers(0, steps + 1, n)):
            problem.lengths = lengths
            together = run(problem)
            for i, size in product((0, n // 2, n - 1), (1, 2, 9)):
                rows = slice(i, i + size)
                alone = run(problem.only(rows))
                for name in names:
                    assert bits(alone[name]) == bits(together[name][rows]), f"{name} of rows {i} to {i + size}"

    with_threads(compare)


@pytest.mark.pairwise
@RESETS
@LENGTHS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, lengths, layout, reset_after, rng):
    problem = random_gru(rng, 13, 5, 3, 17, dtype, lengths=lengths, reset_after=reset_after)
    laid = problem.map(lambda a: laid_out(a, layout))
    assert_matches_reference(laid)
    assert all_bits(laid.named()) == all_bits(problem.named())


@LENGTHS
def test_reverse_is_every_sequence_turned_around(in_force, dtype, lengths, rng):
    problem = random_gru(rng, 9, 6, 3, 9, dtype, lengths=lengths, reverse=True)
    found, ends = run(problem), problem.ends()
    problem.reverse = False
    problem.x, problem.dy = flipped(problem.x, ends), flipped(problem.dy, ends)
    expected = run(problem)
    for name in ("y", "dx"):
        expected[name] = flipped(expected[name], ends)
    assert_all_close(found, expected, least=1)


@RESETS
@pytest.mark.parametrize(("n", "hidden"), [(1, 5), (7, 9), (33, 64)], ids=str)
def test_cells_stepped_forward_and_back_are_the_sequence(in_force, dtype, n, hidden, reset_after, rng):
    p = random_gru(rng, n, 5, 3, hidden, dtype, reset_after=reset_after)
    weights = p.named(("w_ih", "w_hh", "b", "b_hn"))
    h, ways_back, ys = p.h_0, [], []
    for t in range(5):
        h, backward = fg.gru_cell(p.x[:, t], h, **weights, reset_after=reset_after)
        ways_back.append(backward)
        ys.append(h)
    # not zero at first
    gradients = [rng.standard_normal(w.shape).astype(dtype) for w in weights.values()]
    before = [gradient.copy() for gradient in gradients]
    dh, dxs = p.dh_n, []
    for t in reversed(range(5)):
        dx, dh = ways_back[t](dh + p.dy[:, t], gradients=gradients)
        dxs.insert(0, dx)
    added = [gradient - start for gradient, start in zip(gradients, before, strict=True)]
    names = ["y", "h_n", "dx", *(f"d{name}" for name in weights), "dh_0"]
    found = dict(zip(names, [np.stack(ys, 1), h, np.stack(dxs, 1), *added, dh], strict=True))
    expected = run(p)
    for name, value in found.items():
        # a gradient of around 1 was added to
        assert_close("gru", value, expected[name], 4 + np.abs(expected[name]).max(initial=0), terms=5 * n)


def test_a_cell_stepped_has_the_bits_of_the_sequence(cpu, dtype, rng):
    for (n, c, hidden), reset_after in product(((7, 3, 9), (131, 40, 65)), (True, False)):
        p = random_gru(rng, n, 6, c, hidden, dtype, reset_after=reset_after)
        (y, _), _ = forward(p)
        h = p.h_0
        for t in range(6):
            h, _ = fg.gru_cell(p.x[:, t], h, **p.named(("w_ih", "w_hh", "b", "b_hn")), reset_after=reset_after)
            assert bits(h) == bits(y[:, t])


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (5, 4), "(N, T, C)"),
        ("w_ih", (3, 9), "(C, 3H) = (2, _)"),
        ("w_hh", (4, 9), "(H, 3H) = (3, 9)"),
        ("b", (3,), "(3H,) = (9,)"),
        ("b_hn", (9,), "(H,) = (3,)"),
        ("h_0", (1, 3), "(N, H) = (5, 3)"),
    ],
)
def test_wrong_shapes_are_named(in_force, name, shape, expected, rng):
    inputs = random_gru(rng, 5, 4, 2, 3, np.float32).named(INPUTS)
    wrong = {**inputs, name: np.ones(shape, np.float32)}
    refuses(ValueError, f"gru: {name} must be {expected}, got {shape}", fg.gru, **wrong)


@pytest.mark.parametrize("name", INPUTS)
def test_lists_integers_and_other_dtypes_are_refused(in_force, name, rng):
    inputs = random_gru(rng, 5, 4, 2, 3, np.float32).named(INPUTS)
    refuses_other_types("gru", name, inputs[name], lambda value: fg.gru(**{**inputs, name: value}), first=name == "x")


def test_bad_input_is_refused(in_force, rng):
    inputs = random_gru(rng, 5, 4, 2, 3, np.float32).named(INPUTS)
    wrong = {**inputs, "w_ih": np.ones((2, 10), np.float32)}
    message = "gru: w_ih must be (C, 3H), got (2, 10), of which 10 columns are not three gates"
    refuses(ValueError, message, fg.gru, **wrong)
    message = "gru: b_hn must be None with reset_after=False, where b has the bias of n"
    refuses(ValueError, message, fg.gru, **inputs, reset_after=False)
    refuses(ValueError, "gru: lengths must be in 0..4, got 5 at index 0", fg.gru, **inputs, lengths=[5, 0, 1, 2, 3])
    (y, h_n), backward = fg.gru(**inputs)
    refuses(TypeError, "gru: backward needs dy, dh_n or both", backward)
    refuses(ValueError, "gru: dy must be (N, T, H) like y = (5, 4, 3), got (5, 3)", backward, y[:, 0])
    refuses(ValueError, "gru: dh_n must be (N, H) = (5, 3), got (3, 5)", backward, y, h_n.T)
    refuses(ValueError, "gru: step_norms must be (T,) = (4,), got (3,)", backward, y, step_norms=np.empty(3))
    x, h_0 = inputs["x"][:, 0], inputs["h_0"]
    weights = [inputs[name] for name in ("w_ih", "w_hh", "b", "b_hn")]
    refuses(ValueError, "gru_cell: h must be (N, H) = (5, 3), got (4, 3)", fg.gru_cell, x, h_0[:4], *weights)
    h, backward = fg.gru_cell(x, h_0, *weights)
    refuses(TypeError, "gru_cell: backward needs dh", backward, None)
    message = "gru_cell: gradients must have length 4, got 1"
    refuses(ValueError, message, backward, h, gradients=[np.zeros_like(weights[0])])
