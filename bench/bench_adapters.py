"""Benchmarks of the adapters: PyTorch training loops with and without fastgrad, and single calls from PyTorch and JAX."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.adapters import ADAPTERS


@pytest.mark.benchmark(timer=clock, group="torch")
@pytest.mark.parametrize("loop", ADAPTERS, ids=attrgetter("name"))
def test_torch(loop, compare):
    compare(loop)
