"""Models of sequences (N, T, C), and layers of rows applied to every step of them."""

from typing import Any

import numpy as np

from fastgrad import check, gpu
from fastgrad.fused import FusedBackward
from fastgrad.model import Backward, Kept, Model


class SequenceModel(Model):
    """A model that may take sequences: the way in for their lengths and for the states of its recurrent layers."""

    def forward(
        self, x: np.ndarray, training: bool = False, *, logits: bool = False, lengths: Any = None, state: Any = None
    ) -> tuple[np.ndarray, Backward]:
        """(y, backward) as of Model.forward; lengths (N,), each 0..T, and the state to begin from are those of run."""
        if not training:
            y, _, backward = self._forward(x, training, logits, lengths, state, True)
            return y, backward
        before = Kept(self)
        try:
            y, _, backward = self._forward(x, training, logits, lengths, state, True)
        except BaseException:
            before.restore()
            raise
        return y, backward

    def run(self, x: np.ndarray, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """(y, state) after x (N, T, C), from a state that an earlier run returned, or zeros: step by step or window by window."""
        return self._infer(x, False, lengths, state)

    def predict(
        self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False, lengths: Any = None
    ) -> np.ndarray:
        if self._carries(x):
            return gpu.here(self.predict(gpu.there(x), batch_size, logits=logits, lengths=lengths))
        if batch_size is None:
            return self._infer(x, logits, lengths, None)[0]
        if lengths is None:
            return super().predict(x, batch_size, logits=logits)
        op = f"{type(self).__name__}.predict"
        x = check.array(op, "x", x, "(N, T, C)", (None, None, self.n_in), self._params)
        lengths = check.lengths(op, "lengths", lengths, *x.shape[:2])
        batches = self._batches(x, batch_size)
        return np.concatenate([self._infer(x[rows], logits, lengths[rows], None)[0] for rows in batches])


class Steps:
    """Sequences x (N, T, C) as rows (N T, C) in the order in which they lie in memory, and such rows as sequences."""

    def __init__(self, op: str, x: Any, n_in: int, like: np.ndarray) -> None:
        x = check.array(op, "x", x, "(N, T, C)", (None, None, n_in), like)
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
