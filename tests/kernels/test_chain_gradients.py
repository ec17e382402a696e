"""Gradients of a dense chain without an update: those of a step, of a sum or a mean, of nonzeros, and of bad input."""

import numpy as np
import pytest
from arrays import bits, numerical_gradient, unwritten, with_threads
from chains import TARGETS, check_margins, clone, random_problem, with_margins
from tolerances import assert_close, relative

from fastgrad.kernels import reference, types
from fastgrad.kernels.types import (
    BAD_LABEL,
    OK,
    workspace_size,
)

pytestmark = pytest.mark.cuda


def gradients(backend, net, x, target, **options):
    """(status, record) of dense_chain_gradients."""
    record = unwritten(2 if options.get("l2") else 1, np.float64)
    status = backend.dense_chain_gradients(x, target, net.arguments(), record, **options)
    return status, record


def weighted(rng, n, dtype):
    return {"row_weights": rng.random(n).astype(dtype), "l2": 0.3}


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("mean", [True, False])
def test_reference_gradients_are_the_central_differences_of_their_loss(target_kind, mean, rng):
    net, x, target = random_problem(rng, 4, [3, 5, 3], ["tanh", "softmax"], np.float64, target_kind)
    options = weighted(rng, 4, np.float64)
    weight = options["row_weights"].sum() if mean else 1

    def loss():
        value, squares = gradients(reference, net, x, target, mean=mean, **options)[1]
        return value + options["l2"] / 2 * squares / weight

    loss()
    analytic = net.grads.copy()
    assert_close("numerical", analytic, numerical_gradient(loss, net.params), size=1)


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("n", [1, 33, 700])
def test_gradients_are_those_of_a_step(backend, dtype, target_kind, plain, n, rng):
    """To the bit, and nothing is updated."""
    net, x, target = random_problem(rng, n, [19, 16, 11], ["silu", "softmax"], dtype, target_kind)
    options = {} if plain else weighted(rng, n, dtype)
    stepped, inputs = clone(net), (x, target, net.params, *options.values())
    before = [np.copy(a) for a in inputs]
    status, record = gradients(backend, net, x, target, **options)
    assert [bits(np.asarray(a)) for a in inputs] == [bits(np.asarray(a)) for a in before]
    expected = unwritten(2 if plain else 3, np.float64)
    assert status == OK
    assert backend.dense_chain_step(x=x, target=target, step=0, record=expected, **stepped.keyword(), **options) == OK
    assert bits(net.grads) == bits(stepped.grads)
    assert bits(record) == bits(np.delete(expected, 1))


@pytest.mark.parametrize("target_kind", TARGETS)
@pytest.mark.parametrize("plain", [True, False])
def test_gradients_of_the_sum_are_those_of_the_mean_times_the_count(backend, dtype, target_kind, plain, rng):
    net, x, target = random_problem(rng, 33, [9, 16, 11], ["tanh", "relu"], dtype, target_kind)
    options = {} if plain else weighted(rng, 33, dtype)
    _, mean = gradients(backend, net, x, target, **options)
    grads = net.grads.copy()
    _, total = gradients(backend, net, x, target, mean=False, **options)
    weight = 33 if plain else options["row_weights"].sum(dtype=np.float64)
    columns = 1 if net.loss.by_row else 11
    rel = 16 * relative("train_gradient", dtype)
    assert total[0] == pytest.approx(mean[0] * weight * columns, rel=rel)
    if plain:
        assert_close("train_gradient", net.grads, grads * (weight * columns), np.abs(net.grads).max(), 33)
    else:
        assert total[1] == mean[1]


def test_gradients_of_nonzeros_are_those_of_the_array(backend, dtype, rng):
    net, x, labels = random_problem(rng, 37, [33, 16, 10], ["relu", "softmax"], dtype, "cross_entropy")
    x[rng.random(x.shape) < 0.8] = 0
    options = weighted(rng, 37, dtype)
    other, (rows, columns) = clone(net), np.nonzero(x)
    other.work = unwritten(workspace_size([0, 16, 10], 37), dtype)
    starts = np.searchsorted(rows, np.arange(38)).astype(np.int64)
    nonzeros = types.Nonzeros(starts, columns.astype(np.int32), x[rows, columns], 33)
    expected = gradients(backend, net, x, labels, **options)
    found = gradients(backend, other, nonzeros, labels, **options)
    assert (found[0], bits(found[1])) == (expected[0], bits(expected[1])) == (OK, bits(expected[1]))
    assert bits(other.grads) == bits(net.grads)


def test_gradients_of_a_bad_label_and_of_what_is_not_finite(backend, dtype, rng):
    """The first is an error; who updates with the others finds them."""
    net, x, labels = random_problem(rng, 5, [9, 16, 10], ["tanh", "softmax"], dtype, "cross_entropy")
    before, labels[3] = bits(net.params), 10
    assert gradients(backend, net, x, labels)[0] == BAD_LABEL
    labels[3], x[3, 2] = 9, np.nan
    status, record = gradients(backend, net, x, labels)
    assert status == OK
    assert np.isnan(record[0])
    assert np.isnan(net.grads).any()
    assert bits(net.params) == before


def test_gradients_of_an_empty_batch_are_0(backend, dtype, rng):
    net, x, target = random_problem(rng, 0, [9, 16, 11], ["tanh", "relu"], dtype)
    for mean in (True, False):
        assert gradients(backend, net, x, target, mean=mean) == (OK, 0.0)
        assert not net.grads.any()


def test_gradients_stay_inside_their_arrays(backend, dtype, rng):
    net, x, target = random_problem(rng, 33, [9, 17, 11], ["gelu", "softmax"], dtype, "cross_entropy")
    wide = with_margins(net, dtype)
    assert gradients(backend, net, x, target)[0] == OK
    check_margins(wide)


def test_gradients_have_the_same_bits_on_any_number_of_threads(cpu, dtype, rng):
    net, x, target = random_problem(rng, 700, [257, 129, 10], ["relu", "softmax"], dtype, "cross_entropy")
    options = weighted(rng, 700, dtype)

    def run():
        own = clone(net)
        return bits(gradients(cpu, own, x, target, **options)[1]), bits(own.grads)

    assert len(set(with_threads(run))) == 1
