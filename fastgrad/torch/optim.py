"""Adam and AdamW as PyTorch optimizers: one pass over the memory of all parameters.

`state` is as PyTorch's: the step and the moments of each parameter, tensors that every step reads and writes. Parameters that one call
updates have their moments in one block of memory. A block is made at the first step, and again if another set of parameters has gradients
or someone has written entries to `state`, whose dictionaries notice that.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch

from fastgrad.core.backend import kernels
from fastgrad.kernels import types
from fastgrad.optim import Adam as AdamSettings
from fastgrad.optim import AdamW as AdamWSettings
from fastgrad.torch.registration import Operator
from fastgrad.torch.tensors import array, arrays, checked, placed

Tensor = torch.Tensor
OP = "adam_step"
ROWS = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
# arguments of PyTorch's that choose an implementation, and those that would change what is computed
IGNORED, REFUSED = ("foreach", "fused"), ("maximize", "capturable", "differentiable")


class Adam(torch.optim.Optimizer):
    """torch.optim.Adam by fastgrad's kernels, on the CPU in float32 and float64.

    state_dict is PyTorch's, both ways.

    Args:
        params: Parameters, or groups of them, as torch.optim.Adam takes them.
        lr: The learning rate, a number or a tensor of one value.
        betas: (beta1, beta2), the decay of the two moments, each from 0 and below 1.
        eps: What is added to the root of the second moment, at least 0.
        weight_decay: The factor of the L2 term in the gradient, at least 0.
        amsgrad: Divide by the root of the largest second moment so far.
        **options: foreach and fused are taken and change nothing; maximize, capturable and differentiable must be
            False.

    Raises:
        ValueError: A setting is out of its range, or a refused option is set.
        TypeError: An option is unknown, or a setting is no number.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = fgt.Adam([p], lr=0.1)
        >>> p.grad = torch.tensor([5.0])
        >>> optimizer.step()
        >>> round(p.item(), 3)
        0.9

    References:
        Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
        Reddi et al. 2018, "On the Convergence of Adam and Beyond": amsgrad.
    """

    _decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        AdamSettings(float(lr), betas, eps, weight_decay, amsgrad)
        if unknown := [option for option in options if option not in (*IGNORED, *REFUSED)]:
            raise TypeError(f"{name}: unknown arguments {', '.join(unknown)}")
        if refused := [option for option in REFUSED if options.get(option)]:
            raise ValueError(f"{name}: {', '.join(refused)} must be False")
        self._together: dict[int, list[_Together]] = {}
        self.state: Any
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, settings | {"decoupled_weight_decay": self._decoupled})

    # what is traced must not hand addresses to kernels: a compiled program leaves itself here and goes on behind it
    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have gradients; the loss of the closure, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if type(self.state) is not _State:
            self.state = _State(self.state)
        if self.state.changed:
            self._together, self.state.changed = {}, False
        for i, group in enumerate(self.param_groups):
            params = group["params"]
            grads = [p.grad for p in params]
            if not all(map(operator.is_not, grads, repeat(None))):
                params = [p for p in params if p.grad is not None]
                grads = [p.grad for p in params]
            if not params:
                continue
            together = self._together.get(i, [])
            # parts are few: parameters of one dtype that began together
            same = _same(params, together[0].params if len(together) == 1 else [p for t in together for p in t.params])
            rows = ROWS if group["amsgrad"] else ROWS[:2]
            if not same or not all(part.holds(rows) for part in together):
                together = self._together[i] = self._arranged(params, rows)
            hyper = _hyper(group)
            for part in together:
                part.update(grads if len(together) == 1 else [p.grad for p in part.params], hyper)
        return loss

    def state_dict(self) -> dict[str, Any]:
        made = super().state_dict()
        # dictionaries as anyone can load them
        return {**made, "state": {key: _bare(entry) for key, entry in made["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict.get("param_groups", ()):
            if refused := [option for option in REFUSED if group.get(option)]:
                raise ValueError(f"{type(self).__name__}: {', '.join(refused)} of the state_dict must be False")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        made = super().__getstate__()
        state = {p: _bare(entry) for p, entry in made["state"].items()}
        return {**made, "state": defaultdict(dict, state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # the state is in tensors of its own again
        self._together, self.state = {}, _State(self.state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", self._decoupled)

    def _arranged(self, params: list[Tensor], rows: Sequence[str]) -> list["_Together"]:
        """The parameters in groups of one dtype and one number of steps, with their state, which they keep."""
        parts: dict[tuple, list[Tensor]] = {}
        for p in params:
            checked(type(self).__name__, "a parameter", p)
            _order(p)
            # a parameter without state has none until it is updated
            entry = self.state.get(p, {})
            for name in rows:
                if name in entry and entry[name].shape != p.shape:
                    raise ValueError(
                        f"{OP}: {name} of a parameter must be {tuple(p.shape)}, got {tuple(entry[name].shape)}"
                    )
            parts.setdefault((p.dtype, float(entry.get("step", 0))), []).append(p)
        return [_Together(part, rows, self.state) for part in parts.values()]


class AdamW(Adam):
    """torch.optim.AdamW by fastgrad's kernels: Adam whose weight decay does not go through the moments.

    Args:
        params: Parameters, or groups of them, as torch.optim.AdamW takes them.
        lr: The learning rate, a number or a tensor of one value.
        betas: (beta1, beta2), the decay of the two moments, each from 0 and below 1.
        eps: What is added to the root of the second moment, at least 0.
        weight_decay: The share of a parameter, times lr, that each update takes away, at least 0.
        amsgrad: Divide by the root of the largest second moment so far.
        **options: foreach and fused are taken and change nothing; maximize, capturable and differentiable must be
            False.

    Raises:
        ValueError: A setting is out of its range, or a refused option is set.
        TypeError: An option is unknown, or a setting is no number.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = fgt.AdamW([p], lr=0.1, weight_decay=0.5)
        >>> p.grad = torch.tensor([0.0])
        >>> optimizer.step()
        >>> round(p.item(), 3)
        0.95

    References:
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


