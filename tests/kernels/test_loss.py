"""Losses: the reference against central differences and PyTorch, every backend against the reference."""

import math

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, numerical_gradient, unwritten
from tolerances import assert_close

from fastgrad.kernels import reference, types

pytestmark = pytest.mark.cuda

LOSSES = ("labels", "one_hot", "probabilities", "binary_cross_entropy", "mse", "poisson_nll", "mae", "huber")


def problem(rng, kind, n, c, dtype=np.float64, scale=3.0):
    """Logits and a target of the kind: class numbers, one-hot rows, any weights, chances or values."""
    logits = (scale * rng.standard_normal((n, c))).astype(dtype)
    match kind:
        case "labels":
            return logits, rng.integers(0, c, n)
        case "one_hot":
            return logits, np.eye(c, dtype=dtype)[rng.integers(0, c, n)]
        case "probabilities":
            # weights that do not add up to one as well: the gradient is softmax times their sum
            return logits, rng.random((n, c)).astype(dtype)
        case "binary_cross_entropy":
            target = rng.random((n, c)).astype(dtype)
            target[::3] = np.round(target[::3])
            return logits, target
        case "mse" | "mae" | "huber":
            return logits, rng.standard_normal((n, c)).astype(dtype)
        case "poisson_nll":
            # rates and counts that are not astronomical
            return (logits / (scale / 2)).astype(dtype), rng.poisson(3, (n, c)).astype(dtype)


def loss_of(kind, **options):
    name = "cross_entropy" if kind in ("labels", "one_hot", "probabilities") else kind
    return types.LOSSES[name]._replace(**options)


def run(backend, kind, logits, target, mean=False, row_weights=None, **options):
    """(total, losses, gradient) of the sum, or of the mean, the arrays first filled with NaN."""
    return run_loss(backend, loss_of(kind, **options), logits, target, mean, row_weights)[:3]


def run_loss(backend, loss, logits, target, mean=False, row_weights=None):
    """(total, losses, gradient, weight, right)."""
    losses = unwritten(logits.shape[:1] if loss.by_row else logits.shape, logits.dtype)
    gradient = unwritten(logits.shape, logits.dtype)
    sums = backend.loss_gradient(logits, target, loss, losses, gradient, row_weights=row_weights, mean=mean)
    # the CUDA backend leaves them on the device until they are asked for
    total, weight, right = np.asarray(sums).tolist()
    return total, losses, gradient, weight, right


def in_float64(array):
    return array if array.dtype == np.int64 else array.astype(np.float64)


def assert_matches_reference(backend, kind, logits, target, mean=False):
    total, losses, gradient = run(backend, kind, logits, target, mean)
    exact_total, exact_losses, exact_gradient = run(reference, kind, in_float64(logits), in_float64(target), mean)
    scale = 1 / max(losses.size, 1) if mean else 1.0
    assert losses.dtype == gradient.dtype == logits.dtype
    # a loss is a difference of logits, or of their exponentials' logarithm
    largest = np.abs(logits).max(initial=1)
    size = {
        "mse": np.square(largest) + 16,
        "mae": 2 * largest + 8,
        "huber": 2 * largest + 8,
        "poisson_nll": np.exp(min(largest, 20)) + 16 * largest,
    }.get(kind, 2 * largest)
    if kind == "probabilities":
        size *= logits.shape[1]
    assert_close("loss", losses, exact_losses, size, logits.shape[-1])
    rise = {"mse": 2 * largest + 8, "poisson_nll": np.exp(min(largest, 20)) + 16}.get(kind, logits.shape[-1])
    assert_close("loss", gradient, exact_gradient, scale * rise, 1)
    assert total == pytest.approx(scale * losses.sum(dtype=np.float64), rel=1e-12, abs=1e-300)
    return total, exact_total


