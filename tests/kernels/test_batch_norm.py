"""Batch normalisation: the reference against central differences, PyTorch and ONNX, every backend against the reference."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from arrays import LAYOUTS, all_bits, bits, laid_out, numerical_gradient, unwritten, with_threads
from chains import torch_activation
from emulation import emulated
from error_messages import refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from norms import FLOAT64, NormProblem, norm_problem, norm_problems, streamed_shape
from tolerances import assert_close

import fastgrad as fg
from fastgrad.kernels import reference
from fastgrad.kernels.types import (
    ACTIVATIONS,
    Affine,
    LayerSaved,
    NormGradients,
    Running,
    Statistics,
)

pytestmark = pytest.mark.cuda

EVERY = list(ACTIVATIONS)
# the ends of a vector, of the 256 columns that rows are joined up to, of a chunk of 8192 values
CHANNELS = (1, 3, 5, 17, 64, 255, 256, 257, 300, 1024, 9000)
ROWS = (2, 3, 31, 32, 33, 129, 1025, 5000)


@dataclass
class Problem(NormProblem):
    """The arrays of fg.batch_norm, and an upstream gradient."""

    running_mean: np.ndarray
    running_var: np.ndarray


def problem(rng, shape, dtype=FLOAT64, residual=True, mean=0.0):
    return Problem(
        **vars(norm_problem(rng, shape, dtype, residual, mean)),
        running_mean=(rng.standard_normal(shape[-1]) + mean).astype(dtype),
        running_var=rng.uniform(0.5, 2, shape[-1]).astype(dtype),
    )


def run(p, **options):
    """Results and gradients by name; the running statistics are updated in copies."""
    p = replace(p, running_mean=p.running_mean.copy(), running_var=p.running_var.copy())
    y, backward = fg.batch_norm(
        p.x, p.gamma, p.beta, p.running_mean, p.running_var, residual=p.residual, **options
    )  # fmt: skip
    names = ["dx", "dgamma", "dbeta", *(["dresidual"] if p.residual is not None else [])]
    found = {"y": y} | dict(zip(names, backward(p.dy), strict=True))
    return found | {"running_mean": p.running_mean, "running_var": p.running_var}


def in_float64(array):
    return array.astype(np.float64)


def assert_matches_reference(backend, p, activation, of_batch=True):
    """Statistics, output and gradients of the backend's kernels, in the problem's dtype, against the reference in float64.

    Both backwards start from the backend's saved values: a z that rounds to the other side of relu's kink is no error.
    """
    dtype, (count, channels) = p.x.dtype, p.x.shape
    exact = p.map(in_float64)
    statistics, exact_statistics = (
        Statistics(unwritten(channels, FLOAT64), unwritten(channels, FLOAT64)) for _ in range(2)
    )
    (mean, rstd), (exact_mean, exact_rstd) = statistics, exact_statistics
    for kernels, q, found in ((backend, p, statistics), (reference, exact, exact_statistics)):
        running = Running(q.running_mean, q.running_var, 0.3, count > 1)
        kernels.batch_norm_statistics(q.x, running, of_batch, 1e-5, found)
    # float32 values are added up in more digits
    terms = max(count, 2) if dtype == FLOAT64 else 2
    spread = 1 / exact_rstd + np.abs(exact_mean) * np.finfo(dtype).eps
    assert_close("batch_norm", mean.astype(dtype), exact_mean, spread, terms)
    assert_close("batch_norm", rstd.astype(dtype), exact_rstd, terms=terms)
    assert_close("batch_norm", p.running_mean, exact.running_mean, spread, terms)
    assert_close("batch_norm", p.running_var, exact.running_var, 1 / exact_rstd**2, terms=terms)
    y = unwritten(p.x.shape, dtype)
    saved = LayerSaved(unwritten(p.x.shape, dtype) if activation.needs_input else y, y)
    affine, exact_affine = Affine(p.gamma, p.beta), Affine(exact.gamma, exact.beta)
    backend.batch_norm_forward(p.x, statistics, affine, p.residual, activation, saved)
    exact_y = unwritten(p.x.shape, FLOAT64)
    exact_saved = LayerSaved(exact_y.copy(), exact_y)
    reference.batch_norm_forward(exact.x, statistics, exact_affine, exact.residual, activation, exact_saved)
    assert_close("batch_norm", y, exact_y, 2 * np.abs(exact_y).max(initial=1))

    arguments = statistics, affine, activation, of_batch, saved
    dz, dx = (None if p.residual is None else unwritten(p.x.shape, dtype)), unwritten(p.x.shape, dtype)
    dgamma, dbeta = unwritten(channels, dtype), unwritten(channels, dtype)
    backend.batch_norm_backward(p.dy, p.x, *arguments, NormGradients(dz, dx, dgamma, dbeta))
    exact_dz, exact_dx = unwritten(p.x.shape, FLOAT64), unwritten(p.x.shape, FLOAT64)
    exact_dgamma, exact_dbeta = unwritten(channels, FLOAT64), unwritten(channels, FLOAT64)
    exact_arguments = statistics, exact_affine, activation, of_batch, LayerSaved(*map(in_float64, saved))
    gradients = NormGradients(exact_dz, exact_dx, exact_dgamma, exact_dbeta)
    reference.batch_norm_backward(exact.dy, exact.x, *exact_arguments, gradients)
    if dz is not None:
        assert_close("batch_norm", dz, exact_dz, 4 * np.abs(exact_dz).max(initial=1))
    xhat = (exact.x - mean) * rstd
    assert_close("batch_norm", dbeta, exact_dbeta, 4 * np.abs(exact_dz).max(initial=1), terms=count)
    assert_close("batch_norm", dgamma, exact_dgamma, 4 * np.abs(exact_dz * xhat).max(initial=1), terms=count)
    size = np.abs(exact_dz).max(initial=1) * np.abs(exact.gamma * rstd).max(initial=1)
    assert_close("batch_norm", dx, exact_dx, 4 * size * np.abs(xhat).max(initial=1))

    others = None if dz is None else unwritten(p.x.shape, dtype), unwritten(channels, dtype), unwritten(channels, dtype)
    backend.batch_norm_backward(p.dy, p.x, *arguments, NormGradients(others[0], None, *others[1:]))
    assert [bits(a) for a in others if a is not None] == [bits(a) for a in (dz, dgamma, dbeta) if a is not None]


@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_central_differences(in_force, name, training, residual, rng):
    p = problem(rng, (5, 3), residual=residual)
    options = {"training": training, "activation": name, "momentum": 0.3}
    found = run(p, **options)
    given = {"x": p.x, "gamma": p.gamma, "beta": p.beta} | ({"residual": p.residual} if residual else {})
    for argument, array in given.items():
        numerical = numerical_gradient(lambda: float((p.dy * run(p, **options)["y"]).sum()), array)
        assert_close("numerical", found[f"d{argument}"], numerical, size=10)


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [(40, 7), (6, 5, 7), (3, 4, 5, 7), (2, 7)])
@pytest.mark.parametrize("name", ["identity", "relu", "silu"])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_matches_pytorch(in_force, dtype, shape, name, unbiased, training, rng, torch):
    p = problem(rng, shape, dtype)
    options = {"training": training, "momentum": 0.3, "eps": 1e-3, "activation": name}
    found = run(p, **options, unbiased=unbiased)
    exact = p.map(in_float64)
    leaves = [torch.tensor(a, requires_grad=True) for a in (exact.x, exact.gamma, exact.beta, exact.residual)]
    x, gamma, beta, residual = leaves
    running_mean, running_var = torch.tensor(exact.running_mean), torch.tensor(exact.running_var)
    arguments = running_mean, running_var, gamma, beta, training, options["momentum"], options["eps"]
    z = torch.nn.functional.batch_norm(x.movedim(-1, 1), *arguments).movedim(1, -1)
    y = torch_activation(ACTIVATIONS[name], z + residual)
    y.backward(torch.tensor(exact.dy))
    if training and not unbiased:
        count = p.x.size // 7
        running_var = 0.7 * exact.running_var + (running_var.numpy() - 0.7 * exact.running_var) * (count - 1) / count
    expected = {"y": y.detach(), "running_mean": running_mean, "running_var": running_var}
    expected |= {f"d{n}": leaf.grad for n, leaf in zip(["x", "gamma", "beta", "residual"], leaves, strict=True)}
    assert found.keys() == expected.keys()
    for n, actual in found.items():
        value = np.asarray(expected[n])
        # of two values a channel, x's gradient is the small difference of large terms
        size = np.abs(value).max() * (100 if n == "dx" and shape == (2, 7) else 4)
        assert actual.dtype == dtype
        assert_close("batch_norm", actual, value, size, terms=p.x.size // 7)


def test_conventions_of_other_libraries(in_force, dtype, rng):
    """The docstring's table, by its formulas; x has 24 values a channel."""
    p = problem(rng, (4, 6, 5), dtype)
    exact = in_float64(p.x).reshape(-1, 5)
    mean, var = exact.mean(axis=0), exact.var(axis=0)
    pytorch = 0.9 * p.running_mean + 0.1 * mean, 0.9 * p.running_var + 0.1 * var * 24 / 23, 1e-5
    keras = 0.99 * p.running_mean + 0.01 * mean, 0.99 * p.running_var + 0.01 * var, 1e-3
    onnx = 0.9 * p.running_mean + 0.1 * mean, 0.9 * p.running_var + 0.1 * var, 1e-5
    for (running_mean, running_var, eps), options in (
        (pytorch, {}),
        (keras, {"momentum": 1 - 0.99, "unbiased": False, "eps": 1e-3}),
        (onnx, {"momentum": 1 - 0.9, "unbiased": False}),
    ):
        found = run(p, **options)
        assert_close("batch_norm", found["running_mean"], running_mean, size=2)
        assert_close("batch_norm", found["running_var"], running_var, size=4)
        y = (exact - mean) / np.sqrt(var + eps) * p.gamma + p.beta
        assert_close("batch_norm", found["y"], y.reshape(p.x.shape) + p.residual, size=4)


