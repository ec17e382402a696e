"""PyTorch loops with fastgrad in them, beside the same loops without; and calls from PyTorch and JAX."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.adapters import ADAPTERS


@pytest.mark.benchmark(timer=clock, group="torch")
@pytest.mark.parametrize("loop", ADAPTERS, ids=attrgetter("name"))
def test_torch(loop, compare):
    compare(loop)
