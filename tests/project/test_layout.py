"""The rules of the tree: imports run down and in no circle, no name hides a module, and the public names are those of public_api.txt."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("public_api.txt")
# rooms of fastgrad/ from the lowest to the highest: a module imports from its own room and from those of the rows before its row
ROWS = [
    ["kernels"],
    ["core"],
    ["functional", "init", "schedule", "gpu"],
    ["nn", "optim", "jax", "loss"],
    ["health", "pruning", "convert", "torch", "sklearn"],
    ["training"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
PACKAGES = {
    "fastgrad": "",
    "fastgrad.convert": "",
    "fastgrad.gpu": "",
    "fastgrad.health": "",
    "fastgrad.init": "",
    "fastgrad.loss": "",
    "fastgrad.nn": "",
    "fastgrad.optim": "",
    "fastgrad.schedule": "",
    "fastgrad.jax": "jax",
    "fastgrad.sklearn": "sklearn",
    "fastgrad.torch": "torch",
}


def source_files():
    """{dotted name: path} of all modules of the package, kernels among them."""
    modules = {}
    for top, prefix in (("fastgrad", []), ("kernels", ["fastgrad"])):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = [*prefix, *path.relative_to(ROOT).with_suffix("").parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(name, path, modules):
    """The package's modules that one module names in its imports, those in functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            if base in modules or base == "fastgrad":
                inner = {f"{base}.{alias.name}" for alias in node.names}
                # of a package the modules that are asked for, and the package itself where it is asked for its names
                imported |= (inner & set(modules)) | ({base} if inner - set(modules) else set())
    return imported - {name}


def room_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.fixture(scope="module")
def graph():
    modules = source_files()
    return {name: imports_of(name, path, modules) for name, path in modules.items()}


def test_every_room_has_its_row(graph):
    assert {room_of(name) for name in graph} == set(LEVEL)


def test_imports_run_down(graph):
    upward = sorted(
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if room_of(other) != room_of(name) and LEVEL[room_of(other)] >= LEVEL[room_of(name)]
    )
    assert upward == []


def test_imports_run_down_in_the_kernels(graph):
    """The API is unknown there, backends know the reference alone, and an engine knows no op."""
    wrong = []
    for name in graph:
        room, backend, part = [*name.split(".")[1:], "", "", ""][:3]
        if room != "kernels":
            continue
        for other in graph[name]:
            other_room, other_backend, other_part = [*other.split(".")[1:], "", "", ""][:3]
            known = other_room == "kernels" and other_backend in ("", "types", "disk_cache", "reference", backend)
            if not known or (part == "engine" and other_backend == backend and other_part != "engine"):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_imports_have_no_circle(graph):
    done, path = set(), []

    def visit(name):
        if name in path:
            raise AssertionError(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_no_name_hides_a_module(graph):
    hidden = []
    for name in graph:
        try:
            module = importlib.import_module(name)
        except ImportError:
            # of a peer or a device that is not here
            continue
        for inner in pkgutil.iter_modules(getattr(module, "__path__", [])):
            value = getattr(module, inner.name, None)
            if value is not None and not inspect.ismodule(value):
                hidden.append(f"{name}.{inner.name}")
    assert hidden == []


def arguments(function):
    """The parameters with their defaults, without types, which Python's versions write differently."""
    text, before = [], None
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and before not in (p.KEYWORD_ONLY, p.VAR_POSITIONAL):
            text.append("*")
        before = p.kind
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text.append(f"{star}{p.name}" + ("" if p.default is p.empty else f"={p.default!r}"))
    return f"({', '.join(text)})"


def described(path, value):
    """Lines of a public function or class."""
    if not inspect.isclass(value):
        return [path + (arguments(value) if callable(value) else "")]
    lines = []
    try:
        lines.append(path + arguments(value))
    except (TypeError, ValueError):
        lines.append(path)
    for name, member in sorted(vars(value).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            lines.append(f"{path}.{name}")
        # PyTorch gives a class of optimisers a wrapper of the inherited `step` when one is made
        elif inspect.isfunction(member) and member.__qualname__ == f"{value.__qualname__}.{name}":
            lines.append(f"{path}.{name}{arguments(member)}")
    return lines


def public_lines(name):
    """A line for each public name of a module, from its __all__."""
    module = importlib.import_module(name)
    lines = []
    for public in sorted(module.__all__):
        value = getattr(module, public)
        lines += [f"{name}.{public}"] if inspect.ismodule(value) else described(f"{name}.{public}", value)
    return lines


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_and_signatures_are_those_of_the_snapshot(name):
    """FASTGRAD_SNAPSHOT=1 writes the file anew, after a change that was meant."""
    if PACKAGES[name]:
        pytest.importorskip(PACKAGES[name])
    found = public_lines(name)
    snapshot = SNAPSHOT.read_text("utf-8").splitlines() if SNAPSHOT.exists() else []
    owner = {line: max((n for n in PACKAGES if line.startswith(f"{n}.")), key=len) for line in snapshot}
    if os.environ.get("FASTGRAD_SNAPSHOT") == "1":
        others = [line for line in snapshot if owner[line] != name]
        SNAPSHOT.write_text("\n".join(sorted([*others, *found])) + "\n", "utf-8")
        return
    assert sorted(found) == [line for line in snapshot if owner[line] == name]


def test_what_is_imported_first_is_small():
    """`import fastgrad` brings no peer, no compiler and no plot."""
    names = {"torch", "jax", "keras", "onnx", "sklearn", "numba", "matplotlib", "cupy"}
    code = f"import fastgrad, sys; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
