"""One call of the PyTorch operator lstm: Call, its tensors, and Layer, their checked arrays with forward and backward.

forward and backward call the kernels once for each direction.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.lstm_weights import empty_gradients
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import (
    LSTMGradients,
    LSTMUpstream,
    LSTMWeights,
    PackedBatch,
    States,
    lstm_buffer_size,
    lstm_buffers,
)
from fastgrad.torch.tensors import array, integers

Tensor = torch.Tensor
OP = "lstm"


class Call(NamedTuple):
    """The arguments of a call: tensors as of `lstm`, 1 or 2 directions, and whether there are biases and a projection."""

    x: Tensor
    weights: Sequence[Tensor]
    h_0: Tensor | None
    c_0: Tensor | None
    batch_sizes: Tensor | None
    order: Tensor | None
    directions: int
    bias: bool
    projects: bool


class Layer:
    """The checked arrays of one call: rows xs (R, C); and of each direction the weights, the initial states and the order of the steps."""

    def __init__(self, call: Call) -> None:
        x = array(OP, "x", call.x)
        self.packed = call.batch_sizes is not None
        batch = _batch(x, call.batch_sizes, call.order)
        self.xs = check.contiguous(x) if self.packed else pack(x, batch)
        # tensors of a direction: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr
        weights, count = call.weights, 2 + 2 * call.bias + call.projects
        if len(weights) != call.directions * count:
            raise ValueError(f"{OP}: weights must have length {call.directions * count}, got {len(weights)}")
        self.weights = [_weights(weights[i : i + count], x, call) for i in range(0, len(weights), count)]
        self.width, columns = self.weights[0].w_hh.shape
        self.hidden = columns // 4
        leading = call.directions, len(batch.order)
        self.h_0 = _state("h_0", call.h_0, "(D, N, P)", (*leading, self.width), x.dtype)
        self.c_0 = _state("c_0", call.c_0, "(D, N, H)", (*leading, self.hidden), x.dtype)
        self.batches = batch, PackedBatch(batch.order, batch.offsets, True)

    def columns(self, direction: int) -> slice:
        """The columns of a direction in the rows (R, D P)."""
        return slice(direction * self.width, (direction + 1) * self.width)

    def outputs(self, saved: np.ndarray) -> np.ndarray:
        """h (R, D P), a copy of y's rows: PyTorch lets y be written to."""
        rows, columns = len(self.xs), len(self.weights) * self.width
        return saved[saved.size - rows * columns :].reshape(rows, columns)

    def forward(self, keep: bool) -> tuple[Tensor, ...]:
        """y, h_n, c_n and, with keep, what backward needs: each direction's buffer, and a copy of y's rows."""
        rows, dtype, directions = len(self.xs), self.xs.dtype, len(self.weights)
        h = empty((rows, directions * self.width), dtype)
        h_n, c_n = empty(self.h_0.shape, dtype), empty(self.c_0.shape, dtype)
        size = lstm_buffer_size(rows, self.hidden, keep)
        saved = empty((directions * size + h.size if keep else size,), dtype)
        for direction, w in enumerate(self.weights):
            start, end = States(self.h_0[direction], self.c_0[direction]), States(h_n[direction], c_n[direction])
            buffer = saved[direction * size :] if keep else saved
            buffers = lstm_buffers(buffer, h[:, self.columns(direction)], self.hidden, keep)
            kernels().lstm_forward(self.xs, w, start, self.batches[direction], buffers, end)
        if keep:
            np.copyto(self.outputs(saved), h)
        y = h if self.packed else unpack(h, self.batches[0])
        return tuple(map(torch.from_numpy, (y, h_n, c_n, saved if keep else empty((0,), dtype))))

    @silent
    def backward(self, dy: Any, dh_n: Any, dc_n: Any, saved: Tensor, wants_dx: bool) -> list[Tensor]:
        """dx if wanted, dh_0, dc_0, and the gradients of the weights in their order."""
        dtype, flat = self.xs.dtype, array(OP, "saved", saved)
        h, size = self.outputs(flat), lstm_buffer_size(len(self.xs), self.hidden)
        if dy is not None:
            dy = array(OP, "dy", dy)
            dy = check.contiguous(dy) if self.packed else pack(dy, self.batches[0])
        dh_n, dc_n = (None if d is None else check.contiguous(array(OP, "dh_n", d)) for d in (dh_n, dc_n))
        dh_0, dc_0 = empty(self.h_0.shape, dtype), empty(self.c_0.shape, dtype)
        dxs: list[Any] = [empty(self.xs.shape, dtype) if wants_dx else None for _ in self.weights]
        gradients: list[np.ndarray] = []
        for direction, w in enumerate(self.weights):
            columns, dw = self.columns(direction), empty_gradients(w)
            ends = (None if d is None else d[direction] for d in (dh_n, dc_n))
            upstream = LSTMUpstream(None if dy is None else dy[:, columns], *ends)
            start, dstart = States(self.h_0[direction], self.c_0[direction]), States(dh_0[direction], dc_0[direction])
            buffers = lstm_buffers(flat[direction * size :], h[:, columns], self.hidden)
            arrays = LSTMGradients(empty(buffers.gates.shape, dtype), dxs[direction], dw, dstart, None)
            kernels().lstm_backward(upstream, self.xs, w, start, self.batches[direction], buffers, arrays, False)
            gradients += [dw.w_ih.T, dw.w_hh.T]
            gradients += [] if dw.b is None else [dw.b, dw.b.copy()]
            gradients += [] if dw.w_proj is None else [dw.w_proj.T]
        dinputs = [dh_0, dc_0]
        if wants_dx:
            if len(dxs) == 2:
                np.add(dxs[0], dxs[1], out=dxs[0])
            dinputs.insert(0, dxs[0] if self.packed else unpack(dxs[0], self.batches[0]))
        return list(map(torch.from_numpy, dinputs + gradients))


