"""The updates of PyTorch's optimizers by kernels: rules read from param_groups at every step, over the memory of the optimizer's state."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fastgrad import optim
from fastgrad.kernels.types import UpdateRule
from fastgrad.torch.chain_model import OP
from fastgrad.torch.optim import ROWS as ADAM_ROWS
from fastgrad.torch.optim import Adam, AdamW
from fastgrad.torch.optim_state import ParameterBlock, State, check_rows

Tensor = torch.Tensor
HOOKS: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
# what a group must not ask for, where it has it
REFUSED = "maximize", "capturable", "differentiable", "centered", "dampening"


class Kind(NamedTuple):
    """An optimizer of PyTorch: the names of its settings but lr; rule(group): fastgrad's optimizer with a rate of 0, and the names in the
    state in the order of fastgrad's rows; whether the state counts steps.
    """

    settings: tuple[str, ...]
    rule: Callable[[dict[str, Any]], tuple[optim.Optimizer, tuple[str, ...]]]
    has_steps: bool = True


def _sgd(group: dict[str, Any]) -> tuple[optim.Optimizer, tuple[str, ...]]:
    momentum = group["momentum"]
    return optim.SGD(0.0, momentum, group["nesterov"], group["weight_decay"]), ("momentum_buffer",) if momentum else ()


def _adam(group: dict[str, Any]) -> tuple[optim.Optimizer, tuple[str, ...]]:
    kind = optim.AdamW if group.get("decoupled_weight_decay") else optim.Adam
    amsgrad = group["amsgrad"]
    return kind(0.0, group["betas"], group["eps"], group["weight_decay"], amsgrad), ADAM_ROWS if amsgrad else ADAM_ROWS[
        :2
    ]


def _adamw(group: dict[str, Any]) -> tuple[optim.Optimizer, tuple[str, ...]]:
    # before 2.7 PyTorch's AdamW has no decoupled_weight_decay
    return _adam({"decoupled_weight_decay": True, **group})


def _rmsprop(group: dict[str, Any]) -> tuple[optim.Optimizer, tuple[str, ...]]:
    momentum = group["momentum"]
    rows = ("momentum_buffer", "square_avg") if momentum else ("square_avg",)
    return optim.RMSprop(0.0, group["alpha"], group["eps"], group["weight_decay"], momentum), rows


_ADAM = "betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay"
KINDS: dict[type, Kind] = {
    torch.optim.SGD: Kind(("momentum", "nesterov", "weight_decay"), _sgd, False),
    torch.optim.Adam: Kind(_ADAM, _adam),
    torch.optim.AdamW: Kind(_ADAM, _adamw),
    torch.optim.RMSprop: Kind(("alpha", "eps", "weight_decay", "momentum"), _rmsprop),
    Adam: Kind(_ADAM, _adam),
    AdamW: Kind(_ADAM, _adam),
}


def step_hooks(optimizer: Any) -> list[dict]:
    """The hooks that a step of an optimizer calls."""
    return [*HOOKS, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]


def check_optimizer(optimizer: Any) -> None:
    """Raise for an optimizer whose update is none of fastgrad's rules."""
    kind = type(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{OP}: optimizer must be one of torch.optim, got {kind.__name__}")
    if kind not in KINDS:
        known = "SGD, Adam, AdamW and RMSprop of torch.optim, and fastgrad.torch's Adam and AdamW"
        raise ValueError(f"{OP}: optimizer must be one of {known}, got {kind.__module__}.{kind.__name__}")
    if any(step_hooks(optimizer)):
        raise ValueError(f"{OP}: optimizer has hooks on its step, which is not called")
    for i, group in enumerate(optimizer.param_groups):
        if refused := [name for name in REFUSED if group.get(name)]:
            raise ValueError(f"{OP}: {refused[0]} of optimizer.param_groups[{i}] must be {type(group[refused[0]])(0)}")
        KINDS[kind].rule(group)


class GroupUpdate:
    """The update of parameters of one group that have made as many steps: rule, and block, the memory of their state.

    indices: which of the chain's parameters they are.
    """

    def __init__(self, kind: Kind, group: dict[str, Any], indices: list[int], params: list[Tensor], state: Any) -> None:
        self.indices, self.params, self._kind, self._group = indices, params, kind, group
        self._names = operator.itemgetter(*[name for name in (*kind.settings, *REFUSED) if name in group])
        self._settings = self._names(group)
        optimizer, self._rows = kind.rule(group)
        # PyTorch's SGD has no state without momentum
        entries = [state[p] if kind.has_steps or self._rows else {} for p in params]
        self.entries: list[Any] = entries
        for p, entry in zip(params, entries, strict=True):
            check_rows(OP, p, entry, self._rows)
        self.block = ParameterBlock(params, self._rows, entries, kind.has_steps)
        self._hyper = optimizer.hyper
        self._hyper[0] = float(group["lr"])
        self.rule = UpdateRule(optimizer.code, self.block.state.numpy(), self._hyper, math.inf, None, None)

    def read_settings(self) -> bool:
        """Read lr and the other settings of the group; False where they ask for another state, or for what is refused."""
        group = self._group
        if (settings := self._names(group)) != self._settings:
            optimizer, rows = self._kind.rule(group)
            if rows != self._rows or any(group.get(name) for name in REFUSED):
                return False
            self._hyper[:], self._settings = optimizer.hyper, settings
        self._hyper[0] = float(group["lr"])
        return self.block.matches(self._rows)

    @property
    def step_number(self) -> int:
        """The number of updates before the next one; 1 where none is counted: momentum goes on from its first value, which is 0."""
        return self.block.step_count if self._kind.has_steps else 1

    def run_by_pytorch(self, optimizer: Any, grads: list[Tensor]) -> None:
        """Make an update that turns finite values into infinity or NaN, which kernels refuse, by the optimizer itself."""
        before = [(p, p.grad) for group in optimizer.param_groups for p in group["params"]]
        try:
            for p, _ in before:
                p.grad = None
            for p, grad in zip(self.params, grads, strict=True):
                p.grad = grad
            optimizer.step()
        finally:
            for p, grad in before:
                p.grad = grad


class OptimizerUpdates:
    """The updates of an optimizer's parameters that are in a chain, in a list of GroupUpdate. views: of its groups and its state."""

    def __init__(self, optimizer: Any, params: list[Tensor]) -> None:
        """params: of the chain."""
        check_optimizer(optimizer)
        kind, state = KINDS[type(optimizer)], optimizer.state
        places = {p: i for i, p in enumerate(params) if p.requires_grad}
        self.updates: list[GroupUpdate] = []
        for group in optimizer.param_groups:
            # of parameters that began together the state counts the same steps
            by_step: dict[float, list[int]] = {}
            for place in sorted(places[p] for p in group["params"] if p in places):
                step = float(state.get(params[place], {}).get("step", 0))
                by_step.setdefault(step, []).append(place)
            for indices in by_step.values():
                self.updates.append(GroupUpdate(kind, group, indices, [params[i] for i in indices], state))
        if not self.updates:
            raise ValueError(f"{OP}: optimizer has no parameter of the model that requires a gradient")
        if type(state) is State:
            # fastgrad.torch's own step makes its blocks again
            state.changed = True
        self._optimizer, self._groups, self._state = optimizer, optimizer.param_groups, state
        self._lists = [(group, group["params"]) for group in self._groups]
        entries = [entry.values() for update in self.updates for entry in update.entries]
        self.views: list[Iterable[Any]] = [
            self._groups, *(params for _, params in self._lists), state.values(), *entries
        ]  # fmt: skip

    def read_settings(self) -> bool:
        """Read lr and the other settings of the groups; False where the groups or the state are others now."""
        return (
            self._optimizer.state is self._state
            and self._optimizer.param_groups is self._groups
            and all([group["params"] is params for group, params in self._lists])
            and all([update.read_settings() for update in self.updates])
        )
