"""The command `python -m fastgrad info`: print versions, which backends run, threads, vector width and the kernel cache."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import fastgrad
from fastgrad.core.backend import BACKENDS, missing

# the adapters' libraries, and their distributions
LIBRARIES = {"PyTorch": "torch", "JAX": "jax", "scikit-learn": "scikit-learn"}


def run() -> None:
    """Print a line for each fact."""
    print(f"fastgrad {fastgrad.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(", ".join(f"{package} {_version(package)}" for package in ("numpy", "numba", "llvmlite")))
    print(", ".join(f"{library} {_version(package)}" for library, package in LIBRARIES.items()))
    for name in BACKENDS:
        reason = missing(name)
        chosen = ", in force" if name == fastgrad.backend() else ""
        print(f"backend {name}: {reason or 'runs'}{chosen}")
    if fastgrad.backend() not in BACKENDS:
        print(f"backend {fastgrad.backend()}: unknown, but named by FASTGRAD_BACKEND")
    if missing("cpu"):
        return
    from fastgrad.kernels.cpu import warmup
    from fastgrad.kernels.cpu.engine import cache, intrinsics, thread_pool

    print(f"threads: {thread_pool.get_num_threads()}")
    print(f"vectors: {intrinsics.vector_bits()} bits")
    folders = cache.folders()
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"cache: {folder}, {size / 1e6:.1f} MB{'' if os.access(folder, os.W_OK) else ', not writable'}")
    compiled, kernels = warmup.count_compiled()
    rest = "" if compiled == kernels else "; python -m fastgrad warmup compiles the rest"
    print(f"compiled: {compiled} of {kernels} kernels{rest}")
    if not folders:
        print("cache: none, since no folder can be had that others cannot write to; each process compiles its kernels")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
