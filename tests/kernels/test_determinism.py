"""The same bits for any number of threads, and for a sample alone as in a batch."""

import numpy as np
import pytest
from arrays import bits, with_threads
from chains import Gradients, clone, forward, random_chain, random_net, random_target, run, step

from fastgrad.kernels.types import ACTIVATIONS, CROSS_ENTROPY, LOSSES, OK, Batches, Loss

# below and above the size at which threads start, odd rows for every share, few rows of wide layers, deep
SHAPES = {
    "small": (5, (9, 17, 4)),
    "middle": (127, (65, 64, 33, 10)),
    "large": (257, (785, 129, 65, 10)),
    "wide": (3, (700, 1500, 11)),
    "one": (1, (1500, 1100, 7)),
    "tall": (3001, (40, 33, 3)),
    "deep": (131, (64,) * 21),
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def activations_for(widths):
    names = ("tanh", "gelu", "leaky_relu", "silu", "softplus")
    return [names[layer % len(names)] for layer in range(len(widths) - 1)]


def assert_same_bits(cpu, chain):
    """Outputs and gradients of a chain have the same bits on any number of threads."""

    def everything():
        outputs, gradients = run(cpu, chain)
        return [bits(a) for a in outputs + gradients.arrays()]

    first, *others = with_threads(everything)
    assert all(other == first for other in others)


@pytest.mark.parametrize("bias", [True, False])
def test_chain_on_any_number_of_threads(cpu, dtype, shape, bias, rng):
    n, widths = shape
    assert_same_bits(cpu, random_chain(rng, n, widths, activations_for(widths), dtype, bias, residual=bias))


def test_chain_of_transposed_weights_on_any_number_of_threads(cpu, dtype, rng):
    chain = random_chain(rng, 257, (385, 129, 65, 10), ["relu", "tanh", "softmax"], dtype)
    chain.weights = [np.asfortranarray(w) for w in chain.weights]
    assert_same_bits(cpu, chain)


@pytest.mark.parametrize("target_kind", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_steps_on_any_number_of_threads(cpu, dtype, shape, target_kind, rng):
    n, widths = shape
    activations = [*activations_for(widths)[:-1], "sigmoid"]
    net = random_net(rng, widths, activations, dtype, n, loss=target_kind, clip_norm=0.1)
    x = rng.standard_normal((n, widths[0])).astype(dtype)
    target = random_target(rng, target_kind, n, widths[-1], dtype)

    def three_steps():
        run_net = clone(net)
        records = [step(cpu, run_net, x, target, number) for number in range(3)]
        assert all(status == OK for status, _, _ in records)
        return records, bits(run_net.params), bits(run_net.grads), bits(run_net.state)

    first, *others = with_threads(three_steps)
    assert all(other == first for other in others)


def test_epochs_on_any_number_of_threads(cpu, dtype, rng):
    net = random_net(rng, (257, 129, 10), ["relu", "softmax"], dtype, 256, loss="cross_entropy")
    x, labels, order = rng.standard_normal((700, 257)).astype(dtype), rng.integers(0, 10, 700), rng.permutation(700)

    def epoch():
        run_net, record = clone(net), np.empty((3, 2))
        cpu.dense_chain_epoch(
            x=x,
            target=labels,
            batches=Batches(order, 256, np.full(3, 0.01)),
            step=0,
            record=record,
            **run_net.keyword(),
        )
        return bits(record), bits(run_net.params)

    first, *others = with_threads(epoch)
    assert all(other == first for other in others)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sample_alone_has_the_bits_it_has_in_a_batch(cpu, dtype, shape, transposed, rng):
    """Outputs, saved values, dz and dx, on any number of threads."""
    n, widths = shape
    chain = random_chain(rng, n, widths, activations_for(widths), dtype)
    if transposed:
        chain.weights = [np.asfortranarray(w) for w in chain.weights]

    def rows_of(outputs, gradients: Gradients, rows):
        return [bits(a[rows]) for a in [*outputs, *gradients.dzs, gradients.dx]]

    def compare():
        together = run(cpu, chain)
        for i in {0, 1, n // 2, n - 1}:
            for size in (1, 2, 9):
                rows = slice(i, i + size)
                alone = random_chain(rng, 0, widths, activations_for(widths), dtype)
                alone.x, alone.residual, alone.dy = chain.x[rows], chain.residual[rows], chain.dy[rows]
                alone.weights, alone.biases = chain.weights, chain.biases
                assert rows_of(*run(cpu, alone), slice(None)) == rows_of(*together, rows), f"rows {i} to {i + size}"

    with_threads(compare)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_alone_as_in_a_batch(cpu, dtype, name, rng):
    chain = random_chain(rng, 37, (11, 35), [name], dtype)
    _, (together,) = forward(cpu, chain)
    for i in (0, 17, 36):
        one = random_chain(rng, 1, (11, 35), [name], dtype)
        one.x, one.residual = chain.x[i : i + 1], chain.residual[i : i + 1]
        one.weights, one.biases = chain.weights, chain.biases
        assert bits(forward(cpu, one)[1][0]) == bits(together[i : i + 1])


def test_infer_alone_and_on_any_number_of_threads(cpu, dtype, shape, rng):
    n, widths = shape
    net = random_net(rng, widths, [*activations_for(widths)[:-1], "softmax"], dtype, n)
    x = rng.standard_normal((n, widths[0])).astype(dtype)

    def infer(rows):
        out = np.full((len(rows), widths[-1]), np.nan, dtype)
        cpu.dense_chain_infer(rows, net.table, net.parameters, net.params, out)
        return bits(out)

    first, *others = with_threads(lambda: infer(x))
    assert all(other == first for other in others)
    together = np.frombuffer(first, dtype).reshape(n, -1)
    for i in {0, n // 2, n - 1}:
        assert infer(x[i : i + 1].copy()) == bits(together[i : i + 1])


def test_losses_and_norms_on_any_number_of_threads(cpu, dtype, rng):
    logits = rng.standard_normal((3001, 1000)).astype(dtype)
    labels, target = rng.integers(0, 1000, 3001), rng.random((3001, 1000)).astype(dtype)
    row_weights, weights = (rng.random(n).astype(dtype) for n in (3001, 1000))
    smoothed = Loss(CROSS_ENTROPY, 0.1, weights, int(labels[5]))

    def everything():
        found = []
        for loss, of in [(smoothed, labels), *((loss, target) for loss in LOSSES.values())]:
            losses, gradient = np.empty(logits.shape[: 1 if loss.by_row else 2], dtype), np.empty_like(logits)
            sums = cpu.loss_gradient(logits, of, loss, losses, gradient, row_weights=row_weights)
            found += [bits(sums), bits(losses), bits(gradient)]
        norms = np.empty(1)
        cpu.array_norms([logits], None, 2.0, norms, np.empty(1, np.int64))
        return [*found, norms[0]]

    first, *others = with_threads(everything)
    assert all(other == first for other in others)
