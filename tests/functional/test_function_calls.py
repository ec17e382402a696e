"""How many Python functions a call goes through: of small calls they are the time."""

import pytest
from python_calls import calls_of

import fastgrad as fg


@pytest.mark.parametrize(("n", "steps", "c", "hidden"), [(4, 5, 3, 8), (16, 50, 32, 64)], ids=["small", "large"])
def test_an_lstm_forward_goes_through_70_python_functions_at_most(cpu, dtype, n, steps, c, hidden, rng):
    """The large one is run by threads, and takes its memory from the allocator."""
    shapes = (n, steps, c), (c, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    assert len(calls_of(lambda: fg.lstm(*arrays))) <= 70