def test_momentum_of_0_and_1(in_force, dtype, rng):
    p = problem(rng, (9, 4), dtype)
    found = run(p, momentum=0)
    assert bits(found["running_mean"]) == bits(p.running_mean)
    assert bits(found["running_var"]) == bits(p.running_var)
    found = run(p, momentum=1, unbiased=False)
    assert_close("batch_norm", found["running_mean"], in_float64(p.x).mean(axis=0), size=2)
    assert_close("batch_norm", found["running_var"], in_float64(p.x).var(axis=0))


def test_evaluation_reads_the_running_statistics_and_leaves_them(in_force, dtype, rng):
    p = problem(rng, (9, 4), dtype)
    found = run(p.map(lambda a: laid_out(a, "read_only")), training=False)
    expected = (p.x - in_float64(p.running_mean)) / np.sqrt(in_float64(p.running_var) + 1e-5) * p.gamma + p.beta
    assert_close("batch_norm", found["y"], expected + p.residual, size=8)
    assert bits(found["running_mean"]) == bits(p.running_mean)
    assert bits(found["running_var"]) == bits(p.running_var)


def test_statistics_need_not_be_kept(in_force, dtype, rng):
    p = problem(rng, (9, 4), dtype)
    y, backward = fg.batch_norm(p.x, p.gamma, p.beta, residual=p.residual)
    kept = run(p)
    assert [bits(a) for a in (y, *backward(p.dy))] == [
        bits(kept[n]) for n in ("y", "dx", "dgamma", "dbeta", "dresidual")
    ]


