"""Processes whose kernels are compiled for other widths of vectors than this one's: all at once, for each compiles on one core alone."""

import subprocess
import sys

import pytest
from processes import environment

VECTORS = (128, 256, 512)
PATIENCE = 1200  # seconds for all of them, maybe beside other busy processes


class Widths:
    """One process of `arguments` in this folder for each other width."""

    def __init__(self, folder, *arguments):
        native = pytest.importorskip("fastgrad.kernels.cpu.engine.intrinsics").vector_bits()
        self.processes = {
            width: subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment(FASTGRAD_VECTOR_BITS=str(width)),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for width in VECTORS if width != native
        }  # fmt: skip

    def output(self, width):
        """What that process printed; its failure is the test's."""
        if width not in self.processes:
            pytest.skip("the width of every other test")
        output, _ = self.processes[width].communicate(timeout=PATIENCE)
        assert self.processes[width].returncode == 0, output
        return output

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.communicate()
