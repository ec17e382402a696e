"""The wheel holds fastgrad alone at top level, the kernels inside it; an installed copy runs; imports are light."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from a copy of the tree, which stays clean."""
    pytest.importorskip("setuptools", "77", reason="building needs setuptools 77")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in [
        *ROOT.glob("*.*"),
        ROOT / "LICENSE",
        ROOT / "fastgrad" / "py.typed",
        *(f for room in ("fastgrad", "kernels") for f in ROOT.glob(f"{room}/**/*.py")),
    ]:
        if file.is_file():
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = built.glob("fastgrad-*.whl")
    return path


def test_the_wheel_holds_fastgrad_and_nothing_else_at_top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    (metadata,) = tops - {"fastgrad"}
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in names
    assert "fastgrad/py.typed" in names


def test_the_wheel_holds_every_module(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    api = {str(file.relative_to(ROOT)) for file in (ROOT / "fastgrad").rglob("*.py")}
    kernels = {f"fastgrad/{file.relative_to(ROOT)}" for file in (ROOT / "kernels").rglob("*.py")}
    assert names == api | kernels


def test_an_installed_copy_runs_from_a_folder_that_cannot_be_written(wheel, tmp_path):
    """Outside the tree, on the reference: the package imports itself by its installed name alone."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import numpy as np, fastgrad as fg, fastgrad.kernels.types as names
assert fg.__file__.startswith({str(tmp_path)!r}), fg.__file__
assert names.__file__.startswith({str(tmp_path)!r}), names.__file__
fg.use_backend("numpy")
trainer = fg.Trainer(fg.nn.DenseChain([4, 8, 3], output="softmax"))
loss = trainer.fit(np.ones((8, 4), np.float32), np.zeros(8, int), epochs=20).loss
assert loss[-1] < loss[0]
print(fg.__version__)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


def test_import_takes_at_most_as_long_again_as_its_dependencies():
    """The best of ten, in turns: a busy machine only adds, and not to one alone."""

    def seconds(imports):
        code = f"import time; start = time.perf_counter(); import {imports}; print(time.perf_counter() - start)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    without, with_it = zip(
        *((seconds("numpy, numba"), seconds("numpy, numba, fastgrad")) for _ in range(10)), strict=True
    )
    assert min(with_it) < 2 * min(without)
