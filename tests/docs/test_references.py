"""What the pages name is there: public names, files and identifiers; and the programs that a page has as files run."""

import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
DEVELOPER = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "developer").glob("*.md"))]
PACKAGES = {"fg": "fastgrad", "fgt": "fastgrad.torch", "fgj": "fastgrad.jax"}
# code within a line, and blocks of code, which are not
SPAN, FENCE = re.compile(r"`([^`\n]+)`"), re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
FOLDERS = "kernels", "fastgrad", "tests", "bench", "docs", ".ci"
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")] + [ROOT / "pyproject.toml"]


@functools.cache
def words():
    """All words of the code."""
    return set(re.findall(r"\w+", "\n".join(file.read_text("utf-8") for file in CODE)))


def spans(path):
    return SPAN.findall(FENCE.sub("", path.read_text("utf-8")))


def name_of(path):
    return str(path.relative_to(ROOT))


def value_of(name):
    """The object of a dotted name such as fg.nn.Dense; AttributeError if there is none."""
    package, *parts = name.split(".")
    value = importlib.import_module(PACKAGES[package])
    for part in parts:
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_public_names_of_a_page_are_there(path):
    names = {name for span in spans(path) for name in re.findall(r"\b((?:fg|fgt|fgj)(?:\.\w+)+)", span)}
    missing = []
    for name in sorted(names):
        if (
            name.startswith(("fgt.", "fgj."))
            and importlib.util.find_spec({"fgt": "torch", "fgj": "jax"}[name[:3]]) is None
        ):
            continue
        try:
            value_of(name)
        except AttributeError:
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_files_of_a_page_are_there(path):
    files = {span for span in spans(path) if re.fullmatch(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./]*", span)}
    # symlog is the op that a page tells how to add, results are what a run leaves
    named = [file for file in sorted(files) if "symlog" not in file and not file.startswith("bench/results")]
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("path", DEVELOPER, ids=name_of)
def test_the_identifiers_of_a_developer_page_are_in_the_code(path):
    identifiers = {
        word for span in spans(path) if re.fullmatch(r"[\w.]+(\(\))?", span) for word in re.findall(r"\w+", span)
    }
    # the page's own programs define some
    own = set(re.findall(r"\w+", "\n".join(match[0] for match in FENCE.finditer(path.read_text("utf-8")))))
    files = {file.stem for file in CODE} | {"py", "md", "toml", "symlog"}
    assert sorted(identifiers - words() - own - files) == []


PROGRAMS = re.findall(
    r'```py title="(\w+\.py)"\n(.*?)```',
    (ROOT / "docs" / "integrations" / "several-processes.md").read_text("utf-8"),
    re.DOTALL,
)


@pytest.mark.parametrize(("file", "program"), PROGRAMS, ids=[file for file, _ in PROGRAMS])
def test_the_programs_of_several_processes_run(file, program, tmp_path):
    pytest.importorskip("sklearn", reason="the page's data is scikit-learn's")
    (tmp_path / file).write_text(program, "utf-8")
    command = [sys.executable, file]
    if "mpi4py" in program:
        pytest.importorskip("mpi4py", reason="needs the extra [mpi]")
        mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if mpiexec is None:
            pytest.skip("there is no mpiexec: the extra [mpi] has one")
        command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", file]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTGRAD_BACKEND": "cpu"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    accuracy = float(re.fullmatch(r"accuracy (\d\.\d+)", result.stdout.strip())[1])
    assert accuracy > 0.85