@pytest.mark.parametrize("kind", LOSSES)
def test_reference_gradient_is_the_central_difference(kind, rng):
    logits, target = problem(rng, kind, 5, 4)
    _, _, gradient = run(reference, kind, logits, target)
    numerical = numerical_gradient(lambda: run(reference, kind, logits, target)[0], logits)
    assert_close("numerical", gradient, numerical, size=1)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_matches_pytorch(backend, kind, dtype, scale, rng, torch):
    functions = {
        "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
        "mse": torch.nn.functional.mse_loss,
        "poisson_nll": torch.nn.functional.poisson_nll_loss,
        "mae": torch.nn.functional.l1_loss,
        "huber": torch.nn.functional.huber_loss,
    }
    function = functions.get(kind, torch.nn.functional.cross_entropy)
    logits, target = problem(rng, kind, 17, 33, dtype, scale)
    z = torch.tensor(logits, requires_grad=True)
    expected = function(z, torch.tensor(target), reduction="none")
    expected.mean().backward()
    _, losses, gradient = run(backend, kind, logits, target, mean=True)
    expected = expected.detach().numpy().astype(np.float64)
    assert_close("loss", losses, expected, np.abs(expected).max(), terms=33)
    assert_close("loss", gradient, z.grad.numpy(), max(1, np.abs(z.grad.numpy()).max()), terms=33)


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("c", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 1023])
def test_matches_the_reference(backend, kind, dtype, n, c, rng):
    assert_matches_reference(backend, kind, *problem(rng, kind, n, c, dtype), mean=True)


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind != "poisson_nll"])
def test_stable_at_huge_logits(backend, kind, dtype, rng):
    logits, target = problem(rng, kind, 50, 9, dtype)
    logits[::2] = np.sign(logits[::2]) * 1e4
    logits[1::4, :4] = [1e4, -1e4, 0, 1e-4]
    total, exact = assert_matches_reference(backend, kind, logits, target)
    assert math.isfinite(total)
    assert total == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("kind", ["labels", "one_hot", "binary_cross_entropy"])
def test_a_sure_and_right_answer_costs_nothing_and_a_wrong_one_its_distance(backend, kind, dtype):
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], dtype)
    target = np.array([0, 1]) if kind == "labels" else np.array([[1, 0], [0, 1]], dtype)
    _, losses, gradient = run(backend, kind, logits, target)
    expected = [[0, 0], [1e4, 1e4]] if kind == "binary_cross_entropy" else [0, 2e4]
    np.testing.assert_array_equal(losses, np.array(expected, dtype))
    np.testing.assert_array_equal(gradient, np.array([[0, 0], [1, -1]], dtype))


def test_one_hot_rows_are_class_numbers(backend, dtype, rng):
    logits, labels = problem(rng, "labels", 31, 17, dtype)
    _, losses, gradient = run(backend, "labels", logits, labels)
    _, one_hot_losses, one_hot_gradient = run(backend, "one_hot", logits, np.eye(17, dtype=dtype)[labels])
    np.testing.assert_allclose(losses, one_hot_losses, rtol=1e-5)
    np.testing.assert_allclose(gradient, one_hot_gradient, rtol=1e-5, atol=1e-6)


def test_gradient_of_cross_entropy_adds_up_to_zero_in_a_row(backend, dtype, rng):
    for kind in ("labels", "one_hot", "probabilities"):
        _, _, gradient = run(backend, kind, *problem(rng, kind, 50, 17, dtype))
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("kind", LOSSES)
def test_empty_batch_costs_nothing(backend, kind, dtype, rng):
    total, losses, gradient = run(backend, kind, *problem(rng, kind, 0, 3, dtype))
    assert total == 0.0
    assert losses.size == gradient.size == 0


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", ["binary_cross_entropy", "mse", "poisson_nll", "mae", "huber"])
@pytest.mark.parametrize("shape", [(1, 5), (1023, 1), (2, 0), (33, 21)])
def test_elementwise_losses_take_rows_of_any_length(backend, kind, dtype, shape, rng):
    logits = rng.standard_normal(shape).astype(dtype)
    assert_matches_reference(backend, kind, logits, rng.random(shape).astype(dtype))


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind != "labels"])
def test_zero_width(backend, kind, dtype):
    total, _, _ = run(backend, kind, np.empty((3, 0), dtype), np.empty((3, 0), dtype))
    assert total == 0.0


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(backend, kind, dtype, layout, rng):
    logits, target = problem(rng, kind, 17, 33, dtype)
    total, losses, gradient = run(backend, kind, logits, target)
    laid = laid_out(logits, layout), np.repeat(target, 2)[::2] if kind == "labels" else laid_out(target, layout)
    laid_total, laid_losses, laid_gradient = run(backend, kind, *laid)
    # NumPy adds in another order in another layout
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if backend is reference else {"rtol": 0}
    np.testing.assert_allclose(laid_losses, losses, **tolerance)
    np.testing.assert_allclose(laid_gradient, gradient, **tolerance)
    assert laid_total == pytest.approx(total, rel=1e-6)
    assert [bits(a) for a in laid] == [bits(logits), bits(target)]


@pytest.mark.parametrize("kind", LOSSES)
def test_broadcast_inputs(backend, kind, dtype, rng):
    logits, target = problem(rng, kind, 17, 33, dtype)
    logits = np.broadcast_to(logits[:1], logits.shape)
    target = np.broadcast_to(target[:1], target.shape)
    assert_matches_reference(backend, kind, logits, target)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("c", [3, 40])
