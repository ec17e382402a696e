"""The LSTM through the public API: the reference against central differences and PyTorch, every backend against the reference."""

import sys
from itertools import combinations, product

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, bits, laid_out, numerical_gradient, with_threads
from conftest import BACKENDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lstms import INPUTS, UPSTREAMS, flipped, forward, loss, random_lstm, run, torch_run, torch_steps
from tolerances import assert_close

import fastgrad as fg
from fastgrad.core import allocator
from fastgrad.core.backend import kernels
from fastgrad.functional.lstm import run_rows
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import LSTMWeights, States

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

# what a gate may have on top, with P on either side of H
OPTIONS = {
    "plain": {},
    "no_bias": {"bias": False},
    "no_states": {"states": False},
    "peephole": {"peephole": True},
    "projection": {"projected": 5},
    "wide_projection": {"projected": 19},
    "peephole_projection_no_bias": {"peephole": True, "projected": 3, "bias": False},
}
SUBSETS = [names for count in (1, 2, 3) for names in combinations(UPSTREAMS, count)]
ALONE_AND_TOGETHER = [(name,) for name in UPSTREAMS] + [UPSTREAMS]
TIME_MAJOR = ("time_major", "time_major_read_only")


def assert_all_close(found, expected, least=0, scale=1):
    """Errors are measured against the largest value of an array, or `least`, where sums of a few terms may cancel.

    With inputs of this scale z, and so its rounding, is as much larger.
    """
    assert found.keys() == expected.keys()
    for name, actual in found.items():
        size = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=least)
        assert_close("lstm", actual, expected[name], scale * size)


def assert_matches_reference(problem, scale=1):
    """Results and gradients of the backend in force, in the problem's dtype, against the reference in float64."""
    found = run(problem)
    with fg.use_backend("numpy"):
        expected = run(problem.map(lambda a: a.astype(np.float64)))
    assert {a.dtype for a in found.values()} == {problem.x.dtype}
    assert_all_close(found, expected, least=1, scale=scale)
    return found


def in_layout(a, layout):
    if not layout.startswith("time_major"):
        return laid_out(a, layout)
    turned = np.ascontiguousarray(a.swapaxes(0, 1))
    turned.flags.writeable = not layout.endswith("read_only")
    return turned.swapaxes(0, 1)


@pytest.mark.pairwise
@pytest.mark.parametrize("given", ALONE_AND_TOGETHER, ids="+".join)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 0, 3]], ids=["full", "ragged"])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("projected", [None, 2])
def test_reference_gradients_are_central_differences(
    numpy_backend, given, reverse, lengths, peephole, projected, rng
):  # fmt: skip
    problem = random_lstm(
        rng, 3, 3, 2, 3, lengths=lengths, reverse=reverse, peephole=peephole, projected=projected
    )  # fmt: skip
    for name in set(UPSTREAMS) - set(given):
        setattr(problem, name, None)
    found = run(problem)
    for name, array in problem.named(INPUTS).items():
        assert_close("numerical", found[f"d{name}"], numerical_gradient(lambda: loss(problem), array), size=10)


@pytest.mark.emulated(0)
@pytest.mark.parametrize(
    "given", [names for k in range(6) for names in combinations(("b", "h_0", "c_0", "peephole", "w_proj"), k)]
)
def test_gradients_come_in_the_order_of_the_given_inputs(in_force, given, rng):
    problem = random_lstm(rng, 3, 2, 2, 3, lengths=[1, 2, 0], peephole=True, projected=2 if "w_proj" in given else None)
    for name in {"b", "h_0", "c_0", "peephole"} - set(given):
        setattr(problem, name, None)
    _, backward = forward(problem)
    inputs = problem.named(INPUTS)
    for gradient, array in zip(backward(problem.dy, problem.dh_n, problem.dc_n), inputs.values(), strict=True):
        assert_close("numerical", gradient, numerical_gradient(lambda: loss(problem), array), size=10)


@pytest.mark.pairwise
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", ["full", "ragged"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden", "projected"),
    [
        # both sides of a vector and of a register tile, then past a block of the GEMM and the threading threshold
        (3, 5, 4, 6, None),
        (7, 9, 5, 17, 4),
        (32, 9, 20, 33, None),
        (40, 6, 64, 128, 65),
    ],
)
def test_matches_pytorch(in_force, dtype, n, steps, c, hidden, projected, lengths, reverse, rng, torch):
    ends = rng.integers(1, steps + 1, n) if lengths == "ragged" else None
    problem = random_lstm(rng, n, steps, c, hidden, dtype, lengths=ends, reverse=reverse, projected=projected)
    found = run(problem)
    assert {a.dtype for a in found.values()} == {dtype}
    assert_all_close(found, torch_run(torch, problem))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
