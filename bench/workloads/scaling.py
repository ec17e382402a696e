"""Workloads of `python -m bench.scaling`: nets of many widths, LSTMs of many lengths, batches of many sizes; and of `bench.threads`."""

from dataclasses import replace

from bench.workloads.dense import STEPS, Net
from bench.workloads.lstm import LSTMS, Lstm
from bench.workloads.residual import BLOCKS


def powers(first, last):
    """first, 2 first, 4 first, ..., last."""
    return [1 << exponent for exponent in range(first.bit_length() - 1, last.bit_length())]


def net(name, width, batch):
    """A training step on scikit-learn's digits; the small rate keeps the widest net's loss near its first one."""
    return Net(
        name,
        f"step 64-{width}-{width}-{width}-10 relu, N={batch}",
        "digits",
        batch,
        sizes=(64, *[width] * 3, 10),
        lr=1e-4,
    )


WIDTHS = {n: net(f"scaling-width-{n}", n, 32) for n in powers(8, 4096)}
LENGTHS = {n: Lstm(f"scaling-length-{n}", 32, n, 64, 128) for n in powers(1, 1024)}
BATCH_SIZES = {n: net(f"scaling-batch-{n}", 128, n) for n in powers(1, 1024)}
# {threads: workload} of each
THREADS = [
    {n: replace(workload, name=f"threads-{workload.name}-{n}", threads=n) for n in powers(1, 64)}
    for workload in (*STEPS, *LSTMS, *BLOCKS) if workload.name in ("step-784", "step-50x256", "lstm-32", "block-conv")
]  # fmt: skip
SCALING = [
    *WIDTHS.values(),
    *LENGTHS.values(),
    *BATCH_SIZES.values(),
    *(w for sizes in THREADS for w in sizes.values()),
]
