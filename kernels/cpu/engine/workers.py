"""Processes that compile into the cache beside this one, which loads the results.

Each is a new Python (no fork, no multiprocessing, which would run the user's script again), with this one's module path. It says which
cache, versions and settings it has; where they are not this process' own it ends. Then it takes jobs from its standard input, one at a
time, and answers when each is done. This process works through the same jobs meanwhile. If a worker dies or does not answer, its job is
compiled here; what no worker has put into the cache is compiled where it is needed, as without workers. When this process ends, by
Ctrl-C too, so do its workers.

No workers: without a folder that can be written; without a Python to start (embedded, frozen); in a worker; with one core; or with
FASTGRAD_COMPILE_PROCESSES=1. That variable is how many processes compile at once, this one included.
"""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections import deque

from numba.core.registry import cpu_target

from . import cache

# more do not pay: the largest kernel alone takes as long as eight processes take for all
MOST_PROCESSES = 8
# a worker needs this long before its first job, in seconds; less work is done here sooner
START_SECONDS = 1.5
# how long a worker's last job may take after this process has none left
LAST_SECONDS = 120
# what a worker's lines begin with, should another library write to its output
MARK = b"fastgrad:"
START = "import sys, json; sys.path[:] = json.loads(sys.stdin.readline()); from {}.workers import main; main()"

# set in workers, and where the process is about to end
_is_worker = _is_ending = False


def stop():
    """Begin no other job: the process is about to end."""
    global _is_ending
    _is_ending = True


def processes() -> int:
    """How many processes may compile at once."""
    asked = os.environ.get("FASTGRAD_COMPILE_PROCESSES", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = int(asked) if asked.isdecimal() else cores
    usable = not _is_worker and _has_python() and any(os.access(folder, os.W_OK) for folder in cache.folders())
    return min(count, MOST_PROCESSES) if usable else 1


def _has_python() -> bool:
    """Whether sys.executable is a Python, and not a program that holds one."""
    name = os.path.basename(sys.executable or "").lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def _identity() -> str:
    """A hash of all that decides where compiled code lies and what it is."""
    folders = [str(folder) for folder in cache.folders()]
    what = folders, cache._version(), cpu_target.target_context.codegen().magic_tuple(), cache.settings()
    return hashlib.sha256(ascii(what).encode()).hexdigest()


class Worker:
    """A process that compiles, and the thread that gives it jobs.

    Args:
        jobs: a deque that all workers and this process take from.
        done: called with each job that is done.
    """

    def __init__(self, jobs, done):
        self.jobs, self.done, self.current = jobs, done, None
        # a new session: Ctrl-C in a terminal is for this process, which ends its workers itself
        options = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {"start_new_session": True}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.format(__package__)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options,
        )  # fmt: skip
        self.thread = threading.Thread(target=self._feed, name="fastgrad compilation", daemon=True)
        self.thread.start()

    def _feed(self):
        """Give the worker one job after another, until none is left or it does not answer."""
        with contextlib.suppress(OSError, ValueError):
            self._send(json.dumps(sys.path).encode() + b"\n")
            if self._answer() != _identity().encode():
                self.process.kill()
                return
            while True:
                try:
                    self.current = self.jobs.popleft()
                except IndexError:
                    break
                self._send(pickle.dumps(self.current))
                if self._answer() is None:
                    return
                self.done(self.current)
                self.current = None
            self.process.stdin.close()

    def _send(self, content):
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def _answer(self):
        """The worker's next line; None where it has ended."""
        for answer in self.process.stdout:
            if answer.startswith(MARK):
                return answer[len(MARK) :].strip()
        return None

    def end(self):
        """End the process; a job that it was given and has not done comes back to the others."""
        self.process.kill()
        self.thread.join()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        if self.current is not None:
            self.jobs.append(self.current)


def compile_all(jobs, done=lambda job: None, wait=lambda: None):
    """Compile jobs here and in workers, in this order. A job has seconds, about, and compile().

    done: called with each job that is done, from any thread; wait: called every now and then, and after each job.
    """
    queue = deque(jobs)
    pays = sum(job.seconds for job in jobs) > 2 * START_SECONDS
    count, workers = min(processes(), len(queue)) if pays else 1, []
    try:
        # where no process or thread can be had, all is done here
        with contextlib.suppress(OSError, RuntimeError):
            for _ in range(count - 1):
                workers.append(Worker(queue, done))
        while True:
            while queue and not _is_ending:
                # a worker may take the last one meanwhile
                with contextlib.suppress(IndexError):
                    job = queue.popleft()
                    job.compile()
                    done(job)
                wait()
            _wait_for(workers, wait)
            while workers:
                workers.pop().end()
            if not queue or _is_ending:
                return
    finally:
        for worker in workers:
            worker.end()


def longest_first(jobs):
    """In the order in which processes end at about the same time."""
    return sorted(jobs, key=lambda job: -job.seconds)


def _wait_for(workers, wait):
    """Wait for the workers' last jobs."""
    for _ in range(10 * LAST_SECONDS):
        alive = [worker for worker in workers if worker.thread.is_alive()]
        if not alive or _is_ending:
            return
        alive[0].thread.join(0.1)
        wait()


def main():
    """What a worker does: take jobs from its standard input until it is closed."""
    global _is_worker
    _is_worker = True
    os.environ["FASTGRAD_QUIET"] = "1"
    # answers go to the output as it was; what else is written in this process does not
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    answers.write(MARK + _identity().encode() + b"\n")
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        # what fails here is compiled, and fails, where it is needed
        with contextlib.suppress(Exception):
            job.compile()
        answers.write(MARK + b"done\n")


def code_size(function, seen=None) -> int:
    """Bytes of Python's code of a function and of all compiled functions that it calls, to guess how long it takes to compile."""
    seen = set() if seen is None else seen
    seen.add(function)
    size = len(function.__code__.co_code)
    names = set(function.__code__.co_names)
    values = [function.__globals__.get(name) for name in names]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    for value in values:
        inner = getattr(value, "py_func", None)
        if inner is not None and inner not in seen:
            size += code_size(inner, seen)
    return size
