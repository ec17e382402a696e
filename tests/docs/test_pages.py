"""Each page of docs/ is a program: its Python blocks run in order, from nothing, in a process and an empty folder of their own.

A page says at its head what it needs besides the extra [test], and whether it takes more than a few seconds:

    ---
    needs: torch sklearn
    full: true
    ---

A block that imports PyTorch, JAX, Keras or ONNX Runtime is left out where that is not installed. The blocks of README.md run by themselves,
each a program of its own.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# a block may be indented, in a list or a tab
BLOCK = re.compile(r"^( *)```python(?: title=.*?)?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
HEAD = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
SECONDS = 300
# they start no threads when they are imported
HEAVY = "jax", "matplotlib", "sklearn", "torch"
# what is imported at a first use: of History.plot, and of PyTorch's optimizers
LATER = {".plot(": "matplotlib.figure", "torch.optim": "torch._dynamo"}
PEERS = {"torch", "jax", "keras", "onnxruntime"}


def head(text):
    """{key: value} of a page's front matter."""
    match = HEAD.match(text)
    return dict(re.findall(r"^(\w+): *(.*)$", match[1], re.MULTILINE)) if match else {}


def programs(text):
    """The text's blocks, each with as many empty lines before it as the page has lines, so that errors name the page's lines."""
    for match in BLOCK.finditer(text):
        lines = [line.removeprefix(match[1]) for line in match[2].splitlines(keepends=True)]
        yield "\n" * (text.count("\n", 0, match.start()) + 1) + "".join(lines)


def whole_program(text):
    """The blocks of a page as one program, each line where it is in the page, but for those that import a peer which is missing."""
    program = ""
    for block in programs(text):
        if all(map(importlib.util.find_spec, imported(block) & PEERS)):
            program += block[program.count("\n") :]
    return program


@pytest.fixture(scope="module")
def server():
    """Runs programs as a reader would, with warnings as errors, and imports the packages that take seconds once for all of them."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "FASTGRAD_BACKEND": "cpu"}
    if importlib.util.find_spec("jax"):
        environment.setdefault("KERAS_BACKEND", "jax")
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "support" / "program_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as server:
        yield server


def run(server, program, name, folder):
    path = folder / f"{name.replace('/', '_')}.py"
    path.write_text(program, "utf-8")
    modules = ["fastgrad.kernels.cpu", *(module for module in modules_of(program) if module.startswith(HEAVY))]
    modules += [module for word, module in LATER.items() if word in program]
    print(json.dumps([str(path), modules, SECONDS]), file=server.stdin, flush=True)
    status = server.stdout.readline()
    assert status == "0\n", f"{name}: {status}{path.with_suffix('.txt').read_text('utf-8')[-4000:]}"


def skip_without(packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the page needs {package}")


def modules_of(program):
    """The modules that a program imports."""
    nodes = list(ast.walk(ast.parse(program)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {*names, *(node.module for node in nodes if isinstance(node, ast.ImportFrom))}


def imported(program):
    """The packages that a program imports."""
    return {name.split(".")[0] for name in modules_of(program)}


def cases():
    for path in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]:
        if path.exists() and BLOCK.search(text := path.read_text("utf-8")):
            marks = [pytest.mark.full] if head(text).get("full") == "true" else []
            yield pytest.param(path, marks=marks, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("path", list(cases()))
def test_the_python_of_every_page_runs(server, path, tmp_path):
    text = path.read_text("utf-8")
    skip_without(head(text).get("needs", "").split())
    run(server, whole_program(text), str(path.relative_to(ROOT)), tmp_path)


README = list(programs((ROOT / "README.md").read_text("utf-8")))


@pytest.mark.parametrize("number", range(len(README)))
def test_every_block_of_the_readme_runs_by_itself(server, number, tmp_path):
    skip_without(imported(README[number]) - {"fastgrad"})
    run(server, README[number], f"README, block {number}", tmp_path)
