"""The files and changes that the developer pages show, made in a copy of the repository, in which the pages' own tests then run."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_pages import ROOT

# pages in the order in which their files are made
PAGES = "cpu-engine", "cuda-engine", "add-an-op", "testing"
FILE = re.compile(r'^```(python|py|diff) title="([\w./-]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
FOLDERS = "fastgrad", "kernels", "tests", "docs"


def files(page):
    """(kind, path, text) of a page's blocks with a file name; a diff is a change of the file."""
    return FILE.findall((ROOT / "docs" / "developer" / f"{page}.md").read_text("utf-8"))


def changed(text, change):
    """The text after a change: hunks between lines of @@, whose lines begin with + where added, - where removed, else with a blank."""
    for hunk in re.split(r"^@@\n", change, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if not line.startswith(sign)) for sign in "+-")
        assert text.count(before) == 1, f"not once in the file:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with all files and changes of the pages."""
    folder = tmp_path_factory.mktemp("repository")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    for page in PAGES:
        for kind, path, text in files(page):
            file = folder / path
            assert file.exists() == (kind == "diff"), path
            file.write_text(changed(file.read_text("utf-8"), text) if kind == "diff" else text, "utf-8")
    return folder


def run_tests(copy, *arguments):
    """{file of tests: how many of them pass there}; none may fail."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "FASTGRAD_CACHE_DIR": str(copy / "cache")}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return Counter(re.findall(r"^(tests/\S+?)::.* PASSED", result.stdout, re.MULTILINE))


def test_the_changes_of_the_pages_fit_the_files(copy):
    assert (copy / "tests" / "kernels" / "test_symlog.py").exists()
    assert "HARD_TANH" in (copy / "kernels" / "types.py").read_text("utf-8")


@pytest.mark.full
def test_the_activation_op_and_test_of_the_pages_pass(copy):
    """In one process, which compiles the copy's kernels once: tests of the activation and of the op, and rules for every file and name."""
    (path,) = [path for _, path, _ in files("testing")]
    own = "tests/kernels/test_symlog.py", "tests/kernels/test_backends.py", path
    rules = "tests/project/test_layout.py", "tests/docs"
    words = "hard_tanh symlog snapshot entry api/functions.md import hides".split()
    chosen = " or ".join([*words, *(Path(name).name for name in own)])
    # emulated kernels are those of float32 with another type
    passed = run_tests(copy, "tests/kernels/test_activation.py", *own, *rules, "-k", f"({chosen}) and not float64-cuda")
    assert passed["tests/kernels/test_activation.py"] > 20
    assert passed[own[0]] + passed[own[1]] > 20
    assert passed[path] >= 4
    assert sum(count for name, count in passed.items() if name.startswith(rules)) > 5


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_code_that_is_only_shown(page):
    """Every block of Python runs: with the page, or as a file of the copy."""
    text = (ROOT / "docs" / "developer" / f"{page}.md").read_text("utf-8")
    shown = [line for line in re.findall(r"^```(.+)$", text, re.MULTILINE) if line.startswith(("py", "diff"))]
    assert [line for line in shown if line != "python" and " title=" not in line] == []
