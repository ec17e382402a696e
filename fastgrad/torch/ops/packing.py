"""pack_padded_sequence and pad_packed_sequence of PyTorch by fastgrad's kernels: one copy of the rows each, and one for the gradient.

Both are linear, and each is the gradient of the other. They are no registered operators, since a trace does not know the number of rows: it
depends on the values of the lengths. PyTorch's own functions take all calls that are not plain.
"""

from typing import Any

import numpy as np
import torch
from torch.autograd import Function, forward_ad
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.packing import above
from fastgrad.kernels.types import PackedBatch
from fastgrad.torch.registration import skips_dispatcher
from fastgrad.torch.tensors import FLOATS, TENSOR_TYPES

Tensor = torch.Tensor
PACK, PAD = "pack_padded_sequence", "pad_packed_sequence"


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """torch.nn.utils.rnn.pack_padded_sequence in one copy: the same PackedSequence, and the same errors.

    Plain calls with dense float32 or float64 on the CPU are computed here; all others (other dtypes and devices, compiled,
    traced, under autocast) go to PyTorch's function.

    Args:
        input: Padded sequences (T, N, *), or (N, T, *) with batch_first.
        lengths: The steps of each sequence, N integers from 1 to T; falling if enforce_sorted.
        batch_first: Whether input is (N, T, *).
        enforce_sorted: Raise unless lengths fall; else the sequences are sorted.

    Returns:
        The PackedSequence, differentiable by input.

    Raises:
        RuntimeError: As PyTorch's function: of lengths that do not fit or do not fall.

    Example:
        >>> x = torch.arange(6.0).reshape(2, 3, 1)
        >>> packed = fgt.pack_padded_sequence(x, [3, 1], batch_first=True)
        >>> packed.data[:, 0].tolist(), packed.batch_sizes.tolist()
        ([0.0, 3.0, 1.0, 2.0], [2, 1, 1])
    """
    if _is_supported(PACK, input, 2):
        tensor = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, dtype=torch.int64, device="cpu")
        ends, order = tensor.long(), None
        if not enforce_sorted:
            ends, order = torch.sort(ends, descending=True)
        n, steps = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
        sizes = _falling(ends)
        if sizes is not None and len(sizes) == n and sizes[0] <= steps:
            under_way = above(sizes, steps)
            # a copy, since the PackedSequence's own may be written to before its gradient is asked for
            batch = _batch(np.arange(n) if order is None else order.numpy().copy(), under_way)
            data = _Pack.apply(input, batch, batch_first)
            return PackedSequence(data, torch.from_numpy(under_way[: sizes[0]].copy()), order)
    return rnn.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """torch.nn.utils.rnn.pad_packed_sequence in one copy: the same values, lengths and errors.

    Plain calls with dense float32 or float64 on the CPU are computed here; all others go to PyTorch's function.

    Args:
        sequence: A PackedSequence, of any function.
        batch_first: Return (N, T, *) in place of (T, N, *).
        padding_value: What lies past a sequence's end.
        total_length: T, at least that of the longest sequence, which None is.

    Returns:
        The padded sequences (T, N, *), or (N, T, *) with batch_first, differentiable by the packed data; and the lengths
        (N,), int64.

    Raises:
        ValueError: As PyTorch's function: total_length is less than the length of the longest sequence.

    Example:
        >>> packed = fgt.pack_padded_sequence(torch.arange(6.0).reshape(2, 3, 1), [3, 1], batch_first=True)
        >>> x, lengths = fgt.pad_packed_sequence(packed, batch_first=True, padding_value=-1.0)
        >>> x[..., 0].tolist(), lengths.tolist()
        ([[0.0, 1.0, 2.0], [3.0, -1.0, -1.0]], [3, 1])
    """
    if isinstance(sequence, PackedSequence) and _is_supported(PAD, sequence.data, 1):
        batch = _batch_of(sequence, total_length)
        if batch is not None and isinstance(padding_value, (int, float)):
            lengths = np.empty(len(batch.order), np.int64)
            lengths[batch.order] = above(np.diff(batch.offsets), len(lengths))
            padded = _Pad.apply(sequence.data, batch, batch_first, padding_value)
            return padded, torch.from_numpy(lengths)
    return rnn.pad_packed_sequence(sequence, batch_first, padding_value, total_length)


