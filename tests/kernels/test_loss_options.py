"""Options of losses: class weights, ignored labels, label smoothing, weights of positive targets and of rows. PyTorch and central
differences, every backend against the reference, in the loss kernels and in the steps of a chain.
"""

from itertools import product

import numpy as np
import pytest
from arrays import bits, numerical_gradient, unwritten
from chains import NO_UPDATE, clone, random_problem
from test_loss import problem, run_loss
from tolerances import assert_close, relative

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import BAD_LABEL, LOSSES, OK, Batches, Loss

pytestmark = pytest.mark.cuda

CLASSES = 7
# (kind of target, has weights, ignores class 2, label smoothing)
CASES = [
    *product(["labels"], [False, True], [False, True], [0.0, 0.1, 1.0]),
    *product(["probabilities"], [False, True], [False], [0.0, 0.1]),
]


def class_problem(rng, case, dtype, rows=33, classes=CLASSES):
    """(loss, logits, target), one class in three of no weight."""
    kind, weighted, ignores, smoothing = case
    logits, target = problem(rng, kind, rows, classes, dtype)
    weights = None
    if weighted:
        weights = rng.random(classes).astype(dtype)
        weights[::3] = 0
    return Loss(types.CROSS_ENTROPY, smoothing, weights, 2 if ignores else types.NO_LABEL), logits, target


def binary_problem(rng, weighted, dtype, rows=33, columns=CLASSES):
    logits, target = problem(rng, "binary_cross_entropy", rows, columns, dtype)
    weights = 3 * rng.random(columns).astype(dtype) if weighted else None
    return LOSSES["binary_cross_entropy"]._replace(weights=weights), logits, target


def assert_like_reference(backend, loss, logits, target, mean, row_weights):
    found = run_loss(backend, loss, logits, target, mean, row_weights)
    wide = [a if a is None or a.dtype == np.int64 else a.astype(np.float64) for a in (logits, target, row_weights)]
    wide_loss = loss._replace(weights=None if loss.weights is None else loss.weights.astype(np.float64))
    expected = run_loss(reference, wide_loss, wide[0], wide[1], mean, wide[2])
    size = 20 * max(1, logits.shape[-1])
    for a, b in zip(found[1:3], expected[1:3], strict=True):
        assert_close("loss", a, b, size, logits.shape[-1])
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    assert found[3:] == pytest.approx(expected[3:], rel=1e-6, abs=1e-6)


def weights_of_rows(rng, rows, dtype):
    return (rng.random(rows) * (rng.random(rows) > 0.2)).astype(dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_matches_pytorch(backend, dtype, case, reduction, rng, torch):
    loss, logits, target = class_problem(rng, case, dtype)
    z = torch.tensor(logits, requires_grad=True)
    weight = None if loss.weights is None else torch.tensor(loss.weights)
    options = {"weight": weight, "ignore_index": max(loss.ignore_index, -100), "label_smoothing": loss.parameter}
    each = torch.nn.functional.cross_entropy(z, torch.tensor(target), reduction="none", **options)
    expected = torch.nn.functional.cross_entropy(z, torch.tensor(target), reduction=reduction, **options)
    expected.backward()
    total, losses, gradient, *_ = run_loss(backend, loss, logits, target, reduction == "mean")
    assert total == pytest.approx(expected.item(), rel=relative("loss", dtype) * 64)
    assert_close("loss", losses, each.detach().numpy(), 20, CLASSES)
    assert_close("loss", gradient, z.grad.numpy(), 4, CLASSES)


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_matches_pytorch(backend, dtype, weighted, rng, torch):
    loss, logits, target = binary_problem(rng, weighted, dtype)
    z = torch.tensor(logits, requires_grad=True)
    weight = torch.tensor(loss.weights) if weighted else None
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(target), pos_weight=weight)
    expected.backward()
    total, _, gradient, *_ = run_loss(backend, loss, logits, target, mean=True)
    assert total == pytest.approx(expected.item(), rel=relative("loss", dtype) * 64)
    assert_close("loss", gradient, z.grad.numpy(), 1)


