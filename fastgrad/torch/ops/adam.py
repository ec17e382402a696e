"""The PyTorch operator adam_step, one update of Adam or AdamW of many parameters; and `update_parameters`, the same of arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastgrad.core.backend import kernels
from fastgrad.kernels import types
from fastgrad.torch.registration import Operator
from fastgrad.torch.tensors import array, arrays

Tensor = torch.Tensor
OP = "adam_step"


def update_parameters(
    params: list[np.ndarray], grads: Any, state: np.ndarray, hyper: np.ndarray, step: int, updates: Any = None
) -> None:
    """One update in place. updates (1,) counts it, in the same call, so that an interrupt comes before both or after both."""
    rule = types.UpdateRule(types.ADAM, state, hyper, np.inf, None, None)
    if kernels().update_arrays(params, grads, rule, step, None, updates=updates) != types.OK:
        raise FloatingPointError(
            f"{OP}: the state or a parameter would not be finite in {state.dtype}: "
            "a gradient or parameter is too large for it, or eps too small; no update was made"
        )


def _run(params: Sequence[Tensor], grads: Sequence[Tensor], state: Tensor, hyper: Sequence[float], step: int) -> None:
    """hyper: lr, beta1, beta2, eps, weight_decay, 0, and whether the decay is decoupled."""
    lists = arrays(OP, "params", [p.detach() for p in params]), arrays(OP, "grads", grads)
    if not all(map(kernels().are_uniform, lists)):
        raise ValueError(f"{OP}: params and grads must be contiguous and of one dtype")
    update_parameters(*lists, array(OP, "state", state), np.array(hyper, np.float64), step)


adam_step = Operator(
    f"{OP}(Tensor(a!)[] params, Tensor[] grads, Tensor(b!) state, float[] hyper, int step) -> ()",
    _run,
    lambda params, grads, state, hyper, step: None,
    ("params", "state"),
)
