"""The state of the PyTorch optimizers: State and Entry, dictionaries that notice what a user writes; ParameterBlock, an update's memory."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from fastgrad.core.backend import kernels
from fastgrad.torch.ops.adam import OP, update_parameters
from fastgrad.torch.tensors import address_list, array, arrays

Tensor = torch.Tensor


class _ObservedDict:
    """Mixin for a dictionary that calls `_note_write` before anything writes to it."""

    def _note_write(self) -> None:
        raise NotImplementedError


def _observed(name: str) -> Callable:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._note_write()
        return getattr(super(_ObservedDict, self), name)(*args, **kwargs)

    return method


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(_ObservedDict, _name, _observed(_name))


class Entry(_ObservedDict, dict):
    """The state of a parameter. state: the State that is told of a write."""

    state: "State"

    def _note_write(self) -> None:
        self.state.changed = True

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class State(_ObservedDict, defaultdict):
    """The states of all parameters. changed: whether an entry was set or deleted since the optimizer last looked."""

    def __init__(self, entries: dict[Tensor, dict]) -> None:
        super().__init__(None)
        self.changed = True
        for p, entry in entries.items():
            dict.__setitem__(self, p, entry)

    def _note_write(self) -> None:
        self.changed = True

    def __missing__(self, p: Tensor) -> "Entry":
        entry = Entry()
        entry.state = self
        dict.__setitem__(self, p, entry)
        return entry

    def entry(self, p: Tensor) -> "Entry":
        """The state of a parameter, as an Entry, which tells of writes from now on."""
        entry = self[p]
        if type(entry) is not Entry:
            entry = Entry(entry)
            dict.__setitem__(self, p, entry)
        entry.state = self
        return entry

    def __reduce__(self) -> tuple:
        return defaultdict, (dict, {p: plain_dict(entry) for p, entry in self.items()})


def plain_dict(entry: Any) -> Any:
    return dict(entry) if type(entry) is Entry else entry


class ParameterBlock:
    """Parameters that one call updates, and the block of their state; the tensors in the optimizer's state are views of it."""

    def __init__(
        self, params: list[Tensor], rows: Sequence[str], entries: Sequence[dict[str, Any]], has_steps: bool = True
    ) -> None:
        """rows: the names in an entry of the state that have a value for each of the parameter's; has_steps: whether it has "step" too."""
        self.params, self.rows = params, tuple(rows)
        self._orders = [memory_order(p) for p in params]
        self._sizes = [p.numel() for p in params]
        self.is_contiguous, self._strides = all(p.is_contiguous() for p in params), [p.stride() for p in params]
        self.state = torch.zeros(len(rows), sum(p.numel() for p in params), dtype=params[0].dtype)  # (S, P)
        # steps of the parameters, and last how many updates of this block are counted in them: one addition counts all
        dtype = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
        steps = torch.zeros(len(params) + 1, dtype=dtype)
        self.updates, self._steps, at = np.zeros(1, np.int64), steps.numpy(), 0
        # NumPy takes three times as long to add a number
        self._ones = np.ones_like(self._steps)
        for i, (p, order, entry) in enumerate(zip(params, self._orders, entries, strict=True)):
            if has_steps:
                self._steps[i] = float(entry.get("step", 0))
                # past what an Entry tells its State
                dict.__setitem__(entry, "step", steps[i])
            for row, name in zip(self.state, rows, strict=True):
                values = row[at : at + p.numel()].view(p.permute(order).shape).permute(np.argsort(order).tolist())
                if entry.get(name) is not None:
                    values.copy_(entry[name])
                dict.__setitem__(entry, name, values)
            at += p.numel()
        # the bytes of the steps when they were last found to be equal
        self._equal_steps = b""
        self._read_addresses()

    @property
    def step_count(self) -> int:
        """The number of updates of each parameter."""
        return int(self._steps.item(0))

    def matches(self, rows: Sequence[str]) -> bool:
        """Whether the state has these rows and the parameters' order in memory, and all parameters have one number of steps.

        The step tensors are compared again if someone has written to them.
        """
        self.count_update()
        return (
            self.rows == rows
            and (self._steps.tobytes() == self._equal_steps or self._have_equal_steps())
            and self._has_order_of_params()
        )

    def _has_order_of_params(self) -> bool:
        """Whether the parameters lie in memory as they did: the state is in the same order."""
        if self.is_contiguous:
            return all(map(Tensor.is_contiguous, self.params))
        return list(map(Tensor.stride, self.params)) == self._strides

    def _have_equal_steps(self) -> bool:
        equal = bool((self._steps[:-1] == self._steps[0]).all())
        if equal:
            self._equal_steps = self._steps.tobytes()
        return equal

    def count_update(self) -> None:
        """Count an update in the steps of the parameters, if it was made."""
        # an update may have been made and the call been interrupted before it was counted
        if self._steps.item(-1) < self.updates.item(0):
            np.add(self._steps, self._ones, self._steps)
            self._equal_steps = self._steps.tobytes()

    def _read_addresses(self) -> None:
        self._addresses = list(map(Tensor.data_ptr, self.params))
        self._arrays = self._ordered(p.detach() for p in self.params)
        self._address_list = address_list(self.params)

    def _ordered(self, tensors: Iterable[Tensor]) -> list[np.ndarray]:
        """Arrays of the values in the order in which the parameters' lie in memory."""
        return [
            array(OP, "tensors", t.permute(order).contiguous()) for t, order in zip(tensors, self._orders, strict=True)
        ]

    def update(self, grads: list[Any], hyper: np.ndarray) -> None:
        """One step from the parameters' gradients."""
        # kernels are told where parameters and gradients lie, and take from the state's layout how far they reach
        for name, tensors in (("params", self.params), ("gradients", grads)):
            if list(map(Tensor.numel, tensors)) != self._sizes:
                pairs = enumerate(zip(tensors, self._sizes, strict=True))
                i, size, got = next((i, size, t.numel()) for i, (t, size) in pairs if t.numel() != size)
                raise ValueError(f"{OP}: {name}[{i}] must have {size} values like its state, got {got}")
        if self._addresses != list(map(Tensor.data_ptr, self.params)):
            if others := [p.dtype for p in self.params if p.dtype is not self.state.dtype]:
                raise TypeError(f"{OP}: params must be {self.state.dtype} like their state, got {others[0]}")
            self._read_addresses()
        gradients = address_list(grads, self._address_list) if self._address_list is not None else None
        if gradients is None:
            gradients = arrays(OP, "gradients", grads)
            if not self.is_contiguous or not kernels().are_uniform(gradients):
                gradients = self._ordered(grads)
        try:
            update_parameters(self._arrays, gradients, self.state.numpy(), hyper, self.step_count + 1, self.updates)
        finally:
            self.count_update()
        torch.autograd.graph.increment_version(self.params)


def check_rows(op: str, p: Tensor, entry: dict[str, Any], rows: Sequence[str]) -> None:
    """Raise ValueError where a parameter has state of another shape."""
    for name in rows:
        value = entry.get(name)
        if value is not None and value.shape != p.shape:
            raise ValueError(f"{op}: {name} of a parameter must be {tuple(p.shape)}, got {tuple(value.shape)}")


def memory_order(p: Tensor) -> list[int]:
    """The axes of a tensor as they follow each other in memory."""
    strides = p.stride()
    if p.is_neg():
        raise ValueError(f"{OP}: a parameter must be no negated view, as of conj() and imag; its resolve_neg() is none")
    order = sorted(range(p.dim()), key=lambda axis: (-strides[axis], axis))
    if not p.permute(order).is_contiguous():
        raise ValueError(f"{OP}: a parameter must be dense in memory, got {tuple(p.shape)} with strides {strides}")
    return order
