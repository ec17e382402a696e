"""Threads: how many, on which layer, and when it is safe to use them.

TBB is the layer of choice: it survives a fork and concurrent calls, and does not stall beside a busy process. PyPI's `tbb` is not
found by numba alone, so it is loaded by its path before numba looks for it. Where NUMBA_THREADING_LAYER or a missing TBB leaves
`omp` or `workqueue`, calls take turns, and a forked child stays on one thread: both layers kill the process otherwise.

Numba shuts TBB down before a fork and starts it again after it, if the thread that forks is the one that started it. So a fork waits
for the parallel calls and the compilation under way, and calls that come meanwhile stay on their own thread, as do all calls in a
child that another thread has forked.

The launcher is the library's only parallel function. It takes the address of a kernel and calls it once a part.
"""

import ctypes
import os
import threading
import time
from importlib import metadata

import numba
import numpy as np
from numba import prange, types
from numba.core.compiler_lock import global_compiler_lock

from .jit import c_function, compiled, entry
from .simd import address, call

# below this many floating-point operations the caller's thread is done before a second one has woken
SMALL = 2_000_000

_turn = threading.Lock()
_threads = numba.config.NUMBA_NUM_THREADS
_launchers: dict[bool, int] = {}
# an item for every call under way on TBB's threads, and for every fork: appending and popping are atomic
_calls: list[None] = []
_forks: list[None] = []
# the thread that started TBB, if it was here
_starter: int | None = None
_forked = False


def get_num_threads() -> int:
    """Threads that a large call uses."""
    return _threads


def set_num_threads(n: int) -> None:
    """Use n threads for large calls, in this process; numba's and other libraries' own settings stay as they are."""
    global _threads
    _threads = n


def layer() -> str | None:
    """The threading layer in use, None before the first parallel call."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


@compiled
def share(part, parts, size, grain):
    """lo, hi: the part's range of `size` things, cut at multiples of `grain`."""
    grains = (size + grain - 1) // grain
    return min(size, part * grains // parts * grain), min(size, (part + 1) * grains // parts * grain)


def _serial(function, parts, job):
    for part in range(parts):
        call(function, part, parts, job)


def _parallel(function, parts, job):
    for part in prange(parts):
        call(function, part, parts, job)


def _load_tbb():
    """Make numba find PyPI's tbb; without it numba turns to its other layers."""
    try:
        for file in metadata.files("tbb") or []:
            if file.name in ("libtbb.so.12", "tbb12.dll"):
                ctypes.CDLL(str(file.locate().resolve()), mode=ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, OSError):
        pass


def _launcher(parallel: bool) -> int:
    """Address of a launcher. Threads start when the parallel one is first asked for; where they cannot, the serial one serves."""
    global _starter
    found = _launchers.get(parallel)
    if found is None:
        try:
            if parallel:
                _starter = threading.get_ident() if layer() is None else None
                _load_tbb()
            found = c_function(_parallel if parallel else _serial, (types.int64,) * 3, parallel=parallel).address
        except ValueError:  # numba: no threading layer could be loaded
            found = _launcher(False)
        _launchers[parallel] = found
    return found


def start():
    """Load the launchers and start the threads, which the first large call would do."""
    _launcher(False)
    _launcher(True)


def _before_fork():
    _forks.append(None)
    while _calls:
        time.sleep(1e-4)
    # a child could never compile if another thread were at it
    global_compiler_lock.acquire()


def _after_in_parent():
    global_compiler_lock.release()
    _forks.pop()


def _after_in_child():
    global _turn, _forked
    global_compiler_lock.release()
    _turn = threading.Lock()
    _calls.clear()
    _forks.clear()
    _forked = layer() is not None and not (layer() == "tbb" and _starter == threading.get_ident())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def run(operations, driver, *arguments):
    """driver(launcher, parts, *arguments), on as many threads as so many floating-point operations are worth."""
    if operations < SMALL or _threads == 1 or _forked:
        return driver(_launchers.get(False) or _launcher(False), 1, *arguments)
    launcher = _launcher(True)
    if layer() == "tbb":
        _calls.append(None)
        try:
            if not _forks:
                return driver(launcher, _threads, *arguments)
        finally:
            _calls.pop()
    elif _turn.acquire(blocking=False):
        try:
            return driver(launcher, _threads, *arguments)
        finally:
            _turn.release()
    return driver(_launcher(False), 1, *arguments)


@entry
def _drive(launcher, parts, function, job):
    call(launcher, function, parts, job)


def launch(kernel, dtype, job, operations):
    """Run one kernel over its parts. job: an array of one record."""
    run(operations, _drive, kernel.address(dtype), job.view(np.int64))


class Scratch(threading.local):
    """Room that each Python thread has for itself, uninitialised and kept for its next call."""

    def __call__(self, dtype, size):
        """At least so many values, and their address."""
        found = self.__dict__.get(dtype.char)
        if found is None or found[0].size < size:
            room = np.empty(size, dtype)
            found = self.__dict__[dtype.char] = room, address_of(room)
        return found


@entry
def _address(array):
    return address(array)


def address_of(array) -> int:
    """Address of an array's first value. Its empty slice has one layout in numba's eyes, and costs a fifth of `.ctypes.data`."""
    return _address(array[:0])