def test_cells_and_step_norms_match_a_loop_of_pytorch_cells(in_force, dtype, lengths, reverse, rng, torch):
    problem = random_lstm(rng, 11, 8, 5, 9, dtype, lengths=lengths, reverse=reverse)
    (_, _, _, c), backward = forward(problem, cells=True)
    norms = np.full(8, np.nan)
    gradients = backward(problem.dy, problem.dh_n, problem.dc_n, step_norms=norms)
    expected_c, expected_norms = torch_steps(torch, problem)
    assert c.dtype == dtype
    assert_all_close({"c": c}, {"c": expected_c})
    assert_close("lstm", norms.astype(dtype), expected_norms)
    without = backward(problem.dy, problem.dh_n, problem.dc_n)
    assert [bits(a) for a in gradients] == [bits(a) for a in without]


@pytest.mark.parametrize("given", [("dh",), ("dc",), ("dh", "dc")], ids="+".join)
def test_cell_matches_pytorch(in_force, dtype, given, rng, torch):
    p = random_lstm(rng, 7, 1, 5, 9, dtype)
    inputs = {"x": p.x[:, 0], "h": p.h_0, "c": p.c_0, "w_ih": p.w_ih, "w_hh": p.w_hh, "b": p.b}
    (h, c), backward = fg.lstm_cell(**inputs)
    upstreams = {"dh": p.dh_n, "dc": p.dc_n}
    gradients = backward(**{name: upstreams[name] for name in given})
    cell = torch.nn.LSTMCell(5, 9, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih[...], cell.weight_hh[...] = torch.tensor(p.w_ih.T), torch.tensor(p.w_hh.T)
        cell.bias_ih[...], cell.bias_hh[...] = torch.tensor(p.b), 0
    states = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (p.x[:, 0], p.h_0, p.c_0)]
    results = dict(zip(upstreams, cell(states[0], states[1:]), strict=True))
    sum((results[name] * torch.tensor(upstreams[name])).sum() for name in given).backward()
    expected = [results["dh"].detach(), results["dc"].detach(), *(a.grad for a in states)]
    expected += [cell.weight_ih.grad.T, cell.weight_hh.grad.T, cell.bias_ih.grad]
    for actual, theirs in zip([h, c, *gradients], expected, strict=True):
        assert actual.dtype == dtype
        assert_close("lstm", actual, theirs.numpy(), float(theirs.abs().max()))


@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize("hidden", [1, 5, 8, 9, 31, 33])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 13, 17, 33])
def test_matches_the_reference_at_awkward_shapes(in_force, dtype, n, hidden, rng):
    """Both sides of a register tile and of vectors; full and ragged; one step has no recurrence, two have one."""
    for steps, c, lengths in product((1, 2, 7), (1, 3, 17), (None, "random")):
        assert_matches_reference(random_lstm(rng, n, steps, c, hidden, dtype, lengths=lengths))


@pytest.mark.pairwise
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_at_awkward_shapes(in_force, dtype, options, lengths, reverse, rng):
    for n, hidden in ((1, 9), (6, 1), (7, 17), (17, 8), (13, 33)):
        problem = random_lstm(rng, n, 5, 3, hidden, dtype, lengths=lengths, reverse=reverse, **OPTIONS[options])
        assert_matches_reference(problem)


@pytest.mark.pairwise
@pytest.mark.parametrize("given", SUBSETS, ids="+".join)
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
def test_any_upstream_gradient_may_be_missing(in_force, dtype, options, lengths, given, rng):
    """As if it were zero."""
    problem = random_lstm(rng, 7, 5, 3, 9, dtype, lengths=lengths, **OPTIONS[options])
    for name in set(UPSTREAMS) - set(given):
        setattr(problem, name, None)
    found = assert_matches_reference(problem)
    shapes = {"dy": found["y"].shape, "dh_n": found["h_n"].shape, "dc_n": found["c_n"].shape}
    for name in set(UPSTREAMS) - set(given):
        setattr(problem, name, np.zeros(shapes[name], dtype))
    assert_all_close(run(problem), found, least=1)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "reversed"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"),
    [(257, 9, 40, 65), (33, 70, 3, 20), (2, 5, 300, 257)],
    ids=["many_rows", "many_steps", "wide"],
)
def test_matches_the_reference_at_large_shapes(in_force, dtype, n, steps, c, hidden, layout, rng):
    """Past the blocks of a GEMM in every dimension, past the threading threshold, and over many steps."""
    problem = random_lstm(rng, n, steps, c, hidden, dtype, lengths="random", peephole=layout == "fortran")
    assert_matches_reference(problem.map(lambda a: laid_out(a, layout)))


@pytest.mark.pairwise
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
@pytest.mark.parametrize(
    ("n", "steps", "c", "hidden"),
    [(0, 4, 3, 5), (4, 0, 3, 5), (0, 0, 3, 5), (4, 3, 0, 5), (4, 3, 2, 0), (0, 0, 0, 0)],
)
def test_no_sequences_no_steps_and_zero_widths(in_force, dtype, n, steps, c, hidden, options, lengths, rng):
    """States pass through no steps, and nothing gives zero gradients."""
    problem = random_lstm(rng, n, steps, c, hidden, dtype, lengths=lengths, **OPTIONS[options])
    found = assert_matches_reference(problem)
    if n * steps == 0:
        assert bits(found["h_n"]) == bits(problem.h_0)
        assert bits(found["c_n"]) == bits(problem.c_0)
        assert bits(found["dh_0"]) == bits(problem.dh_n)
        assert bits(found["dc_0"]) == bits(problem.dc_n)
        assert not any(found[f"d{name}"].any() for name in problem.named(("w_ih", "w_hh", "b", "peephole", "w_proj")))


