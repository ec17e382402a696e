"""Health statistics of lists of arrays and of outputs: every backend against NumPy's formulas in long double."""

import numpy as np
import pytest
from arrays import bits, with_threads
from chains import clone, random_net, random_target
from tolerances import assert_close

import fastgrad as fg
from fastgrad.health.layers import bands
from fastgrad.kernels import types
from fastgrad.optim import SGD, Adam

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


SPECIAL = np.nan, np.inf, -np.inf


def expected_gradient(array):
    wide = array.astype(np.longdouble)
    norm = np.sqrt((wide**2).sum()) if np.isfinite(wide).all() else np.abs(wide).max(initial=0)
    return norm, np.abs(wide).max(initial=0), np.mean(array == 0) if array.size else 0, np.sum(~np.isfinite(array))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_gradients_of_any_size_are_described(backend, dtype, rng, scale):
    shapes = [(0,), (1,), (7,), (16,), (33,), (1001,), (130, 257), (3, 3, 5, 7)]
    arrays = [(scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    for array in arrays:
        array[rng.random(array.shape) < 0.3] = 0
    found = np.full((len(arrays), 4), np.nan)
    backend.array_health(arrays, found)
    expected = np.array([expected_gradient(a) for a in arrays], np.float64)
    assert_close("optimizer", found[:, 0].astype(dtype), expected[:, 0].astype(dtype))
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_of_float64_neither_vanish_nor_overflow(backend, rng, scale):
    array = scale * rng.standard_normal(100)
    found = np.empty((1, 4))
    backend.array_health([array], found)
    assert found[0, 0] == pytest.approx(float(expected_gradient(array)[0]), rel=1e-12)


@pytest.mark.parametrize("bad", SPECIAL)
@pytest.mark.parametrize("place", [0, 15, 16, 99])
def test_what_is_not_finite_is_counted(backend, dtype, rng, bad, place):
    arrays = [rng.standard_normal(100).astype(dtype) for _ in range(3)]
    arrays[1][place] = arrays[1][50] = bad
    found = np.empty((3, 4))
    backend.array_health(arrays, found)
    np.testing.assert_array_equal(found[:, 3], [0, 2, 0])
    np.testing.assert_array_equal(found[1, :2], [abs(bad)] * 2)
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (64, 10), (129, 65), (7, 4096), (5000, 16)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 1000.0), (1e25, 0.0), (1e-25, 0.0)])
def test_outputs_are_described(backend, dtype, rng, shape, scale, shift):
    y = (scale * rng.standard_normal(shape) + shift).astype(dtype)
    y[:, 0] = 0
    limits = shift + scale * np.array([-0.5, 1.0, -1.5, 2.5])
    y[:, -1] = dtype.type(limits[3])
    found = np.empty((1, 4))
    backend.output_health([y], limits[None], found)
    wide, (low, high, flat_low, flat_high) = y.astype(np.longdouble), limits.astype(dtype)
    assert found[0, 0] == pytest.approx(float(wide.mean()), rel=1e-6, abs=1e-6 * scale)
    assert found[0, 1] == pytest.approx(float(wide.std()), rel=1e-5)
    dead = ((y == 0) | (y <= flat_low) | (y >= flat_high)).all(0).mean()
    np.testing.assert_allclose(found[0, 2:], [((y <= low) | (y >= high)).mean(), dead], rtol=1e-12)


def test_outputs_of_no_rows_and_of_nan(backend, dtype):
    y = np.ones((9, 20), dtype)
    y[5, 3] = np.nan
    found = np.empty((3, 4))
    limits = np.array([[-np.inf, np.inf, -np.inf, np.inf]] * 3)
    backend.output_health([np.empty((0, 4), dtype), y, np.full((2, 2), np.inf, dtype)], limits, found)
    np.testing.assert_array_equal(found[:2], [[np.nan, np.nan, 0, 0]] * 2)
    assert np.isnan(found[2, :2]).all()


