"""The number of threads, and the thread pool that runs kernels on them.

A launch publishes a kernel, its record and the number of parts. Then the caller and all workers that are awake take part after part until
none is left. A worker that comes late finds no part left, and delays nobody.

Workers wait in a loop, since waking a thread takes some 50 us, longer than most launches. A worker that has seen no launch for a while goes
to sleep; the next large call wakes it.

The pool runs one launch at a time. A call from another Python thread meanwhile runs on that thread alone. Machine code acquires and
releases the pool, since a signal handler may raise between any two steps of Python. A forked child has no workers and starts its own.

Beside a library that uses OpenMP, such as PyTorch, large calls run on that library's threads: see use_openmp.

Why not Numba's threads: of its threading layers only TBB survives forks and concurrent calls, and its workers sleep after every launch.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from functools import lru_cache

import numba
import numpy as np
from numba import types

from . import atomics
from .compile import c_function, compiler_lock, device_function, driver, uninterrupted
from .intrinsics import call, run_kernel
from .scratch import serial_scratch, threaded_scratch

# below so many floating-point operations the caller's thread is done before others have begun
SMALL = 1_000_000
# a thread that waits lets others have its core after so many pauses, a microsecond or two; a worker sleeps after so many times that
PAUSES, PATIENCE = 100, 800
# places in the pool's memory, each on a cache line of its own: NEXT holds the launch's number, its parts and the next part in one value,
# so that no part is taken of another launch than was looked at; DONE counts finished parts; RECORD follows FUNCTION;
# BUSY is 1 during a launch
NEXT, DONE, FUNCTION, RECORD, OPENMP, MEMBER, BUSY, POOL_BYTES = 0, 64, 128, 136, 144, 152, 192, 256
# more than any machine has, and fewer than the 16 bits hold in which a launch counts its parts
MOST_THREADS = 4096
_threads = min(numba.config.NUMBA_NUM_THREADS, MOST_THREADS)
# GOMP_parallel, and who says how many threads it uses
_openmp: tuple[int, Callable[[], int]] | None = None
_MAIN = threading.main_thread().ident
# of each worker a flag that it sleeps, and the lock it sleeps on
_workers: list[tuple[np.ndarray, threading.Lock]] = []
_starting = threading.Lock()
# BUSY of the pool, where there is one
_busy: np.ndarray | None = None


def get_num_threads() -> int:
    """Threads that a large call uses."""
    return _threads


def set_num_threads(n: int) -> None:
    """Use n threads, at most MOST_THREADS, for large calls, in this process; other libraries' settings stay as they are."""
    global _threads
    _threads = n


