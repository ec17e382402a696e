"""PyTorch loops with fastgrad in them, beside the same loops as they were."""

from operator import attrgetter

import pytest

from bench.compare import clock
from bench.workloads import TORCH


@pytest.mark.benchmark(timer=clock, group="torch")
@pytest.mark.parametrize("loop", TORCH, ids=attrgetter("name"))
def test_torch(loop, compare):
    compare(loop)
