"""`share_threads`: kernels run on PyTorch's OpenMP threads, so that there are not two thread pools on the same cores."""

import ctypes
from pathlib import Path

import torch

# of the libraries in which PyTorch's own operators lie, by system; where OpenMP has no GOMP_parallel ours stay on their own threads
LIBRARIES = "libtorch_cpu.so", "libtorch_cpu.dylib"


def share_threads() -> None:
    """Have kernels of the "cpu" backend run on the threads of the OpenMP library that PyTorch calls, if it does."""
    from fastgrad.kernels.cpu.engine import thread_pool

    if address := _gomp_parallel():
        thread_pool.use_openmp(address, torch.get_num_threads)


def _gomp_parallel() -> int:
    """Address of GOMP_parallel in the library that PyTorch is linked with, or 0."""
    folder = Path(torch.__file__).parent / "lib"
    for name in LIBRARIES:
        try:
            # what a library depends on is searched too, and nothing else
            return ctypes.cast(ctypes.CDLL(str(folder / name)).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0
