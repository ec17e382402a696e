"""Benchmarks of LSTMs and GRUs: forward and all gradients, also with unequal lengths; one step at a time; the forward alone."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.lstm import LSTMS


@pytest.mark.benchmark(timer=clock, group="lstm")
@pytest.mark.parametrize("lstm", LSTMS, ids=attrgetter("name"))
def test_lstm(lstm, compare):
    compare(lstm)
