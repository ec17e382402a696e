"""conv_block for PyTorch: the operators conv2d and batch_norm one after the other, with channels last in memory between them."""

import torch

from fastgrad.functional.geometry import Padding, Pair
from fastgrad.torch.ops.batch_norm import batch_norm_last
from fastgrad.torch.ops.conv import conv2d_last
from fastgrad.torch.tensors import in_memory_format, is_channels_last

Tensor = torch.Tensor


def conv_block(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | tuple[str, float] = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """A convolution with a batch norm, a residual and an activation: half of a residual block.

    y = act(batch_norm(conv(x, weight)) + residual)

    In training running_mean and running_var, if given, are moved in place.

    Args:
        x: Images (N, C, H, W), float32 or float64, best in memory_format=torch.channels_last, which needs no copy.
        weight: (K, C, kh, kw).
        gamma: The factors of the norm, (K,).
        beta: What the norm adds, (K,).
        running_mean: (K,), or None in training.
        running_var: (K,), or None in training.
        stride: In pixels, one number or a pair for H and W.
        padding: Pixels of zeros at each side, one number or a pair; ((top, bottom), (left, right)); or "valid", which is
            0, or "same".
        training: Normalise by the batch's own mean and variance, else by the running ones.
        momentum: The share of the batch in the moved running statistics.
        eps: What is added to the variance.
        activation: A name, or a pair such as ("leaky_relu", 0.1).
        residual: Like y, or None.

    Returns:
        y (N, K, H', W'), differentiable by x, weight, gamma, beta and residual.

    Raises:
        ValueError: A shape does not fit, an option is unknown, or running statistics are missing in evaluation.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
        >>> fgt.conv_block(x, weight, torch.ones(4), torch.zeros(4), stride=2, padding=1).shape
        torch.Size([2, 4, 4, 4])

    References:
        He et al. 2015, "Deep Residual Learning for Image Recognition".
    """
    z = conv2d_last(x, weight, None, None, (stride, padding, 1, 1), "identity")
    running = running_mean, running_var
    y = batch_norm_last(z, (gamma, beta), running, residual, (training, momentum, eps), activation)
    return in_memory_format(y, is_channels_last(x) or is_channels_last(weight))
