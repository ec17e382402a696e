"""The PyTorch operator dense_chain: dense layers in a row. The module MLP is in modules.py.

`Layers` keeps the checked weights for further calls, and its BufferPool the arrays that calls write.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import Activation, Chain, ChainGradients, ChainSaved, needs_input
from fastgrad.torch.buffers import BufferPool, BufferSet
from fastgrad.torch.registration import Operator, plain, product, refuse_second, refuse_tangents
from fastgrad.torch.tensors import RESULT_SAVED, array, offloaded, saves_own

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
    known: "dict[str, Layers] | None" = None,
) -> Tensor:
    """dense_chain with activations by number, see kernels/types.py. known: a dictionary that keeps the Layers for the next call."""
    if getattr(x, "ndim", 2) != 2:
        if not x.ndim:
            raise ValueError(f"{OP}: x must be (..., C), got a tensor without axes")
        # sizes said, since of nothing none can be inferred
        rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
        added = None if residual is None else residual.reshape(prod(residual.shape[:-1]), residual.shape[-1])
        y = chain(rows, weights, biases, codes, parameters, added, known)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    tensors = [*weights, *[b for b in biases if b is not None]]
    refuse_tangents(OP, x, residual, *tensors)
    if not plain(OP, x):
        y = _forward.op(x, tensors, [b is not None for b in biases], codes, parameters, residual)[0]
        return product(y, x, residual)
    xs = _rows(x)
    layers = known.get("layers") if known is not None else None
    if layers is None or not layers.fit(tensors, xs):
        layers = Layers(tensors, [b is not None for b in biases], codes, parameters, xs)
        if known is not None:
            known["layers"] = layers
    if torch.is_grad_enabled():
        return _apply(x, residual, xs, layers, *tensors)
    return _computed(xs, layers, residual, False)[0]


def _rows(x: Tensor) -> np.ndarray:
    return check.array(OP, "x", array(OP, "x", x), "(N, C)", (None, None))


class Layers:
    """The checked arrays of a chain's weights and biases, for kernels: valid while their tensors stay where they are in memory."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        biased: Sequence[bool],
        codes: Sequence[int],
        parameters: Sequence[float],
        x: np.ndarray,
    ) -> None:
        """tensors: the weights, and then the biases of the layers that are `biased`."""
        self.biased, self.codes, self.parameters = biased, tuple(codes), parameters
        self.activations = [Activation(*f) for f in zip(codes, parameters, strict=True)]
        self.weights: list[np.ndarray] = []  # turned: (K_in, K_out)
        self.biases: list[np.ndarray | None] = []
        self.n_in, self.dtype = x.shape[1], x.dtype
        given, width = iter(tensors[len(codes) :]), self.n_in
        for layer, (w, has) in enumerate(zip(tensors, biased, strict=False)):
            name = f"weights[{layer}]"
            turned = check.array(OP, name, array(OP, name, w), "(K_out, K_in)", (None, width), self.dtype).T
            width, name = turned.shape[1], f"biases[{layer}]"
            self.weights.append(turned)
            b = check.array(OP, name, array(OP, name, next(given)), "(K_out,)", (width,), self.dtype) if has else None
            self.biases.append(b)
        self.widths = tuple(w.shape[1] for w in self.weights)
        self.rooms = BufferPool()
        self._places = _places(tensors)

    def fit(self, tensors: Sequence[Tensor], x: np.ndarray) -> bool:
        """Whether these were made of these tensors, which have not moved, and for the width and dtype of x."""
        try:
            return x.dtype == self.dtype and x.shape[1] == self.n_in and _places(tensors) == self._places
        except RuntimeError:
            # one that lies nowhere
            return False


def _places(tensors: Sequence[Tensor]) -> tuple[list, list, list, list]:
    """Addresses, sizes, strides and dtypes of tensors."""
    return (
        list(map(Tensor.data_ptr, tensors)), list(map(Tensor.size, tensors)), list(map(Tensor.stride, tensors)),
        [t.dtype for t in tensors],
    )  # fmt: skip


class _Arrays(NamedTuple):
    """What the backward of a call needs. saved: zs and outputs, if needed with a copy of the last output; flat: their memory."""

    layers: Layers
    chain: Chain
    saved: ChainSaved
    flat: np.ndarray


class _Forward(BufferSet):
    """The arrays that a forward writes."""

    def __init__(self, rows: int, layers: Layers) -> None:
        y = empty((rows, layers.widths[-1]), layers.dtype)
        self.saved = empty((_layout(rows, layers.widths, layers.codes)[0],), layers.dtype)
        self.arrays, self.own = _parts(self.saved, y, layers)
        self.lent, self.size = [y, self.saved], y.nbytes + self.saved.nbytes


