"""act(norm(conv(x)) + residual) as one torch.autograd.Function, for layers of a recorded graph, whose settings are checked before.

Images have channels last in memory. A convolution, and each of its two gradients, is fastgrad's or PyTorch's: at the first call with a
shape both are timed on its tensors, and the faster one stays.
"""

from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional.batch_norm import move_statistics
from fastgrad.kernels.types import (
    Affine,
    ConvGradients,
    Geometry,
    LayerSaved,
    NormGradients,
    Running,
    Statistics,
)
from fastgrad.torch.ops.conv import kernel_layout, weight_layout
from fastgrad.torch.ops.conv_norm_layer import IDENTITY, OP, ConvNorm, fastest
from fastgrad.torch.registration import refuse_second_derivative
from fastgrad.torch.tensors import LAST_AXES, RESULT_SAVED, channels_second, saves_copy

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
    if torch.is_grad_enabled():
        return _ConvNorm.apply(x, weight, bias, gamma, beta, residual, layer)
    return _run(x, weight, bias, gamma, beta, residual, layer)[0]


def image(t: Tensor) -> np.ndarray:
    """(N, H, W, C), contiguous; of (N, C, L) or (N, C) likewise."""
    t = t.detach()
    if t.dim() == 4:
        return check.contiguous(t.contiguous(memory_format=torch.channels_last).numpy().transpose(LAST_AXES[4]))
    return check.contiguous(t.numpy().transpose(LAST_AXES[t.dim()]))


def vector(t: Tensor) -> np.ndarray:
    return check.contiguous(t.detach().numpy())


def _convolve(x: Tensor, weight: Tensor, bias: Any, residual: Any, layer: ConvNorm) -> tuple[Tensor, Tensor | None]:
    """act(conv(x) + residual), or conv(x) if a norm follows; and z, the activation's input, if its backward reads that."""
    f, xs, (space, _) = layer.conv_f, image(x), layer.space(x.shape)
    b = None if bias is None else vector(bias)
    added = None if residual is None else image(residual)
    n, outputs, *size = layer.conv_shape(x.shape)

    def ours() -> tuple[Tensor, Tensor | None]:
        saved = layer_saved(empty((n, *size, outputs), xs.dtype), f)
        kernels().conv2d_forward(xs, kernel_layout(weight.detach().numpy()), b, space, added, f, saved)
        return channels_second(saved.y), channels_second(saved.z) if f.needs_input else None

    def pytorchs() -> tuple[Tensor, Tensor | None]:
        z = torch.conv2d(channels_second(xs), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        if residual is not None:
            z += residual
        return (z, None) if f is IDENTITY else (layer.after(z), z if f.needs_input else None)

    with torch.no_grad():
        return fastest((ours, pytorchs), layer.ways, ("forward", x.shape, x.dtype))


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
    move_statistics(rows, Running(mean, var, momentum, True), layer.training, norm.eps, statistics)
    if layer.training and layer.has_running:
        for name in RUNNING:
            torch.autograd.graph.increment_version(buffers[name])
    kernels().batch_norm_forward(rows, statistics, affine, added, f, saved)
    z = channels_second(saved.z.reshape(xs.shape)) if f.needs_input else None
    return channels_second(saved.y.reshape(xs.shape)), z, statistics


def _run(x: Any, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, layer: ConvNorm) -> tuple:
    """y; the norm's input, mean and rstd, or None; and what the activation's backward reads: y, z, a copy of y or None."""
    y, statistics = x, (None, None)
    if weight is not None:
        y, z = _convolve(x, weight, bias, None if layer.norm else residual, layer)
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
        ctx: Any, x: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, layer: ConvNorm
    ) -> Tensor:
        y, norm_input, statistics, read = _run(x, weight, bias, gamma, beta, residual, layer)
        wants_dw = ctx.needs_input_grad[1]
        # what only a gradient that nobody asks for would read is not kept
        ctx.save_for_backward(x if wants_dw else None, weight, gamma, beta, norm_input, read)
        ctx.statistics, ctx.layer, ctx.shape, ctx.has_residual = statistics, layer, x.shape, residual is not None
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
            dx, dw, db = _conv_gradients(dx, x, weight, ctx.shape, layer, wants)
        return dx, dw, db, dgamma, dbeta, channels_second(dresidual) if ctx.has_residual else None, None


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
    if layer.f is IDENTITY:
        return dy
    dz, nothing = empty(dy.shape, dy), np.empty((1, 1, dy.shape[3], dy.shape[3]), dy.dtype)
    windows = Geometry((1, 1), (0, 0, 0, 0), (1, 1))
    kernels().conv2d_backward(dy, dy, nothing, windows, layer.f, LayerSaved(y, y), ConvGradients(dz, None, None, None))
    return dz


def _conv_gradients(dz: Tensor, x: Any, weight: Tensor, shape: torch.Size, layer: ConvNorm, wants: Any) -> tuple:
    """Those of dx, dw and db that are wanted."""
    space, dzs = layer.space(shape)[0], image(dz)
    n, channels, *size = shape
    # where x is not kept, only its shape is read
    xs = empty((n, *size, channels), dzs) if x is None else image(x)
    layout = (*weight.shape[2:], weight.shape[1], weight.shape[0])
    options = layer.stride, layer.padding_numbers, layer.dilation, False, [0, 0], layer.groups

    def pytorchs(wants: list[bool]) -> Any:
        bias_sizes = [weight.shape[0]] if wants[2] else None
        return torch.ops.aten.convolution_backward(
            dz, channels_second(xs), weight.detach(), bias_sizes, *options, wants
        )

    def gradients(w: np.ndarray, dx: Any, dw: Any, db: Any) -> None:
        kernels().conv2d_backward(dzs, xs, w, space, IDENTITY, LayerSaved(dzs, dzs), ConvGradients(dzs, dx, dw, db))

    def input_gradient() -> Tensor:
        dx = empty(xs.shape, xs)
        gradients(kernel_layout(weight.detach().numpy()), dx, None, None)
        return channels_second(dx)

    def weight_gradient() -> tuple[Tensor | None, Tensor | None]:
        dw, db = empty(layout, xs) if wants[1] else None, np.empty(layout[3], xs.dtype) if wants[2] else None
        gradients(np.empty(layout, xs.dtype), None, dw, db)
        return None if dw is None else weight_layout(dw, weight), None if db is None else torch.from_numpy(db)

    dx = dw = db = None
    ways: Any
    if wants[0]:
        ways = input_gradient, lambda: pytorchs([True, False, False])[0]
        dx = fastest(ways, layer.ways, ("dx", shape, dz.dtype))
    if wants[1] or wants[2]:
        ways = weight_gradient, lambda: pytorchs([False, wants[1], wants[2]])[1:]
        dw, db = fastest(ways, layer.ways, ("dw", shape, dz.dtype))
    return dx, dw, db
