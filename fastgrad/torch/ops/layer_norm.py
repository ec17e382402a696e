"""The PyTorch operator layer_norm: layer normalisation with a residual and an activation, its derivative and its fake."""

from math import prod
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import SOFTMAX, Activation, Affine, LayerSaved, NormGradients, Statistics
from fastgrad.torch.registration import Operator, autocast_dtype, autograd_function, refuse_tangents, skips_dispatcher
from fastgrad.torch.tensors import RESULT_SAVED, array, saved_copy, saves_copy

Tensor = torch.Tensor
OP = "layer_norm"


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    eps: float = 1e-5,
    activation: str | tuple[str, float] = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """Layer normalisation as torch.nn.functional.layer_norm, with a residual and an activation in the same pass.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    mean and var are those over the last axes of x, as many as gamma has.

    Args:
        x: (..., *gamma.shape), float32 or float64.
        gamma: The factors, of one axis or more; its shape is PyTorch's normalized_shape.
        beta: What is added, like gamma.
        eps: What is added to the variance.
        activation: A name, or a pair such as ("leaky_relu", 0.1); softmax only where gamma has one axis.
        residual: Like x, or None.

    Returns:
        y, like x, differentiable by x, gamma, beta and residual.

    Raises:
        ValueError: A shape does not fit, or activation is unknown.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x = torch.tensor([[1.0, 3.0]])
        >>> y = fgt.layer_norm(x, torch.ones(2), torch.zeros(2), activation="relu")
        >>> [round(value, 3) for value in y[0].tolist()]
        [0.0, 1.0]

    References:
        Ba, Kiros & Hinton 2016, "Layer Normalization".
    """
    f = check.activation(OP, activation)
    tensors: tuple = x, gamma, beta, residual
    refuse_tangents(OP, *tensors)
    settings: tuple = float(eps), *f
    if not skips_dispatcher(OP, x):
        y = _forward.op(*tensors, *settings)[0]
        # no product: PyTorch's norm returns what it takes
        if autocast_dtype(x) is None:
            return y
        return y.to(x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype))
    if torch.is_grad_enabled():
        return _LayerNorm.apply(*tensors, *settings)
    return _run(*tensors, *settings)[0]


def _run(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, code: int, parameter: float
) -> tuple[Tensor, ...]:
    """y, what backward reads if that is not y (z, or a copy of y), mean and rstd."""
    values, f, shape = array(OP, "x", x), Activation(code, parameter), tuple(gamma.shape)
    if not shape or not prod(shape) or values.shape[max(values.ndim - len(shape), 0) :] != shape:
        raise ValueError(
            f"{OP}: x must be (..., *gamma.shape) with gamma of one value or more, got {values.shape} and {shape}"
        )
    if code == SOFTMAX and len(shape) > 1:
        raise ValueError(f"{OP}: activation softmax needs a gamma of one axis, got {shape}")
    dtype = values.dtype
    affine = Affine(*(
        check.contiguous(check.array(OP, n, array(OP, n, v), "like gamma", shape, dtype)).reshape(-1)
        for n, v in (("gamma", gamma), ("beta", beta))
    ))  # fmt: skip
    added = None if residual is None else _rows("residual", residual, values, shape)
    xs, y = _rows("x", x, values, shape), empty(values.shape, dtype)
    saved = layer_saved(y.reshape(xs.shape), f)
    statistics = Statistics(np.empty(len(xs)), np.empty(len(xs)))
    kernels().layer_norm_forward(xs, affine, eps, added, f, statistics, saved)
    z_or_copy = saved.z if f.needs_input else saved_copy(f, y)
    return torch.from_numpy(y), *(torch.from_numpy(a) for a in (z_or_copy.reshape(-1), *statistics))


def _run_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, saved: Tensor, mean: Tensor, rstd: Tensor, code: int, parameter: float, wants: list[bool]
) -> list[Tensor]:  # fmt: skip
    """dgamma, dbeta, and those that are wanted of dx and dresidual. saved: y, z or a copy of y, or nothing."""
    values, shape = array(OP, "x", x), tuple(gamma.shape)
    xs, dys = (_rows(name, v, values, shape) for name, v in (("x", x), ("dy", dy)))
    read = code in RESULT_SAVED or saves_copy(code)
    ys = check.contiguous(array(OP, "saved", saved)).reshape(xs.shape) if read else dys
    affine = Affine(check.contiguous(array(OP, "gamma", gamma)).reshape(-1), None)
    statistics = Statistics(array(OP, "mean", mean), array(OP, "rstd", rstd))
    dx, dz = (empty(xs.shape, xs) if want else None for want in wants)
    gradients = NormGradients(dz, dx, empty(affine.gamma.shape, xs), empty(affine.gamma.shape, xs))
    f = Activation(code, parameter)
    kernels().layer_norm_backward(dys, xs, statistics, affine, f, LayerSaved(ys, ys), gradients)
    vectors = [torch.from_numpy(d.reshape(shape)) for d in (gradients.dgamma, gradients.dbeta)]
    return vectors + [torch.from_numpy(d.reshape(values.shape)) for d in (dx, dz) if d is not None]


def _rows(name: str, value: Tensor, like: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array like x as (M, C), C values of this shape."""
    a = check.array(OP, name, array(OP, name, value), "like x", like.shape, like.dtype)
    return check.contiguous(a).reshape(prod(like.shape[: like.ndim - len(shape)]), prod(shape))


def _fake(
    x: Tensor, gamma: Tensor, beta: Any, residual: Any, eps: Any, code: int, parameter: Any
) -> tuple[Tensor, ...]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = prod(x.shape[: x.dim() - gamma.dim()])
    mean, rstd = (x.new_empty(rows, dtype=torch.float64) for _ in range(2))
    return y, x.new_empty(prod(x.shape) if saves_copy(code) else 0), mean, rstd


def _fake_backward(
    dy: Any, x: Tensor, gamma: Tensor, saved: Any, mean: Any, rstd: Any, code: Any, parameter: Any, wants: Any
) -> list[Tensor]:
    vectors = [torch.empty_like(gamma, memory_format=torch.contiguous_format) for _ in range(2)]
    return vectors + [torch.empty_like(x, memory_format=torch.contiguous_format) for want in wants if want]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, gamma, _, residual, _, code, parameter = inputs
    ctx.save_for_backward(x, gamma, output[0] if code in RESULT_SAVED else output[1], *output[2:4])
    ctx.settings, ctx.has_residual = (code, parameter), residual is not None


def _differentiate(ctx: Any, dy: Tensor, *unused: Any) -> tuple:
    # where there was a residual the kernel needs its gradient
    wants = [ctx.needs_input_grad[0], ctx.has_residual]
    dgamma, dbeta, *rest = _backward(dy, *ctx.saved_tensors, *ctx.settings, wants)
    dx, dresidual = (rest.pop(0) if want else None for want in wants)
    return dx, dgamma, dbeta, dresidual, None, None, None


_forward = Operator(
    f"{OP}(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, float eps, int code, float parameter)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dy, Tensor x, Tensor gamma, Tensor saved, Tensor mean, Tensor rstd, int code, float parameter,"
    " bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).without_derivative()
_forward.set_derivative(_save, _differentiate)
_LayerNorm = autograd_function(OP, _run, _save, _differentiate)
