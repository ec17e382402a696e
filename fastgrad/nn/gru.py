"""The GRU layer: its options, its weights and their shapes. Layers, directions and states are in recurrent.py."""

from typing import Any

import numpy as np

from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional.gru import run_rows
from fastgrad.kernels.types import GRUUpstream, GRUWeights, PackedBatch
from fastgrad.nn.recurrent import DirectionBackward, RecurrentModel, States


@foreign_keywords
class GRU(RecurrentModel):
    """GRU layers on top of each other, in one direction or in two.

    The formulas are those of fg.gru. N is the batch, T the steps, H the hidden size, and D the number of directions.
    x is (N, T, input_size), and y (N, T, D H), which is 0 past a sequence's end; with pool y is (N, D H). A state is h
    (num_layers D, N, H), each layer's directions side by side.

    Parameters are named "0.w_ih", "0.w_hh", "0.b", with reset_after "0.b_hn", and those of the second direction
    "0.reverse.w_ih", ... Weights and biases start uniform on +-1 / sqrt(hidden_size).

    Args:
        input_size: The number of inputs of each step, at least 1.
        hidden_size: H, the size of h, at least 1.
        num_layers: The number of layers, at least 1.
        bidirectional: Whether a second direction runs every sequence from its last step to its first.
        dropout: The share of values between layers that training sets to 0, from 0 and below 1; the others are divided
            by what is left. It needs num_layers of at least 2.
        reset_after: Whether the gate r multiplies h_{t-1} w_hn + b_hn, as in PyTorch and by default in Keras; if not, it
            multiplies h_{t-1} before that product, as in the paper.
        pool: None for every step's output; "last", that after each sequence's last step; or "mean", the mean over each
            sequence's steps, 0 if it has none.
        reverse: Whether the only direction runs every sequence from its last step to its first. y stays in the order of
            the steps, and "last" is the output after the first step. It comes without bidirectional.
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights and of dropout; None is 0. In a Sequential, the Sequential
            draws the weights.

    Raises:
        ValueError: A number is out of its range, dropout comes with one layer, reverse with bidirectional, or pool or
            dtype is unknown.
        TypeError: A number is of another type.

    Example:
        >>> model = fg.nn.GRU(3, 8, bidirectional=True, seed=0)
        >>> model.predict(np.zeros((2, 5, 3), np.float32), lengths=[5, 2]).shape
        (2, 5, 16)
        >>> stream = fg.nn.GRU(3, 8, seed=0)
        >>> y, state = stream.run(np.zeros((2, 5, 3), np.float32))
        >>> y, state = stream.run(np.ones((2, 5, 3), np.float32), state)

    References:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    """

    group = GRUWeights
    _forms = ("(layers, N, H)",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        reset_after: bool = True,
        *,
        pool: str | None = None,
        reverse: bool = False,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        self._set_options(input_size, hidden_size, num_layers, bidirectional, dropout, pool, reverse)
        self.reset_after = bool(reset_after)
        hidden = self.hidden_size

        def shapes_of(width: int) -> dict[str, tuple[int, ...]]:
            shapes: dict[str, tuple[int, ...]] = {
                "w_ih": (width, 3 * hidden),
                "w_hh": (hidden, 3 * hidden),
                "b": (3 * hidden,),
            }
            return shapes | {"b_hn": (hidden,)} if self.reset_after else shapes

        super().__init__(self._set_shapes((hidden,), shapes_of), dtype, seed)
        self._start(generator(seed, type(self).__name__))

    def _run_rows(
        self,
        xs: np.ndarray,
        weights: Any,
        start: States,
        batch: PackedBatch,
        h: np.ndarray,
        end: States,
        keep: bool,
        training: bool,
    ) -> DirectionBackward:
        backward = run_rows(xs, weights, start[0], batch, h, end[0], self.reset_after, once=training)
        return lambda gradients, dh, dh_n, dxs: backward(gradients, GRUUpstream(dh, dh_n), dxs)

    def _state_of(self, states: States) -> np.ndarray:
        return states[0]

    def _check_state(self, op: str, state: Any, n: int) -> States:
        return (self._array(op, "state", state, self._forms[0], (len(self._weights), n, self.hidden_size)),)
