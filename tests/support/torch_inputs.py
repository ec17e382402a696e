"""Inputs of operators in PyTorch, and the comparison with PyTorch's own."""

import torch
import torch.nn.functional as F

DOUBLE = torch.float64
ACTS = {"identity": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh}


def draw(*shape, last=True, dtype=DOUBLE, seed=0):
    """A tensor that requires its gradient; images channels last in memory or not."""
    tensor = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + sum(shape)))
    if last and tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.requires_grad_()


def same(results, expected, inputs, rtol=1e-9, atol=1e-10):
    """Results and, from one random upstream, gradients are the same."""
    torch.testing.assert_close(results, expected, rtol=rtol, atol=atol)
    upstream = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(9))
    for actual, wanted in zip(
        *(torch.autograd.grad(y, inputs, upstream, retain_graph=True) for y in (results, expected)), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=atol)


def chain_inputs(dtype=DOUBLE):
    x, residual = draw(5, 4, dtype=dtype), draw(5, 3, dtype=dtype)
    weights = [draw(6, 4, dtype=dtype), draw(3, 6, dtype=dtype)]
    return x, weights, [draw(6, dtype=dtype), None], residual


def lstm_inputs():
    return draw(3, 6, 4), [draw(*s, seed=i) for i, s in enumerate([(20, 4), (20, 3), (20,), (20,), (3, 5)] * 2)]


def lstm_variant_inputs():
    shapes = [(20, 4), (20, 5), (20,), (20,), (20,), (20,), (5,), (5,)] * 2
    return draw(3, 6, 4), *(draw(*s, seed=i) for i, s in enumerate(shapes))


def gru_inputs():
    return draw(3, 6, 4), [draw(*s, seed=i) for i, s in enumerate([(15, 4), (15, 5), (15,), (15,)] * 2)]


def conv_inputs(last=True):
    return draw(2, 4, 7, 6, last=last), draw(6, 4, 3, 3, last=last), draw(6), draw(2, 6, 5, 4, last=last)


def norm_inputs(*shape, last=True):
    return (
        draw(*shape, last=last),
        draw(3),
        draw(3, seed=1),
        torch.ones(3, dtype=DOUBLE),
        torch.full((3,), 2.0, dtype=DOUBLE),
    )