@st.composite
def problems(draw):
    n, steps, c = draw(st.integers(0, 20)), draw(st.integers(0, 9)), draw(st.integers(1, 20))
    hidden, projected = draw(st.integers(1, 40)), draw(st.none() | st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    problem = random_lstm(
        rng, n, steps, c, hidden, draw(st.sampled_from([np.float32, np.float64])),
        lengths=draw(st.sampled_from([None, "random"])), reverse=draw(st.booleans()), bias=draw(st.booleans()),
        states=draw(st.booleans()), peephole=draw(st.booleans()), projected=projected,
    )  # fmt: skip
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    problem.x *= scale
    layouts = iter(draw(st.lists(st.sampled_from(LAYOUTS), min_size=11, max_size=11)))
    return problem.map(lambda a: laid_out(a, next(layouts))), max(scale, 1)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=problems())
def test_any_shapes_strides_values_and_options(name, drawn):
    problem, scale = drawn
    before = all_bits(problem.named())
    with fg.use_backend(name):
        assert_matches_reference(problem, scale)
    assert all_bits(problem.named()) == before


def saturated(dtype, size, rng):
    """A problem of 16 units, whose gates are open or closed in the 16 possible ways, and its limits by the formula."""
    problem = random_lstm(rng, 3, 5, 1, 16, dtype)
    signs = np.array(list(product((-1, 1), repeat=4))).T
    problem.w_ih = signs.reshape(1, -1).astype(dtype)
    problem.x = np.full_like(problem.x, size)
    i, f, g, o = (signs > 0) + np.array([0, 0, -1, 0])[:, None] * (signs < 0)
    c = [problem.c_0.astype(np.float64)]
    for _ in range(5):
        c.append(f * c[-1] + i * g)
    limits = {"y": np.stack([o * np.tanh(c_t) for c_t in c[1:]], axis=1), "c_n": c[-1]}
    # dL/dc, the only gradient that a saturated gate lets through
    dc = problem.dc_n.astype(np.float64)
    for t in range(4, -1, -1):
        dh = problem.dy[:, t].astype(np.float64) + (problem.dh_n if t == 4 else 0)
        dc = f * (dc + dh * o * (1 - np.tanh(c[t + 1]) ** 2))
    return problem, limits | {"h_n": limits["y"][:, -1], "dc_0": dc}


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_saturated_gates_reach_their_limits_and_block_their_gradients(in_force, dtype, size, rng):
    problem, limits = saturated(dtype, size, rng)
    found = run(problem)
    assert_all_close({name: found[name] for name in limits}, limits)
    for name in ("dx", "dw_ih", "dw_hh", "db", "dh_0"):
        np.testing.assert_array_equal(found[name], 0)


def test_infinite_gates_reach_their_limits(in_force, dtype, rng):
    problem, limits = saturated(dtype, np.inf, rng)
    (y, h_n, c_n), _ = forward(problem)
    assert_all_close({"y": y, "h_n": h_n, "c_n": c_n}, {name: limits[name] for name in ("y", "h_n", "c_n")})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 6, 5, 0, 6, 3, 1]], ids=["full", "ragged"])
def test_nan_stays_in_its_sequence_and_goes_on_from_its_step(in_force, dtype, lengths, reverse, rng):
    problem = random_lstm(
        rng, 7, 6, 3, 9, dtype, lengths=lengths and np.array(lengths), reverse=reverse, peephole=True, projected=5
    )
    clean = run(problem)
    problem.x[2, 3, 1] = np.nan
    found = run(problem)
    others = np.arange(7) != 2
    for name in ("y", "h_n", "c_n", "dx", "dh_0", "dc_0"):
        assert bits(found[name][others]) == bits(clean[name][others]), name
    before, after = (slice(4, 5), slice(0, 4)) if reverse else (slice(0, 3), slice(3, 5))
    assert bits(found["y"][2, before]) == bits(clean["y"][2, before])
    assert np.isnan(found["y"][2, after]).all()
    for name in ("h_n", "c_n", "dx", "dh_0", "dc_0"):
        assert np.isnan(found[name][2][:5]).all(), name
    for name in ("w_ih", "w_hh", "b", "peephole", "w_proj"):
        assert np.isnan(found[f"d{name}"]).any(), name