def test_constant_outputs_have_no_spread(backend, dtype):
    found = np.empty((1, 4))
    backend.output_health([np.full((300, 30), 0.1, dtype)], np.array([[-np.inf, np.inf, -np.inf, np.inf]]), found)
    assert found[0, 0] == pytest.approx(0.1)
    assert found[0, 1] < 1e-16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(9, 17, 4), (65, 64, 33, 10), (485, 129, 65, 3)])
def test_a_chain_is_described_as_by_the_reference_on_any_number_of_threads(cpu, dtype, rng, widths, bias):
    from fastgrad.kernels import reference

    activations = [*("relu", "tanh", "gelu")[: len(widths) - 2], "sigmoid"]
    net = random_net(rng, widths, activations, dtype, 131, clip_norm=0.1, bias=bias)
    x, target = rng.standard_normal((131, widths[0])).astype(dtype), random_target(rng, "mse", 131, widths[-1], dtype)
    limits = np.array([bands(types.ACTIVATIONS[f]) for f in activations])

    def described(backend, health=True):
        run_net, rows = clone(net), np.full((1, len(activations), 9), np.nan)
        watch = types.Watch(limits, rows, 1) if health else None
        arguments = {"x": x, "target": target, "step": 0, "record": np.empty(2), "watch": watch}
        assert backend.dense_chain_step(**arguments, **run_net.keyword()) == types.OK
        return rows[0], bits(run_net.params)

    expected, _ = described(reference)
    first, *others = with_threads(lambda: described(cpu))
    assert_close("train_gradient", first[0].astype(dtype), expected, size=np.abs(expected).max(0), terms=131)
    assert all(bits(rows) == bits(first[0]) for rows, _ in others)
    # and nothing else is changed by it
    assert {params for _, params in [first, *others, described(cpu, False)]} == {first[1]}


def test_lists_are_described_with_the_same_bits_on_any_number_of_threads(cpu, dtype, rng):
    arrays = [rng.standard_normal(n).astype(dtype) for n in (10, 300_001, 70_000)]
    outputs = [rng.standard_normal(shape).astype(dtype) for shape in ((3001, 40), (17, 4099))]
    limits = np.array([bands(types.ACTIVATIONS["tanh"])] * 2)

    def everything():
        of_arrays, of_outputs, moved = np.empty((3, 4)), np.empty((2, 4)), np.empty((3, 2))
        cpu.array_health(arrays, of_arrays)
        cpu.output_health(outputs, limits, of_outputs)
        params = [a.copy() for a in arrays]
        state, hyper = np.empty((0, sum(a.size for a in params)), dtype), np.array([0.1, 0, 0, 0, 0, 0, 0])
        rule = types.UpdateRule(types.SGD, state, hyper, np.inf, None, None)
        cpu.update_arrays(params, arrays, rule, 1, None, moved=moved)
        return bits(of_arrays), bits(of_outputs), bits(moved)

    assert len(set(with_threads(everything))) == 1


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), Adam(0.01), fg.optim.RMSprop(0.01)])
@pytest.mark.parametrize("masked", [False, True])
def test_moved_is_what_changed(backend, dtype, rng, optimizer, masked):
    params = [rng.standard_normal(shape).astype(dtype) for shape in ((30, 700), (5,), (0,))]
    params.append(np.zeros(9, dtype))
    before, grads = [p.copy() for p in params], [rng.standard_normal(p.shape).astype(dtype) for p in params]
    state, moved = np.zeros((optimizer.state_rows, sum(p.size for p in params)), dtype), np.full((4, 2), np.nan)
    masks = rng.random(state.shape[1]) < 0.5 if masked else None
    rule = types.UpdateRule(optimizer.code, state, optimizer.hyper, np.inf, masks, None)
    backend.update_arrays(params, grads, rule, 1, None, moved=moved)
    expected = [
        [((p.astype(float) - b) ** 2).sum(), (b.astype(float) ** 2).sum()] for p, b in zip(params, before, strict=True)
    ]
    np.testing.assert_allclose(moved, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
