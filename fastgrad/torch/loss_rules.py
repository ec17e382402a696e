"""The losses that training_step takes: PyTorch's with their options, fastgrad's by name, and those of fg.loss."""

from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.functional.loss_arguments import checked_weights, class_loss, huber_loss
from fastgrad.kernels import types
from fastgrad.loss import Loss
from fastgrad.torch.chain_model import OP
from fastgrad.torch.layers import has_hooks
from fastgrad.torch.ops.loss import cross_entropy
from fastgrad.torch.tensors import array

Tensor = torch.Tensor
F: Any = nn.functional
# of PyTorch's losses fastgrad's names, the options with their defaults, and the settings that must have these
LOSSES: dict[type, tuple[str, dict[str, Any], dict[str, Any]]] = {
    nn.CrossEntropyLoss: ("cross_entropy", {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}, {}),
    nn.BCEWithLogitsLoss: ("binary_cross_entropy", {"pos_weight": None}, {"weight": None}),
    nn.BCELoss: ("binary_cross_entropy", {}, {"weight": None}),
    nn.MSELoss: ("mse", {}, {}),
    nn.L1Loss: ("mae", {}, {}),
    nn.HuberLoss: ("huber", {"delta": 1.0}, {}),
    nn.PoissonNLLLoss: ("poisson_nll", {}, {"log_input": True, "full": False}),
}
FUNCTIONS: dict[Any, type] = {
    F.cross_entropy: nn.CrossEntropyLoss, cross_entropy: nn.CrossEntropyLoss, F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss, F.binary_cross_entropy: nn.BCELoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss, F.l1_loss: nn.L1Loss, F.huber_loss: nn.HuberLoss,
}  # fmt: skip
# the activation that a loss needs the last layer to have, or that it must not have
NEEDED, TWICE = {nn.BCELoss: types.SIGMOID}, {nn.CrossEntropyLoss: types.SOFTMAX, nn.BCEWithLogitsLoss: types.SIGMOID}


class LossRule:
    """A loss as it is when it is read: the class of PyTorch's module, None for a loss of fastgrad's own, and its options."""

    def __init__(self, loss: Any) -> None:
        self._kind: type | None = None
        self._loss: str | Loss = loss
        self._options: dict[str, Any] = {}
        if isinstance(loss, Loss):
            return
        if isinstance(loss, str):
            check.choice(OP, "loss", loss, types.LOSSES)
            return
        kind = self._kind = FUNCTIONS.get(loss, type(loss)) if callable(loss) else type(loss)
        if kind not in LOSSES:
            known = ", ".join(f"nn.{k.__name__}" for k in LOSSES)
            name = getattr(loss, "__name__", type(loss).__name__)
            raise ValueError(
                f"{OP}: loss must be one of {known}, the function of one, one of {', '.join(types.LOSSES)}, or one of fg.loss; "
                f"got {name}"
            )
        self._loss, options, settings = LOSSES[kind]
        is_module = isinstance(loss, nn.Module)
        for setting, default in (settings | {"reduction": "mean"}).items() if is_module else ():
            value = getattr(loss, setting)
            if value is not default and (isinstance(value, Tensor) or value != default):
                raise ValueError(f"{OP}: {setting} of {kind.__name__} must be {default!r}, got {value!r}")
        if is_module and has_hooks(loss):
            raise ValueError(f"{OP}: {kind.__name__} has hooks, which are not called")
        for option, default in options.items():
            value = getattr(loss, option) if is_module else default
            # a copy: the values are those of the beginning
            is_tensor = isinstance(value, Tensor)
            self._options[option] = array(OP, f"{option} of {kind.__name__}", value).copy() if is_tensor else value

    def over(self, outputs: int, like: Any) -> types.Loss:
        """The loss as the kernels read it, for so many outputs; weights become an array like `like`."""
        if isinstance(self._loss, Loss):
            return self._loss.over(OP, outputs, like)
        loss, options, weights = types.LOSSES[self._loss], self._options, None
        name = "" if self._kind is None else self._kind.__name__
        for option in ("weight", "pos_weight"):
            if (value := options.get(option)) is not None:
                of_all = option == "pos_weight" and value.size == 1
                shape, form = (
                    value.shape if of_all else (outputs,),
                    "(C,)" if option == "weight" else "one value or (K,)",
                )
                value = check.array(OP, f"{option} of {name}", value, form, shape, like, of_model=True)
                value = value.reshape(()) if of_all else value
                weights = checked_weights(OP, f"{option} of {name}", value, form, (outputs,), like, scalar=of_all)
        if "label_smoothing" in options:
            return class_loss(OP, weights, options["ignore_index"], options["label_smoothing"])
        return huber_loss(OP, options["delta"]) if "delta" in options else loss._replace(weights=weights)

    def check_output(self, code: int) -> None:
        """The last layer's activation must be one that the loss computes the same with."""
        kind, names = self._kind, {f.code: name for name, f in types.ACTIVATIONS.items()}
        if kind is None:
            return
        if kind in NEEDED and code != NEEDED[kind]:
            raise ValueError(f"{OP}: {kind.__name__} needs a {names[NEEDED[kind]]} as the last layer")
        if TWICE.get(kind) == code:
            raise ValueError(f"{OP}: {kind.__name__} takes logits, and the model ends in {names[code]}")