@pytest.mark.parametrize("name", UPSTREAMS)
def test_nan_upstream_stays_in_its_sequence_and_reaches_every_gradient(in_force, dtype, name, rng):
    problem = random_lstm(rng, 7, 6, 3, 9, dtype)
    clean = run(problem)
    getattr(problem, name)[4, -1] = np.nan
    found = run(problem)
    for gradient in ("dx", "dh_0", "dc_0"):
        others = np.arange(7) != 4
        assert bits(found[gradient][others]) == bits(clean[gradient][others])
        assert np.isnan(found[gradient][4]).all()
    assert np.isnan(found["dw_ih"]).all()
    assert np.isnan(found["db"]).all()
    assert np.isnan(found["dw_hh"]).all()


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, lengths, layout, rng):
    problem = random_lstm(rng, 13, 5, 3, 17, dtype, lengths=lengths, peephole=True, projected=9)
    laid = problem.map(lambda a: laid_out(a, layout))
    assert_matches_reference(laid)
    assert all_bits(laid.named()) == all_bits(problem.named())


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("name", "layout"),
    [*product((*INPUTS, *UPSTREAMS), LAYOUTS), *product(("x", "dy"), TIME_MAJOR)],
)
def test_one_array_in_another_layout(in_force, dtype, name, layout, rng):
    """Full sequences, whose x and dy may be read in place."""
    problem = random_lstm(rng, 13, 5, 3, 17, dtype, peephole=True, projected=9)
    array = in_layout(getattr(problem, name), layout)
    before = bits(array)
    setattr(problem, name, array)
    assert_matches_reference(problem)
    assert bits(array) == before


def test_broadcast_inputs(in_force, dtype, rng):
    """Strides of 0: one row as every step, one column as every gate, a scalar as bias, state and upstream gradient."""
    problem = random_lstm(rng, 7, 5, 3, 9, dtype)
    problem.x = np.broadcast_to(problem.x[:1, :1], problem.x.shape)
    problem.w_ih = np.broadcast_to(problem.w_ih[:, :1], problem.w_ih.shape)
    problem.w_hh = np.broadcast_to(problem.w_hh[:1], problem.w_hh.shape)
    for name, value in {"b": 0.25, "h_0": -0.5, "c_0": 0.75, "dy": 1.5, "dh_n": -1.0, "dc_n": 0.5}.items():
        setattr(problem, name, np.broadcast_to(dtype.type(value), getattr(problem, name).shape))
    assert_matches_reference(problem)


def test_weights_of_pytorch_are_read_as_they_lie(in_force, dtype, rng):
    """(4H, C) and (4H, H), given as w.T."""
    problem = random_lstm(rng, 17, 5, 3, 33, dtype, lengths="random")
    for name in ("w_ih", "w_hh"):
        setattr(problem, name, np.ascontiguousarray(getattr(problem, name).T).T)
    assert_matches_reference(problem)


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
def test_backward_may_be_called_again_and_its_results_are_independent(in_force, dtype, lengths, rng):
    problem = random_lstm(rng, 13, 5, 3, 17, dtype, lengths=lengths, peephole=True, projected=9)
    results, backward = forward(problem, cells=True)
    kept = [bits(a) for a in results]
    first = backward(problem.dy, problem.dh_n, problem.dc_n)
    second = backward(problem.dy, problem.dh_n, problem.dc_n)
    assert [bits(a) for a in first] == [bits(a) for a in second]
    assert [bits(a) for a in results] == kept
    outputs, inputs = [*results, *first, *second], list(problem.named().values())
    for number, output in enumerate(outputs):
        assert not any(np.shares_memory(output, a) for a in [*outputs[:number], *inputs])


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_is_read_before_or_written_outside_of_a_buffer(in_force, dtype, options, lengths, rng, monkeypatch):
    """Every buffer that the call asks for starts as NaN, between guards."""
    problem = random_lstm(rng, 19, 5, 3, 17, dtype, lengths=lengths, **OPTIONS[options])
    expected, buffers, real = all_bits(run(problem)), [], np.empty

    def guarded(shape, dtype=np.float64, order="C"):
        # the pool takes an array in a dtype's place
        dtype = dtype.dtype if isinstance(dtype, np.ndarray) else dtype
        array = real(shape, dtype, order)
        if array.dtype.kind != "f":
            return array
        buffers.append(np.full(array.size + 128, 7, dtype))
        array = buffers[-1][64:-64].reshape(array.shape, order=order)
        array[...] = np.nan
        return array

    monkeypatch.setattr(np, "empty", guarded)
    pooled = allocator.empty
    for module in [module for name, module in sys.modules.items() if name.startswith("fastgrad.")]:
        if getattr(module, "empty", None) is pooled:
            monkeypatch.setattr(module, "empty", guarded)
    found = run(problem)
    monkeypatch.undo()
    assert all_bits(found) == expected
    # one of gates, c and tanh_c; h, h_n, c_n, dz, dx, dh_0, dc_0 and the gradients of at least two weights
    assert len(buffers) >= 10
    for buffer in buffers:
        np.testing.assert_array_equal(buffer[:64], 7)
        np.testing.assert_array_equal(buffer[-64:], 7)


