"""Every backend exports the same functions with the same arguments, from files of the same name; the CUDA backend, those it has."""

import inspect

import pytest

pytestmark = pytest.mark.cuda


def functions(backend):
    return {name: getattr(backend, name) for name in backend.__all__}


def counterparts(backend):
    """The reference's functions, all of them or those that the CUDA backend has."""
    from fastgrad.kernels import reference

    theirs = functions(reference)
    return {name: theirs[name] for name in backend.__all__} if "cuda" in backend.__name__ else theirs


def arguments(function):
    """Names, kinds and defaults of the arguments, of a compiled function too."""
    parameters = inspect.signature(getattr(function, "py_func", function)).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def test_same_functions(backend):
    assert sorted(backend.__all__) == sorted(counterparts(backend))
    assert all(callable(function) for function in functions(backend).values())


def test_same_arguments(backend):
    ours, theirs = functions(backend), counterparts(backend)
    assert {name: arguments(ours[name]) for name in ours} == {name: arguments(theirs[name]) for name in theirs}


def test_an_op_has_the_same_file_name_everywhere(backend):
    ours, theirs = functions(backend), counterparts(backend)

    def room(function):
        return getattr(function, "py_func", function).__module__.rpartition(".")[2]

    assert {name: room(ours[name]) for name in ours} == {name: room(theirs[name]) for name in theirs}
