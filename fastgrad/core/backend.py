"""The choice of the backend, "cpu", "cuda" or "numpy": use_backend, backend, the number of threads, and `kernels(x)` for an array x.

The environment variable FASTGRAD_BACKEND names the backend that a process starts with; without it that is "cpu". A backend that was chosen
and cannot run raises BackendError: there is no fallback. The choice is for NumPy arrays. An array on a GPU always uses "cuda". If "cuda" is
chosen, NumPy arrays are copied to the GPU and back (host_transfer.py).
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
    the block in its own thread or task.

    Args:
        name: "cpu" (compiled kernels), "cuda" (a GPU) or "numpy" (the reference).

    Raises:
        ValueError: The name is unknown.
        BackendError: The backend cannot run here.

    Example:
        >>> with fg.use_backend("numpy"):
        ...     fg.backend()
        'numpy'
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
    """The name of the backend in force.

    Returns:
        "cpu", "cuda" or "numpy".

    Example:
        >>> fg.backend() in ("cpu", "cuda", "numpy")
        True
    """
    return _context.get() or _process


def kernels(x: Any = None) -> Backend:
    """The module of kernels for x: "cuda" for an array on a GPU, that of the chosen backend for a NumPy array or None."""
    if x is not None and type(x) is not np.ndarray and device.on_gpu(x):
        module = load("cuda", "an array on a GPU")
        return getattr(module, "direct", module)
    # a backend that use_backend has chosen is loaded
    name = _context.get() or _process
    return _loaded.get(name) or load(name, "FASTGRAD_BACKEND")


def load(name: str, caller: str = "use_backend") -> Any:
    """The module of kernels of this backend; BackendError if it cannot run. caller: the caller, for the error of an unknown name."""
    if name not in _loaded:
        check.choice(caller, "the backend", name, BACKENDS)
        reason = missing(name) or missing_functions(name)
        if reason:
            raise BackendError(f'the backend "{name}" cannot run here: {reason}')
        module: Any = importlib.import_module(BACKENDS[name])
        if name == "cuda":
            # imported here since it imports the reference, which the other backends do not need
            from fastgrad.core.host_transfer import HostArrayAdapter

            module = HostArrayAdapter(module)
        _loaded[name] = module
    return _loaded[name]


def missing(name: str) -> str:
    """Why this backend cannot run on this machine, or an empty string."""
    if name == "cuda":
        return device.missing()
    try:
        importlib.import_module(BACKENDS[name])
    except ImportError as error:
        return str(error)
    return ""


def missing_functions(name: str) -> str:
    """Which functions of the reference "cuda" does not have, or an empty string."""
    reference = importlib.import_module(BACKENDS["numpy"]).__all__ if name == "cuda" else []
    functions = set(reference) - set(importlib.import_module(BACKENDS[name]).__all__)
    return f"this version has no {', '.join(sorted(functions))} for it" if functions else ""


def set_num_threads(count: int) -> None:
    """Set how many threads the "cpu" backend may use; a call that is under way keeps its number.

    Args:
        count: The number, 1 to 4096.

    Raises:
        ValueError: The number is out of its range.
        TypeError: count is no integer.

    Example:
        >>> before = fg.get_num_threads()
        >>> fg.set_num_threads(1)
        >>> fg.get_num_threads()
        1
        >>> fg.set_num_threads(before)
    """
    from fastgrad.kernels.cpu.engine import thread_pool

    thread_pool.set_num_threads(check.count("set_num_threads", "count", count, most=thread_pool.MOST_THREADS))


def get_num_threads() -> int:
    """How many threads the "cpu" backend may use.

    Returns:
        The number, 1 to 4096.

    Example:
        >>> fg.get_num_threads() >= 1
        True
    """
    from fastgrad.kernels.cpu.engine import thread_pool

    return thread_pool.get_num_threads()
