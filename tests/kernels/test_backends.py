"""Every backend exports the functions of the contract with its arguments, from files of the same name."""

import ast
import inspect
from pathlib import Path

import pytest

from fastgrad.kernels import reference
from fastgrad.kernels.backend import Backend

CONTRACT = {name: function for name, function in vars(Backend).items() if not name.startswith("_")}
POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD

pytestmark = pytest.mark.cuda


def functions(backend):
    return {name: getattr(backend, name) for name in backend.__all__}


def expected_names(backend):
    """All names of the contract, or those that the CUDA backend has."""
    return backend.__all__ if "cuda" in backend.__name__ else CONTRACT


def parameters(function):
    """Of a compiled function too."""
    return list(inspect.signature(getattr(function, "py_func", function)).parameters.values())


def described(parameters):
    return [(p.name, p.kind, p.default) for p in parameters]


def files(functions):
    """The file of each function, but of what is no op and so part of an engine."""
    modules = {name: getattr(function, "py_func", function).__module__ for name, function in functions.items()}
    return {name: module.rpartition(".")[2] for name, module in modules.items() if ".engine." not in module}


def test_functions_are_those_of_the_contract(backend):
    assert sorted(backend.__all__) == sorted(expected_names(backend))
    assert set(backend.__all__) <= set(CONTRACT)
    assert all(callable(function) for function in functions(backend).values())


def test_arguments_are_those_of_the_contract(backend):
    """Names, kinds and defaults."""
    ours = {name: described(parameters(function)) for name, function in functions(backend).items()}
    theirs = {name: described(parameters(CONTRACT[name])[1:]) for name in ours}
    assert ours == theirs


@pytest.mark.parametrize("name", CONTRACT)
def test_at_most_8_arguments_are_positional(name):
    assert sum(p.kind in POSITIONAL for p in parameters(CONTRACT[name])[1:]) <= 8


def test_an_op_has_the_same_file_name_everywhere(backend):
    ours, theirs = files(functions(backend)), files(functions(reference))
    assert ours == {name: theirs[name] for name in ours}


def test_an_op_has_a_test_file_of_its_name():
    """The library's own engine has tests by other names."""
    missing = {
        name
        for name in files(functions(reference)).values()
        if not Path(__file__).with_name(f"test_{name}.py").exists()
    }
    assert missing == set()


def test_cuda_has_every_function_of_the_reference():
    """Without it the backend refuses to start, which only a GPU would show: its source is read, since it needs packages to import."""
    tree = ast.parse((Path(reference.__file__).parents[1] / "cuda" / "__init__.py").read_text())
    (names,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert set(reference.__all__) <= set(ast.literal_eval(names))
