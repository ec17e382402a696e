"""Tape: the operations of a module's forward, recorded by a run of its code with stand-ins for the module, its input and its globals.

The code sees stand-ins only. So the run has no side effects, and what the code computes depends on nothing but what it reads: settings
(None, flags, numbers, texts), children and functions. All of that is kept, to be compared at every call. What the tape does not know
(a print, a class, a branch by a tensor's values) is refused: then the child that does it is called as it is, or the function; and
what is not inside of one is not recorded at all.
"""

import builtins
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from fastgrad.torch.bytecode import is_harmless, names_of
from fastgrad.torch.layers import PATCHES, SEQUENTIAL, has_hooks, known_class
from fastgrad.torch.stand_ins import CONTAINERS, ModuleStandIn, Namespace, RefusedError, Value, first_value

SETTINGS = type(None), bool, int, float, str, type(...), torch.dtype, torch.device, torch.memory_format, torch.Size
# functions of PyTorch that are constant outside of its tools, which get PyTorch's own layers
CONSTANTS = {"is_scripting", "is_tracing", "is_compiling", "is_dynamo_compiling", "is_exporting"}
# torchvision's count of what is used
IGNORED = {"_log_api_usage_once"}
BUILTINS = {
    name: getattr(builtins, name)
    for name in (
        "abs all any bool dict enumerate float getattr hasattr int len list max min range reversed round set slice sorted str"
        " sum tuple zip AssertionError NotImplementedError RuntimeError TypeError ValueError"
    ).split()
}
METHODS = {name: getattr(nn.Module, name) for name in ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__")}
METHODS["__getattribute__"] = object.__getattribute__


class Operation(NamedTuple):
    """A recorded call function(*args, **kwargs), in which Values stand for outputs of others; module: the one whose call it is, or None."""

    function: Callable
    args: tuple
    kwargs: dict[str, Any]
    module: nn.Module | None
    output: int


class Read:
    """An operation without arguments: a parameter or buffer of a module, read when it runs."""

    def __init__(self, tensors: dict[str, Any], name: str) -> None:
        self.tensors, self.name = tensors, name

    def __call__(self) -> Any:
        return self.tensors[self.name]


class Tape:
    """What a forward computes: operations; output, a nested structure with Values in it; size, the number of values, the inputs first.

    What that depends on: reads, of (mapping, name, value); children, of (dictionary, its copy); entered, the modules whose code was run,
    and their classes' forwards; codes, of (function, its code).
    """

    def __init__(self, module: nn.Module, inputs: int, is_replaced: Callable[[nn.Module], bool]) -> None:
        """Record module's forward for so many tensors; RefusedError says why it cannot be.

        is_replaced: whether a module's own attribute forward is a replacement that computes what its class does.
        """
        self._is_replaced = is_replaced
        self.operations: list[Operation] = []
        self.reads: list[tuple[Any, str, Any]] = []
        self.copies: list[tuple[dict, dict]] = []
        self.entered: list[nn.Module] = []
        self.codes: list[tuple[FunctionType, CodeType]] = []
        self.inputs, self.size, self._dropped = inputs, inputs, set[int]()
        # copies of lists and dictionaries that the code got, with what they are of
        self._given: list[tuple[Any, Any]] = []
        try:
            self.output = self._copy(self._enter(module, tuple(Value(self, i, True) for i in range(inputs)), {}))
        except Exception as error:
            # what the code raises for stand-ins
            raise RefusedError(f"{type(error).__name__}: {error}") from None

    def add(self, function: Any, args: Any = (), kwargs: Any = None, module: nn.Module | None = None) -> Value:
        """Record a call."""
        self.operations.append(
            Operation(function, self._copy(tuple(args)), self._copy(kwargs or {}), module, self.size)
        )
        self.size += 1
        return Value(self, self.size - 1)

    def read(self, mapping: Any, name: str, owner: ModuleStandIn | None = None) -> Any:
        """The stand-in of mapping[name], which is kept. owner: the module whose attribute that is."""
        value = mapping[name]
        if isinstance(value, torch.Tensor):
            if owner is None or mapping is owner.fg_module.__dict__:
                raise RefusedError(f"{name}, a tensor that is no parameter or buffer")
            return self.add(Read(mapping, name))
        stand_in = self._stand_in(value, owner if isinstance(mapping, MappingProxyType) else None)
        self.reads.append((mapping, name, self._copy(value) if isinstance(value, list | dict) else value))
        return stand_in

    def children(self, module: nn.Module) -> list[str]:
        """The names of the children of a container that is gone through as PyTorch's are."""
        base: Any = next((kind for kind in CONTAINERS if isinstance(module, kind)), None)
        for method in ("__iter__", "__getitem__", "__len__"):
            if getattr(type(module), method, None) is not getattr(base, method, self):
                raise RefusedError(f"{method} of {type(module).__name__}")
        self.copies.append((module._modules, dict(module._modules)))
        return list(module._modules)

    def call_module(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Record what a child's forward computes, or, if that is a layer of PyTorch's or refused, the call of the child."""
        if known_class(module) in (None, nn.Sequential):
            result = self._attempt(lambda: self._enter(module, args, kwargs))
            if result is not self:
                return result
        return self.add(module, args, kwargs, module)

    def _attempt(self, record: Callable[[], Any]) -> Any:
        """The result of record(), or self if that is refused, and then nothing is recorded."""
        lists: Any = self.operations, self.reads, self.copies, self.entered, self.codes
        sizes, size = list(map(len, lists)), self.size
        try:
            return record()
        except (Exception, RefusedError):
            for values, length in zip(lists, sizes, strict=True):
                del values[length:]
            # a list of the caller's may hold them
            self._dropped.update(range(size, self.size))
            return self

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a module's forward returns."""
        kind: Any = type(module)
        if kind.__module__.startswith(("torch.", "fastgrad.")) and kind not in CONTAINERS:
            raise RefusedError(f"{kind.__name__} is called as it is")
        patches = module.__dict__.keys() & PATCHES
        if has_hooks(module) or patches - {"forward"} or (patches and not self._is_replaced(module)):
            raise RefusedError(f"{kind.__name__} has hooks, or its forward has been replaced")
        if any(getattr(kind, name) is not method for name, method in METHODS.items()):
            raise RefusedError(f"{kind.__name__} is called in its own way")
        self.entered.append(module)
        stand_in = ModuleStandIn(self, module)
        if kind.forward is not SEQUENTIAL[0]:
            return self._run(kind.forward, (stand_in, *args), kwargs)
        (x,) = args
        for layer in stand_in:
            x = layer(x)
        return x

    def _run(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of a Python function, run with stand-ins for its globals."""
        if not isinstance(function, FunctionType):
            raise RefusedError("a forward that is no Python function")
        code, defaults = function.__code__, function.__defaults__
        if not is_harmless(code) or not all(
            isinstance(v, SETTINGS) for v in (*(defaults or ()), *(function.__kwdefaults__ or {}).values())
        ):
            raise RefusedError(f"the code of {function.__qualname__}")
        self.codes.append((function, code))
        scope: dict[str, Any] = {"__builtins__": {**BUILTINS, "isinstance": self._isinstance}}
        for name in names_of(code):
            if name in function.__globals__:
                try:
                    scope[name] = self.read(function.__globals__, name)
                except RefusedError:
                    # it may be the name of an attribute, or of what is not reached
                    continue
        copy = FunctionType(code.replace(), scope, function.__name__, defaults)
        copy.__kwdefaults__ = function.__kwdefaults__
        result = copy(*args, **kwargs)
        if any(given != value for given, value in self._given):
            raise RefusedError(f"{function.__qualname__} writes to a list or dictionary")
        return result

    def _stand_in(self, value: Any, owner: ModuleStandIn | None) -> Any:
        """The stand-in of a value; owner: the module of whose class it is an attribute, or None."""
        if isinstance(value, SETTINGS):
            return value
        if isinstance(value, tuple | list | dict):
            copy = self._copy(value)
            self._given.append((copy, value))
            return copy
        if isinstance(value, nn.Module):
            return ModuleStandIn(self, value)
        if isinstance(value, ModuleType):
            return Namespace(self, value)
        if isinstance(value, type) and (issubclass(value, nn.Module | torch.Tensor) or hasattr(value, "_fields")):
            return value
        package = (getattr(value, "__module__", None) or "").partition(".")[0]
        if isinstance(value, FunctionType | BuiltinFunctionType) and package in ("torch", "math", "_operator"):
            return lambda *args, **kwargs: self._call_known(value, package, args, kwargs)
        if isinstance(value, FunctionType):
            if owner is not None:
                return lambda *args, **kwargs: self._run(value, (owner, *args), kwargs)
            return lambda *args, **kwargs: self._call_function(value, args, kwargs)
        raise RefusedError(f"{type(value).__name__}")

    def _call_known(self, function: Any, package: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if package == "torch" and function.__name__ in CONSTANTS:
            return function()
        is_constant = package != "torch" and first_value((args, kwargs)) is None
        return function(*args, **kwargs) if is_constant else self.add(function, args, kwargs)

    def _call_function(self, function: FunctionType, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Record what a function computes, or, if that is refused, its call."""
        if function.__name__ in IGNORED:
            return None
        result = self._attempt(lambda: self._run(function, args, kwargs))
        if result is not self:
            return result
        if first_value((args, kwargs)) is None:
            raise RefusedError(f"a call of {function.__qualname__}")
        return self.add(function, args, kwargs)

    def _isinstance(self, value: Any, kinds: Any) -> bool:
        if not isinstance(value, Value):
            return isinstance(value.fg_module if isinstance(value, ModuleStandIn) else value, kinds)
        if not value.fg_is_tensor or kinds is not torch.Tensor:
            raise RefusedError("the class of a value")
        return True

    def _copy(self, structure: Any) -> Any:
        """A copy of a structure of values and settings, since the code may go on to change its own."""
        if isinstance(structure, Value):
            if structure.fg_index in self._dropped:
                raise RefusedError("a list that a child changes")
            return structure
        if isinstance(structure, SETTINGS):
            return structure
        if isinstance(structure, slice):
            return slice(*map(self._copy, (structure.start, structure.stop, structure.step)))
        if type(structure) is dict:
            return {key: self._copy(value) for key, value in structure.items()}
        if isinstance(structure, tuple | list):
            items = [self._copy(value) for value in structure]
            return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)
        raise RefusedError(f"{type(structure).__name__} in a call")
