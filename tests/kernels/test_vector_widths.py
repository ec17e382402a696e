"""Kernels that are compiled for other widths of vectors than this machine's."""

import subprocess
import sys
from pathlib import Path

import pytest
import test_gemm
from processes import environment

VECTORS = (128, 256, 512)
PATIENCE = 1200  # seconds for all widths, maybe beside other busy processes
# the products' digest, then tests of all that has vectors written out: tiles of a GEMM, convolutions, recurrences, reductions. LLVM makes
# those of elementwise loops, whatever the width is said to be
PROGRAM = "import sys, pytest, test_gemm; print(test_gemm.digest(), flush=True); sys.exit(pytest.main(sys.argv[1:]))"
TESTS = [
    "test_dense.py::test_matches_the_reference_at_awkward_shapes",
    "test_lstm.py::test_matches_the_reference_at_awkward_shapes",
    "test_conv.py::test_matches_the_reference_at_awkward_shapes",
    "test_layer_norm.py::test_matches_the_reference_at_awkward_shapes",
    "test_health.py::test_gradients_of_any_size_are_described",
    "test_health.py::test_outputs_are_described",
]
OPTIONS = "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu and float32"


@pytest.mark.full
def test_every_vector_width_is_right_and_has_the_same_bits_of_products():
    """A process for each other width: all at once, for each compiles on one core alone."""
    native = pytest.importorskip("fastgrad.kernels.cpu.engine.intrinsics").vector_bits()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, *OPTIONS, *TESTS], cwd=Path(__file__).parent,
            env=environment(FASTGRAD_VECTOR_BITS=str(width)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for width in VECTORS if width != native
    ]  # fmt: skip
    try:
        here = test_gemm.digest()
        for process in processes:
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, output
            assert output.startswith(here)
            assert " passed" in output
    finally:
        for process in processes:
            process.kill()
            process.communicate()
