"""Compilation in several processes, and the line that tells of it: what workers compile is loaded, and nothing depends on a worker."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import environment

pytest.importorskip("fastgrad.kernels.cpu", reason="the backend cannot run here")

import compilations
from numba.core.bytecode import FunctionIdentity

from fastgrad.kernels import disk_cache
from fastgrad.kernels.cpu import warmup
from fastgrad.kernels.cpu.engine import cache, compile, notice, workers
from fastgrad.kernels.cpu.engine.intrinsics import carray


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of the test's own, and two processes that compile however little there is."""
    monkeypatch.setenv("FASTGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("FASTGRAD_COMPILE_PROCESSES", "2")
    monkeypatch.setattr(workers, "START_SECONDS", 0)
    disk_cache._candidates.cache_clear()
    yield cache.folders()[-1]
    disk_cache._candidates.cache_clear()


class Job:
    """A job that notes that it was done in this process."""

    label, seconds = "job", 1.0

    def __init__(self, done, wait=lambda: None):
        self.done, self.wait = done, wait

    def __reduce__(self):
        return str, ("a job",)

    def compile(self):
        self.wait()
        self.done.append(self)


def until(condition):
    """Wait for a condition, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def kernel_job(function):
    (kernel,) = [kernel for kernel in compile.KERNELS if kernel.function.__name__ == function]
    return compile.KernelJob(kernel.name, "f")


def test_a_worker_compiles_into_the_cache_while_this_process_is_at_work(folder):
    told, here = [], []
    jobs = [kernel_job("relu_forward"), kernel_job("relu_slope_backward")]
    # this process is busy until the worker has done both
    workers.compile_all([Job(here, lambda: until(lambda: len(told) == 2)), *jobs], told.append)
    assert told[:2] == jobs
    assert {file.name.partition(".")[0] for file in folder.iterdir()} >= {"relu_forward", "relu_slope_backward"}


def script(*lines):
    """A program in the place of a worker."""
    return "\n".join(["import sys, os; sys.stdin.readline()", *lines]).replace("{", "{{").replace("}", "}}") + "#{}"


def answer(identity):
    return f"print('fastgrad:{identity}', flush=True)"


BROKEN = {
    "ends at once": lambda: script("sys.exit(1)"),
    "is another version": lambda: script(answer("0"), "sys.stdin.buffer.read()"),
    "dies at its first job": lambda: script(answer(workers._identity()), "sys.stdin.buffer.read(1)", "os._exit(9)"),
    "says nothing to its job": lambda: script(answer(workers._identity()), "import time; time.sleep(600)"),
    "writes noise": lambda: script("print('noise' * 999)", "sys.exit(0)"),
    "is no program": lambda: "(#{}",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_jobs_of_a_worker_that_fails_are_done_here(folder, monkeypatch, kind):
    monkeypatch.setattr(workers, "START", BROKEN[kind]())
    monkeypatch.setattr(workers, "LAST_SECONDS", 1)
    started, init, here = [], workers.Worker.__init__, []

    def counted(self, *arguments):
        init(self, *arguments)
        started.append(self)

    monkeypatch.setattr(workers.Worker, "__init__", counted)
    # this process leaves jobs to the worker until that has one, or is dead
    first = Job(here, lambda: until(lambda: started[0].current or not started[0].thread.is_alive()))
    jobs = [first, *(Job(here) for _ in range(4))]
    workers.compile_all(jobs)
    assert len(started) == 1
    assert sorted(map(id, here)) == sorted(map(id, jobs))
    assert started[0].process.returncode is not None


def test_without_processes_all_is_done_here(folder, monkeypatch):
    def none(*arguments, **options):
        raise OSError("no process")

    monkeypatch.setattr(subprocess, "Popen", none)
    here = []
    workers.compile_all([Job(here) for _ in range(3)])
    assert len(here) == 3


def test_an_error_of_a_job_comes_out_and_ends_the_workers(folder, monkeypatch):
    monkeypatch.setattr(workers, "START", script(answer(workers._identity()), "import time; time.sleep(600)"))

    def fails():
        raise OSError("no space left")

    before = subprocess.Popen
    processes = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(before(*a, **k)) or processes[-1])
    with pytest.raises(OSError, match="no space left"):
        workers.compile_all([Job([], fails), Job([])])
    assert [process.returncode is not None for process in processes] == [True]


def read_only(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)


def one_core(monkeypatch):
    monkeypatch.delenv("FASTGRAD_COMPILE_PROCESSES")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)


NO_WORKERS = {
    "one core": one_core,
    "the variable": lambda m: m.setenv("FASTGRAD_COMPILE_PROCESSES", "1"),
    "a worker": lambda m: m.setattr(workers, "_is_worker", True),
    "an embedded interpreter": lambda m: m.setattr(sys, "executable", ""),
    "another program": lambda m: m.setattr(sys, "executable", "/usr/bin/uwsgi"),
    "a frozen program": lambda m: m.setattr(sys, "frozen", True, raising=False),
    "a cache that can be read only": read_only,
    "no cache": lambda m: m.setattr(cache, "folders", list),
}


@pytest.mark.parametrize("case", NO_WORKERS)
def test_no_worker_is_started_where_it_could_not_help(folder, monkeypatch, case):
    assert workers.processes() == 2
    NO_WORKERS[case](monkeypatch)
    assert workers.processes() == 1


STEP = """
import numpy as np, fastgrad as fg
x, y = np.linspace(-1, 1, 64).reshape(8, 8).astype("f4"), np.arange(8) % 3
trainer = fg.Trainer(fg.nn.DenseChain([8, 5, 3], "relu", "softmax", seed=0))
values = [float(trainer.step(x, y)) for _ in range(3)]
"""
REPORT = """
from fastgrad.kernels.cpu.engine import compile, workers
import sys
names = sorted(kernel.function.__name__ for kernel in compile.KERNELS + compile.ROUTINES if kernel._compiled)
print(values, names, sep="\\n")
"""


def run(code, **variables):
    """(output, what is on stderr) of a new process."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def test_a_step_uses_the_kernels_of_its_net_alone():
    names = run(STEP + REPORT)[0].splitlines()[1]
    for needed in ("adam_block", "relu_forward", "relu_slope_backward", "cross_entropy_kernel", "gemm_part"):
        assert f"'{needed}'" in names
    for unused in ("sparse", "layer_output", "report", "softmax", "sgd", "tanh", "mse", "constrained", "norms_part"):
        assert unused not in names


# kernels and drivers that two processes compile, however little there is
NORM = """
import numpy as np, fastgrad as fg
from fastgrad.kernels.cpu.engine import workers
workers.START_SECONDS, init = 0, workers.Worker.__init__
workers.Worker.__init__ = lambda self, *arguments: print("a worker") or init(self, *arguments)
x = np.linspace(-1, 1, 64).reshape(8, 8).astype("f4")
y, backward = fg.layer_norm(x, x[0], x[1])
values = [array.tolist() for array in (y, *backward(x))]
"""


@pytest.mark.full
def test_two_processes_and_an_empty_cache_give_the_values_of_one_and_a_warm_cache(tmp_path):
    cold, line = run(
        NORM + REPORT, FASTGRAD_CACHE_DIR=str(tmp_path), FASTGRAD_COMPILE_PROCESSES="2", FASTGRAD_QUIET="0"
    )
    warm, silent = run(NORM + REPORT, FASTGRAD_CACHE_DIR=str(tmp_path), FASTGRAD_QUIET="0")
    assert cold == "a worker\n" + warm
    assert line.startswith("fastgrad compiles its kernels for this machine (")
    assert f"they are kept in {tmp_path}" in line
    assert line.count("\n") == 1
    assert silent == ""


PROGRAM = Path(compilations.__file__)
AS_MODULE = "import compilations; compilations.compile_few()"
# how an interpreter may come to compile: (arguments, standard input)
INTERPRETERS = {
    "a file": ([str(PROGRAM), "here"], ""),
    "a session": (["-i", "-q", "-c", ""], f"{AS_MODULE}\n"),
    "no main module": (["-c", f"import sys; del sys.modules['__main__']; {AS_MODULE}"], ""),
    "a frozen program": (["-c", f"import sys; sys.frozen = True; {AS_MODULE}"], ""),
    "a forked child": (["-W", "ignore", str(PROGRAM), "fork"], ""),
    "a spawned child": ([str(PROGRAM), "spawn"], ""),
}


def start(folder, arguments, **options):
    """A process with a cache of its own that compiles with a worker."""
    variables = environment(FASTGRAD_CACHE_DIR=str(folder), FASTGRAD_COMPILE_PROCESSES="2")
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, *arguments], env=variables, **options)


