"""act(norm(conv(x)) + residual) as one torch.autograd.Function, for layers of a recorded graph, whose settings are checked before.

Images have channels last in memory. A convolution, and each of its two gradients, is fastgrad's or PyTorch's: at the first call with a shape
both are timed on its tensors, and the faster one stays.
"""

from collections.abc import Callable, Sequence
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional import geometry
from fastgrad.functional.batch_norm import move_statistics
from fastgrad.kernels.types import Activation, Affine, ConvGradients, Geometry, LayerSaved, NormGradients, Running, Statistics
from fastgrad.torch.layers import activation_layer
from fastgrad.torch.ops.conv import kernel_layout, weight_layout
from fastgrad.torch.registration import refuse_second_derivative
from fastgrad.torch.tensors import FLOATS, LAST_AXES, RESULT_SAVED, TENSOR_TYPES, channels_second, saves_copy

Tensor = torch.Tensor
OP = "conv_norm"
RUNNING = "running_mean", "running_var"
IDENTITY = check.activation(OP, "identity")
# seconds after which a way is not timed again
ENOUGH = 0.02


class ConvNorm:
    """act(norm(conv(x)) + residual) of layers, whose settings stay; conv or norm may be None."""

    def __init__(self, conv: Any, norm: Any, activation: str | tuple[str, float]) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation
        self.f, self.after = check.activation(OP, activation), activation_layer(activation)
        self.conv_f = IDENTITY if norm else self.f
        # by shape: the way that is faster of each direction, and the geometry
        self.ways: dict[Any, int] = {}
        self._spaces: dict[Any, Any] = {}
        tensors = [p for layer in (conv, norm) if layer is not None for p in (*layer._parameters.values(), *layer._buffers.values())]
        self._dtypes = tuple({p.dtype for p in tensors if p is not None and p.dtype in FLOATS}) or FLOATS
        if conv is not None:
            self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
            self.padding = (0, 0) if conv.padding == "valid" else conv.padding
            same = [d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
            self.padding_numbers = same if conv.padding == "same" else self.padding
        if norm is not None:
            self.training = norm.training or norm.running_mean is None
            self.counts = norm.training and norm.track_running_stats and norm.num_batches_tracked is not None
            self.has_running = norm.running_mean is not None and (not norm.training or norm.track_running_stats)

    @staticmethod
    def fits(conv: Any) -> bool:
        """Whether the kernels compute a convolution: they know no padding that a window lies within."""
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if isinstance(conv.padding, str):
            # PyTorch's gradients take the same padding on both sides
            return conv.padding == "valid" or not any(r % 2 for r in reach)
        return all(p <= r for p, r in zip(conv.padding, reach, strict=True))

    def space(self, shape: torch.Size) -> tuple[Geometry | None, tuple[int, ...] | None]:
        """For x of a shape: the geometry, and the shape of y; None for a shape that PyTorch's layers have to deal with."""
        space = self._spaces.get(shape)
        if space is None:
            space = self._spaces[shape] = self._space(shape)
        return space

    def conv_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of the convolution's output for x of a shape."""
        y_shape: Any = self.space(shape)[1]
        return y_shape

    def _space(self, shape: torch.Size) -> tuple[Geometry | None, tuple[int, ...] | None]:
        conv, norm, y_shape, space = self.conv, self.norm, tuple(shape), None
        if 0 in shape:
            return None, None
        if conv is not None:
            if len(shape) != 4 or shape[1] != conv.in_channels:
                return None, None
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, conv.kernel_size, strict=True)]
            windows: Any = (reach[0], reach[1]), tuple(shape[2:]), self.stride, self.padding
            try:
                pads, size = geometry.windows(OP, "the kernel's reach", *windows, half=False)
            except ValueError:
                return None, None
            y_shape, space = (shape[0], conv.out_channels, *size), Geometry(self.stride, pads, self.dilation)
        if norm is not None:
            ranks = (4,) if type(norm) is nn.BatchNorm2d else (2, 3)
            rows = prod(y_shape) // y_shape[1] if len(y_shape) > 1 else 0
            if len(y_shape) not in ranks or y_shape[1] != norm.num_features or rows <= self.training:
                return None, None
        return space, y_shape

    def takes(self, x: Any, residual: Any) -> bool:
        """Whether the layer can be computed for these."""
        if type(x) not in TENSOR_TYPES or x.dtype not in self._dtypes:
            return False
        shape = self.space(x.shape)[1]
        if residual is None:
            return shape is not None
        return type(residual) in TENSOR_TYPES and residual.dtype is x.dtype and residual.shape == shape

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y, with channels last in memory."""
        conv, norm = self.conv, self.norm
        weight, bias = (None, None) if conv is None else (conv._parameters["weight"], conv._parameters["bias"])
        gamma, beta = (None, None) if norm is None else (norm._parameters["weight"], norm._parameters["bias"])
        if norm is not None and gamma is None:
            gamma = x.new_ones(norm.num_features)
        if norm is not None and beta is None:
            beta = x.new_zeros(norm.num_features)
        if torch.is_grad_enabled():
            return _ConvNorm.apply(x, weight, bias, gamma, beta, residual, self)
        return _run(x, weight, bias, gamma, beta, residual, self)[0]

    def __str__(self) -> str:
        f = self.activation if isinstance(self.activation, str) else self.activation[0]
        names = "convolution" if self.conv is not None else "", "batch norm" if self.norm is not None else "", f
        return " and ".join(name for name in names if name not in ("", "identity"))


def fastest(ways: Sequence[Callable[[], Any]], chosen: dict[Any, int], key: Any) -> Any:
    """The result of one of two functions that compute the same. At the first call with a key both are timed, and the faster one stays."""
    at = chosen.get(key)
    if at is None:
        times = []
        for way in ways:
            # what is compiled and allocated at the first call is none of the later ones' time
            way()
            times.append(_time(way))
        if max(times) < ENOUGH:
            for _ in range(3):
                times = [min(t, _time(way)) for t, way in zip(times, ways, strict=True)]
        at = chosen[key] = times.index(min(times))
    return ways[at]()


def _time(way: Callable[[], Any]) -> float:
    start = perf_counter()
    way()
    return perf_counter() - start


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


def _normalise(x: Tensor, gamma: Tensor, beta: Tensor, residual: Any, layer: ConvNorm) -> tuple[Tensor, Tensor | None, Statistics]:
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
    affine, added = Affine(vector(gamma), vector(beta)), None if residual is None else image(residual).reshape(rows.shape)
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
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, gamma: Any, beta: Any, residual: Any, layer: ConvNorm) -> Tensor:
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
        dx = None if dz is None else channels_second(dz)
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
    rows = [None if a is None else a.reshape(-1, width) for a in (dy, x, y, dz, dx)]
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
        return torch.ops.aten.convolution_backward(dz, channels_second(xs), weight.detach(), bias_sizes, *options, wants)

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
