"""The PyTorch operator dense_chain: dense layers in a row, its derivative and its fake. Its arrays are in dense_arrays.py."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch.autograd import Function

from fastgrad.core import check
from fastgrad.kernels.types import Chain
from fastgrad.torch.ops.dense_arrays import (
    OP,
    ChainWeights,
    ForwardArrays,
    chain_backward,
    chain_forward,
    saved_layout,
    views,
)
from fastgrad.torch.registration import (
    Operator,
    cast_product,
    refuse_second_derivative,
    refuse_tangents,
    skips_dispatcher,
)
from fastgrad.torch.tensors import RESULT_SAVED, array, has_saved_tensor_hooks

Tensor = torch.Tensor


def dense_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    activations: str | tuple[str, float] | list = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """Dense layers in a row as one operator.

    a_0 = x, a_l+1 = act_l(a_l @ weights[l].T + biases[l]); y is the last one, with residual added before its activation.

    Args:
        x: (..., K_0), float32 or float64.
        weights: Of each layer (K_l+1, K_l), as torch.nn.Linear has them.
        biases: Of each layer (K_l+1,) or None; None is no biases at all.
        activations: A name or a pair such as ("leaky_relu", 0.1), of all layers; or a list with one for each.
        residual: (..., K_L), or None.

    Returns:
        y (..., K_L), differentiable by x, weights, biases and residual.

    Raises:
        ValueError: A shape does not fit, or an activation is unknown.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, w, b = torch.ones(3, 2), torch.ones(4, 2), torch.zeros(4)
        >>> y = fgt.dense_chain(x, [w, torch.eye(4)], [b, None], ["relu", "identity"])
        >>> y[0].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    check.sequence(OP, "weights", weights)
    biases = [None] * len(weights) if biases is None else biases
    check.sequence(OP, "biases", biases, len(weights))
    fs = check.activations(OP, activations, len(weights))
    return chain(x, weights, biases, [f.code for f in fs], [f.parameter for f in fs], residual)


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    codes: Sequence[int],
    parameters: Sequence[float],
    residual: Tensor | None = None,
    cache: "dict[str, ChainWeights] | None" = None,
) -> Tensor:
    """dense_chain with activations by number, see kernels/types.py. cache: a dictionary that keeps the weights for the next call."""
    if getattr(x, "ndim", 2) != 2:
        if not x.ndim:
            raise ValueError(f"{OP}: x must be (..., C), got a tensor without axes")
        # sizes said, since of nothing none can be inferred
        rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
        added = None if residual is None else residual.reshape(prod(residual.shape[:-1]), residual.shape[-1])
        y = chain(rows, weights, biases, codes, parameters, added, cache)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    tensors = [*weights, *[b for b in biases if b is not None]]
    refuse_tangents(OP, x, residual, *tensors)
    if not skips_dispatcher(OP, x):
        y = _forward.op(x, tensors, [b is not None for b in biases], codes, parameters, residual)[0]
        return cast_product(y, x, residual)
    xs = _rows(x)
    checked = cache.get("weights") if cache is not None else None
    if checked is None or not checked.match(tensors, xs):
        checked = ChainWeights(tensors, [b is not None for b in biases], codes, parameters, xs)
        if cache is not None:
            cache["weights"] = checked
    if torch.is_grad_enabled():
        return _apply(x, residual, xs, checked, *tensors)
    return chain_forward(xs, checked, residual, False)[0]


def _rows(x: Tensor) -> np.ndarray:
    return check.array(OP, "x", array(OP, "x", x), "(N, C)", (None, None))