class _Backward(BufferSet):
    """The arrays that a backward writes, except dx: the gradients of parameters, dbs None where there is no bias, and dzs."""

    def __init__(self, rows: int, layers: Layers) -> None:
        dtype, weights = layers.dtype, layers.weights
        # as PyTorch's weights lie, so that autograd keeps them as they are
        biases = [w.shape[1:] for w, has in zip(weights, layers.biased, strict=True) if has]
        self.lent = grads = _pieces((*(w.shape[::-1] for w in weights), *biases), dtype)
        self.dws, given = [dw.T for dw in grads[: len(weights)]], iter(grads[len(weights) :])
        self.dbs = [next(given) if has else None for has in layers.biased]
        self.dzs = _pieces(tuple((rows, width) for width in layers.widths), dtype)
        self.size = sum(a.nbytes for a in (*grads, *self.dzs))


def _computed(x: np.ndarray, layers: Layers, residual: Tensor | None, recorded: bool = True) -> tuple[Tensor, _Arrays]:
    """y, and what backward needs."""
    taken = layers.rooms.take(_Forward, len(x), layers)
    room, added = taken[1], None
    if residual is not None:
        shape = room.arrays.outputs[-1].shape
        added = check.array(OP, "residual", array(OP, "residual", residual), "(N, K)", shape, layers.dtype)
    chain, saved = Chain(x, layers.weights, layers.biases, layers.activations, added), room.arrays
    kernels().dense_chain_forward(chain, saved)
    y = saved.outputs[-1]
    if room.own is not None:
        if recorded:
            np.copyto(room.own, y)
        saved = ChainSaved(saved.zs, [*saved.outputs[:-1], room.own])
    made = torch.from_numpy(y), _Arrays(layers, chain, saved, room.saved)
    layers.rooms.give(taken)
    return made


