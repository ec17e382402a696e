"""Training steps: forward, loss, backward, clipping where said, optimiser."""

from operator import attrgetter

import pytest

from bench.compare import clock
from bench.nets import STEPS


@pytest.mark.benchmark(timer=clock, group="step")
@pytest.mark.parametrize("net", STEPS, ids=attrgetter("name"))
def test_step(net, compare):
    compare(net)
