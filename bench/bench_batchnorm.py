"""Batch normalisation with what follows it, forward and backward."""

from operator import attrgetter

import pytest

from bench.compare import clock
from bench.images import NORMS


@pytest.mark.benchmark(timer=clock, group="batch norm")
@pytest.mark.parametrize("norm", NORMS, ids=attrgetter("name"))
def test_batch_norm(norm, compare):
    compare(norm)
