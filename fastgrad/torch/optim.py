"""Adam and AdamW as PyTorch optimizers: one pass over the memory of all parameters.

`state` is as PyTorch's: the step and the moments of each parameter, tensors that every step reads and writes. Parameters that one call
updates have their moments in one block of memory. A block is made at the first step, and again if another set of parameters has gradients
or someone has written entries to `state`: see optim_state.py.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch

from fastgrad.optim import Adam as AdamSettings
from fastgrad.optim import AdamW as AdamWSettings
from fastgrad.torch.ops.adam import OP
from fastgrad.torch.optim_state import ParameterBlock, State, check_rows, memory_order, plain_dict
from fastgrad.torch.tensors import check_tensor

Tensor = torch.Tensor
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
        self._blocks: dict[int, list[ParameterBlock]] = {}
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
        if type(self.state) is not State:
            self.state = State(self.state)
        if self.state.changed:
            self._blocks, self.state.changed = {}, False
        for i, group in enumerate(self.param_groups):
            params = group["params"]
            grads = [p.grad for p in params]
            if not all(map(operator.is_not, grads, repeat(None))):
                params = [p for p in params if p.grad is not None]
                grads = [p.grad for p in params]
            if not params:
                continue
            blocks = self._blocks.get(i, [])
            # blocks are few: parameters of one dtype that began together
            same = _are_same(params, blocks[0].params if len(blocks) == 1 else [p for b in blocks for p in b.params])
            rows = ROWS if group["amsgrad"] else ROWS[:2]
            if not same or not all(block.matches(rows) for block in blocks):
                blocks = self._blocks[i] = self._new_blocks(params, rows)
            hyper = _hyper(group)
            for block in blocks:
                block.update(grads if len(blocks) == 1 else [p.grad for p in block.params], hyper)
        return loss

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        # dictionaries as anyone can load them
        return {**saved, "state": {key: plain_dict(entry) for key, entry in saved["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict.get("param_groups", ()):
            if refused := [option for option in REFUSED if group.get(option)]:
                raise ValueError(f"{type(self).__name__}: {', '.join(refused)} of the state_dict must be False")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        attributes = super().__getstate__()
        state = {p: plain_dict(entry) for p, entry in attributes["state"].items()}
        return {**attributes, "state": defaultdict(dict, state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # the state is in tensors of its own again
        self._blocks, self.state = {}, State(self.state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", self._decoupled)

    def _new_blocks(self, params: list[Tensor], rows: Sequence[str]) -> list[ParameterBlock]:
        """The parameters in blocks of one dtype and one number of steps, with their state, which they keep."""
        groups: dict[tuple, list[Tensor]] = {}
        for p in params:
            check_tensor(type(self).__name__, "a parameter", p)
            memory_order(p)
            # a parameter without state has none until it is updated
            entry = self.state.get(p, {})
            check_rows(OP, p, entry, rows)
            groups.setdefault((p.dtype, float(entry.get("step", 0))), []).append(p)
        return [ParameterBlock(group, rows, list(map(self.state.entry, group))) for group in groups.values()]


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


def _are_same(params: list[Tensor], others: list[Tensor]) -> bool:
    return len(params) == len(others) and all(map(operator.is_, params, others))


def _hyper(group: dict[str, Any]) -> np.ndarray:
    settings = AdamSettings if not group["decoupled_weight_decay"] else AdamWSettings
    return settings(float(group["lr"]), group["betas"], group["eps"], group["weight_decay"], group["amsgrad"]).hyper
