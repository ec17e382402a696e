"""SequenceModel, the base of models that take sequences (N, T, C) with lengths and states; TimeRows; and pools over the time steps.

TimeRows gives layers of rows every time step as a row. A pool is a function (h, h_n, batch): h (R, D P) are packed rows of a recurrent
layer's outputs, the directions side by side, and h_n (D, N, P) the last output of each direction. It returns (y, backward);
backward(dy) returns the gradients of h and of h_n, the latter as (N, D P); one of them is None.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.core.errstate import silent
from fastgrad.functional.packing import PackedBatch, above, checked_lengths, pack, packed_batch, unpack
from fastgrad.nn.context import Backward, ForwardContext
from fastgrad.nn.model import Model
from fastgrad.nn.residual_layer import ResidualLayerBackward
from fastgrad.nn.state_snapshot import StateSnapshot


class SequenceModel(Model):
    """Base of models that may take sequences, with their lengths and with the states of recurrent layers.

    Sequences with lengths are packed to rows of their own steps, and unpacked at the output. So no layer reads values past a sequence's
    end: y is 0 there, and so is dx.
    """

    def forward(
        self, x: np.ndarray, training: bool = False, *, logits: bool = False, lengths: Any = None, state: Any = None
    ) -> tuple[np.ndarray, Backward]:
        """The output, and the function that computes the gradients from it, as of Model.forward.

        Args:
            x: The inputs, of the model's dtype and on its device: sequences (N, T, C), or rows or images without an
                LSTM or a GRU.
            training: Whether batch norm takes the batch's statistics, and dropout drops.
            logits: Leave out a last softmax or sigmoid.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.
            state: The state to begin from, as run returns it; None is 0.

        Returns:
            (y, backward). backward(dy) overwrites the gradients and returns dx.

        Raises:
            ValueError: A shape or a length does not fit, or lengths or state come without an LSTM or a GRU.
            TypeError: x is no array, or of another dtype or device than the model.
        """
        before = StateSnapshot(self) if training else None
        try:
            x, batch = self._pack_input(x, lengths, state)
            y, _, backward = self._forward(x, ForwardContext(training, logits, batch, state))
        except BaseException:
            if before is not None:
                before.restore()
            raise
        if batch is None:
            return y, backward
        y = self._unpack_output(y, batch)
        return y, self._backward_of_packed(backward, y, batch)

    def run(self, x: np.ndarray, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """The output and the state after it: so long sequences can be run step by step or window by window.

        Args:
            x: The inputs (N, T, C).
            state: The state of an earlier run; None is 0.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.

        Returns:
            (y, state).

        Raises:
            ValueError: A shape or a length does not fit, or lengths or state come without an LSTM or a GRU.
            TypeError: x is no array, or of another dtype or device than the model.

        Example:
            >>> model = fg.nn.LSTM(3, 4, seed=0)
            >>> y, state = model.run(np.zeros((2, 5, 3), np.float32))
            >>> y, state = model.run(np.ones((2, 1, 3), np.float32), state)
            >>> y.shape
            (2, 1, 4)
        """
        return self._infer_sequences(x, ForwardContext(state=state), lengths)

    def predict(
        self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False, lengths: Any = None
    ) -> np.ndarray:
        """The output alone, as of Model.predict.

        Args:
            x: The inputs: sequences (N, T, C), or rows or images without an LSTM or a GRU.
            batch_size: Compute so many rows at a time; None computes all at once.
            logits: Leave out a last softmax or sigmoid.
            lengths: Steps of each sequence (N,), integers from 0 to T; None is T for all.

        Returns:
            y, a new array.

        Raises:
            ValueError: A shape or a length does not fit, batch_size is below 1, or lengths come without an LSTM or a GRU.
            TypeError: x is no array, or of another dtype than the model.
        """
        if self._chain is not None and batch_size is None and lengths is None:
            return self._chain.predict(x, logits=logits)
        if self._needs_copy_to_gpu(x):
            return device.to_host(self.predict(device.to_gpu(x), batch_size, logits=logits, lengths=lengths))
        if batch_size is None:
            return self._infer_sequences(x, ForwardContext(logits=logits), lengths)[0]
        if lengths is None:
            return super().predict(x, batch_size, logits=logits)
        op = f"{type(self).__name__}.predict"
        self._check_recurrent(lengths, None)
        x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
        lengths = checked_lengths(op, "lengths", lengths, *x.shape[:2])
        batches = self._batches(x, batch_size)
        return np.concatenate([self.predict(x[rows], logits=logits, lengths=lengths[rows]) for rows in batches])

    def _infer_sequences(self, x: np.ndarray, context: ForwardContext, lengths: Any) -> tuple[np.ndarray, Any]:
        """_infer of sequences x (N, T, C) of these lengths."""
        x, batch = self._pack_input(x, lengths, context.state)
        y, state = self._infer(x, context._replace(packed=batch))
        return y if batch is None else self._unpack_output(y, batch), state

    def _pack_input(self, x: np.ndarray, lengths: Any, state: Any) -> tuple[np.ndarray, PackedBatch | None]:
        """(packed rows of the sequences' own steps, their batch); without lengths (x, None)."""
        self._check_recurrent(lengths, state)
        if lengths is None:
            return x, None
        op = type(self).__name__
        x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
        batch = packed_batch(op, x.shape[:2], lengths)
        return pack(x, batch), batch

    def _unpack_output(self, y: np.ndarray, batch: PackedBatch) -> np.ndarray:
        """Sequences (N, T, K) of packed rows, 0 past their ends; pooled rows as they are."""
        return y if self.pools else unpack(y, batch)

    def _backward_of_packed(self, rows_backward: Backward, y: np.ndarray, batch: PackedBatch) -> Backward:
        """The backward for sequences, from the backward for packed rows."""

        def backward(dy: np.ndarray) -> np.ndarray:
            dy = check.array(type(self).__name__, "dy", dy, "like the output", y.shape, y)
            return unpack(rows_backward(dy if self.pools else pack(dy, batch)), batch)

        return backward

    def _check_recurrent(self, lengths: Any, state: Any) -> None:
        if not self.recurrent and (lengths is not None or state is not None):
            raise ValueError(f"{type(self).__name__}: lengths and state are for models with an LSTM or a GRU")


class TimeRows:
    """Sequences x (N, T, C) as rows (N T, C) in the order in which they lie in memory, and such rows as sequences."""

    def __init__(self, op: str, x: Any, model: Model) -> None:
        x = model._array(op, "x", x, "(N, T, C)", (None, None, model.n_in))
        self.op, self.shape = op, x.shape[:2]
        # step by step, as a recurrent layer's output does
        self.by_step = x.transpose(1, 0, 2).flags.c_contiguous

    def rows(self, x: np.ndarray) -> np.ndarray:
        return (x.transpose(1, 0, 2) if self.by_step else x).reshape(-1, x.shape[2])

    def sequences(self, rows: np.ndarray) -> np.ndarray:
        n, steps = self.shape
        if self.by_step:
            return rows.reshape(steps, n, rows.shape[1]).transpose(1, 0, 2)
        return rows.reshape(n, steps, rows.shape[1])

    def backward(self, rows_backward: ResidualLayerBackward, y: np.ndarray) -> ResidualLayerBackward:
        """The backward for sequences, from the backward for rows with the output y (N T, K)."""

        def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            dy = check.array(self.op, "dy", dy, "like the output", (*self.shape, y.shape[1]), y)
            dx, dresidual = rows_backward(self.rows(dy))
            return self.sequences(dx), self.sequences(dresidual)

        return backward


Unpool = Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray | None]]


