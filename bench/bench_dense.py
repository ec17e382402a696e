"""Benchmark of the forward of a dense chain on a single row."""

import pytest

from bench.harness.comparison import clock
from bench.workloads.dense import FORWARD


@pytest.mark.benchmark(timer=clock, group="forward")
def test_forward(compare):
    compare(FORWARD)
