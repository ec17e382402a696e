"""Kernels to PTX, and through ptxas, on a machine without a GPU."""

import contextlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest.mock import patch

from numba import cuda
from numba.cuda.cudadrv import nvvm

from fastgrad.kernels.cuda.engine.device import offline

CAPABILITIES = ((8, 0), (9, 0), (10, 0))


def compiled(function, signature, cc=(9, 0), **options):
    """The PTX of a kernel of these argument types."""
    with offline(cc):
        return cuda.compile_ptx(getattr(function, "py_func", function), signature, cc=cc, device=False, **options)[0]


@contextlib.contextmanager
def lowered_once(kernel):
    """Inside, what Numba makes of a kernel for one capability is compiled by NVVM for the others too: it differs in names alone.

    Numba takes several times as long as NVVM.
    """
    compile_whole, compile_ir, lowered = kernel._compile, nvvm.compile_ir, {}

    def compile_once(dtype, cc):
        def keep(source, **options):
            lowered[dtype] = source, options
            return compile_ir(source, **options)

        if dtype in lowered:
            source, options = lowered[dtype]
            return compile_ir(source, **{**options, "arch": f"compute_{cc[0]}{cc[1]}"}).decode().strip("\0\n")
        with patch.object(nvvm, "compile_ir", keep):
            return compile_whole(dtype, cc)

    with patch.object(kernel, "_compile", compile_once):
        yield


def ptxas():
    """ptxas's path, or None."""
    return shutil.which("ptxas")


class Resources:
    """What ptxas says of a kernel: registers a thread, bytes of shared memory, bytes spilled and of stack."""

    def __init__(self, text):
        self.registers = int(re.search(r"Used (\d+) registers", text)[1])
        shared = re.search(r"(\d+) bytes smem", text)
        self.shared = int(shared[1]) if shared else 0
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        ).groups()
        self.stack, self.spilled = int(stack), int(stores) + int(loads)


def assembled(ptx, cc):
    """Resources of the kernel; raises AssertionError with ptxas's words where it refuses, as it does a symbol that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas(), f"-arch=sm_{cc[0]}{cc[1]}", "-v", source, "-o", Path(folder, "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Resources(done.stderr)
