"""One call of a recurrent operator: Call, its tensors, and Layer, their checked arrays with forward and backward.

forward and backward call the kernels once for each direction. The cells, subclasses of Layer, are in lstm.py, lstm_variants.py and gru.py.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.errstate import silent
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import LSTMVariant, LSTMVariantWeights, PackedBatch
from fastgrad.torch.tensors import array, integers

Tensor = torch.Tensor
Arrays = Sequence[np.ndarray]
# the weights of layer norms in an LSTM
NORMS = LSTMVariantWeights._fields[3:]


class Call(NamedTuple):
    """The arguments of a call: tensors as of `lstm` or `gru`, 1 or 2 directions, and whether there are biases, a projection and norms.

    Of a variant of the LSTM, variant has a tensor of a key for each direction, or None.
    """

    x: Tensor
    weights: Sequence[Tensor]
    states: Sequence[Tensor | None]
    batch_sizes: Tensor | None
    order: Tensor | None
    directions: int
    bias: bool
    projects: bool = False
    layer_norm: bool = False
    variant: LSTMVariant | None = None


class Direction(NamedTuple):
    """One direction of a call: its number, weights, the order of its steps, initial states, h (R, P), and the buffer of what is saved."""

    number: int
    weights: Any
    batch: PackedBatch
    start: Arrays
    h: np.ndarray
    buffer: np.ndarray


class Layer:
    """The checked arrays of one call: rows xs (R, C); and of each direction the weights, the initial states and the order of the steps.

    A subclass is a cell of so many gates, whose states, h first, have these names and forms.
    """

    op: ClassVar[str]
    gates: ClassVar[int]
    states: ClassVar[dict[str, str]]

    @staticmethod
    def buffer_size(call: Call, rows: int, hidden: int, keep: bool = True) -> int:
        """Values in the buffer of a direction."""
        raise NotImplementedError

    def group(self, w_ih: np.ndarray, w_hh: np.ndarray, biases: list[np.ndarray], others: list[np.ndarray]) -> Any:
        """The weights of a direction in the kernels' form. biases: none, or PyTorch's two; others: weight_hr, or those of norms."""
        raise NotImplementedError

    def run(self, direction: Direction, keep: bool, end: Arrays) -> None:
        """Write h, the buffer and the end states."""
        raise NotImplementedError

    def run_backward(self, direction: Direction, upstream: Any, dxs: np.ndarray | None, dstart: Arrays) -> list:
        """Write dxs and the gradients of the initial states; returns those of the weights, in the order of the tensors."""
        raise NotImplementedError

    @classmethod
    def call(cls, arguments: Sequence[Any]) -> Call:
        """The Call of an operator's arguments, in which each state is one."""
        x, weights, *others = arguments
        count = len(cls.states)
        return Call(x, weights, others[:count], *others[count:])

    def __init__(self, call: Call) -> None:
        self.arguments = call
        x = array(self.op, "x", call.x)
        self.packed = call.batch_sizes is not None
        batch = _batch(self.op, x, call.batch_sizes, call.order)
        self.xs = check.contiguous(x) if self.packed else pack(x, batch)
        # tensors of a direction: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr or gamma_x, gamma_h, gamma_c, beta_c
        weights, count = call.weights, 2 + 2 * call.bias + call.projects + 4 * call.layer_norm
        if len(weights) != call.directions * count:
            raise ValueError(f"{self.op}: weights must have length {call.directions * count}, got {len(weights)}")
        self.weights = [self._weights(weights[i : i + count], x, call) for i in range(0, len(weights), count)]
        self.width, columns = self.weights[0].w_hh.shape
        self.hidden = columns // self.gates
        widths = self.width, self.hidden
        leading = call.directions, len(batch.order)
        self.start = [
            _state(self.op, name, state, form, (*leading, width), x.dtype)
            for (name, form), state, width in zip(self.states.items(), call.states, widths, strict=False)
        ]
        self.batches = batch, PackedBatch(batch.order, batch.offsets, True)

    def _weights(self, tensors: Sequence[Tensor], x: np.ndarray, call: Call) -> Any:
        """The weights of a direction in fastgrad's layout: w_ih and w_hh are transposed views, which kernels copy into panels."""
        columns, gates = tensors[0].shape[0], self.gates
        hidden = columns // gates
        width = tensors[-1].shape[0] if call.projects else hidden
        forms: list[tuple[str, str, tuple[int, ...]]] = [
            ("weight_ih", f"({gates}H, C)", (gates * hidden, x.shape[-1])),
            ("weight_hh", f"({gates}H, {'P' if call.projects else 'H'})", (columns, width)),
        ]
        forms += [(name, f"({gates}H,)", (columns,)) for name in ("bias_ih", "bias_hh")] if call.bias else []
        forms += [("weight_hr", "(P, H)", (width, hidden))] if call.projects else []
        forms += [
            (name, f"({gates}H,)" if size == columns else "(H,)", (size,))
            for name, size in zip(NORMS, (columns, columns, hidden, hidden), strict=True)
            if call.layer_norm
        ]
        op, dtype = self.op, x.dtype
        w_ih, w_hh, *others = [
            check.array(op, name, array(op, name, w), form, shape, dtype)
            for (name, form, shape), w in zip(forms, tensors, strict=True)
        ]
        count = 2 * call.bias
        return self.group(check.contiguous(w_ih).T, check.contiguous(w_hh).T, others[:count], others[count:])

    def direction(self, i: int, h: np.ndarray, buffer: np.ndarray) -> Direction:
        """A direction of a call with output h (R, D P)."""
        columns = slice(i * self.width, (i + 1) * self.width)
        return Direction(i, self.weights[i], self.batches[i], [state[i] for state in self.start], h[:, columns], buffer)

    def outputs(self, saved: np.ndarray) -> np.ndarray:
        """h (R, D P), a copy of y's rows: PyTorch lets y be written to."""
        rows, columns = len(self.xs), len(self.weights) * self.width
        return saved[saved.size - rows * columns :].reshape(rows, columns)

    def forward(self, keep: bool) -> tuple[Tensor, ...]:
        """y, the end states and, with keep, what backward needs: each direction's buffer, and a copy of y's rows."""
        rows, dtype, directions = len(self.xs), self.xs.dtype, len(self.weights)
        h, ends = empty((rows, directions * self.width), dtype), [empty(state.shape, dtype) for state in self.start]
        size = self.buffer_size(self.arguments, rows, self.hidden, keep)
        saved = empty((directions * size + h.size if keep else size,), dtype)
        for i in range(directions):
            direction = self.direction(i, h, saved[i * size :] if keep else saved)
            self.run(direction, keep, [end[i] for end in ends])
        if keep:
            np.copyto(self.outputs(saved), h)
        y = h if self.packed else unpack(h, self.batches[0])
        return tuple(map(torch.from_numpy, (y, *ends, saved if keep else empty((0,), dtype))))

    @silent
    def backward(self, upstream: Sequence[Any], saved: Tensor, wants_dx: bool) -> list[Tensor]:
        """dx if wanted, those of the initial states, and those of the weights in their order, from dy and those of the end states."""
        dtype, flat = self.xs.dtype, array(self.op, "saved", saved)
        dy, *dends = upstream
        if dy is not None:
            dy = array(self.op, "dy", dy)
            dy = check.contiguous(dy) if self.packed else pack(dy, self.batches[0])
        dends = [None if d is None else check.contiguous(array(self.op, "dh_n", d)) for d in dends]
        dstarts = [empty(state.shape, dtype) for state in self.start]
        dxs: list[Any] = [empty(self.xs.shape, dtype) if wants_dx else None for _ in self.weights]
        gradients: list[np.ndarray] = []
        h, size = self.outputs(flat), self.buffer_size(self.arguments, len(self.xs), self.hidden)
        for i in range(len(self.weights)):
            direction = self.direction(i, h, flat[i * size :])
            dh = None if dy is None else dy[:, i * self.width : (i + 1) * self.width]
            ends = [None if d is None else d[i] for d in dends]
            gradients += self.run_backward(direction, (dh, *ends), dxs[i], [d[i] for d in dstarts])
        dinputs = dstarts
        if wants_dx:
            if len(dxs) == 2:
                np.add(dxs[0], dxs[1], out=dxs[0])
            dinputs = [dxs[0] if self.packed else unpack(dxs[0], self.batches[0]), *dstarts]
        return list(map(torch.from_numpy, dinputs + gradients))


