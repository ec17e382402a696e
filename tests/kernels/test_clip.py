"""Clipping: PyTorch and the papers' formulas as oracles, NaN and infinity anywhere, no overflow, every layout, any number of threads."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, with_threads
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad.kernels import reference

pytestmark = pytest.mark.cuda

SHAPES = [(3, 4), (7,), (), (0, 5), (2, 3, 4, 5), (1,), (1031,), (40, 600), (600, 40)]
# 1,031 is prime; the last needs more than two blocks, and its rows more than one of lanes
LARGE = [(1031,), (40, 600), (130, 700)]
EXTREMES = [
    ("float32", 1e30),
    ("float32", 1e-30),
    *[("float64", size) for size in (1e30, 1e-30, 1e300, 1e-300, 5e-324)],
]
RTOL = {"float32": 1e-5, "float64": 1e-12}


def draw(rng, shapes, dtype, scale=1.0):
    return [np.asarray(rng.standard_normal(shape) * scale).astype(dtype) for shape in shapes]


def all_bits(arrays):
    return [bits(array) for array in arrays]


def close(found, expected, dtype):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=RTOL[dtype.name], atol=RTOL[dtype.name] * 1e-2)


def shapes_for(norm_type):
    """PyTorch has no infinity norm of an empty array."""
    return [shape for shape in SHAPES if 0 not in shape or norm_type != math.inf]


def torch_parameters(torch, grads):
    parameters = [torch.zeros(g.shape, dtype=getattr(torch, g.dtype.name)).requires_grad_() for g in grads]
    for parameter, g in zip(parameters, grads, strict=True):
        parameter.grad = torch.tensor(g)
    return parameters


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
@pytest.mark.parametrize("norm_type", [1, 2, 2.0, math.inf, 3, 0.5])
def test_clip_grad_norm_is_pytorchs(in_force, dtype, norm_type, max_norm, rng, torch):
    grads = draw(rng, shapes_for(norm_type), dtype)
    if norm_type == 0.5:
        # its norm of few thousand values is some 1e7
        max_norm *= 1e5
    parameters = torch_parameters(torch, grads)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    before = [g.astype(np.float64) for g in grads]
    result = fg.clip_grad_norm(grads, max_norm, norm_type)
    close(grads, [p.grad.numpy() for p in parameters], dtype)
    assert result.norm == pytest.approx(float(norm), rel=RTOL[dtype.name])
    assert result.scale == min(1, max_norm / (result.norm + 1e-6))
    assert result.nonfinite == []
    expected = [np.linalg.norm(g.ravel(), norm_type) if g.size else 0 for g in before]
    np.testing.assert_allclose(result.norms, expected, rtol=1e-12)


def test_clip_grad_value_is_pytorchs(in_force, dtype, rng, torch):
    grads = draw(rng, SHAPES, dtype)
    grads[-1].flat[::7] = np.nan
    grads[-1].flat[1::7] = -np.inf
    parameters = torch_parameters(torch, grads)
    torch.nn.utils.clip_grad_value_(parameters, 0.3)
    fg.clip_grad_value(grads, 0.3)
    for g, parameter in zip(grads, parameters, strict=True):
        np.testing.assert_array_equal(g, parameter.grad.numpy())
    assert np.isnan(grads[-1].flat[::7]).all()


def test_a_limit_past_float32_changes_nothing(in_force, rng):
    (w,) = draw(rng, [(50,)], np.float32)
    before = bits(w)
    fg.clip_weights(w, 1e300)
    assert bits(w) == before
    fg.clip_weights(w, 0)
    assert not w.any()


@pytest.mark.parametrize("norm_type", [1, 2, math.inf, 3])
def test_each_array_by_itself_is_pytorch_called_for_each(in_force, dtype, norm_type, rng, torch):
    grads = draw(rng, shapes_for(norm_type), dtype)
    parameters, norms = torch_parameters(torch, grads), []
    for parameter in parameters:
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameter, 2.0, norm_type)))
    found = fg.clip_grad_norm_each(grads, 2.0, norm_type)
    close(grads, [p.grad.numpy() for p in parameters], dtype)
    np.testing.assert_allclose(found, norms, rtol=RTOL[dtype.name])


def test_an_array_may_come_alone(in_force, dtype, rng):
    (g,) = draw(rng, [(30, 4)], dtype)
    expected = g / np.linalg.norm(g) * 2
    result = fg.clip_grad_norm(g, 2.0)
    np.testing.assert_allclose(g, expected, rtol=1e-5)
    assert result.norms.shape == (1,)


def test_nothing_to_clip_leaves_every_bit(in_force, dtype, rng):
    grads = draw(rng, SHAPES, dtype)
    before = all_bits(grads)
    assert fg.clip_grad_norm(grads, 1e6).scale == 1
    fg.clip_grad_norm_each(grads, 1e6)
    fg.clip_grad_value(grads, 1e6)
    fg.clip_grad_adaptive(grads, [np.full_like(g, 1e6) for g in grads])
    fg.project_weights(grads, 1e6)
    assert all_bits(grads) == before


def units_of(w):
    """Brock et al.'s unitwise_norm, with the axes of a dense (in, out) and a conv HWIO weight."""
    if w.ndim <= 1:
        return np.sqrt((w**2).sum())
    return np.sqrt((w**2).sum(axis=0 if w.ndim == 2 else (0, 1, 2), keepdims=True))


