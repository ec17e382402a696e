"""Benchmark of initial weights: he_normal of a large matrix."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.init import WEIGHTS


@pytest.mark.benchmark(timer=clock, group="init")
@pytest.mark.parametrize("weights", WEIGHTS, ids=attrgetter("name"))
def test_he_normal(weights, compare):
    compare(weights)
