"""After the first step a training loop allocates nothing large, predict no more than its result; what is let go is used again."""

import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.core import allocator

SIZES = [784, 64, 64, 10]
BATCH = 256
# a batch's layer of 64 is 64 kB, the parameters 218 kB: no array of the net's size passes, but a few of the output's, 10 kB, and objects
LARGE = 60_000


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
        trainer.step(x[:100], y[:100])

    assert peak(steps) < LARGE


@pytest.mark.parametrize("trainer", ["chain", "sequential"], indirect=True)
def test_epochs_of_a_fit_allocate_nothing_large(trainer):
    x, y = data(5 * BATCH + 100)
    # what a fit holds for itself: two orders of the rows, and a record and a size for each batch
    own = 2 * 8 * len(x) + 3 * 8 * 6
    assert peak(lambda: trainer.fit(x, y, epochs=3, batch_size=BATCH)) < own + LARGE


@pytest.mark.parametrize("trainer", ["chain"], indirect=True)
def test_predict_allocates_its_result(trainer):
    x, _ = data(1000)
    assert peak(lambda: trainer.predict(x)) < 1000 * 10 * 4 + LARGE


def test_the_measure_sees_an_array():
    assert peak(lambda: np.empty(LARGE, np.uint8)) >= LARGE


@pytest.fixture
def pool(monkeypatch):
    """Memory of its own, of which nothing is free yet."""
    monkeypatch.setattr(allocator, "_memory", allocator.Allocator())
    return allocator._memory


FLOAT32 = np.dtype(np.float32)


def place(a):
    return a.ctypes.data


def test_what_is_let_go_is_the_next_result_of_its_size(pool):
    first = allocator.empty((100, 100), FLOAT32)
    where = place(first)
    assert where % 64 == 0
    assert first.flags.carray
    del first
    assert place(allocator.empty((50, 200), FLOAT32)) == where
    assert place(allocator.empty((200, 25), np.dtype(np.float64))) == where
    assert place(allocator.empty((9_999,), FLOAT32)) == where
    assert place(allocator.empty((20_000,), FLOAT32)) != where


def test_a_view_holds_on_to_its_memory(pool):
    first = allocator.empty((100, 100), FLOAT32)
    first[...] = 1
    view = first[10:20].T.reshape(5, -1)[1:].copy(), first[3, 4:9]
    del first
    allocator.empty((100, 100), FLOAT32)[...] = 2
    assert all((a == 1).all() for a in view)


def test_no_more_is_kept_than_said(pool, monkeypatch):
    monkeypatch.setattr(allocator, "KEPT", 1 << 20)
    large, small = ([allocator.empty((n,), FLOAT32) for _ in range(16)] for n in (1 << 16, 1 << 14))
    of_small = {place(a) for a in small}
    assert pool.listed == 1 << 20
    del large
    del small
    assert pool.listed == 1 << 20
    again = [allocator.empty((1 << 14,), FLOAT32) for _ in range(16)]
    # those of the size that was used last are all there
    assert {place(a) for a in again} == of_small


def test_what_is_let_go_beyond_the_bound_is_freed_at_once(pool, monkeypatch):
    monkeypatch.setattr(allocator, "KEPT", 1 << 20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        lent = [allocator.empty((1 << 16,), FLOAT32) for _ in range(40)]
        assert tracemalloc.get_traced_memory()[0] - before > 40 << 18
        del lent
        assert tracemalloc.get_traced_memory()[0] - before < (1 << 20) + LARGE
        huge = allocator.empty((1 << 19,), FLOAT32)
        del huge
        assert tracemalloc.get_traced_memory()[0] - before < (1 << 20) + LARGE
    finally:
        tracemalloc.stop()


def test_copies_and_slices_of_a_results_base_are_as_of_any_array(pool):
    first = allocator.empty((100, 100), FLOAT32)
    first[...] = 1
    copy, part = first.base.copy(), first.base[400:800]
    before = bytes(part)
    del first
    later = [allocator.empty((100, 100), FLOAT32) for _ in range(3)]
    for a in later:
        a[...] = 2
    assert bytes(part) == before
    assert not any(np.shares_memory(a, part) or np.shares_memory(a, copy) for a in later)
    del copy, part
    for _ in range(3):
        allocator.empty((100, 100), FLOAT32)


def test_what_a_buffer_looks_at_is_not_used_again(pool):
    first = allocator.empty((100, 100), FLOAT32)
    first[...] = 1
    view = memoryview(first)
    del first
    allocator.empty((100, 100), FLOAT32)[...] = 2
    assert (np.asarray(view) == 1).all()


def test_a_free_block_behind_lent_ones_is_found(pool):
    lent = [allocator.empty((10_000,), FLOAT32) for _ in range(30)]
    where = place(lent[7])
    lent[7] = None
    assert place(allocator.empty((10_000,), FLOAT32)) == where


def test_threads_do_not_get_the_same_memory(pool):
    def use(value):
        for _ in range(300):
            a = allocator.empty((5_000,), FLOAT32)
            a[...] = value
            b = allocator.empty((5_000,), FLOAT32)
            b[...] = -value
            assert (a == value).all()
            assert (b == -value).all()
            value += 1

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(use, 1000 * i) for i in range(4)]:
            done.result()


def test_results_in_a_cycle_come_back_too(pool):
    for _ in range(20):
        a = allocator.empty((10_000,), FLOAT32)
        cycle = [a]
        cycle.append(cycle)
    del a, cycle
    gc.collect()
    found = [allocator.empty((10_000,), FLOAT32) for _ in range(20)]
    assert len({place(a) for a in found}) == 20
    assert pool.listed < 21 * 41_000


def test_an_op_gets_the_memory_of_its_last_result_again(in_force, pool):
    x, w = np.ones((256, 64), np.float32), np.ones((64, 64), np.float32)
    seen = set()
    for _ in range(10):
        y, backward = fg.dense(x, w, activation="relu")
        dx, dw = backward(y)
        seen |= {place(a) for a in (y, dx, dw)}
        del y, backward, dx, dw
    assert len(seen) <= 4


def test_a_block_that_is_looked_at_while_another_takes_it_is_nobodys_twice(pool, monkeypatch):
    """A signal's handler, or a thread, that comes between the look and the taking."""
    look, nested = allocator.counts, []

    def counts(blocks, most):
        found = look(blocks, most)
        if not nested:
            nested.append(None)
            nested[0] = allocator.empty((10_000,), FLOAT32)
        return found

    a, b = (allocator.empty((10_000,), FLOAT32) for _ in range(2))
    del a, b
    monkeypatch.setattr(allocator, "counts", counts)
    outer = allocator.empty((10_000,), FLOAT32)
    assert not np.shares_memory(outer, nested[0])