class _Watched:
    """Mixin for a dictionary that calls `_tell` before anything writes to it."""

    def _tell(self) -> None:
        raise NotImplementedError


def _telling(name: str) -> Callable:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._tell()
        return getattr(super(_Watched, self), name)(*args, **kwargs)

    return method


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(_Watched, _name, _telling(_name))


class _Entry(_Watched, dict):
    """The state of a parameter. state: the _State that is told of writes."""

    state: "_State"

    def _tell(self) -> None:
        self.state.changed = True

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class _State(_Watched, defaultdict):
    """The states of all parameters. changed: whether an entry was set or deleted since the optimizer last looked."""

    def __init__(self, entries: dict[Tensor, dict]) -> None:
        super().__init__(None)
        self.changed = True
        for p, entry in entries.items():
            dict.__setitem__(self, p, entry)

    def _tell(self) -> None:
        self.changed = True

    def __missing__(self, p: Tensor) -> "_Entry":
        entry = _Entry()
        entry.state = self
        dict.__setitem__(self, p, entry)
        return entry

    def entry(self, p: Tensor) -> "_Entry":
        """The state of a parameter, as an _Entry, which tells of writes from now on."""
        entry = self[p]
        if type(entry) is not _Entry:
            entry = _Entry(entry)
            dict.__setitem__(self, p, entry)
        entry.state = self
        return entry

    def __reduce__(self) -> tuple:
        return defaultdict, (dict, {p: _bare(entry) for p, entry in self.items()})


def _bare(entry: Any) -> Any:
    return dict(entry) if type(entry) is _Entry else entry


