"""Operator: registers a function as a PyTorch operator; `autograd_function`: the same for calls that need no registered one.

An operator is a function of tensors and its fake, which computes shapes alone. torch.compile, torch.export, fake tensors and autocast see
it as `torch.ops.fastgrad.<name>`. A call through PyTorch's dispatcher takes longer than a small net's step. So in eager mode plain tensors
on the CPU go to the function itself, or to a torch.autograd.Function of the same formulas: see `skips_dispatcher`.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from fastgrad.torch.tensors import TENSOR_TYPES

NAMESPACE = "fastgrad"


def refuse_tangents(op: str, *values: Any) -> None:
    """Raise NotImplementedError if a value has a tangent of forward-mode differentiation, which no operator propagates."""
    if forward_ad._current_level < 0:
        return
    for value in values:
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(f"{op}: there is no forward-mode derivative; PyTorch's own layers have one")


def autocast_dtype(x: Any) -> torch.dtype | None:
    """The dtype of PyTorch's matrix products of x under the active autocast; None without autocast, and for float64."""
    if not torch.is_autocast_enabled("cpu") or not x.is_floating_point() or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype("cpu")


def cast_product(y: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """y, which was computed in float32, in the dtype that PyTorch's product of x, plus the residual, would have under autocast."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return y
    return y.to(dtype if residual is None else torch.promote_types(dtype, residual.dtype))


def skips_dispatcher(op: str, x: Any) -> bool:
    """Whether a call with the tensor x may skip PyTorch's dispatcher: neither compiled, traced, faked nor under autocast.

    Raises TypeError for what is no tensor, NotImplementedError inside torch.func's transforms.
    """
    if torch.compiler.is_compiling():
        return False
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(transform_message(op))
    return (
        type(x) in TENSOR_TYPES
        and x.is_cpu
        and not torch._C._len_torch_dispatch_stack()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
    )


class Operator:
    """An operator without a derivative of its own; `set_derivative` gives it one."""

    def __init__(self, schema: str, run: Callable, fake: Callable, mutates: tuple[str, ...] = ()) -> None:
        """schema: name(arguments) -> results, as of torch.library; run: the function; fake: the same of shapes alone."""
        name, arguments = schema.split("(", 1)
        self.name, self.run = name, run
        self._definition = torch.library.custom_op(
            f"{NAMESPACE}::{name}", run, mutates_args=mutates, schema=f"({arguments}"
        )
        self._definition.register_fake(fake)
        self._definition.register_autocast("cpu", torch.float32)
        self._definition.register_vmap(self._no_vmap)
        self.op = getattr(torch.ops.fastgrad, name).default

    def __call__(self, x: Any, *arguments: Any) -> Any:
        # where gradients are recorded the registered operator says that it has none
        return (
            self.run(x, *arguments)
            if skips_dispatcher(self.name, x) and not torch.is_grad_enabled()
            else self.op(x, *arguments)
        )

    def set_derivative(self, save: Callable, backward: Callable) -> None:
        """save(ctx, inputs, output) and backward(ctx, *upstream), as of torch.library.register_autograd."""
        self._definition.register_autograd(backward, setup_context=save)

    def without_derivative(self) -> "Operator":
        """Give the operator of a backward pass a derivative that raises NotImplementedError. Returns the operator."""
        self._definition.register_autograd(self._no_derivative)
        return self

    def _no_derivative(self, ctx: Any, *upstream: Any) -> NoReturn:
        raise NotImplementedError(second_derivative_message(self.name.removesuffix("_backward")))

    def _no_vmap(self, *arguments: Any) -> NoReturn:
        raise NotImplementedError(transform_message(self.name))


def autograd_function(op: str, run: Callable, save: Callable, differentiate: Callable) -> type[torch.autograd.Function]:
    """A torch.autograd.Function for plain tensors in eager mode. It returns the first result of run.

    save and differentiate are those of `Operator.set_derivative`.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
            output = run(*inputs)
            save(ctx, inputs, output)
            return output[0]

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> tuple:  # type: ignore[override]
            refuse_second_derivative(op)
            return differentiate(ctx, dy)

    return Eager


def transform_message(name: str) -> str:
    return f"{name}: torch.func's transforms (vmap, grad, ...) cannot go through it; call it with the whole batch, and autograd"


def second_derivative_message(name: str) -> str:
    return f"{name}: there is no second derivative (create_graph=True)"


def refuse_second_derivative(name: str) -> None:
    """Raise in the backward of a Function if autograd records it: then it is to be differentiated again."""
    if torch.is_grad_enabled():
        raise NotImplementedError(second_derivative_message(name))