def _is_supported(op: str, x: Any, axes: int) -> bool:
    """Whether kernels take x, of this many axes or more, in this call."""
    if not isinstance(x, Tensor) or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return (
        skips_dispatcher(op, x)
        and x.layout is torch.strided
        and x.dtype in FLOATS
        and x.dim() >= axes
        and x.numel() > 0
    )


def _falling(values: Tensor) -> np.ndarray | None:
    """Integers above 0 in an order that never rises, as an array; None if values are anything else."""
    if not _is_integers(values):
        return None
    # a copy before it is looked at: another thread may write to what the caller has
    numbers = values.numpy().copy()
    return numbers if len(numbers) and numbers[-1] > 0 and (numbers[:-1] >= numbers[1:]).all() else None


def _is_integers(values: Any) -> bool:
    if type(values) not in TENSOR_TYPES or not values.is_cpu or values.layout is not torch.strided:
        return False
    return values.dtype is torch.int64 and values.dim() == 1


def _batch(order: np.ndarray, under_way: np.ndarray) -> PackedBatch:
    return PackedBatch(order, np.append(0, np.cumsum(under_way)))


def _batch_of(sequence: PackedSequence, total_length: int | None) -> PackedBatch | None:
    """The packing of a PackedSequence's rows; None if its fields are not consistent."""
    sizes, inverse_order = _falling(sequence.batch_sizes), sequence.unsorted_indices
    if sizes is None or sizes.sum() != len(sequence.data):
        return None
    order, steps = np.arange(sizes[0]), len(sizes) if total_length is None else total_length
    if not isinstance(steps, int) or steps < len(sizes):
        return None
    if inverse_order is not None:
        inverse = inverse_order.numpy() if _is_integers(inverse_order) else order[:0]
        numbers, order = order, np.argsort(inverse)
        if not np.array_equal(inverse[order], numbers):
            return None
    return _batch(order, np.append(sizes, np.zeros(steps - len(sizes), np.int64)))


def _shape(batch: PackedBatch) -> tuple[int, int]:
    """N and T."""
    return len(batch.order), len(batch.offsets) - 1


def _array(x: Tensor) -> np.ndarray:
    return x.detach().resolve_neg().numpy()


class _Pack(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: PackedBatch, batch_first: bool) -> Tensor:
        ctx.form = batch, batch_first
        xs = _array(x)
        by_sequence = (xs if batch_first else xs.swapaxes(0, 1)).reshape(*_shape(batch), -1)
        rows = empty((int(batch.offsets[-1]), by_sequence.shape[2]), xs)
        kernels().gather_rows(by_sequence, batch, rows)
        return torch.from_numpy(rows.reshape(-1, *xs.shape[2:]))

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple:  # type: ignore[override]
        return _Pad.apply(d, *ctx.form, 0), None, None


class _Pad(Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, batch: PackedBatch, batch_first: bool, value: float) -> Tensor:
        ctx.form = batch, batch_first
        rows = _array(data)
        n, steps = _shape(batch)
        x = empty((n, steps, *rows.shape[1:]) if batch_first else (steps, n, *rows.shape[1:]), rows)
        by_sequence = (x if batch_first else x.swapaxes(0, 1)).reshape(n, steps, -1)
        kernels().scatter_rows(check.contiguous(rows.reshape(len(rows), -1)), batch, by_sequence)
        if value != 0:
            # PyTorch says which values there is no such number of
            fill = torch.full((), value, dtype=data.dtype, device="cpu").numpy()
            for i, end in zip(batch.order, above(np.diff(batch.offsets), n), strict=True):
                by_sequence[i, end:] = fill
        return torch.from_numpy(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple:  # type: ignore[override]
        return _Pack.apply(d, *ctx.form), None, None, None
