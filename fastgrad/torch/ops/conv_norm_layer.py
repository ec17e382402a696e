"""ConvNorm: what is fixed about the layers that conv_norm computes, by shape where it depends on that; and the faster of two ways."""

from collections.abc import Callable, Sequence
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import nn

from fastgrad.core import check
from fastgrad.functional import geometry
from fastgrad.kernels.types import Geometry
from fastgrad.torch.layers import activation_layer
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES

OP = "conv_norm"
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

    def __str__(self) -> str:
        f = self.activation if isinstance(self.activation, str) else self.activation[0]
        names = "convolution" if self.conv is not None else "", "batch norm" if self.norm is not None else "", f
        return " and ".join(name for name in names if name not in ("", "identity"))


def fastest(ways: Sequence[Callable[[], Any]], chosen: dict[Any, int], key: Any) -> Any:
    """The result of one of two functions that compute the same. At the first call with a key both are timed, and the faster one stays;
    where PyTorch is asked for the same numbers in every run, it is the first one."""
    at = 0 if torch.are_deterministic_algorithms_enabled() else chosen.get(key)
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
