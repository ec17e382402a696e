"""Initial weights."""

from operator import attrgetter

import pytest

from bench.compare import clock
from bench.weights import WEIGHTS


@pytest.mark.benchmark(timer=clock, group="init")
@pytest.mark.parametrize("weights", WEIGHTS, ids=attrgetter("name"))
def test_he_normal(weights, compare):
    compare(weights)
