"""The pool of threads, calls from many Python threads, forked children, and other libraries' thread settings.

Scenarios run in a process of their own, so that a killed or hanging process is a failed test.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from arrays import bits, unwritten
from chains import clone, random_chain, random_net, run, step
from processes import environment


def large_work():
    """The bits of a product, a chain and a step, each large enough for threads."""
    import fastgrad.kernels.cpu as cpu
    from fastgrad.kernels.cpu import gemm

    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 301, 301))
    product = unwritten((301, 301), np.float64)
    gemm.matmul(a, b, product)
    chain = random_chain(rng, 257, (385, 129, 65, 10), ["relu", "gelu", "softmax"], np.float32)
    outputs, gradients = run(cpu, chain)
    net = random_net(rng, (257, 129, 10), ["tanh", "softmax"], np.float32, 256, loss="cross_entropy")
    record = step(cpu, net, chain.x[:256, :257].copy(), rng.integers(0, 10, 256))
    return [bits(x) for x in [product, *outputs, *gradients.arrays(), net.params, net.state]], record


def expected_work():
    """large_work() on one thread; the next calls use two."""
    from fastgrad.kernels.cpu.engine import thread_pool

    thread_pool.set_num_threads(1)
    expected = large_work()
    thread_pool.set_num_threads(2)
    return expected


def concurrent_calls():
    """Eight Python threads at once, each with arrays of its own."""
    expected, wrong = expected_work(), []

    def repeat():
        for _ in range(10):
            if large_work() != expected:
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=repeat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def check_in_child(expected, kernel=None):
    """Whether a forked child computes the expected, and its threads meet in the kernel."""
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = large_work() == expected and large_work() == expected and (kernel is None or meet(kernel))
        finally:
            os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def forked_child():
    """A child after the parent has used threads, another after that, and the parent again."""
    expected = expected_work()
    assert large_work() == expected
    assert check_in_child(expected)
    assert large_work() == expected
    assert check_in_child(expected)


def forked_child_before_threads():
    """A child of a parent that has not used threads yet."""
    expected = expected_work()
    assert check_in_child(expected)
    assert large_work() == expected


def forked_child_of_another_thread():
    """A child of a thread that did not start the threads."""
    expected = expected_work()
    starter = threading.Thread(target=large_work)
    starter.start()
    starter.join()
    assert check_in_child(expected)
    assert large_work() == expected


def forked_child_of_a_busy_parent():
    """A child that starts while other threads are in the middle of calls."""
    expected, wrong, stop = expected_work(), [], threading.Event()
    kernel = meeting_kernel()
    assert meet(kernel)

    def repeat():
        while not stop.is_set():
            if large_work() != expected:
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=repeat) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            time.sleep(0.02)
            assert check_in_child(expected, kernel)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def meeting_kernel():
    """A new kernel, compiled in each process, whose parts wait for each other for some seconds; each that meets all others says so."""
    from fastgrad.kernels.cpu.engine import atomics
    from fastgrad.kernels.cpu.engine.compile import kernel
    from fastgrad.kernels.cpu.engine.intrinsics import carray
    from fastgrad.kernels.cpu.engine.thread_pool import wait

    @kernel(np.dtype([("begun", "i8"), ("met", "i8")]))
    def meet_part(part, parts, job, like):
        counts = carray(job, 1)[0]
        atomics.add(counts.begun, 1)
        pauses = 0
        while atomics.load(counts.begun) < parts and pauses < 1 << 26:
            pauses = wait(pauses)
        atomics.add(counts.met, atomics.load(counts.begun) // parts)

    return meet_part


def meet(kernel):
    """Whether two threads take part in a launch: one alone would do a part after the other. A worker may fall asleep before a launch."""
    from fastgrad.kernels.cpu.engine import thread_pool

    for _ in range(5):
        begun, met = np.zeros((2, 1), np.int64)
        job = np.array([(begun.ctypes.data, met.ctypes.data)], kernel.record)
        thread_pool.launch(kernel, np.dtype("f4"), job, 1e9)
        if met[0] == 2:
            return True
    return False


class Interrupt(Exception):
    pass


def interrupt(signum, frame):
    raise Interrupt


def interrupted_calls():
    """Hundreds of signals whose handler raises, wherever they arrive: the pool works on, with no more threads than it had."""
    from fastgrad.kernels.cpu import gemm
    from fastgrad.kernels.cpu.engine import thread_pool

    expected, kernel = expected_work(), meeting_kernel()
    assert meet(kernel)
    a, product = np.ones((128, 128)), np.empty((128, 128))
    signal.signal(signal.SIGALRM, interrupt)
    rng, interrupts = np.random.default_rng(5), 0

    def calls():
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
        # not for ever, since a signal that arrives in a finaliser is lost
        for _ in range(1000):
            gemm.matmul(a, a, product)
            if interrupts % 50 == 0:
                # workers that sleep must wake
                time.sleep(0.005)
        signal.setitimer(signal.ITIMER_REAL, 0)

    while interrupts < 500:
        # a function of its own: Python 3.13 may raise at a loop's jump back as if it stood outside of the try
        try:
            calls()
        except Interrupt:
            interrupts += 1
    assert meet(kernel)
    assert large_work() == expected
    assert len(thread_pool._workers) == 1
    assert threading.active_count() == 2


def interrupted_compilation():
    """Signals whose handler raises while kernels are compiled: it raises at once, and what is compiled works."""
    expected, interrupts = expected_work(), 0
    signal.signal(signal.SIGALRM, interrupt)
    rng = np.random.default_rng(6)
    while interrupts <= 4:
        kernel = meeting_kernel()
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 0.1))
                kernel.address(np.dtype("f4"))
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except Interrupt:
                interrupts += 1
        assert meet(kernel)
    assert large_work() == expected


def calls_in_a_handler():
    """A handler that computes and compiles, over a main thread that computes and compiles."""
    from fastgrad.kernels.cpu import gemm

    expected, handled = expected_work(), []

    def handler(signum, frame):
        kernel = meeting_kernel()
        handled.append(large_work() == expected and kernel.address(np.dtype("f4")) != 0)

    signal.signal(signal.SIGALRM, handler)
    a, product = np.ones((128, 128)), np.empty((128, 128))
    while len(handled) < 4:
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        if len(handled) % 2:
            meeting_kernel().address(np.dtype("f4"))
        else:
            gemm.matmul(a, a, product)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert all(handled)
    assert meet(meeting_kernel())


def forked_child_of_a_compiling_parent():
    """A child that starts while another thread compiles, and compiles and uses the pool itself."""
    expected, stop = expected_work(), threading.Event()

    def compile_on():
        while not stop.is_set():
            meeting_kernel().address(np.dtype("f4"))

    compiling = threading.Thread(target=compile_on)
    compiling.start()
    try:
        for _ in range(3):
            time.sleep(0.05)
            assert check_in_child(expected, meeting_kernel())
    finally:
        stop.set()
        compiling.join()
    assert meet(meeting_kernel())


def is_expected(expected):
    return large_work() == expected


def multiprocessing_fork():
    """A pool of forked workers after the parent has used threads."""
    expected = expected_work()
    assert large_work() == expected
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert all(pool.map(is_expected, [expected] * 6))
    assert large_work() == expected


def every_part_once():
    """Many launches of next to nothing, in which threads meet at every part."""
    from fastgrad.kernels.cpu.engine import atomics, thread_pool
    from fastgrad.kernels.cpu.engine.compile import kernel
    from fastgrad.kernels.cpu.engine.intrinsics import carray

    @kernel(np.dtype([("counts", "i8")]))
    def count_part(part, parts, job, like):
        atomics.add(carray(job, 1)[0].counts + 8 * part, 1)

    for threads in (2, 3, 16):
        thread_pool.set_num_threads(threads)
        counts = np.zeros(threads, np.int64)
        for number in range(1, 5001):
            thread_pool.launch(count_part, np.dtype("f4"), np.array([counts.ctypes.data]), 1e9)
            assert (counts == number).all()


def workers_sleep():
    """A worker that has had nothing to do for a while sleeps, and works when there is something again."""
    from fastgrad.kernels.cpu.engine import thread_pool

    expected = expected_work()
    for _ in range(3):
        assert large_work() == expected
        deadline = time.monotonic() + 60
        while not all(asleep[0] for asleep, _ in thread_pool._workers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(thread_pool._workers) == 1


def borrowed_threads():
    """PyTorch's threads for ours, in turns with it, in every part once, beside other Python threads, and not in a child."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("fastgrad.torch")
    from fastgrad.kernels.cpu.engine import thread_pool

    torch.set_num_threads(2)
    expected = expected_work()
    x = torch.ones(300, 300)
    for _ in range(3):
        assert large_work() == expected
        assert (x @ x == 300).all()
    # elsewhere OpenMP may have no GOMP_parallel, which leaves ours as they were
    assert thread_pool._openmp or sys.platform != "linux"
    assert not (thread_pool._openmp and thread_pool._workers)
    assert check_in_child(expected)
    # a size that is not PyTorch's is not forced on its pool
    torch.set_num_threads(1)
    assert large_work() == expected
    assert len(thread_pool._workers) == 1
    torch.set_num_threads(2)
    concurrent_calls()
    every_part_once()


