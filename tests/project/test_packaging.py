"""The wheel holds fastgrad alone at top level, the kernels inside it; an installed copy runs and has types; imports are light."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tree, which stays clean."""
    pytest.importorskip("setuptools", "77", reason="building needs setuptools 77")
    source = tmp_path_factory.mktemp("source")
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
    # for editors and mypy
    (source / "fastgrad" / "kernels").symlink_to(Path("..", "kernels"), target_is_directory=True)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The path of a wheel."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """The path of a source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (path,) = folder.glob("fastgrad-*.tar.gz")
    return path


def build_wheel(source, folder):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("fastgrad-*.whl")
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


@pytest.mark.full
def test_a_source_distribution_gives_the_same_wheel(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    again = build_wheel(folder, tmp_path)
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


TYPED_PROGRAM = """
import numpy as np
import fastgrad as fg
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import ACTIVATIONS, Chain, ChainSaved

x, w, y = np.ones((2, 3)), np.ones((3, 4)), np.empty((2, 4))
reveal_type(fg.dense(x, w))
reveal_type(fg.Trainer(fg.nn.DenseChain([3, 4])).step_count)
fg.dense(x, w, activation=3)
chain, saved = Chain(x, [w], [None], [ACTIVATIONS["relu"]], None), ChainSaved([y], [y])
kernels(x).dense_chain_forward(chain, saved)
kernels(x).dense_chain_forward(x, saved)
kernels(x).dense_chain_forward(saved, saved)
kernels(x).dense_chain_forward(chain)
kernels(x).dense_chain_backwards()
"""


def test_mypy_finds_the_types_of_the_installed_package_and_of_its_kernels(wheel, tmp_path):
    """In an environment that has it, and NumPy: mypy reads the types there since the wheel has py.typed. Through `kernels(x)` it sees
    what arguments a kernel takes.
    """
    pytest.importorskip("mypy")
    venv.create(tmp_path / "env", symlinks=os.name != "nt")
    paths = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    site, scripts = (Path(sysconfig.get_path(name, "venv", paths)) for name in ("purelib", "scripts"))
    zipfile.ZipFile(wheel).extractall(site)
    # alone: mypy would read what else fastgrad can use
    (site / "numpy").symlink_to(Path(np.__file__).parent, target_is_directory=True)
    (tmp_path / "program.py").write_text(TYPED_PROGRAM)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--python-executable", scripts / "python", "program.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # program.py:line: kind: message
    *lines, summary = result.stdout.splitlines()
    places = [line.split(":")[1] for line in lines]
    assert places == ["8", "9", "10", "13", "14", "15", "16"], result.stdout + result.stderr
    array = r"numpy\.ndarray\[.+\]"
    dense, count, wrong, *kernels = lines
    assert re.search(rf'Revealed type is "tuple\[{array}, def \({array}\) -> tuple\[{array}, \.\.\.\]\]"', dense)
    assert 'Revealed type is "int"' in count
    assert 'Argument "activation" to "dense" has incompatible type "int"' in wrong
    kinds = [line.rpartition("[")[2] for line in kernels]
    assert kinds == ["arg-type]", "arg-type]", "call-arg]", "attr-defined]"]
    assert summary.startswith("Found 5 errors")


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


@pytest.mark.full
def test_import_takes_at_most_as_long_again_as_its_dependencies():
    """The best of four, each of both in one process: a busy machine only adds, and not to one alone."""
    code = """
from time import perf_counter
start = perf_counter()
import numpy, numba
between = perf_counter()
import fastgrad
print(between - start, perf_counter() - between)
"""

    def seconds():
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return map(float, result.stdout.split())

    dependencies, own = zip(*(seconds() for _ in range(4)), strict=True)
    assert min(own) < min(dependencies)
