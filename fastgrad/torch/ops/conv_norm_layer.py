"""ConvNorm: what is fixed about the layers that conv_norm computes, by shape where it depends on that."""

from math import prod
from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.functional import geometry
from fastgrad.kernels.types import Geometry
from fastgrad.torch.choice import Choice
from fastgrad.torch.layers import activation_layer
from fastgrad.torch.ops.conv_products import NO_ACTIVATION, OF_INPUT, OF_WEIGHT, OUTPUT, Product
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES

Tensor = torch.Tensor
OP = "conv_norm"
# float32 numbers of the largest vector
VECTOR = 16


class ConvNorm:
    """act(norm(conv(x)) + residual) of layers, whose settings stay; conv or norm may be None."""

    def __init__(self, conv: Any, norm: Any, activation: str | tuple[str, float]) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation
        self.f, self.after = check.activation(OP, activation), activation_layer(activation)
        self.conv_f = NO_ACTIVATION if norm else self.f
        # between fastgrad's kernels and PyTorch's for the convolution; None is always fastgrad's
        self.choice: Choice | None = None
        self._products = [Product(self, name) for name in (OUTPUT, OF_INPUT, OF_WEIGHT)]
        # the geometry by shape
        self._spaces: dict[Any, Any] = {}
        tensors = [
            p
            for layer in (conv, norm)
            if layer is not None
            for p in (*layer._parameters.values(), *layer._buffers.values())
        ]
        self._dtypes = tuple({p.dtype for p in tensors if p is not None and p.dtype in FLOATS}) or FLOATS
        if conv is not None:
            self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
            self.padding = (0, 0) if conv.padding == "valid" else conv.padding
            same = [d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
            self.padding_numbers = same if conv.padding == "same" else self.padding
        if norm is not None:
            vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
            # PyTorch takes others, or says what is wrong
            self._has_known_sizes = all(v is None or v.shape == (norm.num_features,) for v in vectors)
            self.training = norm.training or norm.running_mean is None
            self.counts = norm.training and norm.track_running_stats and norm.num_batches_tracked is not None
            self.has_running = norm.running_mean is not None and (not norm.training or norm.track_running_stats)

    @staticmethod
    def fits(conv: Any) -> bool:
        """Whether PyTorch's gradients compute a known convolution too: they take the same padding on both sides."""
        reach = zip(conv.dilation, conv.kernel_size, strict=True)
        return conv.padding != "same" or not any(d * (k - 1) % 2 for d, k in reach)

    def space(self, shape: torch.Size) -> tuple[Any, tuple[int, ...] | None]:
        """For x of a shape: the geometry, and the shape of y; None for a shape that PyTorch's layers have to deal with."""
        space = self._spaces.get(shape)
        if space is None:
            space = self._spaces[shape] = self._space(shape)
        return space

    def conv_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of the convolution's output for x of a shape."""
        y_shape: Any = self.space(shape)[1]
        return y_shape

    def _space(self, shape: torch.Size) -> tuple[Any, tuple[int, ...] | None]:
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
            if not self._has_known_sizes:
                return None, None
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

    def ways(self, x: Tensor) -> tuple[bool, ...]:
        """Whether output, gradient of the input and gradients of the weight are computed by fastgrad's kernels for x."""
        choice, conv = self.choice, self.conv
        if choice is None or conv is None:
            return True, True, True
        records = torch.is_grad_enabled()
        is_weight_needed = records and conv._parameters["weight"].requires_grad and not overruns(conv)
        needed = True, records and x.requires_grad, is_weight_needed
        return tuple(
            not is_needed or bool(choice.fuses(product, x, more=product.name))
            for product, is_needed in zip(self._products, needed, strict=True)
        )

    def __str__(self) -> str:
        f = self.activation if isinstance(self.activation, str) else self.activation[0]
        names = "convolution" if self.conv is not None else "", "batch norm" if self.norm is not None else "", f
        return " and ".join(name for name in names if name not in ("", "identity"))


def overruns(conv: nn.Conv2d) -> bool:
    """Whether PyTorch's gradient of a convolution's weight may write past its buffer if images have channels last in memory.

    oneDNN's does (https://github.com/uxlfoundation/oneDNN/issues/6035) for strided windows of one pixel and fewer channels than a
    vector has numbers; PyTorch 2.13 and 2.14 have it. What is no multiple of the vector is left out too.
    """
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels // conv.groups % VECTOR != 0
