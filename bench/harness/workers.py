"""Worker processes, one for each contender: the thread pools of two libraries in one process slow each other up to three times.

A worker reads requests from its standard input, a line of JSON each, and blocks on it between its turns.
"""

import contextlib
import importlib
import json
import operator
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from bench import peers
from bench.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
PROCESS = Path("/proc/self")  # of Linux
PATIENCE = 900  # seconds for one answer: on a busy machine, kernels or torch.compile may compile for minutes


def available_threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def highest_resident():
    """The peak of this process's resident memory, in bytes."""
    lines = PROCESS.joinpath("status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class WorkerError(Exception):
    """The reason why a contender cannot run a request."""


def environment(contender, threads, device="cpu"):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    env = os.environ | dict.fromkeys(names, str(threads))
    env |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "tensorflow"}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    if contender in ("NumPy", "scikit-learn"):
        # either may hold OpenBLAS to an older processor's kernels
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            env.pop(name, None)
    return env


class Worker:
    """The parent's end: `ask` sends a request and waits for its answer."""

    def __init__(self, contender, threads, device="cpu"):
        self.contender = contender
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.harness.workers", contender, str(threads), device],
            cwd=ROOT, env=environment(contender, threads, device), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, request, *args, **options):
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            print(json.dumps([request, args, options]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(f"its process ended (exit code {self.process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Workers:
    """The workers of a session, each started at its first use: (contender, threads, device) -> Worker."""

    def __init__(self):
        self.workers = {}

    def get(self, contender, threads=None, device="cpu"):
        key = contender, threads or available_threads(), device
        if key in self.workers and self.workers[key].process.poll() is not None:
            self.workers.pop(key).close()
        if key not in self.workers:
            self.workers[key] = Worker(*key)
        return self.workers[key]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()


class Contender:
    """The child's end: a method for each request."""

    def __init__(self, name, threads, device="cpu"):
        self.name = name
        self.threads = threads
        self.device = device
        self.peer = None
        self.runner = None
        self.limits = None
        # the workers of a workload import their libraries at the same time; the first `load` reports a failure
        with contextlib.suppress(Exception):
            peers.load(name, device)

    def load(self, workload, **changes):
        """Build a workload; its answer, to be compared with the reference."""
        workload = replace(WORKLOADS[workload], **changes)
        self._set_up()
        self._build(workload)
        return self.runner.answer(workload.checked_calls).tolist()

    def _set_up(self):
        if self.peer is None:
            peer = peers.load(self.name, self.device)
            peer.setup(self.threads)
            self.peer = peer

    def _build(self, workload):
        self.runner = None  # the last workload's arrays go before this one's come
        runner = getattr(self.peer, workload.runner, None)
        if runner is None:
            raise peers.UnsupportedWorkload(f"has no {workload.kind}")
        self.runner = runner(workload)

    def peak(self, workload, calls, **changes):
        """Bytes by which building a workload and its first calls raise the peak memory of the process, which must be new."""
        self._set_up()
        PROCESS.joinpath("clear_refs").write_text("5")  # the highest so far becomes what is resident now
        before = highest_resident()
        self._build(replace(WORKLOADS[workload], **changes))
        self.runner.reset()
        self.runner.run(calls)
        return highest_resident() - before

    def calibrate(self, seconds):
        """Warm up; the number of calls that take about `seconds`."""
        count = 1
        while (measured := self.time(count)) < seconds / 2:
            count = max(count + 1, int(count * min(10, 0.75 * seconds / measured)))
        return max(1, round(count * seconds / measured))

    def time(self, count):
        """Seconds of `count` calls in a row, near the first state: training for long ends in denormal numbers."""
        self.runner.reset()
        self.runner.run(1)  # the optimiser makes its state
        return self.runner.seconds(count)

    def latencies(self, seconds):
        """The median and the 99th percentile of the calls that `seconds` hold, timed one by one."""
        self.runner.reset()
        self.runner.run(1)
        marks = [time.perf_counter()]
        while marks[-1] < marks[0] + seconds:
            self.runner.run(1)
            marks.append(time.perf_counter())
        percentiles = statistics.quantiles(map(operator.sub, marks[1:], marks), n=100)
        return {"median": percentiles[49], "99th percentile": percentiles[98]}

    def limit(self, name):
        if self.limits is None:
            module = importlib.import_module(f"bench.harness.limits_{self.device}")
            self.limits = module.Limits(self.threads)
        return getattr(self.limits, name)()


def main(name, threads, device):
    # libraries print to standard output too: what they say goes the way of standard error
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = Contender(name, threads, device)
    for line in sys.stdin:
        request, args, options = json.loads(line)
        try:
            answer = {"result": getattr(contender, request)(*args, **options)}
        except ImportError as error:
            answer = {"error": f"not installed ({error})"}
        except peers.UnsupportedWorkload as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