@pytest.mark.parametrize("delta", [0.3, 1.0, 40.0])
def test_huber_matches_pytorch(backend, dtype, delta, rng, torch):
    y, target = problem(rng, "huber", 33, 7, dtype)
    # an error of exactly delta, and none
    target[0, 0], target[0, 1] = y[0, 0] - delta, y[0, 1]
    z = torch.tensor(y, requires_grad=True)
    expected = torch.nn.functional.huber_loss(z, torch.tensor(target), delta=delta)
    expected.backward()
    total, _, gradient, *_ = run_loss(backend, Loss(types.HUBER, delta), y, target, mean=True)
    assert total == pytest.approx(expected.item(), rel=relative("loss", dtype) * 64)
    assert_close("loss", gradient, z.grad.numpy(), 1)


def test_no_error_costs_nothing_and_one_past_all_numbers_costs_infinity(backend, dtype):
    y, target = np.array([[1.0, np.inf, -np.inf]], dtype), np.array([[1.0, 0, 0]], dtype)
    for name in ("mae", "huber"):
        _, losses, gradient, *_ = run_loss(backend, LOSSES[name], y, target)
        np.testing.assert_array_equal(losses, [[0, np.inf, np.inf]])
        np.testing.assert_array_equal(gradient, [[0, 1, -1]])


@pytest.mark.parametrize("case", CASES)
def test_reference_gradient_is_the_central_difference(case, rng):
    loss, logits, target = class_problem(rng, case, np.float64, 6, 5)
    row_weights = weights_of_rows(rng, 6, np.float64)
    _, _, gradient, *_ = run_loss(reference, loss, logits, target, True, row_weights)
    numerical = numerical_gradient(lambda: run_loss(reference, loss, logits, target, True, row_weights)[0], logits)
    assert_close("numerical", gradient, numerical, size=1)


@pytest.mark.parametrize("loss", [LOSSES["binary_cross_entropy"], LOSSES["mae"], Loss(types.HUBER, 0.7)])
def test_reference_gradient_of_values_is_the_central_difference(loss, rng):
    _, y, target = binary_problem(rng, True, np.float64, 6, 5)
    if loss.code == types.BINARY_CROSS_ENTROPY:
        loss = loss._replace(weights=3 * rng.random(5))
    row_weights = weights_of_rows(rng, 6, np.float64)
    _, _, gradient, *_ = run_loss(reference, loss, y, target, True, row_weights)
    numerical = numerical_gradient(lambda: run_loss(reference, loss, y, target, True, row_weights)[0], y)
    assert_close("numerical", gradient, numerical, size=1)


@pytest.mark.pairwise
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("weighted_rows", [True, False])
@pytest.mark.parametrize(("rows", "classes"), [(0, 5), (1, 1), (33, 7), (17, 33), (300, 10), (9, 600)])
def test_matches_the_reference(backend, dtype, case, mean, weighted_rows, rows, classes, rng):
    loss, logits, target = class_problem(rng, case, dtype, rows, classes)
    row_weights = weights_of_rows(rng, rows, dtype) if weighted_rows else None
    assert_like_reference(backend, loss, logits, target, mean, row_weights)