@pytest.mark.pairwise
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_matches_the_reference_at_awkward_shapes(backend, dtype, channels, of_batch, rng):
    for count in ROWS:
        if count * channels > (5_000 if emulated(backend) else 600_000):
            continue
        kinds = ("identity", False), ("relu", True), ("relu", False), ("silu", True)
        # of large arrays one kind, another one for the next
        for name, residual in kinds if count * channels < 20_000 else kinds[ROWS.index(count) % 4 :][:1]:
            p = problem(rng, (count, channels), dtype, residual)
            assert_matches_reference(backend, p, ACTIVATIONS[name], of_batch)


@pytest.mark.pairwise
@pytest.mark.parametrize("of_batch", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_every_activation(backend, dtype, name, residual, of_batch, rng):
    for shape in ((45, 19), (70, 257)):
        assert_matches_reference(backend, problem(rng, shape, dtype, residual), ACTIVATIONS[name], of_batch)


@pytest.mark.pairwise
@pytest.mark.emulated(0)
@pytest.mark.parametrize(
    ("columns", "residual", "name"),
    [
        (10, False, "silu"),
        (10, True, "relu"),
        (64, False, "relu"),
        (64, True, "silu"),
        (1040, False, "silu"),
        (1040, True, "relu"),
    ],
)
def test_matches_the_reference_past_the_caches(backend, dtype, columns, residual, name, rng):
    """Outputs so large that they are streamed, in rows of whole cache lines and others."""
    if backend is reference:
        pytest.skip("it streams nothing")
    p = problem(rng, streamed_shape(columns, dtype), dtype, residual)
    assert_matches_reference(backend, p, ACTIVATIONS[name])


@pytest.mark.emulated(0)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(p=norm_problems(problem, 300, 40), name=st.sampled_from(EVERY), of_batch=st.booleans())
def test_any_shapes_and_activations(backend, p, name, of_batch):
    assert_matches_reference(backend, p, ACTIVATIONS[name], of_batch and len(p.x) != 1)


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_layouts_do_not_matter_and_inputs_are_not_written(in_force, dtype, layout, training, rng):
    p = problem(rng, (5, 7, 3, 19), dtype)
    laid = p.map(lambda a: laid_out(a, layout))
    found, expected = (run(each, training=training, activation="silu") for each in (laid, p))
    assert {n: bits(a) for n, a in found.items()} == {n: bits(a) for n, a in expected.items()}
    assert [bits(a) for a in laid.arrays()] == [bits(a) for a in p.arrays()]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "read_only"])