class _Together:
    """Parameters that one call updates, and the block of their state; the tensors in the optimizer's state are views of it."""

    def __init__(self, params: list[Tensor], rows: Sequence[str], state: _State) -> None:
        self.params, self.rows = params, tuple(rows)
        self._orders = [_order(p) for p in params]
        self._sizes = [p.numel() for p in params]
        self.plain = all(p.is_contiguous() for p in params)
        self.state = torch.zeros(len(rows), sum(p.numel() for p in params), dtype=params[0].dtype)  # (S, P)
        # steps of the parameters, and last how many updates of this part are counted in them: one addition counts all
        dtype = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
        steps = torch.zeros(len(params) + 1, dtype=dtype)
        self.updates, self._steps, at = np.zeros(1, np.int64), steps.numpy(), 0
        for i, (p, order) in enumerate(zip(params, self._orders, strict=True)):
            entry = state.entry(p)
            self._steps[i] = float(entry.get("step", 0))
            dict.__setitem__(entry, "step", steps[i])
            for row, name in zip(self.state, rows, strict=True):
                place = row[at : at + p.numel()].view(p.permute(order).shape).permute(np.argsort(order).tolist())
                if name in entry:
                    place.copy_(entry[name])
                dict.__setitem__(entry, name, place)
            at += p.numel()
        # the steps as they were when they were found to be one
        self._seen = b""
        self._look()

    def holds(self, rows: Sequence[str]) -> bool:
        """Whether the state has these rows, and all parameters have one number of steps.

        The step tensors are compared again if someone has written to them.
        """
        self._count()
        return self.rows == rows and (self._steps.tobytes() == self._seen or self._are_one())

    def _are_one(self) -> bool:
        one = bool((self._steps[:-1] == self._steps[0]).all())
        if one:
            self._seen = self._steps.tobytes()
        return one

    def _count(self) -> None:
        # an update may have been made and the call been interrupted before it was counted
        if self._steps.item(-1) < self.updates.item(0):
            self._steps += 1
            self._seen = self._steps.tobytes()

    def _look(self) -> None:
        self._addresses = list(map(Tensor.data_ptr, self.params))
        self._arrays = self._ordered(p.detach() for p in self.params)
        self._places = placed(self.params)

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
            self._look()
        found = placed(grads, self._places) if self._places is not None else None
        if found is None:
            found = arrays(OP, "gradients", grads)
            if not self.plain or not kernels().plain(found):
                found = self._ordered(grads)
        try:
            _update(self._arrays, found, self.state.numpy(), hyper, int(self._steps.item(0)) + 1, self.updates)
        finally:
            self._count()
        torch.autograd.graph.increment_version(self.params)


def _order(p: Tensor) -> list[int]:
    """The axes of a tensor as they follow each other in memory."""
    strides = p.stride()
    order = sorted(range(p.dim()), key=lambda axis: (-strides[axis], axis))
    if not p.permute(order).is_contiguous():
        raise ValueError(f"{OP}: a parameter must be dense in memory, got {tuple(p.shape)} with strides {strides}")
    return order


def _same(params: list[Tensor], others: list[Tensor]) -> bool:
    return len(params) == len(others) and all(map(operator.is_, params, others))


def _hyper(group: dict[str, Any]) -> np.ndarray:
    made = AdamSettings if not group["decoupled_weight_decay"] else AdamWSettings
    return made(float(group["lr"]), group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]).hyper


def _update(
    params: list[np.ndarray], grads: Any, state: np.ndarray, hyper: np.ndarray, step: int, updates: Any = None
) -> None:
    """updates (1,): counts with the update, in one call, so that an interrupt comes before both or after both."""
    rule = types.UpdateRule(types.ADAM, state, hyper, np.inf, None, None)
    if kernels().update_arrays(params, grads, rule, step, None, updates=updates) != types.OK:
        raise FloatingPointError(
            f"{OP}: the state or a parameter would not be finite in {state.dtype}: "
            "a gradient or parameter is too large for it, or eps too small; no update was made"
        )


def _run(params: Sequence[Tensor], grads: Sequence[Tensor], state: Tensor, hyper: Sequence[float], step: int) -> None:
    """hyper: lr, beta1, beta2, eps, weight_decay, 0, and whether the decay is decoupled."""
    lists = arrays(OP, "params", [p.detach() for p in params]), arrays(OP, "grads", grads)
    if not all(kernels().plain(found) for found in lists):
        raise ValueError(f"{OP}: params and grads must be contiguous and of one dtype")
    _update(*lists, array(OP, "state", state), np.array(hyper, np.float64), step)


adam_step = Operator(
    f"{OP}(Tensor(a!)[] params, Tensor[] grads, Tensor(b!) state, float[] hyper, int step) -> ()",
    _run,
    lambda params, grads, state, hyper, step: None,
    ("params", "state"),
)
