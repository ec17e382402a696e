"""`residual_pattern`: whether the forward of a module computes a residual block, found by a run of its code with stand-ins.

The stand-ins, for the module and its input, record the operations. The code runs only if every name in it is known: a child of the module,
a setting of it (None, a flag, a number, a text), or one of the few PyTorch functions that such blocks use. So the run has no side effects,
and what the code computes depends on settings alone, which are compared at every call.
"""

import dis
import inspect
from types import CodeType, FunctionType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn import functional

from fastgrad.torch.fusion import ResidualPattern

RELUS: list[Any] = [torch.relu, torch.relu_, functional.relu, torch.Tensor.relu, torch.Tensor.relu_]
GLOBALS: list[Any] = [torch, nn, functional, torch.add, *RELUS]
NAMES = {"torch", "nn", "F", "functional", "relu", "relu_", "add", "add_"}
SETTINGS = type(None), bool, int, float, str
# they write to more than locals
REFUSED = "STORE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "DELETE_", "IMPORT_"


class _UnknownError(Exception):
    """The code computes what no residual block does."""


class _Expression:
    """A recorded value: the operation, its operands, and how often the value is used."""

    def __init__(self, recorded: list["_Expression"], operation: str, *operands: "_Expression") -> None:
        if not all(isinstance(value, _Expression) for value in operands):
            raise _UnknownError
        self.recorded, self.operation, self.operands, self.uses = recorded, operation, operands, 0
        recorded.append(self)
        for value in operands:
            value.uses += 1

    def add(self, other: Any) -> "_Expression":
        return _Expression(self.recorded, "add", self, other)

    def add_(self, other: Any) -> "_Expression":
        return _Expression(self.recorded, "add_", self, other)

    def relu(self) -> "_Expression":
        return _Expression(self.recorded, "relu", self)

    __add__, __iadd__, relu_ = add, add_, relu

    def _refuse(self, *others: Any) -> NoReturn:
        raise _UnknownError

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __len__ = _refuse  # type: ignore[assignment]
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "_Expression":
        if function in RELUS and len(args) == 1 and set(kwargs or ()) <= {"inplace"}:
            return args[0].relu()
        if function is torch.add and len(args) == 2 and not kwargs and isinstance(args[0], _Expression):
            return args[0].add(args[1])
        raise _UnknownError


class _Layer:
    """The stand-in of a child of the module: a call records the layer."""

    def __init__(self, recorded: list[_Expression], name: str, layer: nn.Module) -> None:
        self._recorded, self._name, self._layer = recorded, name, layer

    def __call__(self, x: Any) -> _Expression:
        return _Expression(self._recorded, f"layer {self._name}", x)

    def __bool__(self) -> bool:
        return bool(self._layer)


class _Module:
    """The stand-in of the module: it has its children and settings only."""

    __slots__ = ("_module", "_recorded", "_settings")

    def __init__(self, recorded: list[_Expression], module: nn.Module) -> None:
        self._recorded, self._module = recorded, module
        self._settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        children, attributes = self._module._modules, self._module.__dict__
        if hasattr(type(self._module), name):
            raise _UnknownError
        value: Any = attributes[name] if name in attributes else children[name]
        if type(value) in SETTINGS:
            self._settings[name] = value
            return value
        if name in attributes:
            raise _UnknownError
        return _Layer(self._recorded, name, value)


def residual_pattern(module: nn.Module) -> ResidualPattern | None:
    """The residual block that a module's forward computes, or None."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or not _only_known_names(forward, module):
        return None
    recorded: list[_Expression] = []
    x = _Expression(recorded, "x")
    stand_in = _Module(recorded, module)
    try:
        names = _block(forward(stand_in, x), recorded)
    except (_UnknownError, TypeError, AttributeError, KeyError):
        return None
    return ResidualPattern(*names, forward, tuple(stand_in._settings.items())) if names else None


def _only_known_names(forward: FunctionType, module: nn.Module) -> bool:
    code = forward.__code__
    known = {*module._modules, *(name for name, value in module.__dict__.items() if type(value) in SETTINGS), *NAMES}
    if (
        code.co_argcount != 2
        or code.co_kwonlyargcount
        or code.co_posonlyargcount
        or code.co_freevars
        or code.co_cellvars
    ):
        return False
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return False
    if code.co_exceptiontable or any(isinstance(value, CodeType) for value in code.co_consts):
        return False
    if not set(code.co_names) <= known:
        return False
    for step in dis.get_instructions(code):
        if step.opname.startswith(REFUSED):
            return False
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not any(
            forward.__globals__.get(step.argval) is value for value in GLOBALS
        ):
            return False
    base = type(module)
    return base.__getattr__ is nn.Module.__getattr__ and base.__getattribute__ is object.__getattribute__


def _block(y: _Expression, recorded: list[_Expression]) -> tuple[Any, str] | None:
    """The names of the layers of the main branch, and of the shortcut."""
    act2, total = _activation(y)
    # what is written to in place must be the main branch: the shortcut may be x itself
    orders = {"add": [total.operands, total.operands[::-1]], "add_": [total.operands]}.get(total.operation, [])
    for main, other in orders:
        try:
            norm2, a = _layer(main)
            conv2, a = _layer(a)
            act1, a = _activation(a)
            norm1, a = _layer(a)
            conv1, x = _layer(a)
            shortcut, start = ("", other) if other is x else _layer(other)
        except _UnknownError:
            continue
        layers = [name for name in (conv1, norm1, conv2, norm2, shortcut) if name]
        # everything that was computed is used, once, and x by both branches
        used = [value.uses for value in recorded] == [2, *[1] * (len(recorded) - 2), 0]
        size = 7 + (other is not x) + 1
        if (
            x is start is recorded[0]
            and y is recorded[-1]
            and used
            and len(recorded) == size
            and len(set(layers)) == len(layers)
        ):
            return (conv1, norm1, act1, conv2, norm2, act2), shortcut
    return None


def _layer(value: _Expression) -> tuple[str, _Expression]:
    """The name of the layer whose output a value is, and the layer's input."""
    if not value.operation.startswith("layer "):
        raise _UnknownError
    return value.operation.removeprefix("layer "), value.operands[0]


def _activation(value: _Expression) -> tuple[str | None, _Expression]:
    """The name of the activation layer whose output a value is, None for the function relu, and its input."""
    return (None, value.operands[0]) if value.operation == "relu" else _layer(value)
