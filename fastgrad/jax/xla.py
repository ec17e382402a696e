"""The calls from XLA into Python: `call`, and one C function that makes NumPy arrays over XLA's buffers.

The structs are those of XLA's foreign function interface, xla/ffi/api/c_api.h in jax.ffi.include_dir(); their layout is the ABI. A text, an
attribute of the compiled program, has the name of the Python function, the shapes and dtypes of the arrays, and the settings. So shapes
need not be read from the buffers, and a program that another process loads from JAX's cache calls the same.
"""

import ctypes
import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import numpy as np

from fastgrad.core.backend import backend, use_backend
from fastgrad.jax.arguments import axes_of, varying

# words of 8 bytes in a call frame: places of what is read; the metadata extension is how XLA asks for the version at registration
EXTENSION, API, ARGUMENTS, RESULTS, ATTRIBUTES, WORDS = 1, 2, 9, 14, 20, 21
# of structs, in bytes
BUFFER_DATA, METADATA, METADATA_VERSION, API_VERSION, API_ERROR_CREATE = 24, 24, 8, 16, 48
VERSION_BYTES = 24
INTERNAL_ERROR = 13

HostFunction = Callable[..., None]
HOST_FUNCTIONS: dict[str, HostFunction] = {}


def host_function(function: HostFunction) -> HostFunction:
    """Decorator: a function (results, arguments, **settings) that XLA may call by its name; both are lists of arrays, or None."""
    HOST_FUNCTIONS[function.__name__] = function
    return function


class HostCall:
    """A call, parsed from its text: the Python function, the shapes and dtypes of the arrays, the settings and the backend."""

    def __init__(self, text: bytes) -> None:
        name, arguments, results, self.settings, self.backend = json.loads(text)
        self.function = HOST_FUNCTIONS[name]
        self.arguments, self.results = ([_layout(a) for a in arrays] for arrays in (arguments, results))

    def run(self, arguments: int, results: int) -> None:
        with use_backend(self.backend):
            self.function(_arrays(self.results, results), _arrays(self.arguments, arguments), **self.settings)


def _layout(array: list | None) -> tuple | None:
    """(shape, dtype, ctype of so many bytes) of an array's shape and type; None where there is no array."""
    if array is None:
        return None
    shape, name = array
    dtype = np.dtype(name)
    return tuple(shape), dtype, ctypes.c_char * (prod(shape) * dtype.itemsize)


def _arrays(layouts: Sequence[tuple | None], buffers: int) -> list[np.ndarray | None]:
    """NumPy arrays over a list of XLA's buffers; for a layout of None there is no buffer, and the array is None."""
    arrays: list[np.ndarray | None] = []
    for layout in layouts:
        if layout is None:
            arrays.append(None)
            continue
        shape, dtype, memory = layout
        address = _word(_word(buffers) + BUFFER_DATA)
        buffers += 8
        arrays.append(np.ndarray(shape, dtype, memory.from_address(address) if address else None))
    return arrays


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


host_call = lru_cache(maxsize=None)(HostCall)


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def _callback(frame: int) -> int | None:
    words = (ctypes.c_int64 * WORDS).from_address(frame)[:]
    try:
        if words[EXTENSION]:
            # XLA's own version: nothing else of it is used than what all have had
            version = _word(words[EXTENSION] + METADATA) + METADATA_VERSION
            ctypes.memmove(version, words[API] + API_VERSION, VERSION_BYTES)
            return None
        text = _word(words[ATTRIBUTES])
        host_call(ctypes.string_at(_word(text), _word(text + 8))).run(words[ARGUMENTS], words[RESULTS])
    except BaseException as error:
        return _error(words[API], f"{type(error).__name__}: {error}")
    return None


class _Error(ctypes.Structure):
    """XLA_FFI_Error_Create_Args."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


def _error(api: int, message: str) -> int:
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_word(api + API_ERROR_CREATE))
    # a struct's size ends with its last field there
    arguments = _Error(_Error.code.offset + _Error.code.size, None, message.encode(), INTERNAL_ERROR)
    return create(ctypes.addressof(arguments))


jax.ffi.register_ffi_target("fastgrad", jax.ffi.pycapsule(_callback), platform="cpu")


def call(
    op: str, function: HostFunction, results: Sequence[Any], arguments: Sequence[Any], **settings: Any
) -> list[Any]:
    """New JAX arrays with the shapes and dtypes of results, which function fills when XLA calls it; None stays None.

    Its derivative raises NotImplementedError: a function that has one is a custom_vjp around it.
    """
    text = json.dumps([function.__name__, _shapes(arguments), _shapes(results), settings, backend()])
    shapes = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results if r is not None]
    run = jax.custom_vjp(partial(jax.ffi.ffi_call("fastgrad", shapes, vmap_method="sequential"), plan=text))

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            f"{op}: fastgrad has first derivatives only, and this is the derivative of a gradient"
        )

    run.defvjp(refuse, refuse)
    inputs = [a for a in arguments if a is not None]
    # XLA is not told by which of them the results vary
    outputs = iter(varying(run(*inputs), axes_of(inputs)))
    return [None if r is None else next(outputs) for r in results]


def _shapes(arrays: Sequence[Any]) -> list:
    return [None if a is None else (a.shape, np.dtype(a.dtype).name) for a in arrays]
