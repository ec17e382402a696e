"""ModelReplacement: the forward of an accelerated model as a whole, which compares its steps with PyTorch's.

Its units were timed alone, on copies, in the model's first calls. What they cost beside each other shows in use only: memory, caches,
layouts between them. So the next calls go in turns by fastgrad's units and by PyTorch's layers alone, and the faster way stays.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from fastgrad.core import allocator
from fastgrad.torch import timing
from fastgrad.torch.choice import Choice, Key, can_time, has_key, key_of
from fastgrad.torch.replacement import ForwardReplacement
from fastgrad.torch.tensors import has_saved_tensor_hooks
from fastgrad.torch.timing import MOST_ROUNDS, are_enough, ratio_of
from fastgrad.torch.twin import tensors_of

Tensor = torch.Tensor
# the units' steps must be faster by so much: beside them PyTorch's seem slower than they are alone, by 0 to 10 % in nets of torchvision
MARGIN = 1.05
# calls of a key in which it is timed at most: of some, no backward follows
MOST_CALLS = 4 * MOST_ROUNDS
# the ways of calls in a row, whether by fastgrad's units: what changes with time, or at every second call, meets both alike
TURNS = True, False, False, True


class ModelChoice(Choice):
    """The choice of a whole model: its units by their own choices, or PyTorch's layers alone.

    is_disturbed: set when a unit is timed; the time of the model's call is then worth nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_disturbed = False
        # the threads that are in a call of PyTorch's layers alone
        self._original_threads: set[int] = set()

    def is_original(self) -> bool:
        """Whether the units that this thread calls are PyTorch's. In a checkpoint they are not: its second forward is outside."""
        return get_ident() in self._original_threads and not has_saved_tensor_hooks()

    @contextmanager
    def original(self) -> Iterator[None]:
        """A block in which the units that this thread calls are PyTorch's."""
        thread = get_ident()
        self._original_threads.add(thread)
        try:
            yield
        finally:
            self._original_threads.discard(thread)


class ModelReplacement(ForwardReplacement):
    """The forward of a model: that of its class, or `inner`'s where the model is itself replaced; with its units, or without."""

    choice: ModelChoice

    def __init__(self, module: nn.Module, choice: ModelChoice) -> None:
        super().__init__(module, choice)
        # of keys that are not yet chosen: timed calls, and the times of PyTorch's way and of the units'
        self._times: dict[Key, tuple[int, list[list[float]]]] = {}

    def undo(self, module: nn.Module) -> None:
        is_installed = module.__dict__.get("forward") == self.forward
        super().undo(module)
        if is_installed and self.inner is not None and not self.inner.stopped:
            module.__dict__.update(self.inner._attributes())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = None if self.stopped or torch.compiler.is_compiling() else next(iter(tensors_of((args, kwargs))), None)
        if x is None or not has_key(x):
            return self.fused(*args, **kwargs)
        key = key_of(self.unit_mode(), x)
        way = self.choice.ways.get(key)
        if way is None:
            way, ratio = self.choice.known(key)
            if way is None:
                return self._timed(key, args, kwargs) if can_time(x) else self.fused(*args, **kwargs)
            self.choice.keep(key, way, ratio)
        return self.fused(*args, **kwargs) if way else self._original(args, kwargs)

    def fused(self, *args: Any, **kwargs: Any) -> Any:
        return self.replaced_forward(*args, **kwargs)

    def _original(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.choice.original():
            return self.fused(*args, **kwargs)

    def _timed(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a call whose time is taken, with that of its backward if there is one."""
        calls, times = self._times.get(key, (0, [[], []]))
        self._times[key] = calls + 1, times
        if calls == MOST_CALLS:
            self._choose(key, times)
        # the first call lets the units choose
        way = calls == 0 or TURNS[(calls - 1) % len(TURNS)]
        self.choice.is_disturbed = False
        start = timing.clock()
        outputs = self.fused(*args, **kwargs) if way else self._original(args, kwargs)
        seconds = timing.clock() - start
        if calls == 0 or self.choice.is_disturbed:
            return outputs

        def add(seconds: float) -> None:
            times[way].append(seconds)
            if are_enough(times):
                self._choose(key, times)

        nodes = {y.grad_fn for y in tensors_of(outputs) if y.grad_fn is not None}
        if nodes:
            _time_backward(nodes, lambda backward: add(seconds + backward))
        else:
            add(seconds)
        return outputs

    def _choose(self, key: Key, times: list[list[float]]) -> None:
        self._times.pop(key, None)
        if key not in self.choice.ways:
            ratio = ratio_of(times) if all(times) else None
            self.choice.keep(key, ratio is None or ratio >= MARGIN, ratio)
            # what the other way and the timed copies took
            allocator.release()


def _time_backward(nodes: Any, add: Callable[[float], None]) -> None:
    """Have `add` be called with the seconds of the first backward pass through nodes of a graph, from there to its end."""
    starts: list[float] = []

    def begin(_: Any) -> None:
        if not starts:
            starts.append(timing.clock())
            Variable._execution_engine.queue_callback(lambda: add(timing.clock() - starts[0]))

    for node in nodes:
        node.register_prehook(begin)
