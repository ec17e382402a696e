"""The README's Python runs, one block after the other as a reader would run it: on the CPU, and unchanged where CUDA is in force."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgrad as fg

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# those that need a GPU
GPU_BLOCKS = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
# in this order in the README, after all that asks for neither
OPTIONAL = "jax", "torch"
# what says that a block is for the CPU alone
OF_THE_CPU = {
    "import jax\n": "of JAX on a CPU",
    "reduce=": "an all-reduce of NumPy arrays",
    "torch": "of tensors of the CPU",
}
# and what says that it trains for seconds, which emulated are minutes
TRAINS = "fit(", "train(", "for _ in range"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Where a reader would run the README."""
    pytest.importorskip("sklearn", reason="the README's data is scikit-learn's")
    pytest.importorskip("statsmodels", reason="the README's series are statsmodels'")
    pytest.importorskip("matplotlib", reason="the README plots a history")
    monkeypatch.chdir(tmp_path)


def run(block, name, names):
    exec(compile(block, f"README.md, {name}", "exec"), names)


def test_the_python_of_the_readme_runs(cpu, reader):
    assert len(BLOCKS) >= 3
    names = {}
    for number, block in enumerate(BLOCKS):
        if any(f"import {package}\n" in block and importlib.util.find_spec(package) is None for package in OPTIONAL):
            # the blocks after it ask for it too
            break
        run(block, f"python block {number}", names)


@pytest.mark.full
def test_the_python_of_the_readme_runs_unchanged_where_cuda_is_in_force(fake_gpu, reader, monkeypatch):
    """What trains does so by the CPU's kernels over the fake GPU's arrays, all else by the emulated ones."""
    from fakegpu import HostKernels

    from fastgrad.core.host_transfer import HostArrayAdapter

    loaded, on_host, names, ran = importlib.import_module("fastgrad.core.backend")._loaded, HostKernels(fake_gpu), {}, 0
    emulated = loaded["cuda"]

    def on_gpu(block, name):
        monkeypatch.setitem(
            loaded, "cuda", HostArrayAdapter(on_host) if any(word in block for word in TRAINS) else emulated
        )
        before = on_host.calls, len(fake_gpu.launches), fake_gpu.copies
        with fg.use_backend("cuda"):
            run(block, name, names)
        assert "fg." not in block or (on_host.calls, len(fake_gpu.launches), fake_gpu.copies) != before, (
            f"{name} ran elsewhere"
        )

    for number, block in enumerate(BLOCKS):
        if not any(word in block for word in OF_THE_CPU):
            on_gpu(block, f"python block {number}")
            ran += 1
    assert ran >= 17
    monkeypatch.setitem(sys.modules, "cupy", fake_gpu.xp)
    for number, block in enumerate(GPU_BLOCKS):
        # processes that reduce are PyTorch's
        if "torch" not in block:
            on_gpu(block, f"block {number} for a GPU")


@pytest.mark.full
def test_the_digits_are_learnt_by_the_emulated_kernels(fake_gpu, reader):
    """Fewer epochs than the README's, which would take minutes."""
    losses = []
    for backend in ("cpu", "cuda"):
        names = {}
        with fg.use_backend(backend):
            for number, block in enumerate(BLOCKS[:4]):
                shorter = block.replace("epochs=20", "epochs=3").replace("> 0.9", "> 0.5")
                assert number < 3 or shorter != block
                run(shorter, f"python block {number}", names)
        losses.append(names["history"].loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_every_row_of_a_table_has_the_cells_of_its_head():
    """GitHub takes a | for the end of a cell, in code too, unless it is escaped."""
    tables = re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table
