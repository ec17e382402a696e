"""Layer normalisation: the reference against central differences and PyTorch, every backend against the reference."""

from dataclasses import replace

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, bits, laid_out, numerical_gradient, unwritten, with_threads
from chains import torch_activation
from emulation import emulated
from error_messages import refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from norms import FLOAT64, norm_problem, norm_problems, streamed_shape
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels import reference
from fastgrad.kernels.types import ACTIVATIONS, Affine, LayerSaved, NormGradients, Statistics

pytestmark = pytest.mark.cuda

EVERY = list(ACTIVATIONS)
# the ends of vectors, of the 32 values that sums take at once, of the 2048 that are taken at a time, of a block of 32768 values
FEATURES = (1, 3, 17, 31, 32, 33, 64, 257, 512, 2049, 33_000)
ROWS = (1, 2, 31, 33, 65, 1025, 5000)


def run(p, **options):
    """Results and gradients by name."""
    y, backward = fg.layer_norm(p.x, p.gamma, p.beta, residual=p.residual, **options)
    names = ["dx", "dgamma", "dbeta", *(["dresidual"] if p.residual is not None else [])]
    return {"y": y} | dict(zip(names, backward(p.dy), strict=True))


def in_float64(array):
    return array.astype(np.float64)


def kernel_results(kernels, p, activation, saved=None):
    """(statistics, saved, gradients) of a backend's kernels; backward reads `saved` if it is given, else what forward saved."""
    dtype, (count, features) = p.x.dtype, p.x.shape
    statistics = Statistics(unwritten(count, FLOAT64), unwritten(count, FLOAT64))
    y = unwritten(p.x.shape, dtype)
    own = LayerSaved(unwritten(p.x.shape, dtype) if activation.needs_input else y, y)
    affine = Affine(p.gamma, p.beta)
    kernels.layer_norm_forward(p.x, affine, 1e-5, p.residual, activation, statistics, own)
    dz, dx = (None if p.residual is None else unwritten(p.x.shape, dtype)), unwritten(p.x.shape, dtype)
    gradients = NormGradients(dz, dx, unwritten(features, dtype), unwritten(features, dtype))
    kernels.layer_norm_backward(p.dy, p.x, statistics, affine, activation, saved or own, gradients)
    return statistics, own, gradients


def assert_matches_reference(backend, p, activation):
    """Statistics, output and gradients of the backend's kernels, in the problem's dtype, against the reference in float64.

    Both backwards start from the backend's saved values: a z that rounds to the other side of relu's kink is no error.
    """
    dtype, (count, features) = p.x.dtype, p.x.shape
    exact = p.map(in_float64)
    statistics, saved, gradients = kernel_results(backend, p, activation)
    found = kernel_results(reference, exact, activation, LayerSaved(*map(in_float64, saved)))
    exact_statistics, exact_saved, exact_gradients = found
    # float32 values are added up in more digits
    terms = max(features, 2) if dtype == FLOAT64 else 2
    rstd = exact_statistics.rstd
    mean = exact_statistics.mean
    assert_close("layer_norm", statistics.mean.astype(dtype), mean, 1 / rstd + np.abs(mean), terms)
    # of few values, or of ones far from 0, var is the small difference of large terms
    far = (1 + (mean * rstd) ** 2).max(initial=1)
    assert_close("layer_norm", statistics.rstd.astype(dtype), rstd, terms=terms * far)
    assert_close("layer_norm", saved.y, exact_saved.y, 4 * np.abs(exact_saved.y).max(initial=1))

    xhat = (exact.x - mean[:, None]) * rstd[:, None]
    dz = unwritten(p.x.shape, FLOAT64)
    reference.activation_backward(exact.dy, *map(in_float64, saved), dz, activation)
    size = np.abs(dz).max(initial=1)
    if gradients.dz is not None:
        assert_close("layer_norm", gradients.dz, exact_gradients.dz, 4 * size)
    assert_close("layer_norm", gradients.dbeta, exact_gradients.dbeta, 4 * size, terms=count)
    assert_close("layer_norm", gradients.dgamma, exact_gradients.dgamma, 4 * size * np.abs(xhat).max(initial=1), count)
    scale = size * np.abs(exact.gamma).max(initial=1) * rstd[:, None]
    assert_close("layer_norm", gradients.dx, exact_gradients.dx, 4 * scale * np.abs(xhat).max(initial=1) ** 2)

    others = NormGradients(
        None if gradients.dz is None else unwritten(p.x.shape, dtype), None, *map(np.empty_like, gradients[2:])
    )
    backend.layer_norm_backward(p.dy, p.x, statistics, Affine(p.gamma, p.beta), activation, saved, others)
    assert [bits(a) for a in others if a is not None] == [
        bits(a) for name, a in gradients._asdict().items() if a is not None and name != "dx"
    ]


