"""What code sees while a Tape records it: stand-ins for tensors, for a module, and for the modules of Python that it names."""

import dis
import operator
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

# attributes of tensors that are no methods
PROPERTIES = {"shape", "dtype", "device", "ndim", "T", "mT"}
CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict
OPERATORS = "add sub mul truediv floordiv mod pow matmul lshift rshift and_ or_ xor".split()


class RefusedError(BaseException):
    """The code does what cannot be recorded. It is no Exception, which the code could handle."""


class Recorder(Protocol):
    """The Tape, as stand-ins know it."""

    def add(self, function: Any, args: Any = (), kwargs: Any = None, module: nn.Module | None = None) -> Any: ...
    def read(self, mapping: Any, name: str, owner: Any = None) -> Any: ...
    def call_module(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any: ...
    def children(self, module: nn.Module) -> list[str]: ...


class Method:
    """A method of a tensor, by its name, as a function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


class Value:
    """The stand-in of an input, which is a tensor, or of what an operation returns."""

    __slots__ = ("fg_index", "fg_is_tensor", "fg_tape")

    def __init__(self, tape: Recorder, index: int, is_tensor: bool = False) -> None:
        self.fg_tape, self.fg_index, self.fg_is_tensor = tape, index, is_tensor

    def __getattr__(self, name: str) -> Any:
        if name in PROPERTIES:
            return self.fg_tape.add(getattr, (self, name))
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise RefusedError(f"the attribute {name} of a tensor")
        return lambda *args, **kwargs: self.fg_tape.add(Method(name), (self, *args), kwargs)

    def __getitem__(self, key: Any) -> "Value":
        return self.fg_tape.add(operator.getitem, (self, key))

    def __iter__(self) -> Any:
        # a, b = value: the instruction says how many there are
        frame: Any = sys._getframe(1)
        step, size = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
        if dis.opname[step] != "UNPACK_SEQUENCE":
            raise RefusedError("a loop over a tensor")
        return iter([self[i] for i in range(size)])

    def _refuse(self, *others: Any) -> NoReturn:
        raise RefusedError("what depends on values of a tensor, or on its shape")

    __bool__ = __len__ = __int__ = __float__ = __index__ = __contains__ = _refuse
    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Value":
        return first_value((args, kwargs)).fg_tape.add(function, args, kwargs)


def _operator(name: str, swapped: bool = False) -> Callable:
    function = getattr(operator, name)
    if swapped:
        return lambda self, other: self.fg_tape.add(function, (other, self))
    return lambda self, *others: self.fg_tape.add(function, (self, *others))


for _name in OPERATORS:
    _plain = _name.rstrip("_")
    setattr(Value, f"__{_plain}__", _operator(_name))
    setattr(Value, f"__r{_plain}__", _operator(_name, swapped=True))
    setattr(Value, f"__i{_plain}__", _operator(f"i{_plain}"))
for _name in "eq ne lt le gt ge neg pos invert abs".split():
    setattr(Value, f"__{_name}__", _operator(_name))


def first_value(structure: Any) -> Any:
    """A value in a nested structure, or None."""
    if isinstance(structure, Value):
        return structure
    if isinstance(structure, slice):
        structure = structure.start, structure.stop, structure.step
    if not isinstance(structure, tuple | list | dict):
        return None
    items = structure.values() if isinstance(structure, dict) else structure
    return next((value for value in map(first_value, items) if value is not None), None)


class ModuleStandIn:
    """The stand-in of an nn.Module: it has its settings, parameters, children and methods."""

    __slots__ = ("fg_module", "fg_tape")

    def __init__(self, tape: Recorder, module: nn.Module) -> None:
        self.fg_tape, self.fg_module = tape, module

    def __getattr__(self, name: str) -> Any:
        tape, module = self.fg_tape, self.fg_module
        own = module.__dict__
        for attributes in (own, own["_parameters"], own["_buffers"], own["_modules"]):
            if name in attributes:
                return tape.read(attributes, name, self)
        if isinstance(module, nn.ModuleDict) and name in ("items", "values", "keys"):
            return getattr({key: getattr(self, key) for key in tape.children(module)}, name)
        owner = next((kind for kind in type(module).__mro__ if name in vars(kind)), nn.Module)
        if owner.__module__.partition(".")[0] == "torch" or owner is object:
            raise RefusedError(f"the method {name} of a module")
        return tape.read(vars(owner), name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fg_tape.call_module(self.fg_module, args, kwargs)

    def __iter__(self) -> Any:
        names = self.fg_tape.children(self.fg_module)
        return iter(names if isinstance(self.fg_module, nn.ModuleDict) else [getattr(self, name) for name in names])

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(self.fg_module, nn.ModuleDict) else list(self)[key]

    def __len__(self) -> int:
        return len(self.fg_tape.children(self.fg_module))

    def __bool__(self) -> bool:
        return not isinstance(self.fg_module, CONTAINERS) or len(self) > 0


class Namespace:
    """The stand-in of a Python module, such as torch.nn.functional."""

    def __init__(self, tape: Recorder, namespace: ModuleType) -> None:
        self._tape, self._namespace = tape, namespace

    def __getattr__(self, name: str) -> Any:
        if name not in vars(self._namespace):
            raise RefusedError(f"the name {name}")
        return self._tape.read(vars(self._namespace), name)
