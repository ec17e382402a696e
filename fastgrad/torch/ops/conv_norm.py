"""act(norm(conv(x)) + residual) as one torch.autograd.Function, for layers of a recorded graph, whose settings are checked before.

Images have channels last in memory. A convolution, and each of its two gradients, is fastgrad's or PyTorch's, as the layer's choice says;
norm, sum and activation are fastgrad's.
"""

from typing import Any

import numpy as np
import torch

from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.batch_norm import update_statistics
from fastgrad.kernels.types import (
    Affine,
    ConvGradients,
    Geometry,
    LayerSaved,
    NormGradients,
    Running,
    Statistics,
)
from fastgrad.torch.ops.conv_norm_layer import OP, ConvNorm
from fastgrad.torch.ops.conv_products import (
    NO_ACTIVATION,
    convolve,
    image,
    input_gradient,
    vector,
    weight_gradient,
)
from fastgrad.torch.registration import refuse_second_derivative
from fastgrad.torch.tensors import RESULT_SAVED, channels_second, saves_copy

Tensor = torch.Tensor
RUNNING = "running_mean", "running_var"


def conv_norm(layer: ConvNorm, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """y, with channels last in memory, of what the layer takes."""
    conv, norm = layer.conv, layer.norm
    weight, bias = (None, None) if conv is None else (conv._parameters["weight"], conv._parameters["bias"])
    gamma, beta = (None, None) if norm is None else (norm._parameters["weight"], norm._parameters["bias"])
    if norm is not None and gamma is None:
        gamma = x.new_ones(norm.num_features)
    if norm is not None and beta is None:
        beta = x.new_zeros(norm.num_features)
    ways = layer.ways(x)
    if torch.is_grad_enabled():
        return _ConvNorm.apply(x, weight, bias, gamma, beta, residual, layer, ways)
    return _run(x, weight, bias, gamma, beta, residual, layer, ways[0])[0]


def _normalise(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Any, layer: ConvNorm
) -> tuple[Tensor, Tensor | None, Statistics]:
    """act(norm(x) + residual); z, the activation's input, if its backward reads that; mean and rstd."""
    norm, f, xs = layer.norm, layer.f, image(x)
    momentum, buffers = norm.momentum or 0.0, norm._buffers
    if layer.counts:
        count = buffers["num_batches_tracked"].add_(1)
        if norm.momentum is None:
            momentum = 1 / float(count)
    mean, var = (buffers[name].detach().numpy() for name in RUNNING) if layer.has_running else (None, None)
    rows = xs.reshape(-1, xs.shape[-1])
    saved = layer_saved(empty(rows.shape, rows.dtype), f)
    statistics = Statistics(*np.empty((2, rows.shape[1])))
    affine, added = (
        Affine(vector(gamma), vector(beta)),
        None if residual is None else image(residual).reshape(rows.shape),
    )
    update_statistics(rows, Running(mean, var, momentum, True), layer.training, norm.eps, statistics)
    if layer.training and layer.has_running:
        for name in RUNNING:
            torch.autograd.graph.increment_version(buffers[name])
    kernels().batch_norm_forward(rows, statistics, affine, added, f, saved)
    z = channels_second(saved.z.reshape(xs.shape)) if f.needs_input else None
    return channels_second(saved.y.reshape(xs.shape)), z, statistics


def _run(x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, layer: ConvNorm, is_ours: bool) -> tuple:
    """y; the norm's input, mean and rstd, or None; and what the activation's backward reads: y, z, a copy of y or None."""
    y, statistics = x, (None, None)
    if weight is not None:
        y, z = convolve(layer, is_ours, x, weight, bias, None if layer.norm else residual)
    norm_input = y if layer.norm else None
    if layer.norm is not None:
        y, z, statistics = _normalise(y, gamma, beta, residual, layer)
    read = y if layer.f.code in RESULT_SAVED else z
    if read is None and saves_copy(layer.f.code):
        read = y.clone()
    return y, norm_input, statistics, read


class _ConvNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, layer: ConvNorm,
        ways: tuple[bool, ...],
    ) -> Tensor:  # fmt: skip
        y, norm_input, statistics, read = _run(x, weight, bias, gamma, beta, residual, layer, ways[0])
        wants_dw = ctx.needs_input_grad[1]
        # what only a gradient that nobody asks for would read is not kept
        ctx.save_for_backward(x if wants_dw else None, weight, gamma, beta, norm_input, read)
        ctx.statistics, ctx.layer, ctx.shape, ctx.has_residual = statistics, layer, x.shape, residual is not None
        ctx.ways = ways
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        refuse_second_derivative(OP)
        x, weight, gamma, beta, norm_input, read = ctx.saved_tensors
        layer, wants = ctx.layer, ctx.needs_input_grad
        dys = image(dy)
        ys = dys if read is None else image(read)
        if layer.norm is not None:
            dz, dresidual, dgamma, dbeta = _norm_gradients(ctx, dys, ys, image(norm_input), gamma, beta)
        else:
            dz, dgamma, dbeta = _activation_gradient(dys, ys, layer), None, None
            dresidual = dz
        dx: Any = None if dz is None else channels_second(dz)
        dw = db = None
        if weight is not None:
            upstream, dx, (_, of_input, of_weight) = dx, None, ctx.ways
            if wants[0]:
                dx = input_gradient(layer, of_input, upstream, ctx.shape, weight)
            if wants[1] or wants[2]:
                dw, db = weight_gradient(layer, of_weight, upstream, x, ctx.shape, weight, wants[1:3])
        return dx, dw, db, dgamma, dbeta, channels_second(dresidual) if ctx.has_residual else None, None, None


def _norm_gradients(ctx: Any, dy: np.ndarray, y: np.ndarray, x: np.ndarray, gamma: Tensor, beta: Tensor) -> tuple:
    """dx if it is wanted, dresidual if there was a residual, dgamma and dbeta."""
    layer, width = ctx.layer, x.shape[-1]
    wants_dx = ctx.needs_input_grad[0] or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    # where there was a residual the kernel needs its gradient
    dx, dz = (empty(x.shape, x) if wanted else None for wanted in (wants_dx, ctx.has_residual))
    rows: list[Any] = [None if a is None else a.reshape(-1, width) for a in (dy, x, y, dz, dx)]
    affine, dgamma, dbeta = Affine(vector(gamma), vector(beta)), np.empty(width, x.dtype), np.empty(width, x.dtype)
    kernels().batch_norm_backward(
        rows[0], rows[1], ctx.statistics, affine, layer.f, layer.training, LayerSaved(rows[2], rows[2]),
        NormGradients(rows[3], rows[4], dgamma, dbeta),
    )  # fmt: skip
    return dx, dz, torch.from_numpy(dgamma), torch.from_numpy(dbeta)


def _activation_gradient(dy: np.ndarray, y: np.ndarray, layer: ConvNorm) -> np.ndarray:
    """dz of act(z)."""
    if layer.f is NO_ACTIVATION:
        return dy
    dz, nothing = empty(dy.shape, dy), np.empty((1, 1, dy.shape[3], dy.shape[3]), dy.dtype)
    windows = Geometry((1, 1), (0, 0, 0, 0), (1, 1))
    kernels().conv2d_backward(dy, dy, nothing, windows, layer.f, LayerSaved(y, y), ConvGradients(dz, None, None, None))
    return dz
