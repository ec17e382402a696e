"""Which backend is in force: "cpu", "cuda" or "numpy".

FASTGRAD_BACKEND names the one a process starts with ("cpu" without it). A backend asked for by name never falls back. Arrays on a GPU
choose "cuda" whatever is in force, which is for arrays of NumPy; "cuda" in force copies them there and back (host_transfer.py).
"""

import importlib
import os
import threading
from contextvars import ContextVar
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.device import BackendError as BackendError
from fastgrad.kernels.backend import Backend

BACKENDS = {"cpu": "fastgrad.kernels.cpu", "cuda": "fastgrad.kernels.cuda", "numpy": "fastgrad.kernels.reference"}

_process = os.environ.get("FASTGRAD_BACKEND") or "cpu"
_context: ContextVar[str | None] = ContextVar("fastgrad_backend", default=None)
_loaded: dict[str, Any] = {}


class use_backend:
    """Choose the backend: `use_backend("numpy")` from now on, `with use_backend("numpy"):` for a block.

    The plain call holds for the process when the main thread makes it, else for the calling thread; `with` holds for
    the block in its own thread or task. Raises ValueError for an unknown name, BackendError where it cannot run.
    """

    def __init__(self, name: str) -> None:
        global _process
        load(name)
        self.name = name
        self._before = _process, _context.get()
        if threading.current_thread() is not threading.main_thread() or _context.get() is not None:
            _context.set(name)
        else:
            _process = name

    def __enter__(self) -> None:
        global _process
        if _context.get() is None:
            # undo the plain call: other threads keep theirs
            _process = self._before[0]
        _context.set(self.name)

    def __exit__(self, *error: object) -> None:
        _context.set(self._before[1])


def backend() -> str:
    """The name of the backend in force."""
    return _context.get() or _process


def kernels(x: Any = None) -> Backend:
    """The module of kernels for x: those in force for an array of NumPy, "cuda" for one on a GPU."""
    if x is not None and type(x) is not np.ndarray and device.on_gpu(x):
        module = load("cuda", "an array on a GPU")
        return getattr(module, "direct", module)
    # what use_backend named is loaded
    name = _context.get() or _process
    return _loaded.get(name) or load(name, "FASTGRAD_BACKEND")


def load(name: str, asked_by: str = "use_backend") -> Any:
    """The module of kernels of that name."""
    if name not in _loaded:
        check.choice(asked_by, "the backend", name, BACKENDS)
        reason = missing(name) or unfinished(name)
        if reason:
            raise BackendError(f'the backend "{name}" cannot run here: {reason}')
        module: Any = importlib.import_module(BACKENDS[name])
        if name == "cuda":
            # it takes the reference with it, which others need not wait for
            from fastgrad.core.host_transfer import HostArrayAdapter

            module = HostArrayAdapter(module)
        _loaded[name] = module
    return _loaded[name]


def missing(name: str) -> str:
    """What this backend lacks here, or an empty string."""
    if name == "cuda":
        return device.missing()
    try:
        importlib.import_module(BACKENDS[name])
    except ImportError as error:
        return str(error)
    return ""


def unfinished(name: str) -> str:
    """What "cuda" lacks that the reference has, or an empty string."""
    every = importlib.import_module(BACKENDS["numpy"]).__all__ if name == "cuda" else []
    lacks = set(every) - set(importlib.import_module(BACKENDS[name]).__all__)
    return f"this version has no {', '.join(sorted(lacks))} for it" if lacks else ""


def set_num_threads(count: int) -> None:
    """How many threads the "cpu" backend may use, 1 to 4096; a call that is under way keeps its number."""
    from fastgrad.kernels.cpu.engine import thread_pool

    thread_pool.set_num_threads(check.count("set_num_threads", "count", count, most=thread_pool.MOST_THREADS))


def get_num_threads() -> int:
    """How many threads the "cpu" backend may use."""
    from fastgrad.kernels.cpu.engine import thread_pool

    return thread_pool.get_num_threads()