# those of one process run in this order; a process of its own has what needs threads that are not there yet
SCENARIOS = [
    (workers_sleep, concurrent_calls, forked_child, multiprocessing_fork, every_part_once),
    (forked_child_of_a_busy_parent, forked_child_of_a_compiling_parent),
    (interrupted_calls, interrupted_compilation, calls_in_a_handler),
    (forked_child_before_threads,),
    (forked_child_of_another_thread,),
    (borrowed_threads,),
]


# how a child ends whose scenario needs what is not installed
SKIPPED = 77


def run_scenarios(*scenarios):
    try:
        for scenario in scenarios:
            globals()[scenario]()
    except pytest.skip.Exception as reason:
        print(reason)
        sys.exit(SKIPPED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("scenarios", [[s.__name__ for s in together] for together in SCENARIOS], ids="+".join)
def test_the_pool_survives(scenarios):
    process = subprocess.Popen(
        [sys.executable, "-c", f"import test_threads as t; t.run_scenarios(*{scenarios})"], cwd=Path(__file__).parent,
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        # with its children, which may be what hangs
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"one of {scenarios} hangs")
    if process.returncode == SKIPPED:
        pytest.skip(out.strip())
    assert process.returncode == 0, err


def test_many_python_threads_at_once(backend):
    """Steps of nets of their own on small and large work, forwards on shared arrays."""
    rng = np.random.default_rng(4)
    chain = random_chain(rng, 64, (65, 33, 10), ["tanh", "softmax"], np.float32)
    net = random_net(rng, (33, 17, 4), ["relu", "softmax"], np.float64, 16, loss="cross_entropy")
    x, labels = rng.standard_normal((16, 33)), rng.integers(0, 4, 16)

    def work():
        mine = clone(net)
        records = [step(backend, mine, x, labels, number) for number in range(20)]
        outputs, gradients = run(backend, chain)
        return records, bits(mine.params), [bits(a) for a in outputs + gradients.arrays()]

    expected, found = work(), []
    threads = [threading.Thread(target=lambda: found.append([work() for _ in range(5)])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(result == expected for results in found for result in results)


@pytest.fixture
def four_threads():
    parallel = pytest.importorskip("fastgrad.kernels.cpu.engine.thread_pool")
    before = parallel.get_num_threads()
    parallel.set_num_threads(4)
    yield parallel
    parallel.set_num_threads(before)


def test_the_number_of_threads_is_what_was_set(four_threads):
    assert four_threads.get_num_threads() == 4
    large_work()
    assert four_threads.get_num_threads() == 4


def test_numbas_threads_stay_as_they_were(four_threads):
    import numba

    before = numba.get_num_threads()
    expected = large_work()
    assert numba.get_num_threads() == before
    numba.set_num_threads(1)
    try:
        assert large_work() == expected
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_pytorchs_threads_stay_as_they_were(four_threads):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads(), torch.get_num_interop_threads()
    torch.ones(500, 500) @ torch.ones(500, 500)
    large_work()
    assert (torch.get_num_threads(), torch.get_num_interop_threads()) == before
    torch.set_num_threads(1)
    try:
        large_work()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before[0])


def test_blas_threads_stay_as_they_were(four_threads):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def settings():
        pools = threadpoolctl.threadpool_info()
        return {p["filepath"]: p["num_threads"] for p in pools if p["user_api"] == "blas"}

    np.ones((500, 500)) @ np.ones((500, 500))
    before = settings()
    large_work()
    assert settings() == before
