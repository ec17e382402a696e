"""The LSTM layer: its options and variants, its weights and their shapes. Layers, directions and states are in recurrent.py."""

from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.errstate import silent
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import draw_key, generator
from fastgrad.functional.lstm import run_rows
from fastgrad.functional.lstm_variants import check_combination, checked_variant
from fastgrad.functional.lstm_variants import run_rows as run_variant_rows
from fastgrad.kernels.types import (
    ACTIVATIONS,
    LSTMUpstream,
    LSTMVariantWeights,
    LSTMWeights,
    PackedBatch,
    States,
)
from fastgrad.nn.recurrent import DirectionBackward, RecurrentModel


@foreign_keywords
class LSTM(RecurrentModel):
    """LSTM layers on top of each other, in one direction or in two.

    The formulas are those of fg.lstm. N is the batch, T the steps, P the size of h: proj_size, or hidden_size without,
    and D the number of directions. x is (N, T, input_size), and y (N, T, D P), which is 0 past a sequence's end; with
    pool y is (N, D P). A state is a pair of h (num_layers D, N, P) and c (num_layers D, N, hidden_size), each layer's
    directions side by side.

    Parameters are named "0.w_ih", "0.w_hh", "0.b", "0.peephole", "0.w_proj", with layer_norm "0.gamma_x", "0.gamma_h",
    "0.gamma_c", "0.beta_c", and those of the second direction "0.reverse.w_ih", ... Weights and biases start uniform on
    +-1 / sqrt(hidden_size), every gamma at 1 and beta_c at 0.

    Masks of zoneout and recurrent_dropout are drawn in training, anew for every step, unit and batch; in evaluation
    zoneout takes the expectation. layer_norm, zoneout and recurrent_dropout come without proj_size and peephole.

    Args:
        input_size: The number of inputs of each step, at least 1.
        hidden_size: H, the size of c, at least 1.
        num_layers: The number of layers, at least 1.
        bidirectional: Whether a second direction runs every sequence from its last step to its first.
        dropout: The share of values between layers that training sets to 0, from 0 and below 1; the others are divided
            by what is left. It needs num_layers of at least 2.
        proj_size: The size of h after a projection; 0 for none.
        peephole: Whether c has weights in the gates i, f and o.
        forget_bias: What is added to the initial bias of the gate f, at least 0.
        pool: None for every step's output; "last", that after each sequence's last step; or "mean", the mean over each
            sequence's steps, 0 if it has none.
        reverse: Whether the only direction runs every sequence from its last step to its first. y stays in the order of
            the steps, and "last" is the output after the first step. It comes without bidirectional.
        layer_norm: Whether x_t w_ih, h_{t-1} w_hh and, for h_t, c_t are normalised, with an eps of 1e-5.
        zoneout: (p_h, p_c), the probabilities that a unit of h and of c keeps its value, from 0 and below 1.
        recurrent_dropout: The share of values of g that training sets to 0, from 0 and below 1; the others are divided by
            what is left.
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights and of dropout; None is 0. In a Sequential, the Sequential
            draws the weights.

    Raises:
        ValueError: A number is out of its range, dropout comes with one layer, reverse with bidirectional, layer_norm,
            zoneout or recurrent_dropout with proj_size or peephole, or pool or dtype is unknown.
        TypeError: A number is of another type.

    Example:
        >>> model = fg.nn.LSTM(3, 8, bidirectional=True, seed=0)
        >>> model.predict(np.zeros((2, 5, 3), np.float32), lengths=[5, 2]).shape
        (2, 5, 16)
        >>> stream = fg.nn.LSTM(3, 8, seed=0)
        >>> y, state = stream.run(np.zeros((2, 5, 3), np.float32))
        >>> y, state = stream.run(np.ones((2, 5, 3), np.float32), state)

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures": forget_bias.
        Ba, Kiros & Hinton 2016, "Layer Normalization": layer_norm.
        Krueger et al. 2017, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations": zoneout.
        Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss": recurrent_dropout.
    """

    group: Any = LSTMWeights
    _forms = "(layers, N, P)", "(layers, N, H)"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        peephole: bool = False,
        forget_bias: float = 0.0,
        *,
        pool: str | None = None,
        reverse: bool = False,
        layer_norm: bool = False,
        zoneout: tuple[float, float] = (0.0, 0.0),
        recurrent_dropout: float = 0.0,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        op = type(self).__name__
        self._set_options(input_size, hidden_size, num_layers, bidirectional, dropout, pool, reverse)
        self.proj_size = check.count(op, "proj_size", proj_size, least=0)
        self.peephole = bool(peephole)
        self.forget_bias = check.number(op, "forget_bias", forget_bias)
        self.layer_norm = bool(layer_norm)
        self._variant = checked_variant(op, zoneout, recurrent_dropout)
        self.zoneout, self.recurrent_dropout = tuple(map(float, zoneout)), self._variant.recurrent_dropout
        self._is_variant = check_combination(op, self._variant, self.layer_norm, self.peephole, proj_size > 0)
        if self._is_variant:
            self.group = LSTMVariantWeights
        hidden, projected = self.hidden_size, self.proj_size or self.hidden_size
        # tanh (times a gate), unless it is projected
        self._activation = ACTIVATIONS["identity" if proj_size else "tanh"]

        def shapes_of(width: int) -> dict[str, tuple[int, ...]]:
            shapes: dict[str, tuple[int, ...]] = {
                "w_ih": (width, 4 * hidden),
                "w_hh": (projected, 4 * hidden),
                "b": (4 * hidden,),
            }
            if peephole:
                shapes["peephole"] = 3, hidden
            if proj_size:
                shapes["w_proj"] = hidden, projected
            if layer_norm:
                shapes |= {
                    "gamma_x": (4 * hidden,),
                    "gamma_h": (4 * hidden,),
                    "gamma_c": (hidden,),
                    "beta_c": (hidden,),
                }
            return shapes

        super().__init__(self._set_shapes((projected, hidden), shapes_of), dtype, seed)
        self._start(generator(seed, type(self).__name__))

    def _run_rows(
        self,
        xs: np.ndarray,
        weights: Any,
        start: Any,
        batch: PackedBatch,
        h: np.ndarray,
        end: Any,
        keep: bool,
        training: bool,
    ) -> DirectionBackward:
        arrays = xs, weights, States(*start), batch, h, States(*end)
        if self._is_variant:
            key = draw_key(self._rng) if training and any(self._variant[:3]) else None
            _, backward = run_variant_rows(*arrays, variant=self._variant._replace(key=key), keep=keep, once=training)
        else:
            _, backward = run_rows(*arrays, keep=keep, once=training)
        return lambda gradients, dh, dh_n, dxs: backward(gradients, LSTMUpstream(dh, dh_n, None), dxs)

    def _generators(self) -> list[np.random.Generator]:
        return [self._rng] if self.dropout or any(self._variant[:3]) else []

    @silent
    def _draw(self, rng: np.random.Generator) -> None:
        super()._draw(rng)
        for prefix in self._prefixes:
            self.parameters()[prefix + "b"][self.hidden_size : 2 * self.hidden_size] += self.forget_bias
            if self.layer_norm:
                for name, value in (("gamma_x", 1), ("gamma_h", 1), ("gamma_c", 1), ("beta_c", 0)):
                    self.parameters()[prefix + name][...] = value
