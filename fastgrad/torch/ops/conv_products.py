"""The three products of a convolution over images that have channels last in memory, each by fastgrad's kernels or by PyTorch's.

They are the output, the gradient of the input, and those of weight and bias. `Product` is one of them, for a Choice to time.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty, layer_saved
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import ConvGradients, LayerSaved
from fastgrad.torch.ops.conv_weights import kernel_layout, weight_layout
from fastgrad.torch.tensors import LAST_AXES, channels_second

Tensor = torch.Tensor
NO_ACTIVATION = check.activation("conv_norm", "identity")
OUTPUT, OF_INPUT, OF_WEIGHT = "output", "gradient of the input", "gradient of the weight"


def values(t: Tensor) -> np.ndarray:
    """The values of a tensor, of a negated view too."""
    return t.detach().resolve_neg().numpy()


def image(t: Tensor) -> np.ndarray:
    """(N, H, W, C), contiguous; of (N, C, L) or (N, C) likewise."""
    t = t.detach().resolve_neg()
    if t.dim() == 4:
        return check.contiguous(t.contiguous(memory_format=torch.channels_last).numpy().transpose(LAST_AXES[4]))
    return check.contiguous(t.numpy().transpose(LAST_AXES[t.dim()]))


def vector(t: Tensor) -> np.ndarray:
    return check.contiguous(values(t))


def convolve(layer: Any, is_ours: bool, x: Tensor, weight: Tensor, bias: Any, residual: Any) -> tuple[Tensor, Any]:
    """act(conv(x) + residual), or conv(x) if a norm follows; and z, the activation's input, if its backward reads that."""
    f, xs = layer.conv_f, image(x)
    if is_ours:
        n, outputs, *size = layer.conv_shape(x.shape)
        added = None if residual is None else image(residual)
        saved = layer_saved(empty((n, *size, outputs), xs.dtype), f)
        w, b = kernel_layout(values(weight)), None if bias is None else vector(bias)
        kernels().conv2d_forward(xs, w, b, layer.space(x.shape)[0], added, f, saved)
        return channels_second(saved.y), channels_second(saved.z) if f.needs_input else None
    with torch.no_grad():
        z = torch.conv2d(channels_second(xs), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        if residual is not None:
            z += residual
        return (z, None) if f is NO_ACTIVATION else (layer.after(z), z if f.needs_input else None)


def input_gradient(layer: Any, is_ours: bool, dz: Tensor, shape: torch.Size, weight: Tensor) -> Tensor:
    """dx of conv(x), x of a shape."""
    n, channels, *size = shape
    dzs = image(dz)
    # of x only the shape is read
    xs = empty((n, *size, channels), dzs)
    if not is_ours:
        return _pytorchs(layer, dz, channels_second(xs), weight, [True, False, False])[0]
    dx = empty(xs.shape, xs)
    _ours(layer, dzs, xs, shape, kernel_layout(values(weight)), dx, None, None)
    return channels_second(dx)


def weight_gradient(
    layer: Any, is_ours: bool, dz: Tensor, x: Any, shape: torch.Size, weight: Tensor, wants: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Those of dw and db of conv(x) that are wanted; x may be None if only db is."""
    n, channels, *size = shape
    dzs = image(dz)
    xs = empty((n, *size, channels), dzs) if x is None else image(x)
    if not is_ours:
        return tuple(_pytorchs(layer, dz, channels_second(xs), weight, [False, *wants])[1:])  # type: ignore[return-value]
    layout = (*weight.shape[2:], weight.shape[1], weight.shape[0])
    dw, db = empty(layout, xs) if wants[0] else None, np.empty(layout[3], xs.dtype) if wants[1] else None
    _ours(layer, dzs, xs, shape, np.empty(layout, xs.dtype), None, dw, db)
    return None if dw is None else weight_layout(dw, weight), None if db is None else torch.from_numpy(db)


def _ours(
    layer: Any, dz: np.ndarray, x: np.ndarray, shape: torch.Size, w: np.ndarray, dx: Any, dw: Any, db: Any
) -> None:
    saved, gradients = LayerSaved(dz, dz), ConvGradients(dz, dx, dw, db)
    kernels().conv2d_backward(dz, x, w, layer.space(shape)[0], NO_ACTIVATION, saved, gradients)


def _pytorchs(layer: Any, dz: Tensor, x: Tensor, weight: Tensor, wants: list[bool]) -> Any:
    bias_sizes = [weight.shape[0]] if wants[2] else None
    options = layer.stride, layer.padding_numbers, layer.dilation, False, [0, 0], layer.groups
    return torch.ops.aten.convolution_backward(dz, x, weight.detach(), bias_sizes, *options, wants)


class Product:
    """One product of a layer's convolution, as a unit of a Choice: it is timed alone."""

    def __init__(self, layer: Any, name: str) -> None:
        self.layer, self.name = layer, name
        self._dz: Tensor | None = None

    def fused(self, x: Tensor) -> Any:
        return self._run(x, True)

    def original(self, x: Tensor) -> Any:
        return self._run(x, False)

    def _run(self, x: Tensor, is_ours: bool) -> Any:
        layer, x = self.layer, x.detach()
        weight, bias = (layer.conv._parameters[name] for name in ("weight", "bias"))
        if self.name == OUTPUT:
            return convolve(layer, is_ours, x, weight.detach(), None if bias is None else bias.detach(), None)[0]
        if self._dz is None:
            shape = layer.conv_shape(x.shape)
            self._dz = torch.ones(shape, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
        if self.name == OF_INPUT:
            return input_gradient(layer, is_ours, self._dz, x.shape, weight)
        return weight_gradient(layer, is_ours, self._dz, x, x.shape, weight, (True, bias is not None))

    def unit_mode(self) -> tuple[bool, bool]:
        return self.layer.conv.training, self.layer.conv._parameters["weight"].requires_grad

    def can_fuse(self) -> bool:
        return True

    def twin(self) -> "Product":
        """Itself without what it holds: it writes to nothing of the layer's."""
        return Product(self.layer, self.name)

    def parameters(self) -> Iterable[Any]:
        return ()
