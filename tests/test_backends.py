"""Every backend exports the same functions with the same arguments, from files of the same name."""

import inspect


def functions(backend):
    return {name: getattr(backend, name) for name in backend.__all__}


def arguments(function):
    """Names, kinds and defaults of the arguments, of a compiled function too."""
    parameters = inspect.signature(getattr(function, "py_func", function)).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def test_same_functions(backend):
    from fastgrad.kernels import reference

    assert sorted(backend.__all__) == sorted(reference.__all__)
    assert all(callable(function) for function in functions(backend).values())


def test_same_arguments(backend):
    from fastgrad.kernels import reference

    ours, theirs = functions(backend), functions(reference)
    assert {name: arguments(ours[name]) for name in ours} == {name: arguments(theirs[name]) for name in theirs}


def test_an_op_has_the_same_file_name_everywhere(backend):
    from fastgrad.kernels import reference

    ours, theirs = functions(backend), functions(reference)

    def room(function):
        return getattr(function, "py_func", function).__module__.rpartition(".")[2]

    assert {name: room(ours[name]) for name in ours} == {name: room(theirs[name]) for name in theirs}
