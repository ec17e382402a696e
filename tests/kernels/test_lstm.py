"""The LSTM through the public API: the reference against central differences and PyTorch, every backend against the reference."""

import sys
from itertools import combinations, product

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, assert_is_gradient, bits, laid_out
from conftest import BACKENDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lstms import (
    INPUTS,
    OPTIONS,
    UPSTREAMS,
    assert_all_close,
    flipped,
    forward,
    loss,
    random_lstm,
    run,
    torch_run,
)
from tolerances import assert_close

import fastgrad as fg
from fastgrad.core import allocator
from fastgrad.core.backend import kernels

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

SUBSETS = [names for count in (1, 2, 3) for names in combinations(UPSTREAMS, count)]
ALONE_AND_TOGETHER = [(name,) for name in UPSTREAMS] + [UPSTREAMS]
TIME_MAJOR = ("time_major", "time_major_read_only")


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
        assert_is_gradient(found[f"d{name}"], lambda: loss(problem), array)


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
        assert_is_gradient(gradient, lambda: loss(problem), array)


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
    if in_force == "numpy":
        pytest.skip("it has no blocks")
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


@pytest.mark.parametrize(
    "kind", [list, tuple, np.int8, np.uint64, ">i4"], ids=["list", "tuple", "int8", "uint64", "big_endian"]
)
def test_lengths_of_any_integer_type(in_force, dtype, kind, rng):
    problem = random_lstm(rng, 5, 6, 3, 9, dtype, lengths=np.array([3, 6, 0, 1, 5]))
    expected = all_bits(run(problem))
    problem.lengths = kind(problem.lengths.tolist()) if kind in (list, tuple) else problem.lengths.astype(kind)
    assert all_bits(run(problem)) == expected


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
