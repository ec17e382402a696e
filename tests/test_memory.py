"""After the first step a training loop allocates nothing large, and predict no more than its result."""

import tracemalloc

import numpy as np
import pytest

import fastgrad as fg

SIZES = [784, 64, 64, 10]
BATCH = 128
# a batch's layer of 64 is 32 kB, the parameters 218 kB: no array of the net's size passes
LARGE = 16_000


@pytest.fixture
def trainer(in_force, request):
    if in_force == "numpy":
        pytest.skip("the reference allocates as NumPy expressions do")
    if request.param == "chain":
        model = fg.nn.DenseChain(SIZES, output="softmax", seed=0)
    else:
        model = fg.nn.Sequential(
            fg.nn.Dense(784, 64, "silu"), fg.nn.DenseChain([64, 64, 10], "relu", "softmax"), seed=0
        )
    return fg.Trainer(model, clip_norm=1.0)


def data(n):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, SIZES[0]), np.float32), rng.integers(0, 10, n)


def peak(function):
    """Bytes that a call holds at once above what was there before it, after three calls to warm up."""
    for _ in range(3):
        function()
    tracemalloc.start()
    try:
        # tracing itself keeps a little
        function()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("trainer", ["chain", "sequential"], indirect=True)
def test_a_step_allocates_nothing_large(trainer):
    x, y = data(BATCH)
    assert peak(lambda: trainer.step(x, y)) < LARGE


@pytest.mark.parametrize("trainer", ["chain", "sequential"], indirect=True)
def test_a_smaller_batch_allocates_nothing_large(trainer):
    x, y = data(BATCH)

    def steps():
        trainer.step(x, y)
        trainer.step(x[:50], y[:50])

    assert peak(steps) < LARGE


@pytest.mark.parametrize("trainer", ["chain", "sequential"], indirect=True)
def test_epochs_of_a_fit_allocate_nothing_large(trainer):
    x, y = data(5 * BATCH + 50)
    # what a fit holds for itself: two orders of the rows, and a record and a size for each batch
    own = 2 * 8 * len(x) + 3 * 8 * 6
    assert peak(lambda: trainer.fit(x, y, epochs=3, batch_size=BATCH)) < own + LARGE


@pytest.mark.parametrize("trainer", ["chain"], indirect=True)
def test_predict_allocates_its_result(trainer):
    x, _ = data(1000)
    assert peak(lambda: trainer.predict(x)) < 1000 * 10 * 4 + LARGE


def test_the_measure_sees_an_array():
    assert peak(lambda: np.empty(LARGE, np.uint8)) >= LARGE