@pytest.mark.pairwise
@pytest.mark.parametrize("name", ["binary_cross_entropy", "mse", "poisson_nll", "mae", "huber"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (1, 1), (33, 7), (300, 10), (9, 600)])
def test_values_match_the_reference(backend, dtype, name, weighted, mean, rows, columns, rng):
    _, y, target = binary_problem(rng, False, dtype, rows, columns)
    weights = 3 * rng.random(columns).astype(dtype) if weighted and name == "binary_cross_entropy" else None
    row_weights = weights_of_rows(rng, rows, dtype) if weighted else None
    assert_like_reference(backend, LOSSES[name]._replace(weights=weights), y, target, mean, row_weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_rows_cost_nothing_even_of_nan(backend, dtype, smoothing, rng):
    logits, target = problem(rng, "labels", 9, 5, dtype)
    target[3] = -100
    loss = Loss(types.CROSS_ENTROPY, smoothing, None, -100)
    _, others, slopes, weight, right = run_loss(backend, loss, np.delete(logits, 3, 0), np.delete(target, 3))
    logits[3, 2] = np.nan
    _, losses, gradient, *counts = run_loss(backend, loss, logits, target)
    assert losses[3] == 0
    assert not gradient[3].any()
    assert bits(np.delete(losses, 3)) == bits(others)
    assert bits(np.delete(gradient, 3, 0)) == bits(slopes)
    assert counts == [weight, right] == [8, right]


@pytest.mark.parametrize(
    "case", [("labels", True, True, 0.1), ("labels", False, False, 0.0), ("probabilities", True, False, 0.1)]
)
def test_the_mean_does_not_depend_on_the_size_of_weights(backend, dtype, case, rng):
    """A power of two changes no bit of it, however small it is."""
    loss, logits, target = class_problem(rng, case, dtype)
    row_weights = weights_of_rows(rng, 33, dtype)
    total, _, gradient, *_ = run_loss(backend, loss, logits, target, True, row_weights)
    small = np.array(2.0**-60, dtype)
    found, _, slope, *_ = run_loss(backend, loss, logits, target, True, row_weights * small)
    assert found == total != 0
    assert bits(slope) == bits(gradient)


@pytest.mark.parametrize("case", [("labels", True, True, 0.1), ("labels", False, True, 0.0)])
def test_without_any_weight_loss_and_gradient_are_0(backend, dtype, case, rng):
    loss, logits, target = class_problem(rng, case, dtype)
    target[:] = 2
    total, losses, gradient, weight, right = run_loss(backend, loss, logits, target, mean=True)
    assert (total, weight, right) == (0, 0, 0)
    assert not losses.any()
    assert not gradient.any()


def test_a_number_of_no_class_is_bad_beside_one_that_is_ignored(backend, dtype, rng):
    logits, target = problem(rng, "labels", 5, 3, dtype)
    weights = np.ones(3, dtype)
    for bad, ignored in ((-99, -100), (types.NO_LABEL, -100), (types.NO_LABEL, types.NO_LABEL)):
        target[1], target[3] = -100 if ignored == -100 else 0, bad
        _, losses, gradient, *_ = run_loss(backend, Loss(types.CROSS_ENTROPY, 0.1, weights, ignored), logits, target)
        assert np.isnan(gradient[3]).all()
        assert not np.isfinite(losses[3])
        assert np.isfinite(np.delete(losses, 3)).all()


def test_the_first_of_the_largest_is_the_answer(backend, dtype):
    logits = np.array([[1, 3, 3], [2, 2, 0], [0, 1, 2], [np.nan, 0, 0], [0, 0, np.nan]], dtype)
    loss = Loss(types.CROSS_ENTROPY, 0.0, np.array([1, 2, 4], dtype))
    for labels, right in (([1, 0, 2, 0, 0], 7), ([2, 1, 1, 2, 2], 0)):
        *_, weight, found = run_loss(backend, loss, logits, np.array(labels))
        assert weight == sum(2**label for label in labels)
        assert found == right
    one_hot = np.eye(3, dtype=dtype)[[1, 0, 2, 0, 0]]
    assert run_loss(backend, loss, logits, one_hot)[3:] == (5, 3)


def test_right_values_of_a_row_have_its_weight(backend, dtype):
    logits, target = np.array([[1, -1, 0], [1, 1, np.nan]], dtype), np.array([[1, 0.5, 1], [0, 0.7, 0]], dtype)
    *_, weight, right = run_loss(
        backend, LOSSES["binary_cross_entropy"], logits, target, row_weights=np.array([2, 5], dtype)
    )
    assert weight == 7
    assert right == pytest.approx((2 * 2 + 5) / 3)


# steps of a chain


def chain_problem(rng, case, dtype, **options):
    """(net, x, target) of a loss with options, a softmax before it."""
    kind, weighted, ignores, smoothing = case
    name = "cross_entropy" if kind == "labels" else "one_hot"
    net, x, target = random_problem(rng, 33, [9, 16, CLASSES], ["tanh", "softmax"], dtype, name, **options)
    weights = rng.random(CLASSES).astype(dtype) if weighted else None
    net.loss = Loss(types.CROSS_ENTROPY, smoothing, weights, 2 if ignores else types.NO_LABEL)
    return net, x, target


def step(backend, net, x, target, row_weights=None, l2=0.0):
    record, counts = unwritten(3 if l2 else 2, np.float64), unwritten(2, np.float64)
    status = backend.dense_chain_step(
        x=x, target=target, step=0, record=record, row_weights=row_weights, l2=l2, counts=counts, **net.keyword()
    )
    assert status == OK
    return record, counts


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted_rows", [True, False])
def test_steps_match_the_reference(backend, dtype, case, weighted_rows, rng):
    net, x, target = chain_problem(rng, case, dtype, **NO_UPDATE)
    exact = clone(net)
    for name in ("params", "grads", "state", "work"):
        setattr(exact, name, getattr(net, name).astype(np.float64))
    weights = net.loss.weights
    exact.loss = net.loss._replace(weights=None if weights is None else weights.astype(np.float64))
    row_weights = weights_of_rows(rng, 33, dtype) if weighted_rows else None
    record, counts = step(backend, net, x, target, row_weights, 0.3)
    wide = [a if a is None or a.dtype == np.int64 else a.astype(np.float64) for a in (x, target, row_weights)]
    expected, expected_counts = step(reference, exact, *wide, 0.3)
    rel = 16 * relative("train_gradient", dtype)
    np.testing.assert_allclose(record, expected, rtol=rel, atol=rel)
    np.testing.assert_allclose(counts, expected_counts, rtol=1e-6, atol=1e-6)
    assert_close("train_gradient", net.grads, exact.grads, 16 * np.abs(exact.grads).max(), 33)


@pytest.mark.parametrize("name", LOSSES)
def test_steps_count_right_rows_as_the_loss_does(backend, dtype, name, rng):
    net, x, target = random_problem(rng, 33, [9, 16, CLASSES], ["tanh", "identity"], dtype, name)
    row_weights = weights_of_rows(rng, 33, dtype)
    expected = clone(net)
    _, counts = step(backend, net, x, target, row_weights)
    _, expected_counts = step(reference, expected, x, target, row_weights)
    np.testing.assert_allclose(counts, expected_counts, rtol=1e-6)
    assert (counts[1] > 0) == (name in ("cross_entropy", "binary_cross_entropy"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted_rows", [True, False])
def test_an_epoch_has_the_bits_of_its_steps(backend, dtype, case, weighted_rows, rng):
    net, x, target = chain_problem(rng, case, dtype)
    stepped, order = clone(net), rng.permutation(33)
    row_weights = weights_of_rows(rng, 33, dtype) if weighted_rows else None
    record, counts = unwritten((3, 2), np.float64), unwritten((3, 2), np.float64)
    status, done = backend.dense_chain_epoch(
        x=x, target=target, batches=Batches(order, 12, np.full(3, net.hyper[0])), step=0, record=record, counts=counts,
        row_weights=row_weights, **net.keyword(),
    )  # fmt: skip
    assert (status, done) == (OK, 3)
    for number in range(3):
        rows = order[12 * number : 12 * (number + 1)]
        expected, expected_counts = unwritten(2, np.float64), unwritten(2, np.float64)
        backend.dense_chain_step(
            x=x[rows], target=target[rows], step=number, record=expected, counts=expected_counts,
            row_weights=None if row_weights is None else row_weights[rows], **stepped.keyword(),
        )  # fmt: skip
        assert bits(record[number]) == bits(expected)
        assert bits(counts[number]) == bits(expected_counts)
    assert bits(net.params) == bits(stepped.params)


def test_a_step_refuses_a_number_of_no_class_and_takes_one_that_is_ignored(backend, dtype, rng):
    net, x, target = chain_problem(rng, ("labels", True, False, 0.1), dtype)
    net.loss = net.loss._replace(ignore_index=-100)
    target[3], before = -100, bits(net.params)
    step(backend, net, x, target)
    assert bits(net.params) != before
    target[4] = -99
    record = np.zeros(2)
    assert backend.dense_chain_step(x=x, target=target, step=1, record=record, **net.keyword()) == BAD_LABEL


@pytest.mark.parametrize("case", [("labels", False, True, 0.0), ("labels", True, True, 0.1)])
def test_a_step_in_which_all_is_ignored_has_no_loss_and_no_gradient(backend, dtype, case, rng):
    net, x, target = chain_problem(rng, case, dtype)
    target[:] = 2
    record, counts = step(backend, net, x, target, l2=0.5)
    assert not record[:2].any()
    assert not counts.any()
    assert not net.grads.any()


@pytest.mark.host
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(backend, dtype, rng):
    for case in CASES:
        loss, logits, target = class_problem(rng, case, dtype)
        _, losses, gradient, *_ = run_loss(backend, loss, logits, target)
        for i in (0, 17, 32):
            _, loss_alone, alone, *_ = run_loss(backend, loss, logits[i : i + 1], target[i : i + 1])
            assert bits(loss_alone) == bits(losses[i : i + 1])
            assert bits(alone) == bits(gradient[i : i + 1])