def compiled_files(folder):
    return [file.name for version in folder.iterdir() for file in version.iterdir()]


@pytest.mark.full
@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_every_kind_of_interpreter_compiles_and_leaves_no_process(tmp_path, interpreter):
    if interpreter == "a forked child" and not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    arguments, written = INTERPRETERS[interpreter]
    process = start(tmp_path, arguments)
    output, errors = process.communicate(written, timeout=300)
    assert output == "compiled\n"
    # a session shows where it waits for input
    assert errors.replace(">>> ", "").strip() == ""
    assert process.returncode == 0


@pytest.mark.full
def test_processes_that_compile_the_same_at_once_do_not_disturb_each_other(tmp_path):
    processes = [start(tmp_path, [str(PROGRAM), "here"]) for _ in range(2)]
    assert [process.communicate(timeout=300) for process in processes] == [("compiled\n", "")] * 2
    names = compiled_files(tmp_path)
    assert len(names) == len(compilations.FEW)
    assert not any(name.endswith(".part") for name in names)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the system does not list processes in files")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_ends_the_workers_too(tmp_path, number):
    process = start(tmp_path, [str(PROGRAM), "many"])
    worker = Path("/proc", process.stdout.readline().strip(), "stat")
    assert worker.exists()
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (number == "SIGINT")
    # another process may have to take notice of its end
    until(lambda: not worker.exists() or worker.read_text().rpartition(")")[2].split()[0] == "Z")
    # what had not begun was not compiled
    assert len(compiled_files(tmp_path)) < len(compilations.jobs())


