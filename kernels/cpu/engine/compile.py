"""Compilation: the decorators `kernel`, `driver`, `device_function` and `inline_function`. cache.py stores the machine code.

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
import threading
from functools import partial

import numba
import numpy as np
from numba import from_dtype, njit, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys

from .cache import Cache

if numba.config.DISABLE_JIT:
    # what the backend lacks, as its users are told
    raise ImportError("NUMBA_DISABLE_JIT is set, and without Numba's compiler there are no kernels")

# the lock inside Numba's, whose own acquire is Python, in which a handler may raise
compiler_lock = global_compiler_lock._lock
# the process ends after what is being compiled is done: LLVM aborts where the interpreter takes its thread away
atexit.register(compiler_lock.acquire)

_OPTIONS = {"error_model": "numpy", "nogil": True}
# a function that only kernels call needs no way in from Python or C
_INNER = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def uninterrupted(function, *arguments):
    """function(*arguments), run to its end whatever signals arrive.

    An exception out of a signal handler would leave Numba, LLVM or the thread pool in an undefined state. Python runs
    handlers on the main thread alone, so there another thread does the work. What a handler raises comes out of here at once.
    """
    # the main thread waits in vain for another where it has the compiler's lock itself
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


def c_function(function, arguments):
    """Compile a function of these argument types, or load it from the cache; its address is `.address`."""
    return _c_functions.get((function, arguments)) or uninterrupted(_compile, function, arguments)


@global_compiler_lock
def _compile(function, arguments):
    result = _c_functions.get((function, arguments))
    if result is None:
        result = CFunc(function, (arguments, types.void), locals={}, options={**_OPTIONS, "nopython": True})
        result._cache = Cache(function, ("C function", _OPTIONS))
        result.compile()
        _c_functions[function, arguments] = result
    return result


KERNELS: list["Kernel"] = []
ROUTINES: list["Kernel"] = []


class Kernel:
    """A function (thread_index, thread_count, record, like), compiled at its first use with a dtype."""

    def __init__(self, function, record, needs=None):
        self.function, self.record, self.needs = function, record, needs
        self._compiled = {}

    def address(self, dtype) -> int:
        """Address of the machine code for float32 or float64."""
        code = self._compiled.get(dtype.char) or uninterrupted(self._compile, dtype)
        return code.address

    @global_compiler_lock
    def _compile(self, dtype):
        if self.needs:
            self.needs(dtype)
        scalar = from_dtype(dtype)
        arguments = types.int64, types.int64, types.CPointer(from_dtype(self.record)), types.CPointer(scalar)
        code = self._compiled[dtype.char] = c_function(self.function, arguments)
        return code


class Addresses(dict):
    """Addresses of kernels for a driver to call, an int64 array for each dtype's character.

    The driver always calls the first ones. Of `choices` it calls what its arguments choose (an activation, a loss, an optimiser): these are
    0, and not compiled, until `provide` is asked for them. A driver that needs one returns MISSING, and changes nothing.
    """

    def __init__(self, *kernels, choices=()):
        super().__init__()
        self.kernels, self.always = (*kernels, *choices), len(kernels)

    def __missing__(self, char):
        addresses = np.zeros(len(self.kernels), np.int64)
        addresses[: self.always] = [k.address(np.dtype(char)) for k in self.kernels[: self.always]]
        return self.setdefault(char, addresses)

    def provide(self, char, numbers):
        """Look up the kernels of these numbers; one that is None has no address."""
        for number in numbers:
            if self.kernels[number] is not None:
                self[char][number] = self.kernels[number].address(np.dtype(char))


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


# an empty array by (dtype's character, ndim), as drivers take None, who know arrays of one type only: see address_or_null of intrinsics.py
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
        ROUTINES.append(Kernel(function, record))
        return ROUTINES[-1]

    return decorate


def driver(function):
    """A driver called from Python with arrays: compiled at its first call for a dtype, or loaded from the cache."""
    dispatcher = njit(no_cfunc_wrapper=True, **_OPTIONS)(function)
    dispatcher._cache = Cache(function, ("driver", _OPTIONS))
    dispatcher._compile_for_args = partial(uninterrupted, dispatcher._compile_for_args)
    return dispatcher


class _Environments:
    """In place of a library's code generator, which knows no function of an inner library."""

    @staticmethod
    def set_env(name, environment):
        pass


class _InnerLibrary(JITCodeLibrary):
    """LLVM code of a device function, which is optimised and becomes machine code in its callers only.

    Numba would do both for each function by itself, and again in each of its callers, whose code holds it.
    """

    codegen = _Environments()

    def add_linking_library(self, library):
        # the memory allocator, which the caller's code has too
        if library is not rtsys.library:
            super().add_linking_library(library)

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _InnerCompiler(Compiler):
    def compile_extra(self, function):
        self.state.library = _InnerLibrary(self.state.targetctx.codegen(), function.__qualname__)
        return super().compile_extra(function)


def device_function(function):
    """A function called from kernels, whose machine code holds it."""
    return njit(pipeline_class=_InnerCompiler, **_INNER)(function)


def inline_function(function):
    """A small function that must disappear into its caller's loop for the loop to vectorise."""
    return njit(pipeline_class=_InnerCompiler, forceinline=True, **_INNER)(function)
