"""The arrays of the PyTorch operator dense_chain: the checked weights, what a forward saves and where, and the two calls of the kernels.

What a forward saves is one flat array, since autograd of a registered operator saves tensors: the output of every layer but the last, and z
of a layer, or a copy of the last output y, where an activation's derivative is computed from it.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import Activation, Chain, ChainGradients, ChainSaved, needs_input
from fastgrad.torch.buffers import BufferPool, BufferSet
from fastgrad.torch.tensors import array, saves_copy

Tensor = torch.Tensor
OP = "dense_chain"


class ChainWeights:
    """The checked arrays of a chain's weights and biases, for kernels: valid while their tensors stay where they are in memory.

    buffers has the arrays that calls with these weights write.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        has_bias: Sequence[bool],
        codes: Sequence[int],
        parameters: Sequence[float],
        x: np.ndarray,
    ) -> None:
        """tensors: the weights, and then the biases of the layers that have one."""
        self.has_bias, self.codes, self.parameters = has_bias, tuple(codes), parameters
        self.activations = [Activation(*f) for f in zip(codes, parameters, strict=True)]
        self.weights: list[np.ndarray] = []  # transposed: (K_in, K_out)
        self.biases: list[np.ndarray | None] = []
        self.n_in, self.dtype = x.shape[1], x.dtype
        biases, width = iter(tensors[len(codes) :]), self.n_in
        for layer, (w, has) in enumerate(zip(tensors, has_bias, strict=False)):
            name = f"weights[{layer}]"
            transposed = check.array(OP, name, array(OP, name, w), "(K_out, K_in)", (None, width), self.dtype).T
            width, name = transposed.shape[1], f"biases[{layer}]"
            self.weights.append(transposed)
            b = check.array(OP, name, array(OP, name, next(biases)), "(K_out,)", (width,), self.dtype) if has else None
            self.biases.append(b)
        self.widths = tuple(w.shape[1] for w in self.weights)
        self.buffers = BufferPool()
        # of a negated view there is a copy here, which later values would not reach
        self._memory = None if any(t.is_neg() for t in tensors) else _memory(tensors)

    def match(self, tensors: Sequence[Tensor], x: np.ndarray) -> bool:
        """Whether these were made of these tensors, which have not moved, and for the width and dtype of x."""
        try:
            return x.dtype == self.dtype and x.shape[1] == self.n_in and _memory(tensors) == self._memory
        except RuntimeError:
            # one that lies nowhere
            return False


def _memory(tensors: Sequence[Tensor]) -> tuple[list, list, list, list]:
    """Addresses, sizes, strides and dtypes of tensors."""
    return (
        list(map(Tensor.data_ptr, tensors)), list(map(Tensor.size, tensors)), list(map(Tensor.stride, tensors)),
        [t.dtype for t in tensors],
    )  # fmt: skip


class ForwardArrays(NamedTuple):
    """What the backward of a call needs. saved: zs and outputs, with a copy of y in its place if needed; flat: their memory."""

    weights: ChainWeights
    chain: Chain
    saved: ChainSaved
    flat: np.ndarray


class _ForwardBuffers(BufferSet):
    """The arrays that a forward writes; those that its backward reads; and the array for a copy of y, or None."""

    def __init__(self, rows: int, weights: ChainWeights) -> None:
        y = empty((rows, weights.widths[-1]), weights.dtype)
        self.flat = empty((saved_layout(rows, weights.widths, weights.codes)[0],), weights.dtype)
        self.written, self.read, self.y_copy = views(self.flat, y, weights)
        self.results, self.size = [y, self.flat], y.nbytes + self.flat.nbytes


class _BackwardBuffers(BufferSet):
    """The arrays that a backward writes, except dx: the gradients of parameters, dbs None where there is no bias, and dzs."""

    def __init__(self, rows: int, weights: ChainWeights) -> None:
        dtype, ws = weights.dtype, weights.weights
        # as PyTorch's weights lie, so that autograd keeps them as they are
        bias_shapes = [w.shape[1:] for w, has in zip(ws, weights.has_bias, strict=True) if has]
        self.results = _adjacent_arrays((*(w.shape[::-1] for w in ws), *bias_shapes), dtype)
        self.dws, dbs = [dw.T for dw in self.results[: len(ws)]], iter(self.results[len(ws) :])
        self.dbs = [next(dbs) if has else None for has in weights.has_bias]
        self.dzs = _adjacent_arrays(tuple((rows, width) for width in weights.widths), dtype)
        self.size = sum(a.nbytes for a in (*self.results, *self.dzs))