@pytest.mark.parametrize("clipping", [0.01, 1.0])
def test_adaptive_clipping_is_the_papers_formula(in_force, dtype, clipping, rng):
    shapes = [(20, 30), (3, 3, 4, 6), (17,), (), (1, 9), (9, 1), (0, 5), (700, 600), (3, 1, 1, 5)]
    grads, params = draw(rng, shapes, dtype, 0.3), draw(rng, shapes, dtype)
    params[0][:, :3] = 0
    grads[1][..., 2] = 0
    expected = []
    for g, w in zip(grads, params, strict=True):
        g, w = g.astype(np.float64), w.astype(np.float64)
        limit, norm = clipping * np.maximum(units_of(w), 1e-3), units_of(g)
        expected.append(np.where(norm > limit, g * (limit / np.maximum(norm, 1e-6)), g))
    before = all_bits(params)
    fg.clip_grad_adaptive(grads, params, clipping)
    close(grads, expected, dtype)
    assert all_bits(params) == before


def test_adaptive_clipping_leaves_alone_what_is_nan(in_force, dtype):
    g, w = np.ones((50, 4), dtype), np.ones((50, 4), dtype)
    g[3, 1], w[2, 2], g[0, 3] = np.nan, np.nan, np.inf
    fg.clip_grad_adaptive(g, w)
    np.testing.assert_allclose(g[:, 0], 0.01, rtol=1e-6)
    np.testing.assert_array_equal(g[:, 1], np.where(np.arange(50) == 3, np.nan, 1))
    np.testing.assert_array_equal(g[:, 2], 1)
    np.testing.assert_array_equal(g[:, 3], np.where(np.arange(50) == 0, np.nan, 0))


def test_weights_are_projected_onto_the_ball(in_force, dtype, rng):
    shapes = [(40, 30), (3, 3, 4, 6), (17,), (0, 3)]
    first = draw(rng, shapes, dtype)

    def projected(per, max_norm):
        params = [w.copy() for w in first]
        fg.project_weights(params, max_norm, per=per)
        return [w.astype(np.float64) for w in params]

    total = math.sqrt(sum(float((w.astype(np.float64) ** 2).sum()) for w in first))
    close([w.astype(dtype) for w in projected("all", 2.0)], [w * (2 / total) for w in first], dtype)
    for w, before in zip(projected("array", 5.0), first, strict=True):
        norm = float(np.linalg.norm(before.astype(np.float64)))
        np.testing.assert_allclose(w, before * min(1, 5 / max(norm, 1)), rtol=1e-6)
    for w, before in zip(projected("unit", 5.5), first, strict=True):
        norm = units_of(before.astype(np.float64))
        np.testing.assert_allclose(w, before * np.minimum(1, 5.5 / np.maximum(norm, 1)), rtol=1e-6)
    assert 0 < sum(int((units_of(w) > 5.5).sum()) for w in first[:2]) < 36


def test_a_unit_is_pytorchs_renorm(in_force, dtype, rng, torch):
    (w,) = draw(rng, [(64, 50)], dtype)
    expected = torch.renorm(torch.tensor(w), 2, 1, 7.5).numpy()
    fg.project_weights(w, 7.5, per="unit")
    np.testing.assert_allclose(w, expected, rtol=1e-6)