def test_running_statistics_are_updated_where_they_lie(in_force, dtype, layout, rng):
    p = problem(rng, (9, 4), dtype)
    expected = run(p)
    running = laid_out(p.running_mean, layout), laid_out(p.running_var, layout)
    fg.batch_norm(p.x, p.gamma, p.beta, *running)
    assert [bits(a) for a in running] == [bits(expected["running_mean"]), bits(expected["running_var"])]


def test_backward_may_be_called_again_and_its_results_are_independent(in_force, dtype, rng):
    p = problem(rng, (9, 4), dtype)
    y, backward = fg.batch_norm(p.x, p.gamma, p.beta, residual=p.residual, activation="relu")
    before = bits(y)
    first, second = backward(p.dy), backward(p.dy)
    assert [bits(a) for a in first] == [bits(a) for a in second]
    assert not any(np.shares_memory(a, b) for a in first for b in (*second, y, p.dy))
    assert bits(y) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 1), (0, 9000)])
def test_no_values(in_force, dtype, shape, training, rng):
    p = problem(rng, shape, dtype)
    found = run(p, training=training, activation="relu")
    assert found["y"].shape == found["dx"].shape == found["dresidual"].shape == shape
    assert not found["dgamma"].any()
    assert not found["dbeta"].any()
    assert bits(found["running_mean"]) == bits(p.running_mean)
    assert bits(found["running_var"]) == bits(p.running_var)