@device_function
def thread_range(part, parts, size, grain):
    """lo, hi: the part's range of `size` things, cut at multiples of `grain`."""
    grains = (size + grain - 1) // grain
    return min(size, part * grains // parts * grain), min(size, (part + 1) * grains // parts * grain)


@device_function
def take_parts(pool):
    """Take and run parts of the launch until none is left."""
    while True:
        seen = atomics.load(pool + NEXT)
        part, parts = seen & 0xFFFF, (seen >> 16) & 0xFFFF
        if part >= parts:
            return
        function, record = atomics.load(pool + FUNCTION), atomics.load(pool + RECORD)
        if atomics.replace(pool + NEXT, seen, seen + 1):
            call(function, part, parts, record)
            atomics.add(pool + DONE, 1)


@device_function
def launch_parts(pool, function, parts, record):
    atomics.store(pool + FUNCTION, function)
    atomics.store(pool + RECORD, record)
    atomics.store(pool + DONE, 0)
    number = (atomics.load(pool + NEXT) >> 32) + 1
    atomics.store(pool + NEXT, ((number & 0x7FFFFFFF) << 32) + (parts << 16))
    take_parts(pool)
    pauses = 0
    while atomics.load(pool + DONE) < parts:
        pauses = wait(pauses)


@device_function
def worker_loop(pool, asleep):
    """Run parts of launches as a worker, until no launch has come for a while."""
    atomics.store(asleep, 0)
    pauses, last = 0, atomics.load(pool + NEXT)
    while pauses < PATIENCE * PAUSES:
        take_parts(pool)
        now = atomics.load(pool + NEXT)
        pauses = wait(pauses if now == last else 0)
        last = now
    atomics.store(asleep, 1)


@device_function
def wait(pauses):
    """Pause once more after so many pauses."""
    atomics.pause()
    if pauses % PAUSES == PAUSES - 1:
        atomics.give_way()
    return pauses + 1


def _pool(function, parts, record):
    """The launcher. It owns the pool's memory, and so it has two more tasks, with function 0: without parts it is a worker's loop, and
    `record` is the address of the worker's flag; with parts it clears the pool and stores the pool's address at `record`.
    """
    pool = atomics.memory(POOL_BYTES)
    if not function and parts:
        atomics.store(pool + NEXT, 0)
        atomics.store(pool + BUSY, 0)
        atomics.store(record, pool)
    elif not function:
        worker_loop(pool, record)
    elif atomics.replace(pool + BUSY, 0, 1):
        launch_parts(pool, function, parts, record)
        atomics.store(pool + BUSY, 0)
    else:
        for part in range(parts):
            call(function, part, parts, record)


def _openmp_launcher(function, parts, record):
    """The launcher onto OpenMP's threads: see use_openmp. With function 0 it stores two addresses: parts is that of
    GOMP_parallel, record that of _openmp_thread.
    """
    pool = atomics.memory(POOL_BYTES)
    if not function:
        atomics.store(pool + OPENMP, parts)
        atomics.store(pool + MEMBER, record)
        return
    atomics.store(pool + FUNCTION, function)
    atomics.store(pool + RECORD, record)
    atomics.store(pool + NEXT, parts << 16)
    call(atomics.load(pool + OPENMP), atomics.load(pool + MEMBER), pool, parts)


def _openmp_thread(pool):
    """What each of OpenMP's threads does."""
    take_parts(pool)


def _serial(function, parts, record):
    for part in range(parts):
        call(function, part, parts, record)


@lru_cache
def _launcher(function, arguments=3):
    """The compiled launcher, kept; its address is `.address`."""
    return c_function(function, (types.int64,) * arguments)


@lru_cache
def _launcher_address(function):
    return _launcher(function).address


def _call(launcher, function, parts, record):
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(_launcher(launcher).address)(function, parts, record)


def use_openmp(parallel: int, count: Callable[[], int]) -> None:
    """Have large calls of the main thread run on the threads of an OpenMP library that it calls too.

    parallel: address of the library's GOMP_parallel; count: returns how many threads it uses; launches go to
    them while that is our number too. They wait in a loop for milliseconds after each call of the library, and our workers would have to
    share cores with them.
    """
    global _openmp
    _openmp = parallel, count


@lru_cache
def _openmp_address(parallel):
    """Address of the launcher onto the library's threads."""
    _call(_openmp_launcher, 0, parallel, _launcher(_openmp_thread, 1).address)
    return _launcher(_openmp_launcher).address


def _worker(asleep, sleep):
    while True:
        _call(_pool, 0, 0, asleep.ctypes.data)
        sleep.acquire()


def _clear_pool():
    """Reset the pool to its state before the first launch."""
    global _busy
    pool = np.zeros(1, np.int64)
    _call(_pool, 0, 1, pool.ctypes.data)
    _busy = np.ctypeslib.as_array((ctypes.c_int64 * 1).from_address(int(pool[0]) + BUSY))


def _start_workers(n):
    """Have n workers."""
    with _starting:
        if _busy is None:
            _clear_pool()
        for _ in range(len(_workers), n):
            asleep, sleep = np.zeros(1, np.int64), threading.Lock()
            sleep.acquire()
            # where no thread can be had, the caller's does the work
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=_worker, args=(asleep, sleep), name="fastgrad", daemon=True).start()
                _workers.append((asleep, sleep))


def _wake(n):
    """Have n workers awake soon."""
    if len(_workers) < n:
        uninterrupted(_start_workers, n)
    for asleep, sleep in _workers:
        # an unlocked one is waking up already. Of two threads that wake it, one may be too late
        if asleep[0] and sleep.locked():
            with contextlib.suppress(RuntimeError):
                sleep.release()


def start():
    """Load the launchers, and start workers, which the first large call would do."""
    _launcher(_serial)
    uninterrupted(_start_workers, _threads - 1)


def _after_in_child():
    global _starting, _openmp
    compiler_lock._at_fork_reinit()
    # OpenMP's threads are the parent's
    _starting, _openmp = threading.Lock(), None
    _workers.clear()
    if _busy is not None:
        # a copy of the parent's, perhaps in the middle of a launch
        _clear_pool()


if hasattr(os, "register_at_fork"):
    # a child could never compile if another thread were at it
    os.register_at_fork(
        before=compiler_lock.acquire, after_in_parent=compiler_lock.release, after_in_child=_after_in_child
    )


def run(operations, driver, *arguments, scratch=None):
    """driver(launcher, parts, *arguments), on as many threads as so many floating-point operations are worth.

    scratch: (dtype, shared, each), or None. The driver's last argument is then an uninitialised array of at least shared + each * parts
    values, which is the driver's own until it returns.
    """
    # one reading a call: another Python thread may set another number at any time
    threads = _threads
    # where another thread takes the pool between here and a launch, the launcher does all parts
    if operations < SMALL or threads == 1 or (_busy is not None and _busy[0]):
        launcher, parts, pool = _launcher_address(_serial), 1, serial_scratch
    elif _openmp and _openmp[1]() == threads and threading.get_ident() == _MAIN:
        launcher, parts, pool = _openmp_address(_openmp[0]), threads, threaded_scratch
    else:
        _wake(threads - 1)
        launcher, parts, pool = _launcher_address(_pool), threads, threaded_scratch
    if scratch is None:
        return driver(launcher, parts, *arguments)
    dtype, shared, each = scratch
    array = pool.take(dtype, shared + each * parts)
    try:
        return driver(launcher, parts, *arguments, array)
    finally:
        pool.give(array)


@driver
def _launch(launcher, parts, function, record):
    run_kernel(launcher, function, parts, record, ())


def launch(kernel, dtype, record, operations):
    """Run one kernel over its parts. record: an array of one record."""
    run(operations, _launch, kernel.address(dtype), record.view(np.int64))