def test_nan_stays_in_its_row(backend, kind, dtype, c, rng):
    logits, target = problem(rng, kind, 17, c, dtype)
    for column in (0, c - 1):
        bad = logits.copy()
        bad[4, column] = np.nan
        total, losses, gradient = run(backend, kind, bad, target)
        assert math.isnan(total)
        nan = np.zeros((17, c), bool)
        if losses.ndim == 1:
            nan[4] = True
            np.testing.assert_array_equal(np.isnan(losses), nan[:, 0])
        else:
            nan[4, column] = True
            np.testing.assert_array_equal(np.isnan(losses), nan)
        np.testing.assert_array_equal(np.isnan(gradient), nan)


@pytest.mark.parametrize(
    "kind", ["one_hot", "probabilities", "binary_cross_entropy", "mse", "poisson_nll", "mae", "huber"]
)
def test_nan_in_the_target_reaches_loss_and_gradient(backend, kind, dtype, rng):
    logits, target = problem(rng, kind, 17, 9, dtype)
    target[4, 5] = np.nan
    total, losses, gradient = run(backend, kind, logits, target)
    assert math.isnan(total)
    assert np.isnan(losses[4]).any()
    assert np.isnan(gradient[4, 5])
    assert not np.isnan(np.delete(gradient, 4, axis=0)).any()


def test_rates_past_all_numbers_are_infinite_and_of_no_chance_zero(backend, dtype):
    z = np.array([[np.inf, -np.inf, 1e4, -1e4]], dtype)
    total, losses, gradient = run(backend, "poisson_nll", z, np.zeros_like(z))
    expected = np.array([[np.inf, 0, np.inf, 0]], dtype)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(gradient, expected)
    assert total == math.inf


@pytest.mark.parametrize("kind", ["labels", "one_hot"])
def test_impossible_classes(backend, dtype, kind):
    """A logit of -inf is a class of no chance: it costs nothing unless it is the right one."""
    logits = np.array([[-np.inf, 0, 0], [-np.inf, 0, 0]], dtype)
    labels = np.array([1, 0])
    total, losses, gradient = run(
        backend, kind, logits, np.eye(3, dtype=dtype)[labels] if kind == "one_hot" else labels
    )
    np.testing.assert_allclose(losses, [math.log(2), math.inf], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, -0.5, 0.5], [-1, 0.5, 0.5]], rtol=1e-6)
    assert total == math.inf


def test_a_class_of_target_0_past_all_numbers_costs_nothing(backend, dtype):
    """The largest logit less the smallest one is infinite, though both are numbers."""
    largest = np.finfo(dtype).max
    logits = np.array([[largest, -largest], [largest, -largest]], dtype)
    _, losses, gradient = run(backend, "one_hot", logits, np.eye(2, dtype=dtype))
    np.testing.assert_array_equal(losses, [0, np.inf])
    np.testing.assert_array_equal(gradient, [[0, 0], [1, -1]])


def test_a_chance_of_0_or_1_that_is_certain_costs_nothing(backend, dtype):
    logits = np.array([[-np.inf, np.inf, -np.inf, np.inf]], dtype)
    _, losses, gradient = run(backend, "binary_cross_entropy", logits, np.array([[0, 0, 1, 1]], dtype))
    np.testing.assert_array_equal(losses, [[0, np.inf, np.inf, 0]])
    np.testing.assert_array_equal(gradient, [[0, 1, -1, 0]])


@pytest.mark.parametrize("kind", ["one_hot", "binary_cross_entropy", "poisson_nll"])
def test_nan_beside_a_target_of_0_is_nan(backend, dtype, kind):
    logits, target = np.array([[np.nan, 0.0], [0.0, 0.0]], dtype), np.array([[0, 1], [0, 1]], dtype)
    _, losses, gradient = run(backend, kind, logits, target)
    assert np.isnan(losses[0]).any()
    assert np.isfinite(losses[1]).all()
    assert np.isnan(gradient[0, 0])
    assert np.isfinite(gradient[1]).all()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_number_of_no_class_spoils_its_own_row_alone(backend, dtype, label, rng):
    """As one may become after it was checked: 3 would be the next row's first logit, -1 the last one's."""
    logits, labels = problem(rng, "labels", 5, 3, dtype)
    _, expected, slopes = run(backend, "labels", logits, labels)
    labels[2] = label
    _, losses, gradient = run(backend, "labels", logits, labels)
    others = [0, 1, 3, 4]
    assert bits(losses[others]) == bits(expected[others])
    assert bits(gradient[others]) == bits(slopes[others])
    assert not np.isfinite(losses[2])
    assert np.isnan(gradient[2]).all()


def test_total_is_added_in_float64(backend, rng):
    """A float32 sum of a million terms would be off in the fifth digit."""
    y = rng.random((1_000_003, 1), np.float32)
    total, losses, _ = run(backend, "mse", y, np.zeros_like(y))
    assert total == pytest.approx(math.fsum(losses[:, 0].tolist()), rel=1e-12)