@pytest.mark.parametrize("shape", [(1, 6), (6,), (1, 1, 1, 6)])
def test_one_value_a_channel_is_fine_in_evaluation_only(in_force, dtype, shape, rng):
    p = problem(rng, shape, dtype)
    expected = (p.x - in_float64(p.running_mean)) / np.sqrt(in_float64(p.running_var) + 1e-5) * p.gamma + p.beta
    assert_close("batch_norm", run(p, training=False)["y"], expected + p.residual, size=8)
    message = f"batch_norm: x must have more than one value a channel in training, got {shape}"
    refuses(ValueError, message, run, p)


@pytest.mark.parametrize("channels", [3, 64, 300])
def test_a_large_mean_leaves_its_digits_to_the_rest(in_force, rng, channels):
    """Mean 1e6 and deviation 1 in float32: values are 1/16 apart, and y is right to 4 digits and more."""
    p = problem(rng, (1000, channels), np.float32, residual=False)
    p.x[...] = rng.standard_normal(p.x.shape) + 1e6
    found = run(p)
    with fg.use_backend("numpy"):
        expected = run(p.map(in_float64))
    for name in ("y", "dx", "dgamma", "dbeta"):
        error = np.abs(found[name] - expected[name]).max()
        assert error < 1e-5 * np.abs(expected[name]).max()
    assert_close("batch_norm", found["running_mean"], expected["running_mean"])
    assert_close("batch_norm", found["running_var"], expected["running_var"])


@pytest.mark.pairwise
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6 / 3, 1e6 / 3, 1e-30, 3e30])
@pytest.mark.parametrize("count", [2, 3, 7, 33, 1000])
def test_a_constant_channel_gives_exactly_beta(in_force, dtype, value, count, rng):
    p = problem(rng, (count, 5), dtype, residual=False)
    p.x[:, 2] = value
    found = run(p)
    assert bits(found["y"][:, 2]) == bits(np.repeat(p.beta[2], count))
    assert found["dgamma"][2] == 0
    assert np.isfinite(found["dx"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(40, 5), (40, 300)])
def test_nan_and_infinity_stay_in_their_channel(in_force, dtype, bad, training, shape, rng):
    p = problem(rng, shape, dtype)
    clean = run(p, training=training)
    p.x[7, 2] = bad
    found = run(p, training=training)
    others = np.arange(shape[1]) != 2
    for name, a in found.items():
        assert bits(a[..., others]) == bits(clean[name][..., others])
    if training:
        assert np.isnan(found["y"][:, 2]).all()
        assert np.isnan(found["dx"][:, 2]).all()
        assert not np.isfinite(found["running_mean"][2])
    else:
        rest = np.arange(40) != 7
        assert bits(found["y"][rest, 2]) == bits(clean["y"][rest, 2])
        np.testing.assert_array_equal(found["y"][7, 2], bad * np.sign(p.gamma[2]))
        assert bits(found["dx"]) == bits(clean["dx"])
    assert not np.isfinite(found["dgamma"][2])
    assert bits(found["dbeta"]) == bits(clean["dbeta"])


@pytest.mark.parametrize("training", [True, False])
def test_nan_upstream_stays_in_its_channel(in_force, dtype, training, rng):
    p = problem(rng, (40, 5), dtype)
    clean = run(p, training=training)
    p.dy[7, 2] = np.nan
    found = run(p, training=training)
    wrong = np.zeros((40, 5), bool)
    wrong[slice(None) if training else 7, 2] = True
    np.testing.assert_array_equal(np.isnan(found["dx"]), wrong)
    assert bits(found["dx"][~wrong]) == bits(clean["dx"][~wrong])
    for name in ("dgamma", "dbeta"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.arange(5) == 2)


def test_a_negative_running_variance_and_an_eps_of_0(in_force, dtype, rng):
    """What is wrong is NaN or infinite in its channel, and nothing warns."""
    p = problem(rng, (9, 4), dtype, residual=False)
    p.running_var[1] = -1
    y = run(p, training=False)["y"]
    np.testing.assert_array_equal(np.isnan(y).all(axis=0), np.arange(4) == 1)
    p.x[:, 2] = 3
    y = run(p, eps=0)["y"]
    np.testing.assert_array_equal(np.isnan(y).all(axis=0), np.arange(4) == 2)