def chain_forward(
    x: np.ndarray, weights: ChainWeights, residual: Tensor | None, recorded: bool = True
) -> tuple[Tensor, ForwardArrays]:
    """y, and what backward needs, if autograd records the call."""
    entry = weights.buffers.take(_ForwardBuffers, len(x), weights)
    buffers, added = entry[1], None
    y = buffers.written.outputs[-1]
    if residual is not None:
        added = check.array(OP, "residual", array(OP, "residual", residual), "(N, K)", y.shape, weights.dtype)
    chain = Chain(x, weights.weights, weights.biases, weights.activations, added)
    kernels().dense_chain_forward(chain, buffers.written)
    if recorded and buffers.y_copy is not None:
        np.copyto(buffers.y_copy, y)
    result = torch.from_numpy(y), ForwardArrays(weights, chain, buffers.read, buffers.flat)
    weights.buffers.give_back(entry)
    return result


def chain_backward(arrays: ForwardArrays, dy: Tensor, wants: Sequence[bool]) -> list[Tensor]:
    """dx if wanted, dresidual if wanted, dweights, and the dbiases of the layers that have a bias."""
    weights, y = arrays.weights, arrays.saved.outputs[-1]
    upstream = check.upstream(OP, array(OP, "dy", dy), y)
    dx = empty(arrays.chain.x.shape, weights.dtype) if wants[0] else None
    entry = weights.buffers.take(_BackwardBuffers, len(y), weights)
    buffers = entry[1]
    # of the residual it is the gradient
    dzs = [*buffers.dzs[:-1], empty(y.shape, weights.dtype)] if wants[1] else buffers.dzs
    gradients = ChainGradients(dzs, dx, buffers.dws, buffers.dbs)
    kernels().dense_chain_backward(upstream, arrays.chain, arrays.saved, gradients)
    tensors = [torch.from_numpy(d) for d in (dx, dzs[-1] if wants[1] else None) if d is not None]
    tensors += map(torch.from_numpy, buffers.results)
    weights.buffers.give_back(entry)
    return tensors


def _adjacent_arrays(shapes: tuple[tuple[int, ...], ...], dtype: np.dtype) -> list[np.ndarray]:
    """Uninitialised arrays, adjacent in one block of memory: one call for each costs more than a small net's products."""
    starts, size = _starts(shapes), dtype.itemsize
    flat = empty((starts[-1],), dtype)
    return [np.ndarray(shape, dtype, flat, start * size) for shape, start in zip(shapes, starts, strict=False)]


@lru_cache
def _starts(shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    return list(accumulate(map(prod, shapes), initial=0))


@lru_cache
def saved_layout(rows: int, widths: tuple[int, ...], codes: tuple[int, ...]) -> tuple[int, list[tuple]]:
    """The number of saved values; and of every layer the shape, and where its output and its z begin, -1 if not saved.

    The z of the last layer may be a copy of y.
    """
    at, places, last = 0, [], len(widths) - 1
    for layer, (width, code) in enumerate(zip(widths, codes, strict=True)):
        output, z, size = -1, -1, rows * width
        if layer < last:
            output, at = at, at + size
        if needs_input(code) or (layer == last and saves_copy(code)):
            z, at = at, at + size
        places.append(((rows, width), output, z))
    return at, places


def views(flat: np.ndarray, y: np.ndarray, weights: ChainWeights) -> tuple[ChainSaved, ChainSaved, np.ndarray | None]:
    """The arrays that a forward writes, those that its backward reads, and the array for a copy of y, or None."""
    zs, outputs, y_copy, dtype, size = [], [], None, flat.dtype, flat.itemsize
    layout = saved_layout(len(y), weights.widths, weights.codes)[1]
    for (shape, at, z_at), code in zip(layout, weights.codes, strict=True):
        output = np.ndarray(shape, dtype, flat, at * size) if at >= 0 else y
        outputs.append(output)
        z = np.ndarray(shape, dtype, flat, z_at * size) if z_at >= 0 else output
        if z_at >= 0 and not needs_input(code):
            y_copy, z = z, output
        zs.append(z)
    written = ChainSaved(zs, outputs)
    return written, written if y_copy is None else ChainSaved(zs, [*outputs[:-1], y_copy]), y_copy
