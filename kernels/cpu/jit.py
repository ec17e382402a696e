"""How kernels are compiled, and where the machine code is kept.

A kernel is one C function of (part, parts, job, like): `job` is a record of addresses, strides and sizes, `like` a null pointer
that carries the dtype. So a kernel is compiled once a dtype whatever the layout, depth or width of what it works on; calling it costs
a fraction of a microsecond; and one launcher (parallel.py) serves all of them, on one thread or many.

No fastmath flag anywhere: NaN and infinity stay what they are, and since nothing may be reassociated or contracted, a loop's
vector body and its scalar tail give the same bits. Where a fused multiply-add is wanted, it is written.

The cache folder is named after the content of the kernels' folder (but for cuda/), the versions and the vector width, so an edit or an
upgrade never meets stale machine code. A folder that cannot be written only costs the compilation again.
"""

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba import from_dtype, njit, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys

_OPTIONS = {"error_model": "numpy", "nogil": True}
# a function that only kernels call needs no way in from Python or C
_INNER = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@lru_cache
def cache_folder() -> Path:
    """The folder of this version's machine code; its parent is FASTGRAD_CACHE_DIR or the user's cache folder."""
    content = hashlib.sha256()
    root = Path(__file__).parent.parent
    for source in sorted(set(root.rglob("*.py")) - set((root / "cuda").rglob("*.py"))):
        content.update(f"{source.relative_to(root)}\n".encode() + source.read_bytes())
    versions = numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), platform.machine()
    content.update(repr((versions, os.environ.get("FASTGRAD_VECTOR_BITS"))).encode())
    parent = os.environ.get("FASTGRAD_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fastgrad")
    return Path(parent).expanduser() / content.hexdigest()[:16]


class _Locator:
    """What numba's cache asks of a place to keep files in."""

    def get_cache_path(self):
        return str(cache_folder())

    def ensure_cache_path(self):
        cache_folder().mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self):
        return cache_folder().name


class _Implementation(CompileResultCacheImpl):
    def __init__(self, py_func):
        self._locator = _Locator()
        self._lineno = py_func.__code__.co_firstlineno
        self._filename_base = f"{Path(py_func.__code__.co_filename).stem}.{py_func.__qualname__}"


class _Cache(FunctionCache):
    """numba's cache in our folder. What cannot be read, a file cut short included, is compiled again; what cannot be
    written is left unwritten."""

    def __init__(self, py_func):
        # numba's own constructor asks for the folder, and with it for every source file's hash, at import
        self._name, self._py_func, self._impl = repr(py_func), py_func, _Implementation(py_func)
        self.enable()

    @property
    def _cache_file(self):
        return IndexDataCacheFile(str(cache_folder()), self._impl.filename_base, cache_folder().name)

    def load_overload(self, sig, target_context):
        # numba's own method first loads all that it could compile with, which takes longer than everything else here; machine code
        # needs its allocator only
        try:
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


def c_function(function, arguments, **options):
    """Compile a function of these argument types, or load it from the cache; its address is `.address`."""
    result = CFunc(function, (arguments, types.void), locals={}, options={**_OPTIONS, "nopython": True, **options})
    result._cache = _Cache(function)
    result.compile()
    return result


KERNELS: list["Kernel"] = []


class Kernel:
    """A function (part, parts, job, like), compiled at its first use with a dtype."""

    def __init__(self, function, job, needs):
        self.function, self.job, self.needs = function, job, needs
        self._compiled = {}
        KERNELS.append(self)

    def address(self, dtype) -> int:
        """Address of the machine code for float32 or float64."""
        found = self._compiled.get(dtype.char)
        if found is None:
            if self.needs:
                self.needs(dtype)
            scalar = from_dtype(dtype)
            arguments = types.int64, types.int64, types.CPointer(from_dtype(self.job)), types.CPointer(scalar)
            code = c_function(self.function, arguments)
            found = self._compiled[dtype.char] = code.address, code
        return found[0]


class Addresses(dict):
    """Addresses of kernels for a driver to call, an int64 array for each dtype's character."""

    def __init__(self, *kernels):
        super().__init__()
        self.kernels = kernels

    def __missing__(self, char):
        found = self[char] = np.array([k.address(np.dtype(char)) for k in self.kernels], np.int64)
        return found


@lru_cache
def _none(dtype, ndim):
    return np.empty((0,) * ndim, dtype)


def given(dtype, ndim, *arrays):
    """The arrays as drivers take them, which know arrays of one type only: an empty one for None. See simd's address_or_null."""
    return (_none(dtype, ndim) if a is None else a for a in arrays)


def kernel(job, needs=None):
    """Decorator: a kernel whose job is a record of this dtype. needs(dtype) is called before it is compiled or loaded."""
    return lambda function: Kernel(function, job, needs)


def entry(function):
    """A driver called from Python with arrays: compiled at its first call for a dtype, or loaded from the cache."""
    dispatcher = njit(**_OPTIONS)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


def compiled(function):
    """A function called from kernels, whose machine code holds it."""
    return njit(**_INNER)(function)


def inlined(function):
    """A small function that must disappear into its caller's loop for the loop to vectorise."""
    return njit(forceinline=True, **_INNER)(function)