def _run(
    x: Tensor,
    tensors: Sequence[Tensor],
    has_bias: Sequence[bool],
    codes: Sequence[int],
    parameters: Sequence[float],
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y, and what backward needs, in one flat tensor."""
    xs = _rows(x)
    y, arrays = chain_forward(xs, ChainWeights(tensors, has_bias, codes, parameters, xs), residual)
    return y, torch.from_numpy(arrays.flat)


def _run_backward(
    dy: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    codes: Sequence[int],
    parameters: Sequence[float],
    y: Tensor | None,
    saved: Tensor,
    wants: Sequence[bool],
) -> list[Tensor]:
    """dx if wanted, dresidual if wanted, dweights, and the dbiases of the layers that have a bias.

    y: None if backward does not read it.
    """
    xs, flat = array(OP, "x", x), array(OP, "saved", saved)
    checked = ChainWeights(weights, [False] * len(weights), codes, parameters, xs)
    checked.has_bias = has_bias
    # without an activation behind the last layer its output is not read, and any array of the shape stands for it
    _, read, _ = views(flat, array(OP, "y", dy if y is None else y), checked)
    chain = Chain(xs, checked.weights, checked.biases, checked.activations, None)
    return chain_backward(ForwardArrays(checked, chain, read, flat), dy, wants)


def _fake(x: Tensor, arrays: Any, has_bias: Any, codes: Any, parameters: Any, residual: Any) -> tuple[Tensor, Tensor]:
    weights = arrays[: len(codes)]
    # numbers of rows that no trace knows cannot be cached
    size = saved_layout.__wrapped__(x.shape[0], [w.shape[0] for w in weights], codes)[0]
    return x.new_empty(x.shape[0], weights[-1].shape[0]), x.new_empty(size)


def _fake_backward(
    dy: Tensor, x: Tensor, weights: Any, has_bias: Any, codes: Any, parameters: Any, y: Any, saved: Any, wants: Any
) -> list[Tensor]:
    inputs = [a for a, want in zip((x, dy), wants, strict=True) if want]
    gradients = [torch.empty_like(a, memory_format=torch.contiguous_format) for a in (*inputs, *weights)]
    return gradients + [w.new_empty(w.shape[0]) for w, has in zip(weights, has_bias, strict=True) if has]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, arrays, ctx.has_bias, codes, parameters, residual = inputs
    ctx.save_for_backward(x, *arrays[: len(codes)], _read(output[0], codes), output[1])
    ctx.settings, ctx.has_residual = (codes, parameters), residual is not None


def _read(y: Tensor, codes: Sequence[int]) -> Tensor | None:
    """y if backward reads it, else None."""
    return y if codes[-1] in RESULT_SAVED else None


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """dx, dresidual, and the gradients of weights and biases."""
    x, *weights, y, saved = ctx.saved_tensors
    wants = [ctx.needs_input_grad[0], ctx.has_residual]
    # the arrays of the forward serve one backward, so that they hold nothing back after it; another makes them anew
    arrays = ctx.__dict__.pop("arrays", None)
    gradients = (
        chain_backward(arrays, dy, wants)
        if arrays
        else _backward(dy, x, weights, ctx.has_bias, *ctx.settings, y, saved, wants)
    )
    dx, dresidual = (gradients.pop(0) if want else None for want in wants)
    return dx, dresidual, gradients


def _differentiate(ctx: Any, dy: Tensor, dsaved: Tensor) -> tuple:
    dx, dresidual, darrays = _gradients(ctx, dy)
    return dx, darrays, None, None, None, dresidual


_forward = Operator(
    f"{OP}(Tensor x, Tensor[] arrays, bool[] has_bias, int[] codes, float[] parameters, Tensor? residual) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dy, Tensor x, Tensor[] weights, bool[] has_bias, int[] codes, float[] parameters, Tensor? y, Tensor saved,"
    " bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).without_derivative()
_forward.set_derivative(_save, _differentiate)


class _Chain(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Any, xs: np.ndarray, checked: ChainWeights, *tensors: Tensor) -> Tensor:
        y, arrays = chain_forward(xs, checked, residual)
        weights = list(tensors[: len(checked.codes)])
        # as PyTorch's Linear: what only a gradient that nobody asks for would read may be written to
        if not weights[0].requires_grad:
            x = x.data
        if not ctx.needs_input_grad[0]:
            weights[0] = weights[0].data
        if not has_saved_tensor_hooks():
            ctx.arrays = arrays
        ctx.save_for_backward(x, *weights, _read(y, checked.codes), torch.from_numpy(arrays.flat))
        ctx.has_bias, ctx.settings = checked.has_bias, (checked.codes, checked.parameters)
        ctx.has_residual = residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        refuse_second_derivative(OP)
        dx, dresidual, darrays = _gradients(ctx, dy)
        return dx, dresidual, None, None, *darrays


# what Function.apply adds is for torch.func's transforms, whose tensors do not come here
_apply = super(Function, _Chain).apply  # type: ignore[misc]