def test_the_output_of_an_lstm_is_the_input_of_another_without_a_copy(in_force, dtype, rng, monkeypatch):
    """Forward and back, with the bits that a contiguous copy gives."""
    lower, upper = random_lstm(rng, 13, 5, 3, 17, dtype), random_lstm(rng, 13, 5, 17, 9, dtype)
    (y, _, _), backward = forward(lower)
    # y's own upstream gradient would have to be gathered
    upper.dy = None
    upper.x = np.ascontiguousarray(y)
    copied = run(upper)
    lower_copied = backward(np.ascontiguousarray(copied["dx"]))

    def gather_rows(*arguments):
        raise AssertionError("x was copied")

    monkeypatch.setattr(kernels(), "gather_rows", gather_rows)
    upper.x = y
    in_place = run(upper)
    assert all_bits(in_place) == all_bits(copied)
    assert [bits(a) for a in backward(in_place["dx"])] == [bits(a) for a in lower_copied]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", ["plain", "peephole_projection_no_bias"])
def test_a_sequence_of_a_batch_is_that_sequence_alone(in_force, dtype, options, reverse, rng):
    """Lengths in no order, some equal, some 0: the results of each, and the sum of the gradients of the weights."""
    ends = np.array([3, 6, 0, 1, 6, 2, 0, 5, 3])
    problem = random_lstm(rng, 9, 6, 3, 9, dtype, lengths=ends, reverse=reverse, **OPTIONS[options])
    found = run(problem)
    sums = {f"d{name}": 0 for name in problem.named(("w_ih", "w_hh", "b", "peephole", "w_proj"))}
    for n, end in enumerate(ends):
        one = problem.only(slice(n, n + 1))
        one.lengths, one.x, one.dy = None, one.x[:, :end], one.dy[:, :end]
        alone = run(one)
        for name in ("y", "dx"):
            assert_close("lstm", found[name][n, :end], alone[name][0], size=1)
            np.testing.assert_array_equal(found[name][n, end:], 0)
        for name in ("h_n", "c_n", "dh_0", "dc_0"):
            assert_close("lstm", found[name][n], alone[name][0], size=np.abs(alone[name]).max())
        sums = {name: total + alone[name].astype(np.float64) for name, total in sums.items()}
    assert_all_close({name: found[name] for name in sums}, sums)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_empty_sequence_gives_zeros_and_its_states_pass_through(in_force, dtype, reverse, rng):
    problem = random_lstm(rng, 4, 3, 2, 9, dtype, lengths=np.array([2, 0, 3, 0]), reverse=reverse)
    found, empty = run(problem), [1, 3]
    np.testing.assert_array_equal(found["y"][empty], 0)
    np.testing.assert_array_equal(found["dx"][empty], 0)
    for name, start in {"h_n": problem.h_0, "c_n": problem.c_0, "dh_0": problem.dh_n, "dc_0": problem.dc_n}.items():
        assert bits(found[name][empty]) == bits(start[empty])


def test_final_states_are_those_of_the_last_step(in_force, dtype, rng):
    ends = np.array([3, 6, 1, 6, 2, 5])
    problem = random_lstm(rng, 6, 6, 3, 9, dtype, lengths=ends)
    (y, h_n, c_n, c), _ = forward(problem, cells=True)
    assert bits(h_n) == bits(y[np.arange(6), ends - 1])
    assert bits(c_n) == bits(c[np.arange(6), ends - 1])
    for n, end in enumerate(ends):
        np.testing.assert_array_equal(y[n, end:], 0)
        np.testing.assert_array_equal(c[n, end:], 0)
    problem.reverse = True
    (y, h_n, c_n, c), _ = forward(problem, cells=True)
    assert bits(h_n) == bits(y[:, 0])
    assert bits(c_n) == bits(c[:, 0])


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
def test_reverse_is_every_sequence_turned_around(in_force, dtype, lengths, rng):
    problem = random_lstm(rng, 9, 6, 3, 9, dtype, lengths=lengths, reverse=True, peephole=True)
    found, ends = run(problem), problem.ends()
    problem.reverse = False
    problem.x, problem.dy = flipped(problem.x, ends), flipped(problem.dy, ends)
    expected = run(problem)
    for name in ("y", "dx"):
        expected[name] = flipped(expected[name], ends)
    assert_all_close(found, expected, least=1)


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


@pytest.mark.parametrize(
    "kind", [list, tuple, np.int8, np.uint64, ">i4"], ids=["list", "tuple", "int8", "uint64", "big_endian"]
)
def test_lengths_of_any_integer_type(in_force, dtype, kind, rng):
    problem = random_lstm(rng, 5, 6, 3, 9, dtype, lengths=np.array([3, 6, 0, 1, 5]))
    expected = all_bits(run(problem))
    problem.lengths = kind(problem.lengths.tolist()) if kind in (list, tuple) else problem.lengths.astype(kind)
    assert all_bits(run(problem)) == expected


def test_lengths_that_are_all_the_longest_change_no_bit(in_force, dtype, rng):
    problem = random_lstm(rng, 5, 6, 3, 9, dtype)
    expected = all_bits(run(problem))
    problem.lengths = np.full(5, 6)
    assert all_bits(run(problem)) == expected