@pytest.fixture
def clock(monkeypatch):
    """A notice whose clock the test sets, in place of the process' own."""
    found = notice.Notice(lambda: found.now)
    found.now = 0.0
    monkeypatch.setattr(notice, "_notice", found)
    monkeypatch.delenv("FASTGRAD_QUIET", raising=False)
    return found


def test_a_line_tells_after_a_second_of_compiling_and_once(clock, capsys):
    notice.begin(["one", "two", "three", "four"], 8.2)
    clock.now = 0.9
    notice.update()
    assert capsys.readouterr().err == ""
    clock.now = 1.1
    notice.update()
    line = capsys.readouterr().err
    assert line.startswith(
        "fastgrad compiles its kernels for this machine (one, two, three and 1 more): about 8 s, once;"
    )
    assert line.rstrip().endswith(f"they are kept in {cache.folders()[-1].parent}")
    clock.now = 9
    notice.update(), notice.end()
    assert capsys.readouterr().err == ""


def test_short_compilations_add_up_to_a_second_and_the_time_between_does_not_count(clock, capsys):
    for start in (0, 100, 200):
        clock.now = start
        notice.begin(["kernel"], 0)
        clock.now = start + 0.4
        notice.end()
        assert (start == 200) == ("some seconds, once" in capsys.readouterr().err)


@pytest.mark.parametrize("silence", ["variable", "no stderr", "nothing compiles"])
def test_no_line(clock, capsys, monkeypatch, silence):
    if silence == "variable":
        monkeypatch.setenv("FASTGRAD_QUIET", "1")
    if silence == "no stderr":
        monkeypatch.setattr(sys, "stderr", None)
    if silence != "nothing compiles":
        notice.begin(["kernel"], 5)
    clock.now = 5
    notice.update()
    assert capsys.readouterr().err == ""


def test_a_line_says_that_there_is_no_folder(monkeypatch):
    monkeypatch.setattr(disk_cache, "_candidates", lambda version: [])
    assert notice.line(["kernel"], 3).endswith("there is no folder to keep them in")


def test_names_of_kernels_are_their_own():
    names = [kernel.name for kernel in compile.KERNELS + compile.ROUTINES]
    assert len({*names}) == len(names)