@pytest.mark.parametrize("norm_type", [1, 2, math.inf, 3, 0.5])
@pytest.mark.parametrize(("dtype", "size"), EXTREMES)
def test_norms_neither_overflow_nor_vanish(in_force, dtype, size, norm_type, rng):
    dtype = np.dtype(dtype)
    values = rng.integers(1, 9, 5000).astype(np.float64)
    grads = [np.asarray(values * size).astype(dtype), np.ones(3, dtype)]
    norms = fg.clip_grad_norm_each([g.copy() for g in grads], 1.0, norm_type)
    unit = float(dtype.type(size))
    expected = np.linalg.norm(grads[0].astype(np.float64) / unit, norm_type)
    # past the largest value of all there is only infinity
    with np.errstate(over="ignore"):
        assert norms[0] == pytest.approx(expected * np.float64(unit), rel=1e-6)
    assert norms[1] == pytest.approx(np.linalg.norm(np.ones(3), norm_type))


@pytest.mark.parametrize(("dtype", "size"), [(dtype, size) for dtype, size in EXTREMES if size > 1])
def test_huge_gradients_are_clipped_to_the_norm(in_force, dtype, size):
    grads = [np.full((100, 10), size, dtype), np.full(24, -size, dtype)]
    assert fg.clip_grad_norm(grads, 1.0).norm == pytest.approx(size * 32, rel=1e-6)
    assert math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads)) == pytest.approx(1, rel=1e-6)
    units = np.full((10, 3), size, dtype)
    units[:, 1] = 1e-20
    fg.project_weights(units, 1.0, per="unit")
    np.testing.assert_allclose(units, np.broadcast_to([0.1**0.5, 1e-20, 0.1**0.5], (10, 3)), rtol=1e-6)


def test_zeros_are_left_without_a_division(in_force, dtype):
    grads = [np.zeros((3, 4), dtype), np.zeros(0, dtype)]
    for p in (1, 2, 3, math.inf):
        result = fg.clip_grad_norm(grads, 1e-30, p)
        assert (result.norm, result.norms.tolist(), result.nonfinite) == (0, [0, 0], [])
        fg.clip_grad_norm_each(grads, 1e-30, p)
    fg.clip_grad_adaptive(grads, grads)
    fg.project_weights(grads, 1e-30, per="unit")
    assert not grads[0].any()


@st.composite
def poisoned(draw):
    shapes = draw(st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=12))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    arrays = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    for i in draw(st.lists(st.integers(0, len(arrays) - 1), max_size=4)):
        if arrays[i].size:
            place = draw(st.integers(0, arrays[i].size - 1))
            arrays[i].flat[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return arrays, [i for i, array in enumerate(arrays) if not np.isfinite(array).all()]


@pytest.mark.parametrize("backend_name", ["numpy", "cpu"])
@given(case=poisoned(), norm_type=st.sampled_from([1, 2, 3, 0.7, math.inf]))
@settings(max_examples=60, deadline=None)
def test_the_named_arrays_are_those_with_nan_and_nothing_is_written(backend_name, case, norm_type):
    arrays, bad = case
    names = [f"layer{i}.w" for i in range(len(arrays))]
    before = all_bits(arrays)
    with fg.use_backend(backend_name):
        result = fg.clip_grad_norm(arrays, 0.1, norm_type, on_nonfinite="skip")
        assert result.nonfinite == [str(i) for i in bad]
        assert np.flatnonzero(~np.isfinite(result.norms)).tolist() == bad
        assert np.isfinite(result.norm) == (not bad)
        if bad:
            assert all_bits(arrays) == before
            assert result.scale == 1
            with pytest.raises(FloatingPointError) as error:
                fg.clip_grad_norm(arrays, 0.1, norm_type, names)
            wanted = ", ".join(names[i] for i in bad)
            assert str(error.value) == f"clip_grad_norm: grads must be finite, got NaN or infinity in {wanted}"
            assert all_bits(arrays) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_ignored_nan_and_infinity_are_pytorchs(in_force, dtype, value, rng, torch):
    grads = draw(rng, [(5, 6), (40,)], dtype)
    grads[1][7] = value
    parameters = torch_parameters(torch, grads)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    result = fg.clip_grad_norm(grads, 1.0, names=["a", "b"], on_nonfinite="ignore")
    assert result.nonfinite == ["b"]
    for g, parameter in zip(grads, parameters, strict=True):
        np.testing.assert_array_equal(g, parameter.grad.numpy())


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "read_only"])
def test_every_layout_is_written(in_force, dtype, layout, rng):
    values, params = draw(rng, [(12, 20), (3, 3, 2, 4), (9,)], dtype), draw(rng, [(12, 20), (3, 3, 2, 4), (9,)], dtype)
    for clip in (
        lambda grads: fg.clip_grad_norm(grads, 1.0),
        lambda grads: fg.clip_grad_norm_each(grads, 1.0),
        lambda grads: fg.clip_grad_value(grads, 0.2),
        lambda grads: fg.clip_weights(grads, 0.2),
        lambda grads: fg.clip_grad_adaptive(grads, [laid_out(w.copy(), "read_only") for w in params]),
        lambda grads: fg.project_weights(grads, 0.5, per="unit"),
    ):
        plain, other = [v.copy() for v in values], [laid_out(v.copy(), layout) for v in values]
        clip(plain)
        clip(other)
        assert all_bits(plain) == all_bits(other) != all_bits(values)