@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_central_differences(in_force, name, residual, rng):
    p = norm_problem(rng, (4, 5), residual=residual)
    found = run(p, activation=name)
    given = {"x": p.x, "gamma": p.gamma, "beta": p.beta} | ({"residual": p.residual} if residual else {})
    for argument, array in given.items():
        numerical = numerical_gradient(lambda: float((p.dy * run(p, activation=name)["y"]).sum()), array)
        assert_close("numerical", found[f"d{argument}"], numerical, size=10)


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [(40, 7), (6, 5, 7), (3, 4, 5, 7), (7,), (1, 33)])
@pytest.mark.parametrize("name", ["identity", "relu", "silu", "softmax"])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_matches_pytorch(in_force, dtype, shape, name, eps, rng, torch):
    p = norm_problem(rng, shape, dtype)
    found = run(p, eps=eps, activation=name)
    exact = p.map(in_float64)
    leaves = [torch.tensor(a, requires_grad=True) for a in (exact.x, exact.gamma, exact.beta, exact.residual)]
    x, gamma, beta, residual = leaves
    z = torch.nn.functional.layer_norm(x, shape[-1:], gamma, beta, eps) + residual
    y = torch_activation(ACTIVATIONS[name], z)
    y.backward(torch.tensor(exact.dy))
    expected = {"y": y.detach()}
    expected |= {f"d{n}": leaf.grad for n, leaf in zip(["x", "gamma", "beta", "residual"], leaves, strict=True)}
    assert found.keys() == expected.keys()
    for n, actual in found.items():
        value = np.asarray(expected[n])
        assert actual.dtype == dtype
        assert_close("layer_norm", actual, value, 8 * np.abs(value).max(), terms=p.x.size // shape[-1])


@pytest.mark.pairwise
@pytest.mark.parametrize("features", FEATURES)
def test_matches_the_reference_at_awkward_shapes(backend, dtype, features, rng):
    for count in ROWS:
        if count * features > (5_000 if emulated(backend) else 600_000):
            continue
        kinds = ("identity", False), ("relu", True), ("relu", False), ("silu", True), ("identity", True)
        # of large arrays one kind, another one for the next
        for name, residual in kinds if count * features < 20_000 else kinds[ROWS.index(count) % 5 :][:1]:
            assert_matches_reference(backend, norm_problem(rng, (count, features), dtype, residual), ACTIVATIONS[name])


@pytest.mark.pairwise
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_every_activation(backend, dtype, name, residual, rng):
    for shape in ((45, 19), (7, 257)):
        assert_matches_reference(backend, norm_problem(rng, shape, dtype, residual), ACTIVATIONS[name])


@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize(
    ("columns", "residual", "name"),
    [(10, False, "silu"), (10, True, "relu"), (64, False, "identity"), (64, True, "silu"), (4096, True, "relu")],
)
def test_matches_the_reference_past_the_caches(backend, dtype, columns, residual, name, rng):
    """Outputs so large that they are streamed, in rows of whole cache lines and others."""
    if backend is reference:
        pytest.skip("it streams nothing")
    p = norm_problem(rng, streamed_shape(columns, dtype), dtype, residual)
    assert_matches_reference(backend, p, ACTIVATIONS[name])


@pytest.mark.emulated(0)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(p=norm_problems(norm_problem, 80, 150), name=st.sampled_from(EVERY))
def test_any_shapes_and_activations(backend, p, name):
    # of two values near each other, all digits of what is left may be of rounding
    if p.x.shape[1] != 2:
        assert_matches_reference(backend, p, ACTIVATIONS[name])


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, layout, rng):
    p = norm_problem(rng, (5, 7, 3, 19), dtype)
    laid = p.map(lambda a: laid_out(a, layout))
    found, expected = (run(each, activation="silu") for each in (laid, p))
    assert {n: bits(a) for n, a in found.items()} == {n: bits(a) for n, a in expected.items()}
    assert [bits(a) for a in laid.arrays()] == [bits(a) for a in p.arrays()]


