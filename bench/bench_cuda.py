"""Benchmarks on a GPU: training steps, an LSTM, batch norm and updates, against PyTorch and torch.compile."""

from operator import attrgetter

import pytest

from bench.harness.comparison import clock
from bench.workloads.gpu import CUDA
from fastgrad.core.backend import missing

pytestmark = [pytest.mark.device, pytest.mark.skipif(bool(missing("cuda")), reason=f"needs a GPU: {missing('cuda')}")]


@pytest.mark.benchmark(timer=clock, group="cuda")
@pytest.mark.parametrize("work", CUDA, ids=attrgetter("name"))
def test_cuda(work, compare):
    compare(work)
