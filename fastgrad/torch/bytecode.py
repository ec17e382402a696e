"""What the code of a Python function does: whether it writes to its locals only, and the names in it."""

import dis
import inspect
from functools import lru_cache
from types import CodeType

# they write to more than locals, or handle exceptions
REFUSED = (
    "STORE_GLOBAL",
    "STORE_ATTR",
    "DELETE_ATTR",
    "DELETE_GLOBAL",
    "IMPORT_",
    "PUSH_EXC_INFO",
    "BEFORE_",
    "LOAD_BUILD_CLASS",
)


@lru_cache(1024)
def is_harmless(code: CodeType) -> bool:
    """Whether code writes to its locals only, and is a plain function without variables of an outer one."""
    if code.co_freevars or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    return _has_harmless_steps(code)


def _has_harmless_steps(code: CodeType) -> bool:
    steps = all(not step.opname.startswith(REFUSED) for step in dis.get_instructions(code))
    return steps and all(_has_harmless_steps(inner) for inner in code.co_consts if isinstance(inner, CodeType))


def names_of(code: CodeType) -> list[str]:
    """The names in code and in the comprehensions and functions inside it."""
    inner = [names_of(value) for value in code.co_consts if isinstance(value, CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for names in inner for name in names)]))
