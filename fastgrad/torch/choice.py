"""Choice: whether a unit of a model runs fused or as PyTorch's own, by the time that each way takes at the unit's first calls.

A unit is a part of a model that can run both ways: a run of layers of an nn.Sequential, a residual block, an LSTM, a single layer.
What is timed are twins of its modules, which share the memory of its parameters and have buffers and an input of their own. So a
choice moves no running statistics, fires no hooks and leaves no gradients; the random generator is put back.
"""

import threading
from collections.abc import Iterable
from math import log, prod
from typing import Any, Protocol

import torch
from torch import nn
from torch._C import _get_tracing_state
from torch.compiler import is_dynamo_compiling

from fastgrad.torch.layers import needs_original_layers
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES, has_saved_tensor_hooks
from fastgrad.torch.timing import are_settled, speed_ratio

Tensor = torch.Tensor
# the fused way must be faster by so much: below it is noise
MARGIN = 1.02
# after so many shapes, others are chosen as the nearest of these: sequences have hundreds of lengths
MOST_SHAPES = 8
# calls at which a key is timed at most: a disturbed one is timed again
MOST_CALLS = 4
# keys that a unit remembers
MOST_KEYS = 4096
# of one choice at a time: it would disturb another's times, and a unit inside of one that is timed has no choice of its own
_lock = threading.Lock()
WAYS = {"PyTorch": False, "fastgrad": True}
Key = tuple[Any, ...]


class Unit(Protocol):
    """What a choice needs to know of a unit."""

    def fused(self, *args: Any) -> Any:
        """The output by fastgrad's kernels."""

    def original(self, *args: Any) -> Any:
        """The output by PyTorch's own layers."""

    def unit_mode(self) -> tuple[bool, bool]:
        """Whether the unit is in training, and whether its parameters require gradients."""

    def can_fuse(self) -> bool:
        """Whether `fused` can use the layers as they are at this moment."""

    def twin(self) -> "Unit":
        """A unit of twins of the modules."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """The parameters of the modules."""


class WholeModel(Protocol):
    """What the choice of a unit needs to know of its model. is_disturbed: set when the unit is timed."""

    is_disturbed: bool

    def is_original(self) -> bool:
        """Whether a call of this thread is one by PyTorch's layers alone."""


