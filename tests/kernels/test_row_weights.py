"""Weights of rows and the penalty l2 of training steps: PyTorch and central differences, every backend against the reference."""

import numpy as np
import pytest
from arrays import bits, numerical_gradient, unwritten
from chains import NO_UPDATE, clone, random_problem, torch_activation
from tolerances import assert_close, relative

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import ACTIVATIONS, ADAM, LOSSES, OK, Batches

WIDTHS = [9, 16, 11]


def problem(rng, n, dtype, loss="mse", widths=WIDTHS, **options):
    """(net, x, target, row_weights), one weight in five 0."""
    activations = ["tanh"] * (len(widths) - 2) + ["identity"]
    net, x, target = random_problem(rng, n, widths, activations, dtype, loss, **options)
    return net, x, target, (rng.random(n) * (rng.random(n) > 0.2)).astype(dtype)


def step(backend, net, x, target, row_weights, l2):
    """(loss, norm, squares) of a step; squares are 0 without l2."""
    record = np.zeros(3)
    record[: 3 if l2 else 2] = np.nan
    status = backend.dense_chain_step(
        x=x, target=target, step=0, record=record, row_weights=row_weights, l2=l2, **net.keyword()
    )
    assert status == OK
    return record


def whole_loss(record, row_weights, n, l2):
    """What the gradient is of: the recorded loss and the penalty."""
    weight = n if row_weights is None else row_weights.sum(dtype=np.float64)
    return record[0] + l2 / 2 * record[2] / weight


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_reference_gradient_is_the_central_difference(loss, weighted, l2, rng):
    net, x, target, weights = problem(rng, 6, np.float64, loss, [3, 5, 4], **NO_UPDATE)
    weights = weights if weighted else None
    step(reference, net, x, target, weights, l2)
    analytic = net.grads.copy()
    numerical = numerical_gradient(
        lambda: whole_loss(step(reference, net, x, target, weights, l2), weights, 6, l2), net.params
    )
    assert_close("numerical", analytic, numerical, size=1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_matches_pytorch(backend, dtype, loss, l2, rng, torch):
    net, x, target, weights = problem(rng, 33, dtype, loss, **NO_UPDATE)
    record = step(backend, net, x, target, weights, l2)
    functions = "cross_entropy binary_cross_entropy_with_logits mse_loss poisson_nll_loss l1_loss huber_loss".split()
    function = getattr(torch.nn.functional, functions[net.loss.code])
    flat, a = torch.tensor(net.params, requires_grad=True), torch.tensor(x)
    penalty = 0
    for (k, m, w, b, _), f in zip(net.table.tolist(), ("tanh", "identity"), strict=True):
        matrix = flat[w : w + k * m].reshape(k, m)
        penalty = penalty + matrix.square().sum()
        a = torch_activation(ACTIVATIONS[f], a @ matrix + flat[b : b + m])
    losses = function(a, torch.tensor(target), reduction="none")
    # of each row, the mean over the outputs
    losses = losses.reshape(33, -1).mean(dim=1)
    loss = (losses * torch.tensor(weights)).sum() / float(weights.sum())
    (loss + l2 / 2 * penalty / float(weights.sum())).backward()
    rel = 16 * relative("train_gradient", dtype)
    assert record[0] == pytest.approx(float(loss.detach()), rel=rel)
    assert record[2] == pytest.approx(float(penalty.detach()) if l2 else 0, rel=rel)
    assert_close("train_gradient", net.grads, flat.grad.numpy(), 16, 33)
    assert record[1] == pytest.approx(float(np.linalg.norm(flat.grad)), rel=rel)


@pytest.mark.parametrize(
    ("n", "widths"),
    [
        (1, [3, 1]),
        (33, [3, 1]),
        (1023, [3, 1]),
        (1, [33, 17, 3]),
        (1023, [33, 17, 3]),
        (1, [700, 600, 5]),
        (1023, [300, 5]),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_the_reference(backend, dtype, n, widths, loss, rng):
    net, x, target, weights = problem(rng, n, dtype, loss, widths, **NO_UPDATE)
    weights[0] = 1
    exact = clone(net)
    for name in ("params", "grads", "state", "work"):
        setattr(exact, name, getattr(net, name).astype(np.float64))
    found = step(backend, net, x, target, weights, 0.3)
    exact_target = target if target.dtype == np.int64 else target.astype(np.float64)
    expected = step(reference, exact, x.astype(np.float64), exact_target, weights.astype(np.float64), 0.3)
    rel = 16 * relative("train_gradient", dtype)
    np.testing.assert_allclose(found, expected, rtol=rel, atol=rel)
    assert_close("train_gradient", net.grads, exact.grads, 16 * np.abs(exact.grads).max(), max(n, *widths))


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_one_change_nothing(backend, dtype, loss, rng):
    net, x, target, _ = problem(rng, 33, dtype, loss)
    plain = clone(net)
    record = unwritten(2, np.float64)
    assert backend.dense_chain_step(x=x, target=target, step=0, record=record, **plain.keyword()) == OK
    assert step(backend, net, x, target, np.ones(33, dtype), 0.0)[:2] == pytest.approx(record, rel=1e-6)
    assert_close("train_gradient", net.grads, plain.grads, 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_two_is_there_twice_and_one_of_zero_is_not_there(backend, dtype, loss, rng):
    net, x, target, _ = problem(rng, 33, dtype, loss, **NO_UPDATE)
    weights = rng.integers(0, 3, 33)
    other = clone(net)
    record = step(backend, net, x, target, weights.astype(dtype), 0.5)
    rows = np.repeat(np.arange(33), weights)
    other.work = unwritten(types.workspace_size(WIDTHS, len(rows)), dtype)
    repeated = step(backend, other, x[rows], target[rows], None, 0.5)
    np.testing.assert_allclose(record, repeated, rtol=16 * relative("train_gradient", dtype))
    assert_close("train_gradient", net.grads, other.grads, 4, 33)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_any_weight_have_no_loss_and_no_gradient(backend, dtype, loss, rng):
    net, x, target, _ = problem(rng, 7, dtype, loss)
    record = step(backend, net, x, target, np.zeros(7, dtype), 0.5)
    assert record[0] == record[1] == 0
    assert not net.grads.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batch_size", [7, 25, 100])
def test_an_epoch_takes_the_weights_of_its_rows(backend, dtype, loss, batch_size, rng):
    """To the bit: those of steps on the gathered rows."""
    net, x, target, weights = problem(rng, 50, dtype, loss, optimizer=ADAM)
    stepped, order, before = clone(net), rng.permutation(50), bits(weights)
    starts = range(0, 50, batch_size)
    record = unwritten((len(starts), 3), np.float64)
    status, done = backend.dense_chain_epoch(
        x=x, target=target, batches=Batches(order, batch_size, np.full(len(starts), net.hyper[0])), step=0, record=record,
        row_weights=weights, l2=0.3, **net.keyword(),
    )  # fmt: skip
    assert (status, done) == (OK, len(starts))
    for number, start in enumerate(starts):
        rows = order[start : start + batch_size]
        expected = unwritten(3, np.float64)
        backend.dense_chain_step(
            x=x[rows],
            target=target[rows],
            step=number,
            record=expected,
            row_weights=weights[rows],
            l2=0.3,
            **stepped.keyword(),
        )
        assert bits(record[number]) == bits(expected)
    assert bits(net.params) == bits(stepped.params)
    assert bits(weights) == before
