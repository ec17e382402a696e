"""The forward of a dense chain for a single row."""

import pytest

from bench.compare import clock
from bench.nets import FORWARD


@pytest.mark.benchmark(timer=clock, group="forward")
def test_forward(compare):
    compare(FORWARD)