def no_pool(h: np.ndarray, h_n: np.ndarray, batch: PackedBatch) -> tuple[np.ndarray, Unpool]:
    """No pool: y (R, D P) = h."""
    return h, lambda dy: (dy, None)


def last_pool(h: np.ndarray, h_n: np.ndarray, batch: PackedBatch) -> tuple[np.ndarray, Unpool]:
    """The pool "last": y (N, D P) = h_n."""
    return np.concatenate(h_n, axis=1, out=empty((h_n.shape[1], h.shape[1]), h)), lambda dy: (None, dy)


@silent
def mean_pool(h: np.ndarray, h_n: np.ndarray, batch: PackedBatch) -> tuple[np.ndarray, Unpool]:
    """The pool "mean": y (N, D P), the mean of each sequence's steps, 0 if it has none.

    It is added step by step, so that a sequence has the same bits alone and in a batch.
    """
    order, offsets = batch.order, batch.offsets
    n, batch_sizes = len(order), np.diff(offsets)
    counts = device.constant(np.maximum(above(batch_sizes, n), 1).astype(h.dtype)[:, None], h)  # (N, 1)
    total, y = (empty((n, h.shape[1]), h) for _ in range(2))
    total[...] = 0
    for t, rows in enumerate(batch_sizes):
        total[:rows] += h[offsets[t] : offsets[t + 1]]
    total /= counts
    y[order] = total

    @silent
    def backward(dy: np.ndarray) -> tuple[np.ndarray, None]:
        share, dh = dy[order] / counts, empty(h.shape, h)
        for t, rows in enumerate(batch_sizes):
            dh[offsets[t] : offsets[t + 1]] = share[:rows]
        return dh, None

    return y, backward


POOLS: dict[str | None, Callable[..., tuple[np.ndarray, Unpool]]] = {
    None: no_pool,
    "last": last_pool,
    "mean": mean_pool,
}
