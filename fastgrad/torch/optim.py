"""Adam and AdamW as PyTorch's optimizers: one pass over the memory of all parameters.

The state of parameters that are updated together lies in one tensor, of which state_dict's entries are views; it is made at the first
step, and again where another set of parameters has gradients.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch

from fastgrad.backend import kernels
from fastgrad.kernels import names
from fastgrad.optim import Adam as AdamSettings
from fastgrad.optim import AdamW as AdamWSettings
from fastgrad.torch.register import Operator
from fastgrad.torch.tensors import array, arrays, checked, placed

Tensor = torch.Tensor
OP = "adam_step"
ROWS = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
# arguments of PyTorch's that choose an implementation, and those that would change what is computed
IGNORED, REFUSED = ("foreach", "fused"), ("maximize", "capturable", "differentiable")


class Adam(torch.optim.Optimizer):
    """torch.optim.Adam by fastgrad's kernels, on the CPU in float32 and float64; state_dict is PyTorch's, both ways.

    foreach and fused are taken and change nothing; maximize, capturable and differentiable are refused.
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
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, settings | {"decoupled_weight_decay": self._decoupled})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have gradients; the loss of the closure, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
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
            if not _same(params, together[0].params if len(together) == 1 else [p for t in together for p in t.params]):
                together = self._together[i] = self._arranged(i, params, group["amsgrad"])
            hyper = _hyper(group)
            for part in together:
                part.update(grads if len(together) == 1 else [p.grad for p in part.params], hyper)
        return loss

    def state_dict(self) -> dict[str, Any]:
        self._write_steps()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict.get("param_groups", ()):
            if refused := [option for option in REFUSED if group.get(option)]:
                raise ValueError(f"{type(self).__name__}: {', '.join(refused)} of the state_dict must be False")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        self._write_steps()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # the state is in tensors of its own again
        self._together = {}
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", self._decoupled)

    def _write_steps(self) -> None:
        for parts in self._together.values():
            for part in parts:
                for p in part.params:
                    # each a tensor of its own, since PyTorch's optimizers count in place
                    self.state[p]["step"] = torch.tensor(float(part.step))

    def _arranged(self, group: int, params: list[Tensor], amsgrad: bool) -> list["_Together"]:
        """Parameters that have made the same number of steps, with their state, which they keep."""
        for p in params:
            checked(type(self).__name__, "a parameter", p)
        self._write_steps()
        parts: dict[tuple, list[Tensor]] = {}
        for p in params:
            parts.setdefault((p.dtype, int(self.state[p].get("step", 0))), []).append(p)
        rows = ROWS if amsgrad else ROWS[:2]
        return [_Together(parts[key], key[1], rows, self.state) for key in parts]


class AdamW(Adam):
    """torch.optim.AdamW by fastgrad's kernels: Adam whose weight decay does not go through the moments."""

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


class _Together:
    """Parameters that are updated in one call, and their state, of which the optimizer's holds views."""

    def __init__(self, params: list[Tensor], step: int, rows: Sequence[str], state: dict[Tensor, dict]) -> None:
        self.params, self.step = params, step
        self._orders = [_order(p) for p in params]
        self.plain = all(p.is_contiguous() for p in params)
        self.state = torch.zeros(len(rows), sum(p.numel() for p in params), dtype=params[0].dtype)  # (S, P)
        at = 0
        for p, order in zip(params, self._orders, strict=True):
            for row, name in zip(self.state, rows, strict=True):
                place = row[at : at + p.numel()].view(p.permute(order).shape).permute(np.argsort(order).tolist())
                if name in state[p]:
                    place.copy_(state[p][name])
                state[p][name] = place
            at += p.numel()
        self._look()

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
        if self._addresses != list(map(Tensor.data_ptr, self.params)):
            self._look()
        found = placed(grads, self._places) if self._places is not None else None
        if found is None:
            found = arrays(OP, "gradients", grads)
            if not self.plain or not kernels().plain(found):
                found = self._ordered(grads)
        _update(self._arrays, found, self.state.numpy(), hyper, self.step + 1)
        self.step += 1
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


def _update(params: list[np.ndarray], grads: Any, state: np.ndarray, hyper: np.ndarray, step: int) -> None:
    settings = names.ADAM, state, hyper, step, np.inf, None, None, None
    if kernels().update_arrays(params, grads, *settings) != names.OK:
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
