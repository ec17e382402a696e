"""Processes of one training, as threads: their all-reduce, and the nets and data that they train."""

import threading

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.nn import Dense, DenseChain, Sequential
from fastgrad.optim import Adam

PATIENCE = 60


class Ranks:
    """An all-reduce over threads: sums, or means. in_turn: they run one at a time."""

    def __init__(self, n, mean=False, in_turn=False):
        self.barrier, self.values, self.factor = (
            threading.Barrier(n, timeout=PATIENCE),
            [None] * n,
            1 / n if mean else 1,
        )
        self.turn = threading.Semaphore(1 if in_turn else n)

    def of(self, rank):
        def reduce(values):
            self.values[rank] = values.copy()
            self.wait()
            found = sum(self.values)
            self.wait()
            values[...] = self.factor * found

        return reduce

    def wait(self):
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


def shared(n, program, mean=False, in_turn=False):
    """What program(rank, reduce) returns, or the exceptions it raises, for n ranks at once."""
    ranks, found, name = Ranks(n, mean, in_turn), [None] * n, fg.backend()

    def run(rank):
        try:
            with ranks.turn, fg.use_backend(name):
                found[rank] = program(rank, ranks.of(rank))
        except Exception as error:
            found[rank] = error
            ranks.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def model(form="chain", output="softmax", dtype="float32", seed=7):
    if form == "chain":
        return DenseChain([4, 6, 3], "tanh", output, dtype=dtype, seed=seed)
    return Sequential(Dense(4, 6, "tanh", dtype=dtype), Dense(6, 3, output, dtype=dtype), seed=seed)


def data(loss="cross_entropy", dtype="float32", n=24):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((n, 4)).astype(dtype)
    return x, rng.integers(0, 3, n) if loss == "cross_entropy" else rng.integers(0, 2, (n, 3)).astype(dtype)


def parts(n, batch_size, shares):
    """Of n rows in batches, the rows of each rank: of each batch its share, one rank after the other."""
    batches = [np.arange(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    ends = np.cumsum(shares)[:-1]
    return [np.concatenate(rows) for rows in zip(*(np.split(batch, ends) for batch in batches), strict=True)]


def close(found, expected, dtype):
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def assert_a_failed_reduce_changes_nothing(new_model, state):
    """Of a step and of a fit, where reduce raises midway; state(trainer) is what must stay, and go on as without."""
    x, y = data()
    failing = []

    def reduce(values):
        if failing:
            values[: values.size // 2] = 12.0
            raise ConnectionResetError("the other end is gone")

    trainer, other = (fg.Trainer(new_model(), optimizer=Adam(0.01), reduce=reduce) for _ in range(2))
    for one in (trainer, other):
        one.step(x, y)
    before = state(trainer)
    failing.append(True)
    for call in (lambda: trainer.step(x, y), lambda: trainer.fit(x, y, batch_size=8, shuffle=False)):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert str(caught.value) == (
            "Trainer: reduce failed, and no update was made: ConnectionResetError: the other end is gone"
        )
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert state(trainer) == before
    failing.clear()
    for one in (trainer, other):
        one.step(x, y)
    assert state(trainer) == state(other)
