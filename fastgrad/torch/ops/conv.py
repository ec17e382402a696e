"""The PyTorch operator conv2d: a convolution of images with a residual and an activation, its derivative and its fake."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.functional import geometry
from fastgrad.functional.conv import slopes
from fastgrad.functional.geometry import Padding, Pair
from fastgrad.kernels.types import Activation, ConvGradients, Geometry, LayerSaved
from fastgrad.torch.ops.conv_weights import kernel_layout, weight_layout
from fastgrad.torch.registration import Operator, autograd_function, cast_product, refuse_tangents, skips_dispatcher
from fastgrad.torch.tensors import (
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
OP = "conv2d"


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    activation: str | tuple[str, float] = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution of images as torch.nn.functional.conv2d, with a residual and an activation in the same pass.

    y = act(conv(x, weight) + bias + residual)

    Images in memory_format=torch.channels_last are used without a copy, others are copied. y has the memory format of
    PyTorch's result: channels_last if x or weight is.

    Args:
        x: (N, C, H, W), or one image (C, H, W); float32 or float64.
        weight: (K, C / groups, kh, kw).
        bias: (K,), or None.
        stride: In pixels, one number or a pair for H and W.
        padding: Pixels of zeros at each side, one number or a pair; ((top, bottom), (left, right)); or "valid", which is
            0, or "same".
        dilation: The distance of the kernel's values in pixels, one number or a pair.
        groups: The number of groups of channels, each with its own K / groups kernels.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        residual: Like y, or None.

    Returns:
        y (N, K, H', W'), or (K, H', W') of one image; differentiable by x, weight, bias and residual.

    Raises:
        ValueError: A shape does not fit, the kernel is larger than the padded image, or an option is unknown.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, weight = torch.ones(1, 1, 4, 4), torch.full((2, 1, 3, 3), -1.0)
        >>> y = fgt.conv2d(x, weight, torch.tensor([9.0, 10.0]), activation="relu")
        >>> y.shape, y[0, :, 0, 0].tolist()
        (torch.Size([1, 2, 2, 2]), [0.0, 1.0])
    """
    one_image = isinstance(x, Tensor) and x.dim() == 3
    if one_image:
        x, residual = x.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    y = conv2d_last(x, weight, bias, residual, (stride, padding, dilation, groups), activation)
    y = in_memory_format(y, is_channels_last(x) or is_channels_last(weight))
    return y.squeeze(0) if one_image else y


def conv2d_last(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, windows: tuple, activation: Any
) -> Tensor:
    """conv2d whose y has channels last in memory, whatever the memory format of the arguments: for steps in a fused run.

    windows: stride, padding, dilation and groups, as conv2d takes them.
    """
    refuse_tangents(OP, x, weight, bias, residual)
    f, (stride, padding, dilation, groups) = check.activation(OP, activation), windows
    steps = geometry.pair(OP, "stride", stride), geometry.pair(OP, "dilation", dilation)
    if not skips_dispatcher(OP, x) and x.dim() != 4:
        raise ValueError(f"{OP}: x must be (N, C, H, W), got {tuple(x.shape)}")
    pads = _pads(x, weight, *steps, padding)
    settings = steps[0], pads, steps[1], groups, *f
    if not skips_dispatcher(OP, x):
        return cast_product(_forward.op(x, weight, bias, residual, *settings)[0], x, residual)
    if torch.is_grad_enabled():
        return _Conv.apply(x, weight, bias, residual, *settings)
    return _run(x, weight, bias, residual, *settings)[0]


