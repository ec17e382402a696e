"""Whether there is a GPU that the "cuda" backend can run on."""

import ctypes
import importlib
import importlib.util
import os

# what numba-cuda compiles for at least, and what loads its PTX
LEAST_CAPABILITY, LEAST_CUPY = (7, 5), (13, 0)
PACKAGES = {"numba_cuda": "numba-cuda", "cupy": "cupy"}


def missing() -> str:
    """What the "cuda" backend lacks here, or an empty string."""
    lacks = [f"the package {name}" for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if not has_driver():
        lacks.append("an NVIDIA driver")
    return f"missing {', '.join(lacks)}" if lacks else _wrong()


def has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _wrong() -> str:
    """What is wrong with what there is."""
    try:
        cupy = importlib.import_module("cupy")
        found = tuple(int(part) for part in cupy.__version__.split(".")[:2])
        if found < LEAST_CUPY:
            return f"CuPy must be at least {_dotted(LEAST_CUPY)}, got {cupy.__version__}"
        if not cupy.cuda.runtime.getDeviceCount():
            return "there is no GPU"
        capability = cupy.cuda.Device().compute_capability
        if (int(capability[:-1]), int(capability[-1])) < LEAST_CAPABILITY:
            return f"compute capability must be at least {_dotted(LEAST_CAPABILITY)}, got {capability[:-1]}.{capability[-1]}"
        importlib.import_module("fastgrad.kernels.cuda")
    except Exception as error:
        # whatever a driver or a broken installation raises is the reason
        return f"{type(error).__name__}: {error}"
    return ""


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
