"""The cache of compiled kernels on disk: a file for each function, signature, processor and setting of Numba.

File: the SHA-256 of key and payload, then the payload, which is the compiled function as Numba serialises it. The file's name ends in the
hash of the key, so processes share no index; if two processes write the same file, either version is right. A file is written under a
temporary name, then renamed. A file that cannot be read, or whose hash is wrong, is a miss: the function is compiled again, and the file
replaced.

Safety: loading a file runs what it holds. So a folder, and each file in it, is used only if the user or root owns it and nobody else can
write to it.

Folder: FASTGRAD_CACHE_DIR, or the user's cache folder. If that cannot be created or written, also one in the folder for temporary files.
If neither can be used, every process compiles its kernels.

Version: the name of the folder inside is a hash of the sources in kernels/ (without cuda/), of the versions and of the vector width. So
after an edit or an upgrade no old machine code is loaded.
"""

import contextlib
import hashlib
import os
import pickle
import platform
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

DIGEST = hashlib.sha256().digest_size
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
    content = hashlib.sha256()
    root = Path(__file__).parent.parent
    for source in sorted(set(root.rglob("*.py")) - set((root / "cuda").rglob("*.py"))):
        content.update(f"{source.relative_to(root)}\n".encode() + source.read_bytes())
    versions = numba.__version__, llvmlite.__version__, np.__version__, platform.python_version(), platform.machine()
    content.update(repr((versions, os.environ.get("FASTGRAD_VECTOR_BITS"))).encode())
    return content.hexdigest()[:16]


@lru_cache
def _candidates() -> list[Path]:
    """This version's folder in each place that is tried, best first."""
    places = []
    named = os.environ.get("FASTGRAD_CACHE_DIR")
    user = os.path.expanduser(named or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fastgrad"))
    # a "~" stays where the user has neither HOME nor an entry in the password database
    if not user.startswith("~"):
        places.append(lambda: os.path.abspath(user))
    owner = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
    places.append(lambda: os.path.join(tempfile.gettempdir(), f"fastgrad{owner}"))
    folders = []
    for place in places:
        # the working directory may be gone, and no folder for temporary files be writable
        with contextlib.suppress(OSError):
            folders.append(Path(place(), _version()))
    return folders


def _is_safe(*results: os.stat_result) -> bool:
    """Whether only the user and root own this and can write to it."""
    if not hasattr(os, "geteuid"):
        return True
    owners = 0, os.geteuid()
    return all(
        found.st_uid in owners and (stat.S_ISLNK(found.st_mode) or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        for found in results
    )


def folders() -> list[Path]:
    """The folders to read from, in this order. Only the last one is writable. Missing folders are created."""
    usable = []
    for folder in _candidates():
        with contextlib.suppress(OSError):
            for path in folder.parent, folder:
                path.mkdir(0o700, parents=True, exist_ok=True)
            # the link too, where it is one: who owns it can point it elsewhere
            if not _is_safe(folder.lstat(), folder.stat()):
                continue
            usable.append(folder)
            if os.access(folder, os.W_OK):
                break
    return usable


def read(name: str, key: bytes) -> bytes | None:
    """The payload of this key; None if the file is missing, damaged, of another key or not safe to load."""
    for folder in folders():
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            if not _is_safe(os.fstat(file.fileno())):
                continue
            content = file.read()
            if content[:DIGEST] == hashlib.sha256(key + content[DIGEST:]).digest():
                return content[DIGEST:]
    return None


def write(name: str, key: bytes, payload: bytes) -> None:
    """Put a payload where read finds it, all of it or nothing. Raises OSError where that cannot be done."""
    for folder in folders()[-1:]:
        descriptor, beside = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(key + payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


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
        key = ascii(what).encode()
        return f"{self.function.__qualname__}.{hashlib.sha256(key).hexdigest()[:32]}", key

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
            payload = read(*self._entry(signature, target_context.codegen()))
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
            write(*self._entry(signature, result.codegen), dumps(_stored_form(result)))
