"""Compilation: the decorators `kernel`, `routine`, `driver`, `driver_function`, `device_function` and `inline_function`; cache.py stores
the machine code.

A kernel is a C function (thread_index, thread_count, record, like): it does the work of one of so many threads. `record` has addresses,
strides and sizes; `like` is a null pointer whose type carries the dtype. So a kernel is compiled once a dtype, whatever the layout, depth
or width of its arrays; a call costs a fraction of a microsecond; and one launcher (thread_pool.py) runs every kernel, on one thread or
many.

A driver is a compiled function that Python calls with arrays: it fills in the record and launches kernels.

No fastmath flag is set: NaN and infinity stay what they are. The compiler may not reorder sums or fuse products into them, so the vector
body of a loop and its scalar tail give the same bits. Fused multiply-adds are written out where they are wanted.
"""

import _thread
import atexit
import importlib
import threading
from functools import partial
from typing import NamedTuple

import numba
import numpy as np
from numba import from_dtype, njit, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from . import notice, workers
from .cache import Cache
from .pipeline import UNCOUNTED, DriverCompiler, InnerCompiler, KernelCompiler, compilation

if numba.config.DISABLE_JIT:
    # what the backend lacks, as its users are told
    raise ImportError("NUMBA_DISABLE_JIT is set, and without Numba's compiler there are no kernels")

# the lock inside Numba's, whose own acquire is Python, in which a handler may raise
compiler_lock = global_compiler_lock._lock


@atexit.register
def _wait_for_compiler():
    """The process ends after what is being compiled is done: LLVM aborts where the interpreter takes its thread away."""
    workers.stop()
    compiler_lock.acquire()


