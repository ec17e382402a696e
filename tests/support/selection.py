"""Which cases of each test function run: a few of those on emulated kernels, and three of all in the quick run."""

import numpy as np

QUICK_CASES = 3
# parameters by their weight: a case on a backend that no other case of the function is on comes first
BACKEND_PARAMETERS, DTYPE_PARAMETERS = ("backend", "in_force"), ("dtype",)


def split_emulated(items, default):
    """(kept, left out): of each function's cases on emulated kernels the number of its mark `emulated`, or this one."""
    left_out = []
    for cases in by_function(item for item in items if is_emulated(item)):
        mark = cases[0].get_closest_marker("emulated")
        left_out += shuffled(cases)[mark.args[0] if mark else default :]
    return _split(items, left_out)


def split_quick(items):
    """(kept, left out) of the quick run: nothing marked `full`, and three cases of each function that cover most."""
    left_out = [item for item in items if item.get_closest_marker("full")]
    for cases in by_function(item for item in items if not item.get_closest_marker("full")):
        covering = covering_cases(cases, QUICK_CASES)
        left_out += [case for case in cases if case not in covering]
    return _split(items, left_out)


def is_emulated(item):
    return any(parameters(item).get(name) == "cuda" for name in BACKEND_PARAMETERS)


def by_function(items):
    """Lists of the cases of one test function each."""
    functions = {}
    for item in items:
        functions.setdefault((item.path, item.cls, getattr(item, "originalname", item.name)), []).append(item)
    return functions.values()


def covering_cases(cases, count):
    """So many cases, each the one with most values that no case before it has: backends first, then dtypes, then the others."""
    chosen, rest, covered = [], shuffled(cases), set()
    while rest and len(chosen) < count:
        best = max(rest, key=lambda case: _new_values(case, covered))
        chosen.append(best)
        rest.remove(best)
        covered |= set(_values(best))
    return chosen


def shuffled(cases):
    """In a fixed order that is none of the parameters', so that its beginning is spread over all."""
    return [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]


def parameters(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def _new_values(case, covered):
    new = [name for name, value in _values(case) if (name, value) not in covered]
    return (
        sum(name in BACKEND_PARAMETERS for name in new),
        sum(name in DTYPE_PARAMETERS for name in new),
        len(new),
    )


def _values(case):
    """(name, value) of each parameter; of values that have no hash, their places."""
    indices = case.callspec.indices if hasattr(case, "callspec") else {}
    for name, value in parameters(case).items():
        try:
            hash(value)
        except TypeError:
            value = ("at", indices[name])
        yield name, value


def _split(items, left_out):
    left_out = {item.nodeid for item in left_out}
    return [i for i in items if i.nodeid not in left_out], [i for i in items if i.nodeid in left_out]