def _batch(x: np.ndarray, batch_sizes: Tensor | None, order: Tensor | None) -> PackedBatch:
    if batch_sizes is None:
        check.array(OP, "x", x, "(N, T, C)", (None, None, None))
        return packed_batch(OP, x.shape[:2], None)
    # copies before they are looked at: another thread may write to what the caller has
    sizes = integers(OP, "batch_sizes", batch_sizes).astype(np.int64)
    if len(sizes) and (sizes[-1] < 1 or (np.diff(sizes) > 0).any()):
        raise ValueError(f"{OP}: batch_sizes must be at least 1 and not rise from step to step")
    check.array(OP, "x", x, "(R, C)", (int(sizes.sum()), None))
    n = int(sizes[0]) if len(sizes) else 0
    numbers = np.arange(n) if order is None else integers(OP, "order", order).astype(np.int64)
    if order is not None and not np.array_equal(np.sort(numbers), np.arange(n)):
        raise ValueError(f"{OP}: order must have each of 0..{n - 1} once, got {numbers.shape} integers")
    return PackedBatch(numbers, np.append(0, np.cumsum(sizes)))


def _weights(tensors: Sequence[Tensor], x: np.ndarray, call: Call) -> LSTMWeights:
    """The weights of a direction in fastgrad's layout: w_ih and w_hh are transposed views, which kernels copy into panels."""
    w_ih, w_hh, *others = tensors
    columns = w_ih.shape[0]
    hidden = columns // 4
    width = others[-1].shape[0] if call.projects else hidden
    forms: list[tuple[str, str, tuple[int, ...]]] = [
        ("weight_ih", "(4H, C)", (4 * hidden, x.shape[-1])),
        ("weight_hh", "(4H, P)" if call.projects else "(4H, H)", (columns, width)),
    ]
    forms += [(name, "(4H,)", (columns,)) for name in ("bias_ih", "bias_hh")] if call.bias else []
    forms += [("weight_hr", "(P, H)", (width, hidden))] if call.projects else []
    for (name, form, shape), w in zip(forms, tensors, strict=True):
        check.array(OP, name, array(OP, name, w), form, shape, x.dtype)
    w_ih_t, w_hh_t = (w.detach().contiguous().numpy().T for w in (w_ih, w_hh))
    b = (others[0].detach() + others[1].detach()).numpy() if call.bias else None
    w_proj = others[-1].detach().t().contiguous().numpy() if call.projects else None
    return LSTMWeights(w_ih_t, w_hh_t, b, None, w_proj)


def _state(name: str, value: Tensor | None, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if value is None:
        return np.zeros(shape, dtype)
    return check.contiguous(check.array(OP, name, array(OP, name, value), form, shape, dtype))
