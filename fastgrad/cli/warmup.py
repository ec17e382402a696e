"""The command `python -m fastgrad warmup`: compile the kernels of the "cpu" backend into the cache ahead of time, in several processes."""

import argparse
import os
import threading
import time
from typing import Any

from fastgrad.core.backend import load

# the groups of kernels/cpu/warmup.py, which only the backend's own libraries import
GROUPS = "chain", "lstm", "lstm_variants", "gru", "conv", "batch_norm", "layer_norm", "health", "pruning", "sparse"
DTYPES = {"float32": "f", "float64": "d"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="OP", help=f"of these alone: {', '.join(GROUPS)}"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of this dtype alone, not of both")


def run(options: argparse.Namespace) -> None:
    """Compile kernels and drivers, with a progress bar; raises BackendError where the backend cannot run."""
    from tqdm import tqdm

    load("cpu")
    from fastgrad.kernels.cpu import warmup
    from fastgrad.kernels.cpu.engine import workers

    # the bar tells more than the line of a compilation
    os.environ["FASTGRAD_QUIET"] = "1"
    start, lock = time.perf_counter(), threading.Lock()
    jobs = warmup.warmup_jobs(options.only, DTYPES[options.dtype] if options.dtype else "fd")
    with tqdm(total=len(jobs), unit="kernel") as bar:

        def tell(job: Any) -> None:
            with lock:
                bar.set_description(job.label, refresh=False)
                bar.update()

        workers.compile_all(jobs, tell)
    print(f"{len(jobs)} kernels and drivers in {time.perf_counter() - start:.0f} s")