def _batch(op: str, x: np.ndarray, batch_sizes: Tensor | None, order: Tensor | None) -> PackedBatch:
    if batch_sizes is None:
        check.array(op, "x", x, "(N, T, C)", (None, None, None))
        return packed_batch(op, x.shape[:2], None)
    # copies before they are looked at: another thread may write to what the caller has
    sizes = integers(op, "batch_sizes", batch_sizes).astype(np.int64)
    if len(sizes) and (sizes[-1] < 1 or (np.diff(sizes) > 0).any()):
        raise ValueError(f"{op}: batch_sizes must be at least 1 and not rise from step to step")
    check.array(op, "x", x, "(R, C)", (int(sizes.sum()), None))
    n = int(sizes[0]) if len(sizes) else 0
    numbers = np.arange(n) if order is None else integers(op, "order", order).astype(np.int64)
    if order is not None and not np.array_equal(np.sort(numbers), np.arange(n)):
        raise ValueError(f"{op}: order must have each of 0..{n - 1} once, got {numbers.shape} integers")
    return PackedBatch(numbers, np.append(0, np.cumsum(sizes)))


def _state(op: str, name: str, value: Tensor | None, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if value is None:
        return np.zeros(shape, dtype)
    return check.contiguous(check.array(op, name, array(op, name, value), form, shape, dtype))