_OPTIONS = {"error_model": "numpy", "nogil": True}
# a function that only kernels call needs no way in from Python or C
_INNER = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def uninterrupted(function, *arguments):
    """function(*arguments), run to its end whatever signals arrive.

    An exception out of a signal handler would leave Numba, LLVM or the thread pool in an undefined state. Python runs
    handlers on the main thread alone, so there another thread does the work. What a handler raises comes out of here at once.
    """
    # if the main thread holds the compiler's lock, another thread would wait for it for ever
    if threading.get_ident() != threading.main_thread().ident or compiler_lock._is_owned():
        return function(*arguments)
    outcome, done = [], threading.Lock()
    done.acquire()

    def work():
        try:
            outcome.append((function(*arguments), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            done.release()

    try:
        # threading.Thread's start is Python, and so can be interrupted itself
        _thread.start_new_thread(work, ())
    except RuntimeError:
        # no thread can be had, as when the interpreter is about to end
        return function(*arguments)
    done.acquire()
    result, error = outcome.pop()
    if error is None:
        return result
    try:
        raise error
    finally:
        # the traceback holds this frame
        del error


# by function and types of arguments. There is one machine code of each, since the memory of some is shared: see memory of atomics.py
_c_functions = {}


def c_function(function, arguments, allocates=False):
    """Compile a function of these argument types, or load it from the cache; its address is `.address`."""
    return _c_functions.get((function, arguments)) or uninterrupted(_compile, function, arguments, allocates)


def _new_c_function(function, arguments, allocates):
    """A C function that is not compiled yet."""
    options, compiler = (
        {**_OPTIONS, "_nrt": allocates, "nopython": True},
        DriverCompiler if allocates else KernelCompiler,
    )
    result = CFunc(function, (arguments, types.void), locals={}, options=options, pipeline_class=compiler)
    result._cache = Cache(function, ("C function", options))
    _observe(result)
    return result


@global_compiler_lock
def _compile(function, arguments, allocates):
    result = _c_functions.get((function, arguments))
    if result is None:
        result = _new_c_function(function, arguments, allocates)
        result.compile()
        _c_functions[function, arguments] = result
    return result


def _observe(compiled):
    """Have a C function or driver tell when it is compiled, and not loaded."""
    compiler = compiled._compiler
    compile_now, function = compiler.compile, compiler.py_func

    def compile(arguments, return_type):
        with compilation([function.__name__], seconds_of(function)):
            return compile_now(arguments, return_type)

    compiler.compile = compile


# compilation takes about so long, in all, and for a byte of code_size of workers.py
SECONDS, SECONDS_A_BYTE = 0.1, 3e-4


def seconds_of(function) -> float:
    """How long a kernel or driver takes to compile, about."""
    return SECONDS + SECONDS_A_BYTE * workers.code_size(function)


KERNELS: list["Kernel"] = []
ROUTINES: list["Kernel"] = []


class Kernel:
    """A function (thread_index, thread_count, record, like), compiled at its first use with a dtype."""

    def __init__(self, function, record, needs=None, allocates=False):
        self.function, self.record, self.needs, self.allocates = function, record, needs, allocates
        self._compiled = {}

    def address(self, dtype) -> int:
        """Address of the machine code for float32 or float64."""
        code = self._compiled.get(dtype.char) or uninterrupted(self._compile, dtype)
        return code.address

    @property
    def name(self):
        return f"{self.function.__module__}.{self.function.__qualname__}"

    def _arguments(self, dtype):
        record, scalar = from_dtype(self.record), from_dtype(dtype)
        return types.int64, types.int64, types.CPointer(record), types.CPointer(scalar)

    @global_compiler_lock
    def _compile(self, dtype):
        if self.needs:
            self.needs(dtype)
        code = self._compiled[dtype.char] = c_function(self.function, self._arguments(dtype), self.allocates)
        return code

    def is_compiled(self, dtype) -> bool:
        """Whether its machine code is here or in the cache."""
        if dtype.char in self._compiled:
            return True
        code = _new_c_function(self.function, self._arguments(dtype), self.allocates)
        return code._cache.holds(code._sig, cpu_target.target_context)


class KernelJob(NamedTuple):
    """The compilation of a kernel, as workers.py takes it. name: the kernel's own; char: of a dtype."""

    name: str
    char: str

    @property
    def kernel(self):
        return next(kernel for kernel in KERNELS + ROUTINES if kernel.name == self.name)

    @property
    def label(self):
        return self.kernel.function.__name__

    @property
    def seconds(self):
        return seconds_of(self.kernel.function)

    def compile(self):
        self.kernel.address(np.dtype(self.char))

    def is_compiled(self):
        return self.kernel.is_compiled(np.dtype(self.char))


class DriverJob(NamedTuple):
    """The compilation of a driver for arguments of these types."""

    module: str
    label: str
    arguments: tuple[types.Type, ...]

    @property
    def driver(self):
        return getattr(importlib.import_module(self.module), self.label)

    @property
    def seconds(self):
        return seconds_of(self.driver.py_func)

    def compile(self):
        uninterrupted(self.driver.compile, self.arguments)

    def is_compiled(self):
        driver = self.driver
        return self.arguments in driver.overloads or driver._cache.holds(self.arguments, cpu_target.target_context)


def driver_job(driver, *arguments):
    """The compilation that a call with these arguments needs."""
    function = driver.py_func
    return DriverJob(function.__module__, function.__name__, tuple(map(driver.typeof_pyval, arguments)))


def prepare(jobs):
    """Compile what is neither here nor in the cache, in several processes where there are cores. Then it is here, or can be loaded."""
    uninterrupted(_prepare, jobs)


@global_compiler_lock
def _prepare(jobs):
    missing = [job for job in jobs if not job.is_compiled()]
    if len(missing) > 1:
        labels, seconds = [job.label for job in missing], sum(job.seconds for job in missing)
        with compilation(labels, seconds / min(workers.processes(), len(missing))):
            workers.compile_all(workers.longest_first(missing), wait=notice.update)


class Addresses(dict):
    """Addresses of kernels for a driver to call, an int64 array for each dtype's character.

    The driver always calls the first ones. Of `choices` it calls what its arguments choose (an activation, a loss, an optimiser): these are
    0, and not compiled, until `provide` is asked for them. A driver that needs one returns MISSING, and changes nothing.
    """

    def __init__(self, *kernels, choices=()):
        super().__init__()
        self.kernels, self.always = (*kernels, *choices), len(kernels)

    def __missing__(self, char):
        prepare([KernelJob(kernel.name, char) for kernel in self.kernels[: self.always]])
        return self._look_up(char)

    def _look_up(self, char):
        addresses = np.zeros(len(self.kernels), np.int64)
        addresses[: self.always] = [k.address(np.dtype(char)) for k in self.kernels[: self.always]]
        return self.setdefault(char, addresses)

    def provide(self, char, numbers, driver=None, arguments=()):
        """Compile or load the kernels of these numbers, and write their addresses; one that is None keeps 0. driver, arguments: a call that
        follows.
        """
        kernels = (*self.kernels[: self.always], *(self.kernels[number] for number in numbers))
        jobs = [KernelJob(kernel.name, char) for kernel in kernels if kernel is not None]
        prepare([driver_job(driver, *arguments), *jobs] if driver else jobs)
        addresses = self.get(char)
        if addresses is None:
            addresses = self._look_up(char)
        for number in numbers:
            if self.kernels[number] is not None:
                addresses[number] = self.kernels[number].address(np.dtype(char))


# the status of a driver, see Addresses
MISSING = -2


class Choice(dict):
    """The address of one of a list of kernels by (dtype's character, number), looked up at its first use; 0 for None."""

    def __init__(self, *kernels):
        super().__init__()
        self.kernels = kernels

    def __missing__(self, key):
        char, number = key
        kernel = self.kernels[number]
        address = self[key] = 0 if kernel is None else kernel.address(np.dtype(char))
        return address


class _Empty(dict):
    def __missing__(self, key):
        char, ndim = key
        array = self[key] = np.empty((0,) * ndim, char)
        return array


# an empty array by (dtype's character, ndim): what a driver gets for None, since its arguments have one type; see address_or_null
EMPTY = _Empty()


def or_empty(dtype, ndim, *arrays):
    """The arrays as drivers take them, an empty one for None."""
    return [EMPTY[dtype.char, ndim] if a is None else a for a in arrays]


def kernel(record, needs=None):
    """Decorator: a kernel whose record has this dtype. needs(dtype) is called before it is compiled or loaded."""

    def decorate(function):
        KERNELS.append(Kernel(function, record, needs))
        return KERNELS[-1]

    return decorate


def routine(record):
    """Decorator: a part of several drivers, or one that few calls need, compiled by itself as a C function (launcher, thread_count,
    record, like).

    Drivers run it by run_kernel(function, launcher, thread_count, record, keep). It may launch kernels and allocate. If memory runs out it
    returns early, so it writes the record's status last, and its caller raises MemoryError where there is none.
    """

    def decorate(function):
        ROUTINES.append(Kernel(function, record, allocates=True))
        return ROUTINES[-1]

    return decorate


def driver(function):
    """A driver called from Python with arrays: compiled at its first call for a dtype, or loaded from the cache."""
    dispatcher = njit(no_cfunc_wrapper=True, pipeline_class=DriverCompiler, **_OPTIONS)(function)
    _observe(dispatcher)
    dispatcher._cache = Cache(function, ("driver", _OPTIONS))
    dispatcher._compile_for_args = partial(uninterrupted, dispatcher._compile_for_args)
    return dispatcher


def device_function(function):
    """A function called from kernels and drivers, whose machine code holds it; it allocates nothing."""
    return _compiled_once(njit(pipeline_class=InnerCompiler, **UNCOUNTED, **_INNER)(function))


def driver_function(function):
    """A function called from drivers and routines, whose machine code holds it; it may allocate arrays."""
    return _compiled_once(njit(pipeline_class=InnerCompiler, _nrt=True, **_INNER)(function))


def inline_function(function):
    """A small function that must disappear into its caller's loop for the loop to vectorise."""
    return _compiled_once(njit(pipeline_class=InnerCompiler, forceinline=True, **UNCOUNTED, **_INNER)(function))


def _compiled_once(dispatcher):
    """The function, compiled once for a constant and a variable argument: LLVM sees the constant where it inlines the function."""
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    return dispatcher
