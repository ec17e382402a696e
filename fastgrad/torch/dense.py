"""Chains of dense layers: the operator, and the module MLP."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from fastgrad import check
from fastgrad.backend import kernels
from fastgrad.kernels.names import Activation, needs_input
from fastgrad.memory import empty
from fastgrad.torch.register import Operator, plain, refuse_second
from fastgrad.torch.tensors import array

Tensor = torch.Tensor
OP = "dense_chain"


def dense_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    activations: str | tuple[str, float] | list = "relu",
    residual: Tensor | None = None,
) -> Tensor:
    """Dense layers in a row, a = act(a @ w.T + b): x (..., C), weights as PyTorch has them, (K_out, K_in), biases (K_out,) or None.

    Activations are one for all layers or a list of one for each; residual (..., K) is added before the last one.
    """
    check.each(OP, "weights", weights)
    biases = [None] * len(weights) if biases is None else biases
    check.each(OP, "biases", biases, len(weights))
    fs = check.activations(OP, activations, len(weights))
    return chain(x, weights, biases, [f.code for f in fs], [f.parameter for f in fs], residual)


def chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    codes: Sequence[int],
    parameters: Sequence[float],
    residual: Tensor | None = None,
) -> Tensor:
    """The chain with activations by number, see kernels/names.py."""
    if getattr(x, "ndim", 2) != 2:
        rows = x.reshape(-1, x.shape[-1]) if x.ndim else x
        added = None if residual is None else residual.reshape(-1, residual.shape[-1])
        return chain(rows, weights, biases, codes, parameters, added).reshape(*x.shape[:-1], -1)
    arrays, biased = [*weights, *(b for b in biases if b is not None)], [b is not None for b in biases]
    if not plain(OP, x):
        return _forward.op(x, arrays, biased, codes, parameters, residual)[0]
    if torch.is_grad_enabled():
        return _Chain.apply(x, biased, codes, parameters, residual, *arrays)
    return torch.from_numpy(_computed(x, arrays, biased, codes, parameters, residual).outputs[-1])


class _Arrays(NamedTuple):
    """A call's arrays, as kernels take them; weights are turned, and saved holds zs and all outputs but the last."""

    x: np.ndarray
    weights: list[np.ndarray]
    activations: list[Activation]
    zs: list[np.ndarray]
    outputs: list[np.ndarray]
    saved: np.ndarray


def _computed(
    x: Tensor,
    arrays: Sequence[Tensor],
    biased: Sequence[bool],
    codes: Sequence[int],
    parameters: Sequence[float],
    residual: Tensor | None,
) -> _Arrays:
    """The forward. arrays: the weights, and then the biases of the layers that are `biased`."""
    xs = check.array(OP, "x", array(OP, "x", x), "(N, C)", (None, None))
    ws: list[np.ndarray] = []
    bs: list[np.ndarray | None] = []
    given, width, dtype = iter(arrays[len(codes) :]), xs.shape[1], xs.dtype
    for layer, (w, has) in enumerate(zip(arrays, biased, strict=False)):
        name = f"weights[{layer}]"
        turned = check.array(OP, name, array(OP, name, w), "(K_out, K_in)", (None, width), dtype).T
        width, name = turned.shape[1], f"biases[{layer}]"
        ws.append(turned)
        bs.append(check.array(OP, name, array(OP, name, next(given)), "(K_out,)", (width,), dtype) if has else None)
    y = empty((len(xs), width), dtype)
    added = None
    if residual is not None:
        added = check.array(OP, "residual", array(OP, "residual", residual), "(N, K)", y.shape, dtype)
    fs = _activations(codes, parameters)
    saved = empty((_size(len(xs), arrays, codes),), dtype)
    zs, outputs = _parts(saved, y, ws, fs)
    kernels().dense_chain_forward(xs, ws, bs, fs, added, zs, outputs)
    return _Arrays(xs, ws, fs, zs, outputs, saved)