class Choice:
    """The way that one unit runs, for each key: shape, dtype and layout of its input, training, gradients, threads.

    default: whether the unit is fused where nothing can be timed: compiled, traced, under autocast or a checkpoint.
    stored: the ways of an earlier choice by the texts of their keys, as `to_dict` gives them.
    """

    # of the model which the unit is a part of
    whole: WholeModel | None = None

    def __init__(self, default: bool = True) -> None:
        self.default = default
        self.ways: dict[Key, bool] = {}
        # PyTorch's time over the fused one, of the keys that were timed or stored
        self.ratios: dict[Key, float] = {}
        self.stored: dict[str, dict[str, Any]] = {}
        # of keys that are not yet chosen: the calls that were timed, and the times of both ways
        self._times: dict[Key, tuple[int, list[list[float]]]] = {}

    def fuses(self, unit: Unit, x: Any, args: tuple[Any, ...] = (), more: str = "") -> bool | None:
        """Whether a call with x is to be fused. None is no, but not by choice: nothing can be timed now.

        args: all arguments of the unit if these are more than x. more: what else than x the time depends on.
        """
        if not has_key(x):
            return self.default or None
        if self.whole is not None and self.whole.is_original():
            return None
        key = key_of(unit.unit_mode(), x, more)
        way = self.ways.get(key)
        return self._first(key, unit, x, args or (x,)) if way is None else way

    def _first(self, key: Key, unit: Unit, x: Tensor, args: tuple[Any, ...]) -> bool | None:
        """Choose the way of a key that is met for the first time."""
        way, ratio = self.known(key)
        if way is None:
            calls, times = self._times.get(key, (0, [[], []]))
            ratio = None
            if x.dtype in FLOATS and can_time(x) and unit.can_fuse():
                if self.whole is not None:
                    self.whole.is_disturbed = True
                ratio = _ratio_alone(unit, args, times)
            if ratio is None:
                return (min(times[0]) >= MARGIN * min(times[1]) or None) if calls else (self.default or None)
            way = ratio >= MARGIN
            if not are_settled(times) and calls + 1 < MOST_CALLS:
                self._times[key] = calls + 1, times
                return way or None
            self._times.pop(key, None)
        self.keep(key, way, ratio)
        return way

    def known(self, key: Key) -> tuple[bool | None, float | None]:
        """The way and the ratio of a key that was not met yet, as stored or as of the nearest; None where neither tells."""
        stored = self.stored.get(key_text(key))
        if stored is not None and not key[-1]:
            return WAYS[stored["way"]], stored["ratio"]
        nearest = self._nearest(key)
        return None if nearest is None else self.ways[nearest], None

    def keep(self, key: Key, way: bool, ratio: float | None) -> None:
        """Have calls with a key go a way from now on."""
        if len(self.ways) < MOST_KEYS:
            self.ways[key] = way
            if ratio is not None:
                self.ratios[key] = ratio

    def _nearest(self, key: Key) -> Key | None:
        """Of the keys with a ratio that differ in the shape alone, the one of the nearest size, if these are MOST_SHAPES."""
        alike = [timed for timed in list(self.ratios) if timed[1:] == key[1:]]
        if len(alike) < MOST_SHAPES:
            return None
        return min(alike, key=lambda timed: abs(log((prod(timed[0]) + 1) / (prod(key[0]) + 1))))

    @property
    def is_open(self) -> bool:
        """Whether a key is to be timed again at the next call with it."""
        return bool(self._times)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The ways by the texts of their keys, for JSON."""
        names = {is_fused: name for name, is_fused in WAYS.items()}
        return {
            key_text(key): {"way": names[way], "ratio": self.ratios.get(key)} for key, way in list(self.ways.items())
        }

    def lines(self) -> list[str]:
        """What a report says of it."""
        if not self.ways:
            return ["is chosen at the first call"]
        lines = []
        for key, ratio in list(self.ratios.items()):
            faster = "" if self.ways[key] else f"PyTorch's is {'faster' if ratio < 1 else 'as fast'}: "
            lines.append(f"{faster}{ratio:.2f}x on {key_text(key)}")
        others = len(self.ways) - len(lines)
        return [*lines, *([f"{others} more shapes: as the nearest of these"] if others else [])]


def has_key(x: Any) -> bool:
    """Whether an input has a key: it is a plain tensor, whose shape is known."""
    return not is_dynamo_compiling() and type(x) in TENSOR_TYPES and _get_tracing_state() is None


def key_of(mode: tuple[bool, bool], x: Tensor, more: str = "") -> Key:
    """What the time of a unit depends on; at its end, whether hooks handle what autograd saves."""
    training, has_gradients = mode
    records = torch.is_grad_enabled()
    layout = "" if x.is_contiguous() else _layout(x)
    return (
        x.shape,
        x.dtype,
        layout,
        training,
        records and x.requires_grad,
        records and has_gradients,
        more,
        torch.get_num_threads(),
        # a checkpoint counts what is saved: its second forward must go the way of the first
        has_saved_tensor_hooks(),
    )


def _layout(x: Tensor) -> str:
    is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return "channels last" if is_last else "strided"


def key_text(key: Key) -> str:
    """A key in words, as reports and files have it; what is usual is not said."""
    shape, dtype, layout, training, of_input, of_parameters, more, threads, _ = key
    gradients = ["with gradients"] if of_parameters and not training else []
    if of_parameters and not of_input:
        gradients.append("no gradient of the input")
    if not of_parameters and (of_input or training):
        gradients.append("gradient of the input alone" if of_input else "without gradients")
    parts = (
        " x ".join(map(str, shape)) or "a number",
        "" if dtype is torch.float32 else str(dtype).removeprefix("torch."),
        layout,
        "training" if training else "evaluation",
        *gradients,
        more,
        f"{threads} threads" if threads > 1 else "1 thread",
    )
    return ", ".join(part for part in parts if part)


def can_time(x: Tensor) -> bool:
    """Whether a call with x can be timed at this moment, such that nobody sees it and the time is that of other calls too."""
    return (
        x.is_cpu
        and x.layout is torch.strided
        and x.numel() > 0
        and not needs_original_layers()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and not has_saved_tensor_hooks()
        # inside of a backward pass: a checkpoint computes again
        and torch._C._current_graph_task_id() == -1
        and not torch.is_anomaly_enabled()
        and not torch.autograd._profiler_enabled()
        # who asks for the same numbers in every run does not want them to depend on a clock
        and not torch.are_deterministic_algorithms_enabled()
    )


def _ratio_alone(unit: Unit, args: tuple[Any, ...], times: list[list[float]]) -> float | None:
    """`speed_ratio`, but None while another choice is made, and if one way fails: the call itself then says why."""
    if not _lock.acquire(blocking=False):
        return None
    try:
        return speed_ratio(unit, args, times)
    except Exception:
        return None
    finally:
        _lock.release()


def first_gradient(module: Any) -> bool:
    """Whether the first parameter of a module requires gradients."""
    for p in module._parameters.values():
        if p is not None:
            return p.requires_grad
    for child in module._modules.values():
        if child is not None and (child._parameters or child._modules):
            return first_gradient(child)
    return False