@pytest.mark.parametrize("norm_type", [1, 2, math.inf, 3])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, norm_type, rng):
    first = draw(rng, [(1_200_000,), (3,), (0,), (900, 700), (50_001,), *[(97,)] * 50], dtype)

    def clipped():
        grads = [g.copy() for g in first]
        result = fg.clip_grad_norm(grads, 3.0, norm_type)
        return result.norm, bits(result.norms), all_bits(grads)

    one, *others = with_threads(clipped)
    assert all(other == one for other in others)


def test_units_have_the_same_bits_on_any_number_of_threads(cpu, dtype, rng):
    shapes = [(1500, 700), (200_003, 3), (5, 40_000), (3, 3, 64, 128)]
    first, params = draw(rng, shapes, dtype), draw(rng, shapes, dtype)

    def clipped():
        grads = [g.copy() for g in first]
        fg.clip_grad_adaptive(grads, params)
        fg.clip_grad_value(grads, 0.02)
        return all_bits(grads)

    one, *others = with_threads(clipped)
    assert all(other == one for other in others)


@pytest.mark.parametrize("p", [1, 2, math.inf, 3, 0.5, 40.0])
@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
def test_kernels_match_the_reference_by_unit(cpu, dtype, p, size, rng):
    arrays = draw(rng, [(40, 6), *LARGE[1:], (0, 3), (2, 20_001)], dtype, size)
    arrays[0][:, 2] = 0
    arrays[0][1, 4] = np.inf
    for widths in (None, np.array([a.shape[1] for a in arrays])):
        found = []
        for kernels in (cpu, reference):
            norms = np.full(len(arrays) if widths is None else widths.sum(), np.nan)
            counts = np.full(len(arrays), -1)
            kernels.array_norms(arrays, widths, p, norms, counts)
            found.append((norms, counts))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-11)
        assert found[0][1].tolist() == found[1][1].tolist() == [1, 0, 0, 0, 0]
        scales = rng.random(found[0][0].size)
        ours, theirs = ([a.copy() for a in arrays] for _ in range(2))
        cpu.scale_arrays(ours, widths, scales)
        reference.scale_arrays(theirs, widths, scales)
        assert all_bits(ours) == all_bits(theirs)


def test_values_far_apart_in_one_list_keep_their_norms(in_force):
    grads = [np.full(4, size) for size in (1e300, 1.0, 1e-300, 0.0, np.inf, 1e-160)]
    norms = fg.clip_grad_norm(grads, 1.0, on_nonfinite="skip").norms
    np.testing.assert_allclose(norms, [2e300, 2, 2e-300, 0, np.inf, 2e-160], rtol=1e-14)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("clip", ["clip_grad_norm", "clip_grad_norm_each", "project_weights"])
def test_a_norm_that_is_none_is_refused(in_force, clip, value, rng):
    (g,) = draw(rng, [(5,)], np.float32)
    before = bits(g)
    with pytest.raises(ValueError, match=rf"^{clip}: max_norm must be above 0 and finite, got {value}$"):
        getattr(fg, clip)([g], value)
    assert bits(g) == before


