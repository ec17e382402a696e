"""Benchmarks of layer normalisation with residual and relu, forward and backward."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.layer_norm import LAYER_NORMS


@pytest.mark.benchmark(timer=clock, group="layer norm")
@pytest.mark.parametrize("norm", LAYER_NORMS, ids=attrgetter("name"))
def test_layer_norm(norm, compare):
    compare(norm)
