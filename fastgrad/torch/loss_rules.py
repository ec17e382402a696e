"""The losses that training_step takes: PyTorch's, with their default settings, and fastgrad's by name."""

from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.kernels import types
from fastgrad.torch.chain_model import OP
from fastgrad.torch.layers import has_hooks
from fastgrad.torch.ops.loss import cross_entropy

Tensor = torch.Tensor
F: Any = nn.functional
# of PyTorch's losses fastgrad's names, and the settings that they must have
LOSSES: dict[type, tuple[str, dict[str, Any]]] = {
    nn.CrossEntropyLoss: ("cross_entropy", {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}),
    nn.BCEWithLogitsLoss: ("binary_cross_entropy", {"weight": None, "pos_weight": None}),
    nn.BCELoss: ("binary_cross_entropy", {"weight": None}),
    nn.MSELoss: ("mse", {}),
    nn.PoissonNLLLoss: ("poisson_nll", {"log_input": True, "full": False}),
}
FUNCTIONS: dict[Any, type] = {
    F.cross_entropy: nn.CrossEntropyLoss, cross_entropy: nn.CrossEntropyLoss, F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss, F.binary_cross_entropy: nn.BCELoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
}  # fmt: skip
# the activation that a loss needs the last layer to have, or that it must not have
NEEDED, TWICE = {nn.BCELoss: types.SIGMOID}, {nn.CrossEntropyLoss: types.SOFTMAX, nn.BCEWithLogitsLoss: types.SIGMOID}


def checked_loss(loss: Any) -> tuple[type | None, str]:
    """The loss module's class, None for a loss of fastgrad's own, and fastgrad's name."""
    if isinstance(loss, str):
        check.choice(OP, "loss", loss, types.LOSSES)
        return None, loss
    kind = FUNCTIONS.get(loss, type(loss)) if callable(loss) else type(loss)
    if kind not in LOSSES:
        known = ", ".join(f"nn.{k.__name__}" for k in LOSSES)
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ValueError(
            f"{OP}: loss must be one of {known}, the function of one, or one of {', '.join(types.LOSSES)}; got {name}"
        )
    name, settings = LOSSES[kind]
    for setting, default in (settings | {"reduction": "mean"}).items() if isinstance(loss, nn.Module) else ():
        value = getattr(loss, setting)
        if value is not default and (isinstance(value, Tensor) or value != default):
            raise ValueError(f"{OP}: {setting} of {kind.__name__} must be {default!r}, got {value!r}")
    if isinstance(loss, nn.Module) and has_hooks(loss):
        raise ValueError(f"{OP}: {kind.__name__} has hooks, which are not called")
    return kind, name


def check_output(kind: type | None, code: int) -> None:
    """The last layer's activation must be one that the loss computes the same with."""
    names = {f.code: name for name, f in types.ACTIVATIONS.items()}
    if kind is None:
        return
    if kind in NEEDED and code != NEEDED[kind]:
        raise ValueError(f"{OP}: {kind.__name__} needs a {names[NEEDED[kind]]} as the last layer")
    if TWICE.get(kind) == code:
        raise ValueError(f"{OP}: {kind.__name__} takes logits, and the model ends in {names[code]}")
