"""Benchmarks of clipping lists of gradients by their norm, alone and with an Adam update."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.clip import CLIPS


@pytest.mark.benchmark(timer=clock, group="clip")
@pytest.mark.parametrize("clip", CLIPS, ids=attrgetter("name"))
def test_clip(clip, compare):
    compare(clip)