@pytest.mark.pairwise
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3000, 3), (257, 1024), (4, 9000), (2, 31, 33, 64), (100_001, 1)])
@pytest.mark.parametrize(("name", "residual"), [("identity", False), ("relu", True), ("relu", False), ("gelu", True)])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, shape, name, residual, training, rng):
    p = problem(rng, shape, dtype, residual)
    first, *others = with_threads(lambda: all_bits(run(p, activation=name, training=training)))
    assert all(other == first for other in others)


@pytest.mark.parametrize("channels", [3, 17, 64, 300])
@pytest.mark.parametrize("name", ["relu", "silu", "softmax"])
def test_a_sample_alone_has_the_bits_it_has_in_a_batch_in_evaluation(cpu, dtype, channels, name, rng):
    p = problem(rng, (41, 3, channels), dtype)
    together = run(p, training=False, activation=name)
    for rows in (slice(0, 1), slice(17, 18), slice(38, 41)):
        part = replace(p, x=p.x[rows], residual=p.residual[rows], dy=p.dy[rows])
        alone = run(part, training=False, activation=name)
        for n in ("y", "dx", "dresidual"):
            assert bits(alone[n]) == bits(together[n][rows])


def test_bad_input_is_named_and_leaves_the_running_statistics(in_force, rng):
    p = problem(rng, (4, 5, 3), np.float32)
    running = p.running_mean.copy(), p.running_var.copy()
    before = [bits(a) for a in running]
    arguments = {"x": p.x, "gamma": p.gamma, "beta": p.beta, "running_mean": running[0], "running_var": running[1]}

    def fails(kind, message, **changed):
        refuses(kind, f"batch_norm: {message}", fg.batch_norm, **{**arguments, **changed})
        assert [bits(a) for a in running] == before

    fails(ValueError, "gamma must be (C,) = (3,), got (4,)", gamma=np.ones(4, np.float32))
    fails(ValueError, "beta must be (C,) = (3,), got (1,)", beta=np.ones(1, np.float32))
    fails(ValueError, "running_mean must be (C,) = (3,), got (3, 1)", running_mean=running[0][:, None])
    fails(ValueError, "running_var must be (C,) = (3,), got (2,)", running_var=running[1][:2])
    fails(ValueError, "residual must be like x = (4, 5, 3), got (5, 3)", residual=p.x[0])
    for shape in ((), (0,), (4, 0)):
        message = f"x must be (..., C) with at least one channel, got {shape}"
        fails(ValueError, message, x=np.ones(shape, np.float32))
    fails(
        ValueError,
        "x must have more than one value a channel in training, got (1, 1, 3)",
        x=np.ascontiguousarray(p.x[:1, :1]),
    )
    fails(ValueError, "momentum must be at least 0 and at most 1, got 1.5", momentum=1.5)
    fails(ValueError, "momentum must be at least 0 and at most 1, got -0.1", momentum=-0.1)
    fails(ValueError, "momentum must be at least 0 and at most 1, got nan", momentum=np.nan)
    fails(TypeError, "momentum must be a number, got NoneType", momentum=None)
    fails(ValueError, "eps must be at least 0 and finite, got -1e-05", eps=-1e-5)
    fails(ValueError, "eps must be at least 0 and finite, got inf", eps=np.inf)
    fails(TypeError, "gamma must be float32, got float64 (one call has one dtype)", gamma=np.ones(3))
    fails(
        TypeError, "running_var must be float32, got float64 (one call has one dtype)", running_var=in_float64(running[1])
    )  # fmt: skip
    fails(TypeError, "x must be a NumPy array, got list; np.asarray(value, dtype) makes one", x=p.x.tolist())
    locked = laid_out(running[0], "read_only")
    fails(ValueError, "running_mean must be writable in training, which updates it in place", running_mean=locked)
    missing = "must be given in evaluation (training=False), got None"
    fails(ValueError, f"running_mean {missing}", training=False, running_mean=None)
    both = {"running_mean": None, "running_var": None}
    fails(ValueError, f"running_mean and running_var {missing}", training=False, **both)
    fails(ValueError, "running_var must be given together with the other, got None", running_var=None)
    known = ", ".join(ACTIVATIONS)
    fails(ValueError, f"activation must be one of {known}; got 'rellu'", activation="rellu")


