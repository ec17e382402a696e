"""Arrays on a GPU: whether the "cuda" backend can run, arrays of other libraries without a copy, and copies to and from the host.

`borrow` returns the CuPy array over the memory of any array that has DLPack or __cuda_array_interface__.
"""

import ctypes
import importlib
import importlib.util
import os
from functools import cache
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import streams

# the least GPU that numba-cuda compiles for, and the least CuPy that loads its PTX
LEAST_CAPABILITY, LEAST_CUPY = (7, 5), (13, 0)
PACKAGES = {"numba_cuda": "numba-cuda", "cupy": "cupy"}
# DLPack's device types of CUDA: device memory and managed memory
DLPACK_CUDA = 2, 13


class BackendError(RuntimeError):
    """A backend cannot run here; the message says what is missing."""


def missing() -> str:
    """Why the "cuda" backend cannot run on this machine, or an empty string."""
    lacks = [f"the package {name}" for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if not has_driver():
        lacks.append("an NVIDIA driver")
    return f"missing {', '.join(lacks)}" if lacks else _fault()


def has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _fault() -> str:
    """What is wrong with the installed CuPy, the GPU or its libraries, or an empty string."""
    try:
        cupy = importlib.import_module("cupy")
        version = tuple(int(number) for number in cupy.__version__.split(".")[:2])
        if version < LEAST_CUPY:
            return f"CuPy must be at least {_version_text(LEAST_CUPY)}, got {cupy.__version__}"
        if not cupy.cuda.runtime.getDeviceCount():
            return "there is no GPU"
        capability = cupy.cuda.Device().compute_capability
        if (int(capability[:-1]), int(capability[-1])) < LEAST_CAPABILITY:
            return f"compute capability must be at least {_version_text(LEAST_CAPABILITY)}, got {capability[:-1]}.{capability[-1]}"
        # cuBLAS is a library of its own, which CuPy loads at its first use
        _ = cupy.cuda.cublas
        importlib.import_module("fastgrad.kernels.cuda")
    except Exception as error:
        # any error of a driver or of a broken installation is a reason
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _version_text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@cache
def cuda_device() -> Any:
    """The module kernels/cuda/engine/device.py; BackendError if the backend cannot run."""
    reason = missing()
    if reason:
        raise BackendError(f'the backend "cuda" cannot run here: {reason}')
    return importlib.import_module("fastgrad.kernels.cuda.engine.device")


def on_gpu(value: Any) -> bool:
    """Whether value is an array on a GPU: CuPy's, or one of another library with DLPack or __cuda_array_interface__."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] in DLPACK_CUDA
    return hasattr(value, "__cuda_array_interface__")


def borrow(op: str, name: str, value: Any) -> Any:
    """The CuPy array over the memory of an array on the current GPU; streams.py puts the owner's stream and ours in order."""
    xp, original = cuda_device().xp, value
    if type(value) is not xp.ndarray:
        try:
            value = streams.borrow(xp, value)
        except Exception as error:
            # each library has its own error for an array that it cannot share
            kind = type(value).__name__
            raise TypeError(f"{op}: {name} cannot be taken from its {kind} without a copy: {error}") from error
    current = cuda_device().device_number()
    if value.device.id != current:
        raise ValueError(
            f"{op}: {name} must be on the current GPU, {current}, got an array on GPU {value.device.id}; "
            f"a call in `with cupy.cuda.Device({value.device.id}):` runs there"
        )
    if value is not original:
        streams.order(xp, original, value)
    return value


def check_same_device(op: str, name: str, value: Any, like: Any) -> None:
    """Raise TypeError unless value is where `like` is, another array of the call: both on the host, or both on the GPU."""
    if on_gpu(value) and not on_gpu(like):
        raise TypeError(
            f"{op}: {name} must be a NumPy array like the call's other arrays, got one on GPU {value.device.id}; "
            f"cupy.asnumpy({name}) copies it"
        )
    if on_gpu(like) and not on_gpu(value):
        raise TypeError(
            f"{op}: {name} must be on GPU {like.device.id} like the call's other arrays, got a NumPy array; "
            f"cupy.asarray({name}) copies it"
        )


def to_gpu(value: Any) -> Any:
    """A copy on the GPU of a NumPy array; any other value itself."""
    return cuda_device().xp.asarray(value) if isinstance(value, np.ndarray) else value


def to_host(value: Any) -> Any:
    """A NumPy array itself; of an array on the GPU, a copy as a NumPy array."""
    return value if isinstance(value, np.ndarray) else value.get()


def constant(value: np.ndarray, like: Any) -> Any:
    """A small NumPy array on the device of `like`; a training loop copies it to a GPU once."""
    return value if isinstance(like, np.ndarray) else cuda_device().constant(value)


def address(value: Any) -> int:
    """The address of an array's first value."""
    return value.ctypes.data if isinstance(value, np.ndarray) else value.data.ptr


def take_rows(value: Any, rows: np.ndarray) -> Any:
    """Rows of an array on the GPU, by their numbers."""
    return cuda_device().xp.take(value, to_gpu(rows), axis=0)


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array on the current GPU, from CuPy's pool."""
    try:
        return cuda_device().xp.empty(shape, dtype)
    except MemoryError as error:
        size, number = prod(shape) * np.dtype(dtype).itemsize, cuda_device().device_number()
        raise MemoryError(
            f"an array {shape} of {dtype}, {size:,} bytes, does not fit into the memory of GPU {number}: {error}"
        ) from error


def zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of zeros on the current GPU."""
    array = empty(shape, dtype)
    array[...] = 0
    return array
