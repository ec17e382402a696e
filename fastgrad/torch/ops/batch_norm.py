"""The PyTorch operator batch_norm: batch normalisation with a residual and an activation, its derivative and its fake."""

import functools
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.batch_norm import update_statistics
from fastgrad.kernels.types import Activation, Affine, LayerSaved, NormGradients, Running, Statistics
from fastgrad.torch.registration import Operator, autocast_dtype, autograd_function, refuse_tangents, skips_dispatcher
from fastgrad.torch.tensors import (
    LAST_AXES,
    RESULT_SAVED,
    array,
    channels_last,
    channels_second,
    empty_channels_last,
    in_memory_format,
    is_channels_last,
    saved_copy,
    saves_copy,
)

Tensor = torch.Tensor
OP = "batch_norm"


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | tuple[str, float] = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """Batch normalisation as torch.nn.functional.batch_norm, with a residual and an activation in the same pass.

    y = act((x - mean) / sqrt(var + eps) * gamma + beta + residual)

    In training running_mean and running_var, if given, are moved in place. Images in memory_format=torch.channels_last are
    used without a copy, others are copied; y has the memory format of x.

    Args:
        x: (N, C), (N, C, L) or (N, C, H, W), float32 or float64.
        gamma: The factors, (C,).
        beta: What is added, (C,).
        running_mean: (C,), or None in training.
        running_var: (C,), or None in training.
        training: Normalise by the batch's own mean and variance, else by the running ones.
        momentum: The share of the batch in the moved running statistics.
        eps: What is added to the variance.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        residual: Like x, or None.

    Returns:
        y, like x, differentiable by x, gamma, beta and residual.

    Raises:
        ValueError: A shape does not fit, activation is unknown, running statistics are missing in evaluation, or there is
            one value a channel in training.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> y = fgt.batch_norm(x, torch.ones(1), torch.zeros(1), activation="relu")
        >>> [round(value, 3) for value in y[:, 0].tolist()]
        [0.0, 1.0]

    References:
        Ioffe & Szegedy 2015, "Batch Normalization".
    """
    running = running_mean, running_var
    y = batch_norm_last(x, (gamma, beta), running, residual, (training, momentum, eps), activation)
    return in_memory_format(y, is_channels_last(x))


def batch_norm_last(
    x: Tensor, affine: tuple, running: tuple, residual: Tensor | None, options: tuple, activation: Any
) -> Tensor:
    """batch_norm whose y has channels last in memory, whatever the memory format of the arguments: for steps in a fused run.

    affine: gamma and beta; running: mean and var, or None twice; options: training, momentum and eps.
    """
    f = check.activation(OP, activation)
    tensors: tuple = x, *affine, *running, residual
    refuse_tangents(OP, *tensors)
    settings: tuple = *options, *f
    if not skips_dispatcher(OP, x):
        y, *_, mean, var = _forward.op(*tensors, *settings)
        if options[0] and running[0] is not None and running[1] is not None:
            # no part of the graph, though all that an operator returns is
            with torch.no_grad():
                for old, new in zip(running, (mean, var), strict=True):
                    old.copy_(new)
        # no product: PyTorch's norm returns what it takes
        return (
            y
            if autocast_dtype(x) is None
            else y.to(x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype))
        )
    if torch.is_grad_enabled():
        return _BatchNorm.apply(*tensors, *settings)
    return _run(*tensors, *settings, in_place=True)[0]


def _run(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    code: int,
    parameter: float,
    *,
    in_place: bool = False,
) -> tuple[Tensor, ...]:
    """y, what backward reads if that is not y (z, or a copy of y), mean, rstd, and the new running statistics."""
    xs, shape = _rows("x", x)
    f, dtype, width = Activation(code, parameter), xs.dtype, xs.shape[1:]
    if training and len(xs) == 1:
        raise ValueError(f"{OP}: x must have more than one value a channel in training, got {tuple(x.shape)}")
    affine = Affine(*(
        check.contiguous(check.array(OP, n, array(OP, n, v), "(C,)", width, dtype))
        for n, v in (("gamma", gamma), ("beta", beta))
    ))  # fmt: skip
    has_running = running_mean is not None and running_var is not None
    if not training and not has_running:
        raise ValueError(f"{OP}: running_mean and running_var must be given in evaluation (training=False)")
    named: Any = (("running_mean", running_mean), ("running_var", running_var)) if has_running else ()
    running: list[Any] = [check.array(OP, name, array(OP, name, r), "(C,)", width, dtype) for name, r in named]
    running = (running if in_place else [r.copy() for r in running]) or [None, None]
    added = None if residual is None else _like("residual", residual, x)
    y = empty(shape, dtype)
    saved = layer_saved(y.reshape(xs.shape), f)
    statistics = Statistics(np.empty(width), np.empty(width))
    update_statistics(xs, Running(running[0], running[1], momentum, True), training, eps, statistics)
    if in_place and training:
        for _, tensor in named:
            torch.autograd.graph.increment_version(tensor)
    kernels().batch_norm_forward(xs, statistics, affine, added, f, saved)
    z_or_copy = saved.z.reshape(shape) if f.needs_input else saved_copy(f, y)
    # what was moved in place is an argument, which no operator returns
    new_running = [] if in_place else [np.empty(0, dtype) if r is None else r for r in running]
    return channels_second(y), *(torch.from_numpy(a) for a in (z_or_copy, *statistics, *new_running))


