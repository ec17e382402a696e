"""What is 0 left out of x: an epoch over types.Nonzeros against the same one over the array, and the making of them."""

import numpy as np
import pytest
from arrays import bits, unwritten, with_threads
from chains import check_margins, clone, random_net, random_target, with_margins

from fastgrad.kernels.types import BAD_LABEL, NONFINITE, OK, Batches, Nonzeros, workspace_size

pytestmark = pytest.mark.cuda

# rows shorter than a vector, that end in part of one, longer than what is done at a time, and more weights' rows than that
WIDTHS = {
    "short": (33, 3, 4),
    "usual": (65, 100, 10),
    "long": (17, 700, 10),
    "tall": (1201, 130, 5),
    "one layer": (65, 10),
    "no columns": (0, 5, 4),
}


def mostly_zero(rng, shape, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    x[rng.random(shape) < 0.8] = 0
    # whole rows and columns of zeros
    x[::5] = 0
    x[:, ::7] = 0
    return x


def nonzeros_of(x):
    rows, columns = np.nonzero(x)
    starts = np.searchsorted(rows, np.arange(len(x) + 1)).astype(np.int64)
    return Nonzeros(starts, columns.astype(np.int32), x[rows, columns], x.shape[1])


def epoch(backend, net, x, target, order, batch_size, **options):
    batches = -(-len(order) // batch_size)
    record = unwritten((batches, 3 if options.get("l2") else 2), np.float64)
    found = backend.dense_chain_epoch(
        x=x, target=target, batches=Batches(order, batch_size, np.full(batches, net.hyper[0])), step=0, record=record,
        **net.keyword(), **options,
    )  # fmt: skip
    return found, record


def outcome(net, found, record):
    return tuple(map(int, found)), *map(bits, (record, net.params, net.grads, net.state))


@pytest.mark.pairwise
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("options", ["plain", "weighted and decayed"])
def test_an_epoch_is_that_of_the_array(backend, dtype, widths, loss, options, rng):
    """To the bit, with a short last batch, rows more than once, and no room for x in `work`."""
    widths = WIDTHS[widths]
    activations = ["gelu"] * (len(widths) - 2) + ["softmax"]
    net = random_net(rng, widths, activations, dtype, 37, loss=loss, clip_norm=0.5)
    x, target = mostly_zero(rng, (90, widths[0]), dtype), random_target(rng, loss, 90, widths[-1], dtype)
    order, given = rng.integers(0, 90, 100), {}
    if options != "plain":
        given = {"l2": 0.1, "row_weights": rng.random(90).astype(dtype)}
    other = clone(net)
    other.work = unwritten(workspace_size((0, *widths[1:]), 37), dtype)
    expected = outcome(net, *epoch(backend, net, x, target, order, 37, **given))
    assert expected[0] == (OK, 3)
    assert outcome(other, *epoch(backend, other, nonzeros_of(x), target, order, 37, **given)) == expected


def test_the_bits_are_the_same_for_any_number_of_threads(cpu, dtype, rng):
    net = random_net(rng, (785, 130, 10), ["relu", "softmax"], dtype, 200, loss="cross_entropy")
    x, labels, order = mostly_zero(rng, (300, 785), dtype), rng.integers(0, 10, 300), rng.permutation(300)

    def run():
        mine = clone(net)
        return outcome(mine, *epoch(cpu, mine, nonzeros_of(x), labels, order, 200))

    first, *others = with_threads(run)
    assert all(other == first for other in others)


def test_an_epoch_stays_inside_its_arrays(backend, dtype, rng):
    widths = 33, 21, 10
    net = random_net(rng, widths, ["relu", "softmax"], dtype, 20, loss="cross_entropy")
    net.work = unwritten(workspace_size((0, *widths[1:]), 20), dtype)
    wide = with_margins(net, dtype)
    x, labels = mostly_zero(rng, (50, 33), dtype), rng.integers(0, 10, 50)
    assert epoch(backend, net, nonzeros_of(x), labels, np.arange(50), 20)[0][0] == OK
    check_margins(wide)


@pytest.mark.parametrize("bad", ["label", np.nan, np.inf])
def test_a_batch_that_fails_is_not_applied(backend, dtype, bad, rng):
    net = random_net(rng, (33, 16, 10), ["silu", "softmax"], dtype, 10, loss="cross_entropy")
    x, labels = mostly_zero(rng, (50, 33), dtype), rng.integers(0, 10, 50)
    if bad == "label":
        labels[26] = 10
    else:
        x[26, 3] = bad
    by_array, nonzeros = clone(net), nonzeros_of(x)
    found, _ = epoch(backend, net, nonzeros, labels, np.arange(50), 10)
    assert tuple(found) == (BAD_LABEL if bad == "label" else NONFINITE, 2)
    epoch(backend, by_array, x, labels, np.arange(50), 10)
    assert bits(net.params) == bits(by_array.params)


def test_a_zero_that_is_given_counts_as_one(backend, dtype, rng):
    net = random_net(rng, (4, 16, 10), ["silu", "softmax"], dtype, 10, loss="cross_entropy")
    x, labels = mostly_zero(rng, (10, 4), dtype), rng.integers(0, 10, 10)
    every = Nonzeros(np.arange(0, 44, 4), np.tile(np.arange(4, dtype=np.int32), 10), x.reshape(-1), 4)
    np.testing.assert_array_equal(every[:], x)
    np.testing.assert_array_equal(every[[3, 3, 1]], x[[3, 3, 1]])
    other = clone(net)
    epoch(backend, net, x, labels, np.arange(10), 10)
    epoch(backend, other, every, labels, np.arange(10), 10)
    assert bits(net.params) == bits(other.params)


@pytest.mark.parametrize("shape", [(50, 33), (5000, 301), (1, 1), (0, 5), (5, 0)])
def test_what_is_found_in_an_array_is_the_array(cpu, dtype, shape, rng):
    from fastgrad.kernels.cpu.sparse import compressed

    x = mostly_zero(rng, shape, dtype)
    if x.size > 5:
        x[1, 1:4] = np.nan, np.inf, -0.0
    for found in with_threads(lambda: compressed(x, 1.0)):
        np.testing.assert_array_equal(found[:], x)
        assert (len(found), found.shape, found.dtype) == (len(x), x.shape, dtype)
        assert len(found.values) == np.count_nonzero(x)


def test_an_array_with_more_is_left_alone(cpu, rng):
    from fastgrad.kernels.cpu.sparse import compressed

    x = np.zeros((10, 10))
    x[:3] = 1
    assert compressed(x, 0.29) is None
    assert compressed(x, 0.3) is not None


def test_many_rows_are_summed_in_the_blocks_of_the_dense_product(cpu, dtype, rng):
    net = random_net(rng, (19, 11, 3), ["relu", "softmax"], dtype, 9000, loss="cross_entropy")
    x, labels = mostly_zero(rng, (9000, 19), dtype), rng.integers(0, 3, 9000)
    other = clone(net)
    expected = outcome(net, *epoch(cpu, net, x, labels, np.arange(9000), 9000))
    assert outcome(other, *epoch(cpu, other, nonzeros_of(x), labels, np.arange(9000), 9000)) == expected
