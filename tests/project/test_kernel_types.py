"""The type checker sees through `kernels(x)` what arguments a kernel takes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import ACTIVATIONS, Chain, ChainSaved

x, w, y = np.ones((2, 3)), np.ones((3, 4)), np.empty((2, 4))
chain, saved = Chain(x, [w], [None], [ACTIVATIONS["relu"]], None), ChainSaved([y], [y])
kernels(x).dense_chain_forward(chain, saved)
kernels(x).dense_chain_forward(x, saved)
kernels(x).dense_chain_forward(saved, saved)
kernels(x).dense_chain_forward(chain)
kernels(x).dense_chain_backwards()
"""


def test_a_wrong_argument_to_a_kernel_is_an_error(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}"
    result = subprocess.run([*command, str(program)], capture_output=True, text=True, cwd=ROOT)
    errors = [line.split(": ", 2) for line in result.stdout.splitlines() if ": error: " in line]
    assert [place.rpartition(":")[2] for place, *_ in errors] == ["9", "10", "11", "12"], result.stdout + result.stderr
    assert [message.rpartition("[")[2] for *_, message in errors] == [
        "arg-type]",
        "arg-type]",
        "call-arg]",
        "attr-defined]",
    ]
