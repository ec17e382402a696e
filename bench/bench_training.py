"""Benchmarks of training steps of dense chains, from forward to optimiser, and of epochs of scikit-learn's MLPClassifier."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.dense import FITS, STEPS


@pytest.mark.benchmark(timer=clock, group="step")
@pytest.mark.parametrize("net", STEPS, ids=attrgetter("name"))
def test_step(net, compare):
    compare(net)


@pytest.mark.benchmark(timer=clock, group="fit")
@pytest.mark.parametrize("fit", FITS, ids=attrgetter("name"))
def test_fit(fit, compare):
    compare(fit)
