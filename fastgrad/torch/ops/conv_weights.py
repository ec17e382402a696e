"""The layout of a convolution's weights: PyTorch's (K, C, kh, kw), and (kh, kw, C, K) as kernels read them."""

import numpy as np
import torch

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.torch.tensors import channels_second, is_channels_last

Tensor = torch.Tensor


def kernel_layout(w: np.ndarray) -> np.ndarray:
    """(kh, kw, C, K) of (K, C, kh, kw)."""
    outputs, channels, *size = w.shape
    taps = empty((*size, channels, outputs), w)
    if w.flags.c_contiguous and w.flags.aligned:
        kernels().weights_to_taps(w, taps)
    elif (last := w.transpose(0, 2, 3, 1)).flags.c_contiguous and w.flags.aligned:
        kernels().weights_to_taps(last.reshape(outputs, -1, 1, 1), taps.reshape(1, 1, -1, outputs))
    else:
        taps[...] = w.transpose(2, 3, 1, 0)
    return taps


def weight_layout(w: np.ndarray, like: Tensor) -> Tensor:
    """A tensor (K, C, kh, kw) of (kh, kw, C, K), in the memory format of `like`, so that autograd need not copy a gradient."""
    *size, channels, outputs = w.shape
    if is_channels_last(like):
        last = empty((outputs, *size, channels), w)
        kernels().weights_from_taps(w.reshape(1, 1, -1, outputs), last.reshape(outputs, -1, 1, 1))
        return channels_second(last)
    weight = empty((outputs, channels, *size), w)
    kernels().weights_from_taps(w, weight)
    return torch.from_numpy(weight)