def steps_of(problem):
    """(y, c of every step, h_n, c_n) of lstm_cell, step after step."""
    p, h, c, hs, cs = problem, problem.h_0, problem.c_0, [], []
    for t in range(p.x.shape[1]):
        (h, c), _ = fg.lstm_cell(p.x[:, t], h, c, p.w_ih, p.w_hh, p.b, peephole=p.peephole, w_proj=p.w_proj)
        hs.append(h)
        cs.append(c)
    return np.stack(hs, axis=1), np.stack(cs, axis=1), h, c


@pytest.mark.parametrize("options", ["plain", "no_bias", "peephole", "projection", "wide_projection"])
def test_a_cell_stepped_is_the_sequence(in_force, dtype, options, rng):
    problem = random_lstm(rng, 7, 6, 3, 9, dtype, **OPTIONS[options])
    (y, h_n, c_n, c), _ = forward(problem, cells=True)
    stepped = dict(zip(["y", "c", "h_n", "c_n"], steps_of(problem), strict=True))
    assert_all_close({"y": y, "c": c, "h_n": h_n, "c_n": c_n}, stepped)


def test_cells_do_not_change_the_other_results(in_force, dtype, rng):
    problem = random_lstm(rng, 7, 6, 3, 9, dtype, lengths="random", reverse=True)
    with_cells, backward = forward(problem, cells=True)
    without, other = forward(problem)
    assert [bits(a) for a in with_cells[:3]] == [bits(a) for a in without]
    ours, theirs = backward(problem.dy), other(problem.dy)
    assert [bits(a) for a in ours] == [bits(a) for a in theirs]


@pytest.mark.emulated(0)
@pytest.mark.parametrize("options", ["no_bias", "peephole", "projection"])
def test_cell_gradients_are_central_differences(in_force, options, rng):
    p = random_lstm(rng, 3, 1, 2, 4, **OPTIONS[options])
    inputs = {"x": p.x[:, 0].copy(), "h": p.h_0, "c": p.c_0, "w_ih": p.w_ih, "w_hh": p.w_hh}
    inputs |= p.named(("b", "peephole", "w_proj"))
    _, backward = fg.lstm_cell(**inputs)

    def value():
        (h, c), _ = fg.lstm_cell(**inputs)
        return float((h * p.dh_n).sum() + (c * p.dc_n).sum())

    for gradient, array in zip(backward(p.dh_n, p.dc_n), inputs.values(), strict=True):
        assert_close("numerical", gradient, numerical_gradient(value, array), size=10)


@pytest.mark.pairwise
@pytest.mark.parametrize("options", ["plain", "no_bias", "peephole", "projection", "wide_projection"])
@pytest.mark.parametrize(("n", "hidden"), [(1, 5), (7, 9), (33, 64)], ids=str)
def test_a_cell_stepped_back_adds_up_the_gradients_of_the_sequence(in_force, dtype, options, n, hidden, rng):
    p = random_lstm(rng, n, 5, 3, hidden, dtype, **OPTIONS[options])
    weights = p.named(("w_ih", "w_hh", "b", "peephole", "w_proj"))
    h, c, ways_back = p.h_0, p.c_0, []
    for t in range(5):
        (h, c), backward = fg.lstm_cell(p.x[:, t], h, c, **weights)
        ways_back.append(backward)
    # apart from each other, and not zero at first
    gradients = [rng.standard_normal(w.shape).astype(dtype) for w in weights.values()]
    before = [gradient.copy() for gradient in gradients]
    dh, dc, dxs = p.dh_n, p.dc_n, []
    for t in reversed(range(5)):
        dx, dh, dc = ways_back[t](dh + p.dy[:, t], dc, gradients=gradients)
        dxs.insert(0, dx)
    added = [gradient - start for gradient, start in zip(gradients, before, strict=True)]
    found = dict(
        zip(["dx", "dh_0", "dc_0", *(f"d{name}" for name in weights)], [np.stack(dxs, 1), dh, dc, *added], strict=True)
    )
    expected = run(p)
    for name, value in found.items():
        # a gradient of around 1 was added to
        assert_close("lstm", value, expected[name], 4 + np.abs(expected[name]).max(initial=0), terms=5 * n)


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


def test_a_cell_stepped_has_the_bits_of_the_sequence(cpu, dtype, rng):
    for n, c, hidden in ((7, 3, 9), (131, 40, 65)):
        problem = random_lstm(rng, n, 6, c, hidden, dtype, peephole=True)
        (y, h_n, c_n, cells), _ = forward(problem, cells=True)
        assert [bits(a) for a in steps_of(problem)] == [bits(a) for a in (y, cells, h_n, c_n)]


def refuses(kind, message, function, *arguments, **options):
    """The call raises this kind of error with exactly this message."""
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message


