"""Which cases of each test function run: a few on emulated kernels, of a product of many options those with every pair of
values, and in the quick run two of all.
"""

from itertools import combinations

import numpy as np

QUICK_CASES = 2
# parameters by their weight: a case on a backend that no other case of the function is on comes first
BACKEND_PARAMETERS, DTYPE_PARAMETERS = ("backend", "in_force"), ("dtype",)


def split_full(items, emulated_cases):
    """(kept, left out) of all tests. Of a function's cases on emulated kernels those that its mark says, or `emulated_cases`."""
    left_out = []
    for cases in by_function(items):
        emulated, host = [c for c in cases if backend_of(c) == "cuda"], [c for c in cases if backend_of(c) != "cuda"]
        mark = cases[0].get_closest_marker("emulated")
        left_out += shuffled(emulated)[mark.args[0] if mark else emulated_cases :]
        if cases[0].get_closest_marker("pairwise"):
            for backend in {backend_of(case) for case in host}:
                of_backend = [case for case in host if backend_of(case) == backend]
                left_out += set(of_backend) - set(pairwise_cases(of_backend))
    return _split(items, left_out)


def split_quick(items):
    """(kept, left out) of the quick run: nothing marked `full`, and of each function two cases that cover most, or one a backend."""
    left_out = [item for item in items if item.get_closest_marker("full")]
    for cases in by_function(item for item in items if not item.get_closest_marker("full")):
        count = max(QUICK_CASES, len({backend_of(case) for case in cases}))
        left_out += set(cases) - set(covering_cases(cases, count))
    return _split(items, left_out)


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
        best = max(rest, key=lambda case: _weight(values(case) - covered))
        chosen.append(best)
        rest.remove(best)
        covered |= values(best)
    return chosen


def pairwise_cases(cases):
    """Cases in which every two values of two parameters occur together that do so in any: few, not the fewest."""
    pairs = {case: set(combinations(sorted(values(case), key=lambda v: v[0]), 2)) for case in shuffled(cases)}
    chosen, covered = [], set()
    # those with many new pairs first
    for least in range(max(map(len, pairs.values()), default=0), 0, -1):
        for case in [case for case, own in pairs.items() if len(own - covered) >= least]:
            # of which others before it may have taken some
            if len(pairs[case] - covered) >= least:
                chosen.append(case)
                covered |= pairs.pop(case)
    return chosen


def shuffled(cases):
    """In a fixed order that is none of the parameters', so that its beginning is spread over all."""
    return [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]


def parameters(case):
    return case.callspec.params if hasattr(case, "callspec") else {}


def backend_of(case):
    return next((parameters(case)[name] for name in BACKEND_PARAMETERS if name in parameters(case)), None)


def values(case):
    """{(name, value)} of the parameters; of values that have no hash, their places."""
    indices = case.callspec.indices if hasattr(case, "callspec") else {}
    return {(name, _hashable(value, indices[name])) for name, value in parameters(case).items()}


def _hashable(value, index):
    try:
        hash(value)
    except TypeError:
        return "at", index
    return value


def _weight(new):
    names = [name for name, _ in new]
    return sum(n in BACKEND_PARAMETERS for n in names), sum(n in DTYPE_PARAMETERS for n in names), len(names)


def _split(items, left_out):
    left_out = {item.nodeid for item in left_out}
    return [i for i in items if i.nodeid not in left_out], [i for i in items if i.nodeid in left_out]