def _run(
    x: Tensor,
    tensors: Sequence[Tensor],
    biased: Sequence[bool],
    codes: Sequence[int],
    parameters: Sequence[float],
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y, and what backward needs, in one flat tensor.

    That is the output of every layer but the last, and z of a layer, or a copy of y, where an activation's derivative is taken from it.
    """
    xs = _rows(x)
    y, made = _computed(xs, Layers(tensors, biased, codes, parameters, xs), residual)
    return y, torch.from_numpy(made.flat)


def _run_backward(
    dy: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biased: Sequence[bool],
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
    layers = Layers(weights, [False] * len(weights), codes, parameters, xs)
    layers.biased = biased
    # without an activation behind the last layer its output is not read, and any array of the shape stands for it
    saved_arrays, own = _parts(flat, array(OP, "y", dy if y is None else y), layers)
    if own is not None:
        saved_arrays = ChainSaved(saved_arrays.zs, [*saved_arrays.outputs[:-1], own])
    chain = Chain(xs, layers.weights, layers.biases, layers.activations, None)
    return _back(_Arrays(layers, chain, saved_arrays, flat), dy, wants)


def _back(a: _Arrays, dy: Tensor, wants: Sequence[bool]) -> list[Tensor]:
    layers, y = a.layers, a.saved.outputs[-1]
    upstream = check.upstream(OP, array(OP, "dy", dy), y)
    dx = empty(a.chain.x.shape, layers.dtype) if wants[0] else None
    taken = layers.rooms.take(_Backward, len(y), layers)
    room = taken[1]
    # of the residual it is the gradient
    dzs = [*room.dzs[:-1], empty(y.shape, layers.dtype)] if wants[1] else room.dzs
    kernels().dense_chain_backward(upstream, a.chain, a.saved, ChainGradients(dzs, dx, room.dws, room.dbs))
    made = [torch.from_numpy(d) for d in (dx, dzs[-1] if wants[1] else None) if d is not None]
    made += map(torch.from_numpy, room.lent)
    layers.rooms.give(taken)
    return made


def _pieces(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype) -> list[np.ndarray]:
    """Uninitialised arrays, adjacent in one block of memory: one call for each costs more than a small net's products."""
    starts, size = _starts(shapes), dtype.itemsize
    flat = empty((starts[-1],), dtype)
    return [np.ndarray(shape, dtype, flat, start * size) for shape, start in zip(shapes, starts, strict=False)]


@lru_cache
def _starts(shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    return list(accumulate(map(prod, shapes), initial=0))


def _size(rows: Any, widths: Sequence[Any], codes: Sequence[int]) -> Any:
    """The number of values in `saved`."""
    last = len(codes) - 1
    return rows * sum(
        width * ((l < last) + needs_own(code, l == last))
        for l, (width, code) in enumerate(zip(widths, codes, strict=True))
    )


def needs_own(code: int, last: bool) -> bool:
    """Whether `saved` has z of this layer, or if it is the last one a copy of y."""
    return needs_input(code) or (last and saves_own(code))


@lru_cache
def _layout(rows: int, widths: tuple[int, ...], codes: tuple[int, ...]) -> tuple[int, list[tuple]]:
    """The number of values in `saved`; and of every layer the shape, and where its output and its z begin, -1 if not in `saved`."""
    at, places, last = 0, [], len(widths) - 1
    for layer, (width, code) in enumerate(zip(widths, codes, strict=True)):
        output, z, size = -1, -1, rows * width
        if layer < last:
            output, at = at, at + size
        if needs_own(code, layer == last):
            z, at = at, at + size
        places.append(((rows, width), output, z))
    return at, places


def _parts(saved: np.ndarray, y: np.ndarray, layers: Layers) -> tuple[ChainSaved, np.ndarray | None]:
    """The arrays that a forward writes, and the array for a copy of y, or None."""
    zs, outputs, own, dtype, size = [], [], None, saved.dtype, saved.itemsize
    for (shape, at, z_at), code in zip(_layout(len(y), layers.widths, layers.codes)[1], layers.codes, strict=True):
        output = np.ndarray(shape, dtype, saved, at * size) if at >= 0 else y
        outputs.append(output)
        z = np.ndarray(shape, dtype, saved, z_at * size) if z_at >= 0 else output
        if z_at >= 0 and not needs_input(code):
            own, z = z, output
        zs.append(z)
    return ChainSaved(zs, outputs), own


def _fake(x: Tensor, arrays: Any, biased: Any, codes: Any, parameters: Any, residual: Any) -> tuple[Tensor, Tensor]:
    weights = arrays[: len(codes)]
    size = _size(x.shape[0], [w.shape[0] for w in weights], codes)
    return x.new_empty(x.shape[0], weights[-1].shape[0]), x.new_empty(size)


def _fake_backward(
    dy: Tensor, x: Tensor, weights: Any, biased: Any, codes: Any, parameters: Any, y: Any, saved: Any, wants: Any
) -> list[Tensor]:
    made = [
        torch.empty_like(a, memory_format=torch.contiguous_format)
        for a, want in zip((x, dy), wants, strict=True)
        if want
    ]
    made += [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    return made + [w.new_empty(w.shape[0]) for w, has in zip(weights, biased, strict=True) if has]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, arrays, ctx.biased, codes, parameters, residual = inputs
    ctx.save_for_backward(x, *arrays[: len(codes)], _read(output[0], codes), output[1])
    ctx.settings, ctx.adds = (codes, parameters), residual is not None


def _read(y: Tensor, codes: Sequence[int]) -> Tensor | None:
    """y if backward reads it, else None."""
    return y if codes[-1] in RESULT_SAVED else None


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """dx, dresidual, and the gradients of weights and biases."""
    x, *weights, y, saved = ctx.saved_tensors
    wants = [ctx.needs_input_grad[0], ctx.adds]
    # the arrays of the forward serve one backward, so that they hold nothing back after it; another makes them anew
    arrays = ctx.__dict__.pop("arrays", None)
    made = _back(arrays, dy, wants) if arrays else _backward(dy, x, weights, ctx.biased, *ctx.settings, y, saved, wants)
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
    f"{OP}_backward(Tensor dy, Tensor x, Tensor[] weights, bool[] biased, int[] codes, float[] parameters, Tensor? y, Tensor saved,"
    " bool[] wants) -> Tensor[]",
    _run_backward,
    _fake_backward,
).final()
_forward.differentiable(_save, _differentiate)


class _Chain(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Any, xs: np.ndarray, layers: Layers, *tensors: Tensor) -> Tensor:
        y, arrays = _computed(xs, layers, residual)
        weights = list(tensors[: len(layers.codes)])
        # as PyTorch's Linear: what only a gradient that nobody asks for would read may be written to
        if not weights[0].requires_grad:
            x = x.data
        if not ctx.needs_input_grad[0]:
            weights[0] = weights[0].data
        if not offloaded():
            ctx.arrays = arrays
        ctx.save_for_backward(x, *weights, _read(y, layers.codes), torch.from_numpy(arrays.flat))
        ctx.biased, ctx.settings, ctx.adds = layers.biased, (layers.codes, layers.parameters), residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        refuse_second(OP)
        dx, dresidual, darrays = _gradients(ctx, dy)
        return dx, dresidual, None, None, *darrays


# what Function.apply adds is for torch.func's transforms, whose tensors do not come here
_apply = super(Function, _Chain).apply  # type: ignore[misc]