def test_a_function_that_returns_what_it_was_given_counts_references():
    def first_half(values):
        return values[: len(values) // 2]

    uncounted, counted = compile.device_function(first_half), compile.driver_function(first_half)
    with pytest.raises(TypeError, match="first_half takes and returns arrays: it must be a driver_function"):
        uncounted(np.ones(4))
    caller = compile.driver(lambda values: counted(values).sum())
    values = np.ones(4)
    before = sys.getrefcount(values)
    assert caller(values) == 2
    assert sys.getrefcount(values) == before


def test_kernels_of_two_processes_do_not_call_each_others_functions(monkeypatch):
    """Numba counts functions from one in each process, so that two of them get one name."""

    def three_sums(shift):
        @compile.device_function
        def large(x):
            # more than LLVM copies into three callers
            total = x + shift
            for n in range(x):
                total += (
                    (total << 3 ^ n) % (total + 7) + (total >> 2 ^ n) % (total + 11) + (total << 1 ^ n) % (total + 13)
                )
            return total

        return compile.driver(lambda x: large(x) + large(x - 1) + large(x - 2))

    for shift in 10, 100:
        # as in a new process
        monkeypatch.setattr(FunctionIdentity, "_unique_ids", itertools.count(10**6))
        driver = three_sums(shift)
        assert driver(0) == 3 * shift - 3
        (compiled,) = driver.overloads.values()
        names = [f.name for f in compiled.library._final_module.functions if not f.is_declaration]
        assert any("large" in name for name in names)


RECORD = np.dtype([("n", "i8")])


def test_a_kernel_or_function_of_kernels_that_allocates_is_refused():
    size = compile.driver_function(lambda n: np.empty(n).size)
    half = compile.driver_function(lambda values: values[:2])

    def allocates(thread_index, thread_count, record, like):
        job = carray(record, 1)[0]
        job.n = size(job.n)

    def counts(thread_index, thread_count, record, like):
        half(carray(record, 4))[0].n = 1

    for function in allocates, counts:
        with pytest.raises(TypeError, match=f"{function.__name__} allocates or counts references"):
            compile.Kernel(function, RECORD).address(np.dtype("f4"))
    allocating = compile.device_function(lambda n: np.empty(n).size)
    with pytest.raises(Exception, match="NRT required"):
        compile.driver(lambda n: allocating(n))(3)
    assert compile.driver(lambda n: size(n))(3) == 3


def test_warmup_of_one_op_leaves_out_the_others():
    def modules(jobs):
        return {job.name.rsplit(".", 2)[1] for job in jobs if isinstance(job, compile.KernelJob)}

    every, lstm = warmup.warmup_jobs(), warmup.warmup_jobs(["lstm"], "f")
    assert modules(lstm) >= {"lstm", "gemm", "update_rules"}
    assert not modules(lstm) & {"conv", "winograd", "sparse", "training_step", "batch_norm"}
    # a new file belongs to a group, or is for all
    common = {"gemm", "activation", "loss", "optim", "update_rules", "clip", "init"}
    assert modules(every) - {name for names, _ in warmup.GROUPS.values() for name in names} <= common
    assert {job.char for job in lstm} == {"f"}
    assert {*lstm} < {*every}
    assert {*every} == {job for group in warmup.GROUPS for job in warmup.warmup_jobs([group])}


WARMUP = """
import sys
from fastgrad.kernels.cpu import warmup
from fastgrad.kernels.cpu.engine.pipeline import DriverCompiler

for job in warmup.warmup_jobs(chars="f"):
    if isinstance(job, warmup.CallJob):
        job.compile()
modules = [module for name, module in list(sys.modules.items()) if name.startswith("fastgrad.kernels.cpu.")]
functions = {id(f): f for module in modules for f in vars(module).values() if hasattr(f, "overloads")}
drivers = [driver for driver in functions.values() if driver._compiler.pipeline_class is DriverCompiler]
print(len(drivers) > 20, [driver.py_func.__qualname__ for driver in drivers if not driver.overloads])
"""


def test_warmup_calls_every_driver():
    assert run(WARMUP)[0] == "True []\n"