def test_backward_may_be_called_again_and_its_results_are_independent(in_force, dtype, rng):
    p = norm_problem(rng, (9, 4), dtype)
    y, backward = fg.layer_norm(p.x, p.gamma, p.beta, residual=p.residual, activation="relu")
    before = bits(y)
    first, second = backward(p.dy), backward(p.dy)
    assert [bits(a) for a in first] == [bits(a) for a in second]
    assert not any(np.shares_memory(a, b) for a in first for b in (*second, y, p.dy))
    assert bits(y) == before


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 1), (0, 9000)])
def test_no_rows(in_force, dtype, shape, rng):
    found = run(norm_problem(rng, shape, dtype), activation="relu")
    assert found["y"].shape == found["dx"].shape == found["dresidual"].shape == shape
    assert not found["dgamma"].any()
    assert not found["dbeta"].any()


@pytest.mark.parametrize("features", [3, 64, 300])
@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_a_large_mean_leaves_its_digits_to_the_rest(in_force, rng, features, mean):
    """Deviation 1 in float32: around 1e6 values are 1/16 apart, and y is right to 4 digits and more."""
    p = norm_problem(rng, (100, features), np.float32, residual=False)
    p.x[...] = rng.standard_normal(p.x.shape) + mean
    found = run(p)
    with fg.use_backend("numpy"):
        expected = run(p.map(in_float64))
    for name in ("y", "dx", "dgamma", "dbeta"):
        error = np.abs(found[name] - expected[name]).max()
        assert error < 1e-5 * np.abs(expected[name]).max()


@pytest.mark.parametrize("first", [1e8, -3e4])
def test_a_first_value_far_from_the_others_costs_no_digits(in_force, rng, first):
    """The sums are of distances from it."""
    p = norm_problem(rng, (20, 300), np.float32, residual=False)
    p.x[:, 0] = first
    found = run(p)
    with fg.use_backend("numpy"):
        expected = run(p.map(in_float64))
    for name in ("y", "dx", "dgamma", "dbeta"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-5 * np.abs(expected[name]).max())


@pytest.mark.pairwise
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6 / 3, 1e6 / 3, 1e-30, 3e30])
@pytest.mark.parametrize("features", [1, 2, 3, 7, 33, 1000])
def test_a_constant_row_gives_exactly_beta(in_force, dtype, value, features, rng):
    p = norm_problem(rng, (5, features), dtype, residual=False)
    p.x[2] = value
    found = run(p)
    assert bits(found["y"][2]) == bits(p.beta)
    assert np.isfinite(found["dx"]).all()
    if features == 1:
        assert not found["dx"].any()
        assert not found["dgamma"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2, 299])
def test_nan_and_infinity_stay_in_their_row(in_force, dtype, bad, place, rng):
    p = norm_problem(rng, (40, 300), dtype)
    clean = run(p)
    p.x[7, place] = bad
    found = run(p)
    others = np.arange(40) != 7
    for name in ("y", "dx", "dresidual"):
        assert bits(found[name][others]) == bits(clean[name][others])
    assert np.isnan(found["y"][7]).all()
    assert np.isnan(found["dx"][7]).all()
    assert np.isnan(found["dgamma"]).all()
    assert bits(found["dbeta"]) == bits(clean["dbeta"])
    assert bits(found["dresidual"]) == bits(clean["dresidual"])


def test_nan_upstream_stays_in_its_row_and_column(in_force, dtype, rng):
    p = norm_problem(rng, (40, 5), dtype)
    clean = run(p)
    p.dy[7, 2] = np.nan
    found = run(p)
    np.testing.assert_array_equal(np.isnan(found["dx"]), np.arange(40)[:, None] == np.full(5, 7))
    others = np.arange(40) != 7
    assert bits(found["dx"][others]) == bits(clean["dx"][others])
    for name in ("dgamma", "dbeta"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.arange(5) == 2)


def test_an_eps_of_0(in_force, dtype, rng):
    """A constant row is NaN, and nothing warns."""
    p = norm_problem(rng, (9, 4), dtype, residual=False)
    p.x[2] = 3
    np.testing.assert_array_equal(np.isnan(run(p, eps=0)["y"]).all(axis=1), np.arange(9) == 2)