@pytest.fixture
def inputs(in_force, rng):
    """The arrays that fg.lstm takes, as keywords: N = 5, T = 4, C = 2, H = 3, P = H."""
    return random_lstm(rng, 5, 4, 2, 3, np.float32, peephole=True).named(INPUTS)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (5, 4), "(N, T, C)"),
        ("x", (2,), "(N, T, C)"),
        ("w_ih", (3, 12), "(C, 4H) = (2, _)"),
        ("w_ih", (12,), "(C, 4H) = (2, _)"),
        ("w_hh", (4, 12), "(H, 4H) = (3, 12)"),
        ("w_hh", (12, 3), "(H, 4H) = (3, 12)"),
        ("b", (3,), "(4H,) = (12,)"),
        ("b", (1, 12), "(4H,) = (12,)"),
        ("h_0", (3, 5), "(N, P) = (5, 3)"),
        ("h_0", (1, 5, 3), "(N, P) = (5, 3)"),
        ("h_0", (1, 3), "(N, P) = (5, 3)"),
        ("c_0", (5, 4), "(N, H) = (5, 3)"),
        ("c_0", (3,), "(N, H) = (5, 3)"),
        ("peephole", (9,), "(3, H) = (3, 3)"),
        ("peephole", (4, 3), "(3, H) = (3, 3)"),
        ("w_proj", (4, 2), "(H, P) = (3, _)"),
    ],
)
def test_wrong_shapes_are_named(inputs, name, shape, expected):
    wrong = {**inputs, name: np.ones(shape, np.float32)}
    refuses(ValueError, f"lstm: {name} must be {expected}, got {shape}", fg.lstm, **wrong)


def test_columns_that_are_not_four_gates_are_refused(inputs):
    wrong = {**inputs, "w_ih": np.ones((2, 10), np.float32)}
    message = "lstm: w_ih must be (C, 4H), got (2, 10), of which 10 columns are not four gates"
    refuses(ValueError, message, fg.lstm, **wrong)


def test_wrong_shapes_beside_a_projection_are_named(inputs):
    projected = {**inputs, "w_proj": np.ones((3, 2), np.float32)}
    refuses(ValueError, "lstm: w_hh must be (P, 4H) = (2, 12), got (3, 12)", fg.lstm, **projected)
    projected["w_hh"] = np.ones((2, 12), np.float32)
    refuses(ValueError, "lstm: h_0 must be (N, P) = (5, 2), got (5, 3)", fg.lstm, **projected)
    # the two states given for each other
    swapped = {**projected, "h_0": inputs["c_0"], "c_0": np.ones((5, 2), np.float32)}
    refuses(ValueError, "lstm: h_0 must be (N, P) = (5, 2), got (5, 3)", fg.lstm, **swapped)


@pytest.mark.parametrize("name", INPUTS)
def test_lists_integers_and_other_dtypes_are_refused(inputs, name):
    inputs = {**inputs, "w_proj": np.ones((3, 3), np.float32)}

    def fails(value, message):
        refuses(TypeError, f"lstm: {name} must be {message}", fg.lstm, **{**inputs, name: value})

    fails(inputs[name].tolist(), "a NumPy array, got list; np.asarray(value, dtype) makes one")
    fails(np.ma.array(inputs[name]), "a NumPy array, got MaskedArray; np.asarray(value, dtype) makes one")
    for kind in ("int64", "bool", "float16", "complex64", ">f4"):
        fails(inputs[name].astype(kind), f"float32 or float64 in native byte order, got {np.dtype(kind)}")
    if name != "x":
        fails(inputs[name].astype(np.float64), "float32, got float64 (one call has one dtype)")
    else:
        mixed = {**inputs, "x": inputs["x"].astype(np.float64)}
        refuses(TypeError, "lstm: w_ih must be float64, got float32 (one call has one dtype)", fg.lstm, **mixed)


@pytest.mark.parametrize(
    ("kind", "lengths", "message"),
    [
        (ValueError, [4, 0, 5, 4, 4], "in 0..4, got 5 at index 2"),
        (ValueError, [4, 0, 4, -1, 9], "in 0..4, got -1 at index 3"),
        (ValueError, np.full(5, 2**64 - 1, np.uint64), f"in 0..4, got {2**64 - 1} at index 0"),
        (ValueError, [4, 4, 4, 4], "integers (N,) = (5,), got (4,)"),
        (ValueError, [], "integers (N,) = (5,), got (0,)"),
        (ValueError, [[4], [4], [4], [4], [4]], "integers (N,) = (5,), got (5, 1)"),
        (ValueError, 4, "integers (N,) = (5,), got ()"),
        (TypeError, [4.0, 4.0, 4.0, 4.0, 4.0], "integers (N,), got float64"),
        (TypeError, [True] * 5, "integers (N,), got bool"),
        (TypeError, ["4"] * 5, "integers (N,), got <U1"),
        (TypeError, [4, 4, 4, 4, None], "integers (N,), got object"),
        (TypeError, [[4], [4, 4]], "integers (N,), got a nested list"),
    ],
)
def test_bad_lengths_are_refused(inputs, kind, lengths, message):
    refuses(kind, f"lstm: lengths must be {message}", fg.lstm, **inputs, lengths=lengths)


