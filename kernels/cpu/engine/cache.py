"""The cache of compiled kernels: a file for each function, signature, processor and setting of Numba, with the compiled function as Numba
serialises it. Where files lie and which are loaded: kernels/disk_cache.py.
"""

import contextlib
import os
import pickle
import platform
from functools import lru_cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from fastgrad.kernels import disk_cache

# settings of Numba that do not change machine code, but differ from process to process; and all of CUDA's
IRRELEVANT = {
    "CACHE_DIR",
    "NUMBA_DEFAULT_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "THREADING_LAYER",
    "THREADING_LAYER_PRIORITY",
}


@lru_cache
def _version() -> str:
    """Name of this version's folder."""
    root = Path(__file__).parents[2]
    sources = *root.glob("*.py"), *(root / "cpu").rglob("*.py")
    versions = numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), platform.machine()
    return disk_cache.version(root, sources, versions, os.environ.get("FASTGRAD_VECTOR_BITS"))


def folders() -> list[Path]:
    """The folders to read from, in this order. Only the last one is writable. Missing folders are created."""
    return disk_cache.folders(_version())


def settings() -> dict[str, object]:
    """Numba's settings that machine code may depend on, as they are now."""
    found = vars(numba.config)
    return {
        name: found[name] for name in sorted(found) if name.isupper() and "CUDA" not in name and name not in IRRELEVANT
    }


def _source(function):
    """Where a function of the backend, and each function that its closure holds, is in the sources, on which the folder's name depends.

    None for a function of elsewhere, or if the closure holds something other than those and integers.
    """
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    inner = [cell if isinstance(cell, int) else getattr(cell, "py_func", None) for cell in cells]
    captured = [cell if cell is None or isinstance(cell, int) else _source(cell) for cell in inner]
    if None in captured or not function.__module__.startswith(f"{__package__.rpartition('.')[0]}."):
        return None
    return function.__module__, function.__qualname__, function.__code__.co_firstlineno, captured


def _stored_form(result):
    """What Numba's CompileResult._rebuild takes, without what only a compilation of callers would need: of the LLVM code the names are
    left, and of inner functions no environments, which loading would search for in modules that nothing else imports.
    """
    (name, kind, (machine_code, _)), fndesc, environment, *others, _ = result._reduce()
    names = ir.Module()
    called = {fndesc.llvm_func_name, fndesc.llvm_cfunc_wrapper_name, fndesc.llvm_cpython_wrapper_name}
    for function in result.library._final_module.functions:
        if function.name in called and not function.is_declaration:
            stub = ir.Function(names, ir.FunctionType(ir.VoidType(), ()), function.name)
            ir.IRBuilder(stub.append_basic_block()).ret_void()
    for variable in result.library._final_module.global_variables:
        if variable.name == environment.env_name:
            ir.GlobalVariable(names, ir.IntType(64), variable.name).initializer = ir.IntType(64)(0)
    bitcode = llvmlite.binding.parse_assembly(str(names)).as_bitcode()
    return (name, kind, (machine_code, bitcode)), fndesc, environment, *others, ()


class Cache:
    """The cache of one function, with the interface that Numba needs: load_overload and save_overload.

    Args:
        function: the Python function.
        options: of its compilation, which are part of the key.
    """

    def __init__(self, function, options):
        self.function, self.options = function, options
        self.source = _source(function)
        self.stored = self.source is not None

    def _entry(self, signature, codegen):
        """(name, key) of the function's file for a signature."""
        what = self.source, str(signature), self.options, codegen.magic_tuple(), settings()
        return disk_cache.named(self.function.__qualname__, *what)

    def holds(self, signature, target_context) -> bool:
        """Whether there is a file for a signature. It may be one that load_overload does not accept."""
        if not self.stored:
            return False
        name, _ = self._entry(signature, target_context.codegen())
        return any((folder / name).is_file() for folder in folders())

    def load_overload(self, signature, target_context):
        """The compiled function, or None if it must be compiled; no error of a file is raised."""
        if not self.stored:
            return None
        try:
            payload = disk_cache.read(_version(), *self._entry(signature, target_context.codegen()))
            if payload is None:
                return None
            # Numba's own cache loads all that it could compile with, which takes longer than everything else here; machine code
            # needs its allocator only
            rtsys.initialize(target_context)
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception:
            return None

    def save_overload(self, signature, result):
        """Store a compiled function for later processes, if that is possible."""
        # what holds addresses of this process is of no use in another
        if not self.stored or result.library.has_dynamic_globals:
            return
        with contextlib.suppress(Exception):
            disk_cache.write(_version(), *self._entry(signature, result.codegen), dumps(_stored_form(result)))
