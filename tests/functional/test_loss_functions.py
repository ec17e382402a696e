"""Options of the loss functions: PyTorch, shapes, and bad input."""

import numpy as np
import pytest
from error_messages import refuses
from keras_import import import_keras

import fastgrad as fg


def test_options_of_cross_entropy_are_pytorchs(in_force, dtype, rng, torch):
    logits, labels = rng.standard_normal((9, 4)).astype(dtype), rng.integers(0, 4, 9)
    weights = rng.random(4).astype(dtype)
    labels[3] = -100
    z = torch.tensor(logits, requires_grad=True)
    options = {"weight": torch.tensor(weights), "label_smoothing": 0.1}
    expected = torch.nn.functional.cross_entropy(z, torch.tensor(labels), **options)
    expected.backward()
    loss, dlogits = fg.cross_entropy(logits, labels, weights=weights, ignore_index=-100, label_smoothing=0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(dlogits, z.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_options_are_keras(rng):
    """Keras's mean with sample_weight is over the rows: it is compared as a sum."""
    losses, np_of = import_keras().losses, lambda value: float(np.asarray(value))
    logits, labels = rng.standard_normal((9, 4)).astype(np.float32), rng.integers(0, 4, 9)
    one_hot, target = np.eye(4, dtype=np.float32)[labels], rng.standard_normal((9, 4)).astype(np.float32)
    weights = rng.random(4).astype(np.float32)
    smoothed = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    ignoring = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    by_class = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    for found, expected in (
        (fg.cross_entropy(logits, labels, label_smoothing=0.1), smoothed(one_hot, logits)),
        (fg.cross_entropy(logits, one_hot, label_smoothing=0.1), smoothed(one_hot, logits)),
        (fg.cross_entropy(logits, labels, ignore_index=2), ignoring(labels, logits)),
        (fg.cross_entropy(logits, labels, "sum", weights=weights), by_class(labels, logits, weights[labels])),
        (fg.huber(logits, target, delta=0.7), losses.Huber(0.7)(target, logits)),
        (fg.mae(logits, target), losses.MeanAbsoluteError()(target, logits)),
    ):
        assert found[0] == pytest.approx(np_of(expected), rel=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_positive_targets_of_the_last_axis_have_weights(in_force, dtype, shape, rng, torch):
    logits, targets = rng.standard_normal(shape).astype(dtype), rng.random(shape).astype(dtype)
    function = torch.nn.functional.binary_cross_entropy_with_logits
    for pos_weight in (3.0, 2 * rng.random(5).astype(dtype)):
        z, p = torch.tensor(logits, requires_grad=True), torch.tensor(np.asarray(pos_weight, dtype))
        expected = function(z, torch.tensor(targets), pos_weight=p)
        expected.backward()
        loss, dlogits = fg.binary_cross_entropy(logits, targets, pos_weight=pos_weight)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(dlogits, z.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (0,), (2, 3, 5)])
def test_errors_have_any_shape(in_force, dtype, shape, rng):
    y, target = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    loss, dy = fg.mae(y, target, "none")
    np.testing.assert_allclose(loss, np.abs(y - target), rtol=1e-6)
    np.testing.assert_array_equal(dy, np.sign(y - target))
    loss, dy = fg.huber(y, target, "none", delta=0.5)
    np.testing.assert_allclose(dy, np.clip(y - target, -0.5, 0.5), rtol=1e-6)
    assert loss.shape == shape


def test_where_all_is_ignored_loss_and_gradient_are_0(in_force, dtype):
    loss, dlogits = fg.cross_entropy(np.ones((3, 2), dtype), np.full(3, -1), ignore_index=-1, label_smoothing=0.1)
    assert loss == 0
    assert not dlogits.any()


def test_options_that_cannot_be_are_refused(in_force):
    logits, labels = np.zeros((3, 2)), np.array([0, 1, 0])

    def cross_entropy(**options):
        return fg.cross_entropy(logits, labels, **options)

    op = "cross_entropy: "
    refuses(ValueError, op + "weights must be (C,) = (2,), got (3,)", cross_entropy, weights=np.ones(3))
    message = op + "weights must be at least 0 and finite, got -1.0 at index 1"
    refuses(ValueError, message, cross_entropy, weights=np.array([1.0, -1]))
    message = op + "weights must be at least 0 and finite, got nan at index 0"
    refuses(ValueError, message, cross_entropy, weights=np.array([np.nan, 1]))
    message = op + "weights must be float64, got float32 (one call has one dtype)"
    refuses(TypeError, message, cross_entropy, weights=np.ones(2, np.float32))
    for value in (-0.1, 1.5, np.nan):
        message = op + f"label_smoothing must be at least 0 and at most 1, got {value}"
        refuses(ValueError, message, cross_entropy, label_smoothing=value)
    refuses(TypeError, op + "ignore_index must be an integer, got float", cross_entropy, ignore_index=1.5)
    message = op + "ignore_index is for class numbers, and labels are probabilities (3, 2)"
    refuses(ValueError, message, fg.cross_entropy, logits, np.eye(3, 2), ignore_index=1)
    message = "binary_cross_entropy: pos_weight must be a number or (K,) = (2,), got (3,)"
    refuses(ValueError, message, fg.binary_cross_entropy, logits, logits, pos_weight=np.ones(3))
    for delta in (0, -1.0, np.inf):
        message = f"huber: delta must be above 0 and finite, got {delta}"
        refuses(ValueError, message, fg.huber, logits, logits, delta=delta)
