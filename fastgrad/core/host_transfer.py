"""HostArrayAdapter: the "cuda" kernels for NumPy arrays. Each call copies its arrays to the GPU, and writable ones back.

So a program with NumPy arrays runs on a GPU without a change and gets NumPy arrays. A program that is to be fast keeps its arrays on the
GPU: those are never copied.
"""

from typing import Any

import numpy as np

from fastgrad.core import device
from fastgrad.kernels import reference
from fastgrad.kernels.types import OK, Constraint


class HostArrayAdapter:
    """A module of kernels as one that takes NumPy arrays. direct: the module itself, for arrays on the GPU."""

    # a test of the caller's own arrays, not of their copies
    are_uniform = staticmethod(reference.are_uniform)

    def __init__(self, module: Any) -> None:
        self.direct, self.__all__, self.__name__ = module, module.__all__, module.__name__

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.direct, name)

        def call(*arguments: Any, updates: Any = None, **named: Any) -> Any:
            copies: dict[Any, tuple[np.ndarray, Any]] = {}
            on_gpu = [_to_gpu(argument, copies) for argument in arguments]
            result = function(*on_gpu, **{name: _to_gpu(argument, copies) for name, argument in named.items()})
            for host, copy in copies.values():
                if host.flags.writeable:
                    host[...] = copy.get()
            result = _to_host(result)
            if updates is not None:
                # on the GPU updates are counted before their status is known
                updates += result[1] if isinstance(result, tuple) else result == OK
            return result

        # so that backends' signatures can be compared
        call.__wrapped__ = function  # type: ignore[attr-defined]
        call.__module__ = function.__module__
        return call


def _to_gpu(value: Any, copies: dict[Any, tuple[np.ndarray, Any]]) -> Any:
    # a constraint's widths are read on the host
    if isinstance(value, list | tuple) and not isinstance(value, Constraint):
        values = [_to_gpu(element, copies) for element in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    if not isinstance(value, np.ndarray):
        return value
    # an array that is two arguments is one array on the GPU
    place = value.ctypes.data, value.shape, value.strides, value.dtype
    if place not in copies:
        copies[place] = value, device.cuda_device().xp.asarray(value)
    return copies[place][1]


def _to_host(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_to_host(element) for element in result)
    return result.get()[()] if device.on_gpu(result) else result
