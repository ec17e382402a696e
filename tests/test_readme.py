"""The README's Python runs, one block after the other as a reader would run it."""

import importlib.util
import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text("utf-8"), re.DOTALL)
# in this order in the README, after all that asks for neither
OPTIONAL = "jax", "torch"


def test_the_python_of_the_readme_runs(cpu, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the README's data is scikit-learn's")
    pytest.importorskip("matplotlib", reason="the README plots a history")
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 3
    names = {}
    for number, block in enumerate(BLOCKS):
        if any(f"import {package}\n" in block and importlib.util.find_spec(package) is None for package in OPTIONAL):
            # the blocks after it ask for it too
            break
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