def _pads(x: Tensor, weight: Tensor, stride: Pair, dilation: Pair, padding: Any) -> tuple[int, int, int, int]:
    """top, left, bottom and right, checked."""
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(
            f"{OP}: x and weight must be (N, C, H, W) and (K, C, kh, kw), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    reach = dilation[0] * (weight.shape[2] - 1) + 1, dilation[1] * (weight.shape[3] - 1) + 1
    image = x.shape[2], x.shape[3]
    return geometry.windows(OP, "the kernel's reach", reach, image, stride, padding, half=False)[0]


def _output_shape(x: Tensor, weight: Tensor, stride: Any, pads: Any, dilation: Any) -> tuple[Any, Any, Any, Any]:
    """The shape (N, K, H', W') of y."""
    (_, _, *image), (outputs, _, *size) = x.shape, weight.shape
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    h, w = ((image[i] + pads[i] + pads[i + 2] - reach[i]) // stride[i] + 1 for i in range(2))
    return x.shape[0], outputs, h, w


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    code: int,
    parameter: float,
) -> tuple[Tensor, Tensor]:
    """y, and what backward reads if that is not y: z, or a copy of y."""
    xs = _image("x", x)
    channels, f = xs.shape[3], Activation(code, parameter)
    form = "(K, C / groups, kh, kw)"
    shape = None, channels // groups, None, None
    w = check.array(OP, "weight", array(OP, "weight", weight), form, shape, xs.dtype)
    if channels % groups or len(w) % groups:
        raise ValueError(
            f"{OP}: groups must divide the channels of x, {channels}, and those of y, {len(w)}, got {groups}"
        )
    b = None
    if bias is not None:
        b = check.contiguous(check.array(OP, "bias", array(OP, "bias", bias), "(K,)", (len(w),), xs.dtype))
    n, outputs, *image_out = _output_shape(x, weight, stride, pads, dilation)
    added = None
    if residual is not None:
        added = array(OP, "residual", residual)
        added = check.array(OP, "residual", added, "(N, K, H', W')", (n, outputs, *image_out), xs.dtype)
        added = check.contiguous(channels_last(added))
    saved = layer_saved(empty((n, *image_out, outputs), xs.dtype), f)
    kernels().conv2d_forward(xs, kernel_layout(w), b, _geometry(stride, pads, dilation), added, f, saved)
    return channels_second(saved.y), torch.from_numpy(saved.z if f.needs_input else saved_copy(f, saved.y))


def _run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    code: int,
    parameter: float,
    wants: list[bool],
) -> list[Tensor]:
    """Those of dx, dweight, dbias and dresidual that are wanted.

    saved: y (N, K, H', W'), z or a copy of y (N, H', W', K), or an empty tensor.
    """
    f, xs, dys = Activation(code, parameter), _image("x", x), _image("dy", dy)
    ys = _image("y", saved) if code in RESULT_SAVED else array(OP, "saved", saved) if saves_copy(code) else dys
    w = kernel_layout(array(OP, "weight", weight))
    shapes = xs.shape, w.shape, w.shape[3:]
    dx, dw, db = (empty(shape, xs) if want else None for shape, want in zip(shapes, wants, strict=False))
    dz = slopes(dys, f, of_residual=wants[3])
    arrays = ConvGradients(dz, dx, dw, db)
    kernels().conv2d_backward(dys, xs, w, _geometry(stride, pads, dilation), f, LayerSaved(ys, ys), arrays)
    gradients: list[Any] = [
        None if dx is None else channels_second(dx),
        None if dw is None else weight_layout(dw, weight),
        None if db is None else torch.from_numpy(db),
        channels_second(dz),
    ]
    return [d for d, want in zip(gradients, wants, strict=True) if want]


def _geometry(*windows: Sequence[int]) -> Geometry:
    """The Geometry of stride, pads and dilation, which an operator gets as lists."""
    tuples: Any = map(tuple, windows)
    return Geometry(*tuples)


def _image(name: str, value: Tensor) -> np.ndarray:
    """(N, H, W, C), contiguous."""
    image = check.array(OP, name, array(OP, name, value), "(N, C, H, W)", (None,) * 4)
    return geometry.images(OP, channels_last(image))


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    residual: Any,
    stride: Any,
    pads: Any,
    dilation: Any,
    groups: Any,
    code: int,
    parameter: Any,
) -> tuple[Tensor, Tensor]:
    shape = _output_shape(x, weight, stride, pads, dilation)
    y = empty_channels_last(x, shape)
    return y, x.new_empty(y.permute(0, 2, 3, 1).shape if saves_copy(code) else 0)


def _fake_backward(
    dy: Any, x: Tensor, weight: Tensor, saved: Any, stride: Any, pads: Any, dilation: Any, code: Any, parameter: Any, wants: Any
) -> list[Tensor]:  # fmt: skip
    last = torch.channels_last if is_channels_last(weight) else torch.contiguous_format
    dweight = weight.new_empty(weight.shape).contiguous(memory_format=last)
    gradients = empty_channels_last(x), dweight, weight.new_empty(len(weight)), empty_channels_last(dy)
    return [d for d, want in zip(gradients, wants, strict=True) if want]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, stride, pads, dilation, _, *f = inputs
    ctx.save_for_backward(x, weight, output[0] if f[0] in RESULT_SAVED else output[1])
    ctx.settings = stride, pads, dilation, *f


def _differentiate(ctx: Any, dy: Tensor, *unused: Any) -> tuple:
    wants = list(ctx.needs_input_grad[:4])
    gradients = iter(_backward(dy, *ctx.saved_tensors, *ctx.settings, wants))
    return *(next(gradients) if want else None for want in wants), *[None] * 6


_forward = Operator(
    f"{OP}(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] pads, int[] dilation, int groups, int code,"
    " float parameter) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dy, Tensor x, Tensor weight, Tensor saved, int[] stride, int[] pads, int[] dilation, int code,"
    " float parameter, bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).without_derivative()
_forward.set_derivative(_save, _differentiate)
_Conv = autograd_function(OP, _run, _save, _differentiate)