def _run(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """y and, one after another, what the way back needs: every other layer's output, and z where an activation needs it."""
    made = _computed(x, *arguments)
    return torch.from_numpy(made.outputs[-1]), torch.from_numpy(made.saved)


def _run_backward(
    dy: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biased: Sequence[bool],
    codes: Sequence[int],
    parameters: Sequence[float],
    y: Tensor,
    saved: Tensor,
    wants: Sequence[bool],
) -> list[Tensor]:
    """dx if wanted, dresidual if wanted, dweights, and the dbiases that there are."""
    ws, fs = [array(OP, "weights", w).T for w in weights], _activations(codes, parameters)
    flat = array(OP, "saved", saved)
    a = _Arrays(array(OP, "x", x), ws, fs, *_parts(flat, array(OP, "y", y), ws, fs), flat)
    return _back(a, dy, biased, wants)


def _back(a: _Arrays, dy: Tensor, biased: Sequence[bool], wants: Sequence[bool]) -> list[Tensor]:
    # as PyTorch's weights lie, so that autograd keeps them as they are
    dws = [empty(w.shape[::-1], w.dtype) for w in a.weights]
    dbs = [empty(w.shape[1:], w.dtype) if has else None for w, has in zip(a.weights, biased, strict=True)]
    dx = empty(a.x.shape, a.x.dtype) if wants[0] else None
    dzs = [empty(output.shape, output.dtype) for output in a.outputs]
    upstream = check.upstream(OP, array(OP, "dy", dy), a.outputs[-1])
    kernels().dense_chain_backward(
        upstream, a.x, a.weights, a.activations, a.zs, a.outputs, dzs, dx, [dw.T for dw in dws], dbs
    )
    made = [dx, dzs[-1] if wants[1] else None, *dws, *dbs]
    return [torch.from_numpy(d) for d in made if d is not None]


def _activations(codes: Sequence[int], parameters: Sequence[float]) -> list[Activation]:
    return [Activation(*f) for f in zip(codes, parameters, strict=True)]


def _size(rows: Any, weights: Sequence[Tensor], codes: Sequence[int]) -> Any:
    """Values of `saved`; more than the weights may be given."""
    last = len(codes) - 1
    return rows * sum(weights[l].shape[0] * ((l < last) + needs_input(code)) for l, code in enumerate(codes))


def _parts(
    saved: np.ndarray, y: np.ndarray, weights: Sequence[np.ndarray], fs: Sequence[Activation]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """zs and outputs, as kernels take them."""
    at, zs, outputs = 0, [], []
    for layer, (w, f) in enumerate(zip(weights, fs, strict=True)):
        size = len(y) * w.shape[1]
        output = y
        if layer < len(weights) - 1:
            output, at = saved[at : at + size].reshape(len(y), -1 if size else w.shape[1]), at + size
        z = output
        if f.needs_input:
            z, at = saved[at : at + size].reshape(output.shape), at + size
        outputs.append(output)
        zs.append(z)
    return zs, outputs


def _fake(x: Tensor, arrays: Any, biased: Any, codes: Any, parameters: Any, residual: Any) -> tuple[Tensor, Tensor]:
    weights = arrays[: len(codes)]
    return x.new_empty(x.shape[0], weights[-1].shape[0]), x.new_empty(_size(x.shape[0], weights, codes))


def _fake_backward(
    dy: Tensor, x: Tensor, weights: Any, biased: Any, codes: Any, parameters: Any, y: Tensor, saved: Any, wants: Any
) -> list[Tensor]:
    made = [
        torch.empty_like(a, memory_format=torch.contiguous_format)
        for a, want in zip((x, y), wants, strict=True)
        if want
    ]
    made += [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    return made + [w.new_empty(w.shape[0]) for w, has in zip(weights, biased, strict=True) if has]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, arrays, ctx.biased, codes, parameters, residual = inputs
    ctx.save_for_backward(x, *arrays[: len(codes)], *output)
    ctx.settings, ctx.adds = (codes, parameters), residual is not None


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """dx, dresidual, and those of the arrays."""
    x, *weights, y, saved = ctx.saved_tensors
    wants = [ctx.needs_input_grad[0], ctx.adds]
    # the arrays of the forward serve one backward, so that they hold nothing back after it; another makes them anew
    arrays = ctx.__dict__.pop("arrays", None)
    made = (
        _back(arrays, dy, ctx.biased, wants)
        if arrays
        else _backward(dy, x, weights, ctx.biased, *ctx.settings, y, saved, wants)
    )
    dx, dresidual = (made.pop(0) if want else None for want in wants)
    return dx, dresidual, made


def _differentiate(ctx: Any, dy: Tensor, dsaved: Tensor) -> tuple:
    dx, dresidual, darrays = _gradients(ctx, dy)
    return dx, darrays, None, None, None, dresidual


_forward = Operator(
    f"{OP}(Tensor x, Tensor[] arrays, bool[] biased, int[] codes, float[] parameters, Tensor? residual) -> (Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor dy, Tensor x, Tensor[] weights, bool[] biased, int[] codes, float[] parameters, Tensor y, Tensor saved,"
    " bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).final()
_forward.differentiable(_save, _differentiate)


class _Chain(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, biased: Any, codes: Any, parameters: Any, residual: Any, *arrays: Tensor
    ) -> Tensor:
        inputs = x, arrays, biased, codes, parameters, residual
        ctx.arrays = made = _computed(*inputs)
        y = torch.from_numpy(made.outputs[-1])
        _save(ctx, inputs, (y, torch.from_numpy(made.saved)))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        refuse_second(OP)
        dx, dresidual, darrays = _gradients(ctx, dy)
        return dx, None, None, None, dresidual, *darrays