def test_bad_upstream_gradients_are_refused(in_force, rng):
    p = problem(rng, (4, 5, 3), np.float32)
    y, backward = fg.batch_norm(p.x, p.gamma, p.beta)
    message = "batch_norm: dy must be like the output = (4, 5, 3), got (20, 3)"
    refuses(ValueError, message, backward, y.reshape(20, 3))
    message = "batch_norm: backward needs dy, an array (4, 5, 3) like the output, got None"
    refuses(TypeError, message, backward, None)
    message = "batch_norm: dy must be float32, got float64 (one call has one dtype)"
    refuses(TypeError, message, backward, in_float64(y))


@pytest.mark.parametrize("size", [1e22, 1e37])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_values_whose_squares_float32_cannot_hold(backend, name, size, rng):
    """As in float64; the running variance is the largest number there is."""
    p, activation = problem(rng, (300, 7), np.dtype(np.float32)), ACTIVATIONS[name]
    p.x = (p.x * size).astype(np.float32)
    found = []
    for kernels, q in ((reference, p.map(in_float64)), (backend, p)):
        dtype, (mean, rstd) = q.x.dtype, np.empty((2, 7))
        statistics, running = Statistics(mean, rstd), Running(q.running_mean, q.running_var, 0.3, True)
        kernels.batch_norm_statistics(q.x, running, True, 1e-5, statistics)
        y, dz, dx, dgamma, dbeta = (unwritten(a.shape, dtype) for a in (q.x, q.x, q.x, q.gamma, q.beta))
        saved = LayerSaved(unwritten(q.x.shape, dtype) if activation.needs_input else y, y)
        affine, gradients = Affine(q.gamma, q.beta), NormGradients(dz, dx, dgamma, dbeta)
        kernels.batch_norm_forward(q.x, statistics, affine, q.residual, activation, saved)
        kernels.batch_norm_backward(q.dy, q.x, statistics, affine, activation, True, saved, gradients)
        # what is of x's size, or one over it, on a scale that float64 holds
        found.append((q.running_mean / size, mean / size, rstd * size, y, dz, dx * size, dgamma, dbeta))
    for ours, exact in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=2e-5)
    assert (p.running_var == np.finfo(np.float32).max).all()


def test_a_running_variance_comes_back_from_values_of_1e22(in_force, rng):
    p = problem(rng, (50, 3), np.dtype(np.float32), residual=False)
    fg.batch_norm(p.x * np.float32(1e22), p.gamma, p.beta, p.running_mean, p.running_var, momentum=0.9)
    for _ in range(60):
        fg.batch_norm(p.x, p.gamma, p.beta, p.running_mean, p.running_var, momentum=0.9)
    np.testing.assert_allclose(p.running_var, p.x.var(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(p.running_mean, p.x.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_more_rows_than_blocks_have(emulated, monkeypatch, dtype):
    """Blocks then go on past TILE_ROWS tiles: as the reference says, and whatever their number, since the moments are joined."""
    from fastgrad.kernels.cuda import batch_norm

    blocks = []
    for most in (1, 2, 1024):
        monkeypatch.setattr(batch_norm, "MOST_BLOCKS", most)
        p = problem(np.random.default_rng(1), (300, 40), dtype, residual=False, mean=3.0)
        assert_matches_reference(emulated, p, ACTIVATIONS["relu"])
        blocks.append(batch_norm.row_blocks(300, 40))
    assert blocks == [((1, 1), 320), ((2, 1), 192), ((5, 1), 64)]