def test_bad_input_is_refused_and_nothing_written(in_force, rng):
    single, double = np.full((2, 3), 9, np.float32), np.full(2, 9.0)
    locked = laid_out(single.copy(), "read_only")
    before = all_bits([single, double])
    cases = [
        (ValueError, "grads must have length at least 1, got 0", lambda: fg.clip_grad_norm([], 1.0)),
        (TypeError, r"grads\[1\] must be float32, got float64 \(one call has one dtype\)", lambda: fg.clip_grad_norm([single, double], 1)),
        (ValueError, r"grads\[1\] must be writable, got a read-only array", lambda: fg.clip_grad_norm([single, locked], 1.0)),
        (ValueError, "grads must be writable, got a read-only array", lambda: fg.clip_grad_norm(locked, 1.0)),
        (TypeError, r"grads\[0\] must be a NumPy array, got list; .*", lambda: fg.clip_grad_norm([[1.0]], 1.0)),
        (TypeError, "max_norm must be a number, got str", lambda: fg.clip_grad_norm(single, "1")),
        (ValueError, "norm_type must be above 0 and finite, got 0", lambda: fg.clip_grad_norm(single, 1.0, 0)),
        (ValueError, "norm_type must be above 0 and finite, got -inf", lambda: fg.clip_grad_norm(single, 1.0, -math.inf)),
        (TypeError, "norm_type must be a number, got str", lambda: fg.clip_grad_norm(single, 1, "two")),
        (ValueError, "names must have length 2, got 1", lambda: fg.clip_grad_norm([single, single[:0]], 1.0, names=["w"])),
        (ValueError, "on_nonfinite must be one of raise, skip, ignore; got 3", lambda: fg.clip_grad_norm(single, 1.0, 2.0, None, 3)),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=f"^clip_grad_norm: {message}$"):
            call()
    with pytest.raises(ValueError, match=r"^clip_grad_value: limit must be at least 0 and finite, got -1$"):
        fg.clip_grad_value(single, -1)
    with pytest.raises(ValueError, match=r"^clip_weights: limit must be at least 0 and finite, got nan$"):
        fg.clip_weights(single, math.nan)
    with pytest.raises(ValueError, match=r"^project_weights: per must be one of all, array, unit; got 'row'$"):
        fg.project_weights(single, 1.0, per="row")
    with pytest.raises(ValueError, match=r"^project_weights: params\[0\] must have 1, 2 or 4 axes, got \(2, 3, 4\)$"):
        fg.project_weights(np.ones((2, 3, 4)), 1.0, per="unit")
    with pytest.raises(
        ValueError, match=r"^clip_grad_adaptive: grads\[0\] must be \(2,\) like params\[0\], got \(2, 3\)$"
    ):
        fg.clip_grad_adaptive(single, np.ones(2, np.float32))
    with pytest.raises(
        TypeError, match=r"^clip_grad_adaptive: params must be float32, got float64 \(one call has one dtype\)$"
    ):
        fg.clip_grad_adaptive(single, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^clip_grad_adaptive: clipping must be above 0 and finite, got 0$"):
        fg.clip_grad_adaptive(single, single, 0)
    assert all_bits([single, double]) == before


@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 1, 64), (2, 64)])
def test_a_layer_of_one_input_has_a_unit_for_each_output(in_force, dtype, shape):
    w = np.full(shape, 2.0, dtype)
    fg.project_weights(w, 3.0, per="unit")
    assert (w == 2).all()
    fg.project_weights(w, 1.0, per="unit")
    np.testing.assert_allclose(np.linalg.norm(w.reshape(-1, 64), axis=0), 1, rtol=1e-6)