def _run_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    saved: Tensor,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    code: int,
    parameter: float,
    wants: list[bool],
) -> list[Tensor]:
    """dgamma, dbeta, and those that are wanted of dx and dresidual. saved: y (N, C, ...), z or a copy of y (N, ..., C), or nothing."""
    f, (xs, shape), dys = Activation(code, parameter), _rows("x", x), _like("dy", dy, x)
    ys = dys
    if code in RESULT_SAVED:
        ys = _rows("y", saved)[0]
    elif saves_copy(code):
        ys = array(OP, "saved", saved).reshape(xs.shape)
    affine = Affine(*(check.contiguous(array(OP, "gamma", v)) for v in (gamma, beta)))
    statistics = Statistics(array(OP, "mean", mean), array(OP, "rstd", rstd))
    dx, dz = (empty(xs.shape, xs) if want else None for want in wants)
    gradients = NormGradients(dz, dx, *map(np.empty_like, affine))
    kernels().batch_norm_backward(dys, xs, statistics, affine, f, training, LayerSaved(ys, ys), gradients)
    vectors = [torch.from_numpy(gradients.dgamma), torch.from_numpy(gradients.dbeta)]
    return vectors + [channels_second(d.reshape(shape)) for d in (dx, dz) if d is not None]


def _rows(name: str, value: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """(M, C), and the shape (N, ..., C) of which it is the rows."""
    a = array(OP, name, value)
    if a.ndim not in LAST_AXES or not a.shape[1]:
        raise ValueError(f"{OP}: {name} must be (N, C), (N, C, L) or (N, C, H, W), got {a.shape}")
    last = check.contiguous(channels_last(a))
    return last.reshape(-1 if last.size else last.size // last.shape[-1], last.shape[-1]), last.shape


def _like(name: str, value: Tensor, x: Tensor) -> np.ndarray:
    a = array(OP, name, value)
    shape = tuple(x.shape)
    check.array(OP, name, a, "like x", shape, array(OP, "x", x).dtype)
    return check.contiguous(channels_last(a)).reshape(-1, a.shape[1])


def _fake(
    x: Tensor, gamma: Any, beta: Any, running_mean: Any, running_var: Any, residual: Any, training: Any, momentum: Any, eps: Any,
    code: int, parameter: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    width = x.shape[1]
    y = empty_channels_last(x)
    z_or_copy = x.new_empty((x.shape[0], *x.shape[2:], width) if saves_copy(code) else 0)
    running = width if running_mean is not None else 0
    mean, rstd = (x.new_empty(width, dtype=torch.float64) for _ in range(2))
    return y, z_or_copy, mean, rstd, x.new_empty(running), x.new_empty(running)


def _fake_backward(
    dy: Any, x: Tensor, gamma: Tensor, beta: Tensor, saved: Any, mean: Any, rstd: Any, training: Any, code: Any, parameter: Any,
    wants: Any,
) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(gamma), torch.empty_like(beta), *(empty_channels_last(x) for want in wants if want)]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, _, _, residual, training, _, _, code, parameter = inputs
    ctx.save_for_backward(x, gamma, beta, output[0] if code in RESULT_SAVED else output[1], *output[2:4])
    ctx.settings, ctx.has_residual = (training, code, parameter), residual is not None


def _differentiate(ctx: Any, dy: Tensor, *unused: Any) -> tuple:
    # where there was a residual the kernel needs its gradient
    wants = [ctx.needs_input_grad[0], ctx.has_residual]
    dgamma, dbeta, *rest = _backward(dy, *ctx.saved_tensors, *ctx.settings, wants)
    dx, dresidual = (rest.pop(0) if want else None for want in wants)
    return dx, dgamma, dbeta, None, None, dresidual, *[None] * 5


_forward = Operator(
    f"{OP}(Tensor x, Tensor gamma, Tensor beta, Tensor? running_mean, Tensor? running_var, Tensor? residual, bool training,"
    " float momentum, float eps, int code, float parameter) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dy, Tensor x, Tensor gamma, Tensor beta, Tensor saved, Tensor mean, Tensor rstd, bool training,"
    " int code, float parameter, bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).without_derivative()
_forward.set_derivative(_save, _differentiate)
_BatchNorm = autograd_function(OP, functools.partial(_run, in_place=True), _save, _differentiate)