def test_states_and_options_are_keyword_only(inputs):
    with pytest.raises(TypeError, match="positional"):
        fg.lstm(*(inputs[name] for name in INPUTS[:5]))
    with pytest.raises(TypeError, match="positional"):
        fg.lstm_cell(
            inputs["x"][:, 0], *(inputs[name] for name in ("h_0", "c_0", "w_ih", "w_hh", "b")), inputs["peephole"]
        )


@pytest.mark.parametrize("lengths", [None, [4, 0, 2, 4, 1]], ids=["full", "ragged"])
def test_bad_upstream_gradients_are_refused(inputs, lengths):
    (y, h_n, c_n), backward = fg.lstm(**inputs, lengths=lengths)
    refuses(TypeError, "lstm: backward needs at least one of dy, dh_n, dc_n", backward)
    refuses(ValueError, "lstm: dy must be (N, T, P) like y = (5, 4, 3), got (5, 3)", backward, y[:, 0])
    refuses(ValueError, "lstm: dy must be (N, T, P) like y = (5, 4, 3), got (4, 5, 3)", backward, y.swapaxes(0, 1))
    refuses(ValueError, "lstm: dh_n must be (N, P) = (5, 3), got (1, 5, 3)", backward, y, h_n[None])
    refuses(ValueError, "lstm: dc_n must be (N, H) = (5, 3), got (3, 5)", backward, None, None, c_n.T)
    float64 = y.astype(np.float64)
    refuses(TypeError, "lstm: dy must be float32, got float64 (one call has one dtype)", backward, float64)
    for wrong in (np.empty(3), np.empty((5, 4))):
        message = f"lstm: step_norms must be (T,) = (4,), got {wrong.shape}"
        refuses(ValueError, message, backward, y, step_norms=wrong)
    message = "lstm: step_norms must be float64, got float32 (one call has one dtype)"
    refuses(TypeError, message, backward, y, step_norms=np.empty(4, np.float32))
    message = "lstm: dh_n must be a NumPy array, got float; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, backward, None, 1.0)


def test_bad_input_of_a_cell_is_refused(inputs):
    x, weights = inputs["x"][:, 0], {name: inputs[name] for name in ("w_ih", "w_hh", "b", "peephole")}
    h, c = inputs["h_0"], inputs["c_0"]
    cell = fg.lstm_cell
    refuses(ValueError, "lstm_cell: x must be (N, C), got (5, 4, 2)", cell, inputs["x"], h, c, **weights)
    refuses(ValueError, "lstm_cell: h must be (N, P) = (5, 3), got (4, 3)", cell, x, h[:4], c, **weights)
    refuses(ValueError, "lstm_cell: c must be (N, H) = (5, 3), got (5, 2)", cell, x, h, c[:, :2], **weights)
    wrong = {**weights, "w_hh": weights["w_hh"][:2]}
    refuses(ValueError, "lstm_cell: w_hh must be (H, 4H) = (3, 12), got (2, 12)", cell, x, h, c, **wrong)
    _, backward = cell(x, h, c, **weights)
    refuses(TypeError, "lstm_cell: backward needs at least one of dh, dc", backward)
    refuses(ValueError, "lstm_cell: dh must be (N, P) = (5, 3), got (3, 5)", backward, h.T)
    refuses(ValueError, "lstm_cell: dc must be (N, H) = (5, 3), got (3,)", backward, h, c[0])
    gradients = [np.zeros_like(w) for w in weights.values()]
    message = "lstm_cell: gradients must have length 4, got 3"
    refuses(ValueError, message, backward, h, c, gradients=gradients[:3])
    message = "lstm_cell: gradients of w_hh must be like w_hh = (3, 12), got (12, 3)"
    refuses(ValueError, message, backward, h, c, gradients=[gradients[0], gradients[1].T, *gradients[2:]])
    gradients[1].flags.writeable = False
    message = "lstm_cell: gradients of w_hh must be C-contiguous and writable, to be added to in place"
    refuses(ValueError, message, backward, h, c, gradients=gradients)


def test_a_refused_backward_leaves_the_next_one_as_it_was(inputs):
    (y, _, _), backward = fg.lstm(**inputs)
    before = [bits(a) for a in backward(y)]
    with pytest.raises(ValueError, match="dc_n"):
        backward(y, None, y)
    assert [bits(a) for a in backward(y)] == before


def test_gradients_of_a_million_steps_are_summed_in_blocks(cpu, rng):
    """Of biases and peepholes: against the same in float64, whose chain loses nothing that counts."""
    n, steps, hidden = 2**17, 8, 2
    x = rng.random((n, steps, 1), np.float32)
    shapes = {"w_ih": (1, 4 * hidden), "w_hh": (hidden, 4 * hidden), "b": (4 * hidden,), "peephole": (3, hidden)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = []
    for dtype in (np.float32, np.float64):
        _, backward = fg.lstm(x.astype(dtype), **{name: w.astype(dtype) for name, w in weights.items()})
        found.append(backward(np.ones((n, steps, hidden), dtype)))
    for ours, exact in zip(found[0][1:5], found[1][1:5], strict=True):
        np.testing.assert_allclose(ours, exact, rtol=5e-6, atol=5e-6 * np.abs(exact).max())
