"""Benchmarks of batch normalisation with residual and relu, forward and backward."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.batch_norm import NORMS


@pytest.mark.benchmark(timer=clock, group="batch norm")
@pytest.mark.parametrize("norm", NORMS, ids=attrgetter("name"))
def test_batch_norm(norm, compare):
    compare(norm)