@pytest.mark.parametrize("size", [1e22, 1e37])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_values_whose_squares_float32_cannot_hold(backend, name, size, rng):
    """As in float64."""
    p = norm_problem(rng, (30, 70), np.dtype(np.float32))
    p.x = (p.x * size).astype(np.float32)
    found = []
    for kernels, q in ((reference, p.map(in_float64)), (backend, p)):
        statistics, saved, gradients = kernel_results(kernels, q, ACTIVATIONS[name])
        # what is of x's size, or one over it, on a scale that float64 holds
        dx = in_float64(gradients.dx) * size
        found.append((statistics.mean / size, statistics.rstd * size, saved.y, dx, gradients.dgamma, gradients.dbeta))
    for ours, exact in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-4, atol=1e-4 * np.abs(exact).max())


def test_distances_that_float32_cannot_hold(cpu, rng):
    """Values of both signs near the largest one: their distance is no number of float32."""
    p = norm_problem(rng, (3, 64), np.dtype(np.float32), residual=False)
    p.x[...] = np.where(rng.random((3, 64)) < 0.5, -1.0, 1.0) * 2.5e38
    found, exact = (
        kernel_results(k, q, ACTIVATIONS["identity"])[0] for k, q in ((cpu, p), (reference, p.map(in_float64)))
    )
    np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-12)
    np.testing.assert_allclose(found.rstd, exact.rstd, rtol=1e-12)


@pytest.mark.pairwise
@pytest.mark.parametrize(
    "shape", [(5, 3), (3000, 3), (257, 1024), (4, 9000), (2, 31, 33, 64), (100_001, 1), (300, 33_000)]
)
@pytest.mark.parametrize(("name", "residual"), [("identity", False), ("relu", True), ("relu", False), ("gelu", True)])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, shape, name, residual, rng):
    p = norm_problem(rng, shape, dtype, residual)
    first, *others = with_threads(lambda: all_bits(run(p, activation=name)))
    assert all(other == first for other in others)


@pytest.mark.parametrize("features", [1, 3, 17, 64, 300, 5000])
@pytest.mark.parametrize("name", ["relu", "silu", "softmax"])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, features, name, rng):
    p = norm_problem(rng, (41, 3, features), dtype)
    together = run(p, activation=name)
    for rows in (slice(0, 1), slice(17, 18), slice(38, 41)):
        part = replace(p, x=p.x[rows], residual=p.residual[rows], dy=p.dy[rows])
        alone = run(part, activation=name)
        for n in ("y", "dx", "dresidual"):
            assert bits(alone[n]) == bits(together[n][rows])


def test_bad_input_is_named(in_force, rng):
    p = norm_problem(rng, (4, 5, 3), np.float32)
    arguments = {"x": p.x, "gamma": p.gamma, "beta": p.beta}

    def fails(kind, message, **changed):
        refuses(kind, f"layer_norm: {message}", fg.layer_norm, **{**arguments, **changed})

    fails(ValueError, "gamma must be (C,) = (3,), got (4,)", gamma=np.ones(4, np.float32))
    fails(ValueError, "beta must be (C,) = (3,), got (1,)", beta=np.ones(1, np.float32))
    fails(ValueError, "residual must be like x = (4, 5, 3), got (5, 3)", residual=p.x[0])
    for shape in ((), (0,), (4, 0)):
        message = f"x must be (..., C) with at least one channel, got {shape}"
        fails(ValueError, message, x=np.ones(shape, np.float32))
    fails(ValueError, "eps must be at least 0 and finite, got -1e-05", eps=-1e-5)
    fails(ValueError, "eps must be at least 0 and finite, got inf", eps=np.inf)
    fails(TypeError, "gamma must be float32, got float64 (one call has one dtype)", gamma=np.ones(3))
    fails(TypeError, "x must be a NumPy array, got list; np.asarray(value, dtype) makes one", x=p.x.tolist())
    known = ", ".join(ACTIVATIONS)
    fails(ValueError, f"activation must be one of {known}; got 'rellu'", activation="rellu")
    y, backward = fg.layer_norm(p.x, p.gamma, p.beta)
    refuses(ValueError, "layer_norm: dy must be like the output = (4, 5, 3), got (20, 3)", backward, y.reshape(20, 3))


def test_layer_norm_of_more_rows_than_blocks_have(emulated, monkeypatch, dtype):
    """Blocks then go on past TILE_ROWS tiles."""
    from fastgrad.kernels.cuda import batch_norm

    for most in (1, 2, 1024):
        monkeypatch.setattr(batch_norm, "MOST_BLOCKS", most)
        p = norm_problem(np.random.default_rng(1), (300, 40), dtype, residual=False, mean=3.0)
        assert_matches_reference(emulated, p, ACTIVATIONS["relu"])
