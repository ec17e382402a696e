"""Benchmarks of convolutions: y, dx and dw together, and each of the three alone."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.conv import CONVS


@pytest.mark.benchmark(timer=clock, group="conv")
@pytest.mark.parametrize("conv", CONVS, ids=attrgetter("name"))
def test_conv(conv, compare):
    compare(conv)
