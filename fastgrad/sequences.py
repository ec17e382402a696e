"""Models of sequences (N, T, C), and layers of rows applied to every step of them."""

from typing import Any

import numpy as np

from fastgrad import check, gpu
from fastgrad.fused import FusedBackward
from fastgrad.model import Backward, ForwardContext, Kept, Model
from fastgrad.rows import Batch, rows_of, sequences, sequences_of


class SequenceModel(Model):
    """A model that may take sequences: the way in for their lengths and for the states of its recurrent layers.

    Sequences with lengths are packed to rows of their own steps here, and laid out again where they come out, so that no layer sees
    what lies past their ends: y is 0 there, and so is dx.
    """

    def forward(
        self, x: np.ndarray, training: bool = False, *, logits: bool = False, lengths: Any = None, state: Any = None
    ) -> tuple[np.ndarray, Backward]:
        """(y, backward) as of Model.forward; lengths (N,), each 0..T, and the state to begin from are those of run."""
        before = Kept(self) if training else None
        try:
            x, batch = self._packed(x, lengths, state)
            y, _, backward = self._forward(x, ForwardContext(training, logits, batch, state))
        except BaseException:
            if before is not None:
                before.restore()
            raise
        if batch is None:
            return y, backward
        y = self._laid_out(y, batch)
        return y, self._backward_of_packed(backward, y, batch)

    def run(self, x: np.ndarray, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """(y, state) after x (N, T, C), from a state that an earlier run returned, or zeros: step by step or window by window."""
        return self._infer_sequences(x, ForwardContext(state=state), lengths)

    def predict(
        self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False, lengths: Any = None
    ) -> np.ndarray:
        if self._carries(x):
            return gpu.here(self.predict(gpu.there(x), batch_size, logits=logits, lengths=lengths))
        if batch_size is None:
            return self._infer_sequences(x, ForwardContext(logits=logits), lengths)[0]
        if lengths is None:
            return super().predict(x, batch_size, logits=logits)
        op = f"{type(self).__name__}.predict"
        self._check_recurrent(lengths, None)
        x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
        lengths = check.lengths(op, "lengths", lengths, *x.shape[:2])
        batches = self._batches(x, batch_size)
        return np.concatenate([self.predict(x[rows], logits=logits, lengths=lengths[rows]) for rows in batches])

    def _infer_sequences(self, x: np.ndarray, context: ForwardContext, lengths: Any) -> tuple[np.ndarray, Any]:
        """_infer of sequences x (N, T, C) of these lengths."""
        x, batch = self._packed(x, lengths, context.state)
        y, state = self._infer(x, context._replace(packed=batch))
        return y if batch is None else self._laid_out(y, batch), state

    def _packed(self, x: np.ndarray, lengths: Any, state: Any) -> tuple[np.ndarray, Batch | None]:
        """x, or where there are lengths the rows of the sequences' own steps, with the batch that they are packed by."""
        self._check_recurrent(lengths, state)
        if lengths is None:
            return x, None
        op = type(self).__name__
        x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
        batch = sequences(op, x.shape[:2], lengths)
        return rows_of(x, batch), batch

    def _laid_out(self, y: np.ndarray, batch: Batch) -> np.ndarray:
        """Of rows the sequences, 0 past their ends; what is pooled is so already."""
        return y if self.pools else sequences_of(y, batch)

    def _backward_of_packed(self, rows_backward: Backward, y: np.ndarray, batch: Batch) -> Backward:
        """The way back to sequences, from that through packed rows."""

        def backward(dy: np.ndarray) -> np.ndarray:
            dy = check.array(type(self).__name__, "dy", dy, "like the output", y.shape, y)
            return sequences_of(rows_backward(dy if self.pools else rows_of(dy, batch)), batch)

        return backward

    def _check_recurrent(self, lengths: Any, state: Any) -> None:
        if not self.recurrent and (lengths is not None or state is not None):
            raise ValueError(f"{type(self).__name__}: lengths and state are for models with an LSTM")


class Steps:
    """Sequences x (N, T, C) as rows (N T, C) in the order in which they lie in memory, and such rows as sequences."""

    def __init__(self, op: str, x: Any, model: Model) -> None:
        x = model._array(op, "x", x, "(N, T, C)", (None, None, model.n_in))
        self.op, self.shape = op, x.shape[:2]
        # step by step, as an LSTM's output does
        self.by_step = x.transpose(1, 0, 2).flags.c_contiguous

    def rows(self, x: np.ndarray) -> np.ndarray:
        return (x.transpose(1, 0, 2) if self.by_step else x).reshape(-1, x.shape[2])

    def sequences(self, rows: np.ndarray) -> np.ndarray:
        n, steps = self.shape
        if self.by_step:
            return rows.reshape(steps, n, rows.shape[1]).transpose(1, 0, 2)
        return rows.reshape(n, steps, rows.shape[1])

    def backward(self, rows_backward: FusedBackward, y: np.ndarray) -> FusedBackward:
        """The way back through the sequences, from that through rows with the output y (N T, K)."""

        def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            dy = check.array(self.op, "dy", dy, "like the output", (*self.shape, y.shape[1]), y)
            dx, dresidual = rows_backward(self.rows(dy))
            return self.sequences(dx), self.sequences(dresidual)

        return backward