NUMBERS = {
    "huge": (10**400, ValueError, "max_norm must be above 0 and finite, got int that no float holds"),
    "huge below 0": (-(10**5000), ValueError, "max_norm must be above 0 and finite, got int that no float holds"),
    "huge fraction": (Fraction(10**400), ValueError, "must be above 0 and finite, got Fraction that no float holds"),
    "longdouble": (np.longdouble("1e400"), ValueError, "max_norm must be above 0 and finite, got 1e\\+400|got inf"),
    "nan": (np.float32("nan"), ValueError, "max_norm must be above 0 and finite, got nan"),
    "infinite": (np.float16("inf"), ValueError, "max_norm must be above 0 and finite, got inf"),
    "zero": (-0.0, ValueError, "max_norm must be above 0 and finite, got -0.0"),
    "below 0": (np.int8(-1), ValueError, "max_norm must be above 0 and finite, got -1"),
    "word": ("inf", TypeError, "max_norm must be a number, got str"),
    "bool": (np.True_, TypeError, "max_norm must be a number, got bool"),
    "decimal": (Decimal(1), TypeError, "max_norm must be a number, got Decimal"),
    "array": (np.array(1.0), TypeError, "max_norm must be a number, got ndarray"),
    "complex": (1 + 0j, TypeError, "max_norm must be a number, got complex"),
    "none": (None, TypeError, "max_norm must be a number, got NoneType"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_what_is_no_number_in_range_is_named(kind):
    value, error, message = NUMBERS[kind]
    grads = [np.array([3.0, 4.0])]
    for clip in (fg.clip_grad_norm, fg.clip_grad_norm_each, fg.project_weights):
        with pytest.raises(error, match=f"^{clip.__name__}: .*({message})"):
            clip(grads, value)
    np.testing.assert_array_equal(grads[0], [3.0, 4.0])


@pytest.mark.parametrize("value", [1, np.int8(1), np.uint64(1), np.float16(1), np.longdouble(1), Fraction(1)])
def test_numbers_of_python_and_numpy_are_numbers(value):
    for found in (
        fg.clip_grad_norm([np.array([3.0, 4.0])], value),
        fg.clip_grad_norm([np.array([3.0, 4.0])], 1, value),
    ):
        assert found == fg.clip_grad_norm([np.array([3.0, 4.0])], 1.0, 1.0 if found.norm == 7 else 2.0)


@pytest.mark.parametrize("infinity", [np.float16("inf"), np.float32("inf"), np.longdouble("inf"), "inf", math.inf])
def test_infinity_of_any_kind_is_a_norm(infinity):
    assert fg.clip_grad_norm([np.array([3.0, -4.0])], 1.0, infinity).norm == 4
    for wrong in (10**400, -math.inf, "2"):
        with pytest.raises((ValueError, TypeError), match="clip_grad_norm: norm_type must be"):
            fg.clip_grad_norm([np.array([3.0, -4.0])], 1.0, wrong)


WRITERS = {
    "clip_grad_norm": lambda a: fg.clip_grad_norm(a, 1.0),
    "clip_grad_norm_each": lambda a: fg.clip_grad_norm_each(a, 1.0),
    "clip_grad_value": lambda a: fg.clip_grad_value(a, 1.0),
    "clip_weights": lambda a: fg.clip_weights(a, 1.0),
    "clip_grad_adaptive": lambda a: fg.clip_grad_adaptive(a, [w.copy() for w in a]),
    "project_weights": lambda a: fg.project_weights(a, 1.0),
    "prune": lambda a: fg.prune(a, 0.5),
    "Updater": lambda a: fg.Updater(a, fg.optim.SGD(1.0)),
}


@pytest.mark.parametrize("op", WRITERS)
def test_an_array_that_is_twice_in_a_list_is_refused(op):
    """It would be scaled, pruned or updated twice."""
    a, b = np.array([3.0, 4.0]), np.array([1.0])
    with pytest.raises(
        ValueError, match=rf"^{op}: (grads|params) must be arrays of their own, got .*\[0\] as .*\[2\] again"
    ):
        WRITERS[op]([a, b, a])
    np.testing.assert_array_equal(a, [3.0, 4.0])
    # parts of one array are arrays of their own
    whole = np.array([3.0, 4.0, 5.0, 6.0])
    WRITERS[op]([whole[2:], whole[:2]])


@pytest.mark.parametrize("op", ["prune", "Updater"])
def test_arrays_that_share_memory_are_refused_where_it_is_kept(op):
    whole = np.arange(6.0)
    message = rf"^{op}: params must be arrays of their own, params\[0\] and params\[2\] share memory"
    with pytest.raises(ValueError, match=message):
        WRITERS[op]([whole[2:], np.ones(3), whole[:3]])
    np.testing.assert_array_equal(whole, np.arange(6.0))
    # every other value, and a part of these behind one that is between
    WRITERS[op]([whole[::2], whole[1::2]])
    with pytest.raises(ValueError, match=r"params\[0\] and params\[2\] share memory"):
        WRITERS[op]([whole[::2], whole[1:2], whole[2:3]])
