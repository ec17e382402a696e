"""How many Python functions a step calls: of a small net these calls are what it costs."""

import numpy as np
import pytest
from python_calls import calls_of

import fastgrad as fg
from fastgrad.kernels.cpu.engine import scratch
from fastgrad.nn import Dense, DenseChain, Sequential


def chain():
    return DenseChain([12, 9, 7, 5], "relu", "softmax", seed=0)


def layers():
    return Sequential(Dense(12, 9, "relu"), Dense(9, 7, "relu"), Dense(7, 5, "softmax"), seed=0)


@pytest.mark.parametrize(
    ("make", "health", "most"),
    [(chain, False, 20), (layers, False, 25), (layers, True, 40)],
    ids=["chain", "layers", "health"],
)
def test_a_step_calls_few_functions(cpu, make, health, most):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 12), np.float32), rng.integers(0, 5, 32)
    trainer = fg.Trainer(make(), health=health)
    trainer.step(x, y)
    names = calls_of(lambda: trainer.step(x, y))
    assert len(names) <= most, names


def test_a_step_calls_no_more_functions_after_many_calls_at_one_time(cpu):
    """However many scratch arrays they left."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 12), np.float32), rng.integers(0, 5, 32)
    trainer = fg.Trainer(chain())
    trainer.step(x, y)
    count = len(calls_of(lambda: trainer.step(x, y)))
    pools = scratch.serial_scratch, scratch.threaded_scratch
    taken = [(pool, pool.take(x.dtype, 1000)) for pool in pools for _ in range(16)]
    for pool, array in taken:
        pool.give(array)
    assert len(calls_of(lambda: trainer.step(x, y))) == count
