"""The PyTorch function lstm and its operator: one layer in one direction or both, and its cell. The module is in lstm_module.py.

The operator of variants is in lstm_variants.py.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.lstm import EPS, NO_ZONEOUT
from fastgrad.functional.lstm_variants import check_combination, checked_variant
from fastgrad.functional.lstm_weights import empty_gradients
from fastgrad.kernels.types import LSTMGradients, LSTMUpstream, LSTMWeights, States, lstm_buffer_size, lstm_buffers
from fastgrad.torch.ops.lstm_variants import lstm_variant
from fastgrad.torch.ops.recurrent import RecurrentOperator
from fastgrad.torch.ops.recurrent_layer import Arrays, Call, Direction, Layer

Tensor = torch.Tensor


def lstm(
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    order: Tensor | None = None,
    *,
    directions: int = 1,
    bias: bool = True,
    projects: bool = False,
    layer_norm: bool = False,
    zoneout: tuple[float, float] = NO_ZONEOUT,
    recurrent_dropout: float = 0.0,
    key: Tensor | None = None,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of an LSTM in one direction or both, as torch.nn.LSTM computes it, or a variant of it.

    c_t = f c_{t-1} + i g, h_t = o tanh(c_t), with the gates i, f, g, o of x_t and h_{t-1}; H units, and P = H, or with a
    projection the width of h. The formulas of layer_norm, zoneout and recurrent_dropout are those of fastgrad.lstm.

    Args:
        x: Sequences (N, T, C), or with batch_sizes the rows (R, C) of a PackedSequence; float32 or float64.
        weights: Of each direction weight_ih (4H, C), weight_hh (4H, P), with bias bias_ih and bias_hh (4H,), and with
            projects weight_hr (P, H), or with layer_norm gamma_x and gamma_h (4H,), gamma_c and beta_c (H,).
        h_0: The initial h, (D, N, P) with D directions; None is 0.
        c_0: The initial c, (D, N, H); None is 0.
        batch_sizes: Of packed rows the number of sequences at each step, (T,), integers that do not rise.
        order: Of packed rows which sequence of the states comes first, second, ...: (N,) integers; None is 0, 1, 2, ...
        directions: 1, or 2 with the reverse direction.
        bias: Whether weights has biases.
        projects: Whether weights has projections.
        layer_norm: Whether weights has those of layer norms. This, zoneout and recurrent_dropout come without projects.
        zoneout: (p_h, p_c), from 0 and below 1: with a key each unit of h and of c keeps its value of the step before with
            this probability; without one it is the expectation of both values.
        recurrent_dropout: The share of values of g that are set to 0 at each step with a key, from 0 and below 1; the
            others are divided by what is left.
        key: Of each direction an integer, (D,) of torch.int64, for training: the same key draws the same masks. None is for
            evaluation.
        eps: What is added to the variances of layer norms, at least 0.

    Returns:
        y (N, T, D P), or (R, D P) of packed rows, h_n (D, N, P) and c_n (D, N, H), differentiable by x, weights, h_0 and
        c_0.

    Raises:
        ValueError: A shape does not fit, a number is out of its range, or a variant comes with projects.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, weights = torch.zeros(2, 5, 3), [torch.zeros(16, 3), torch.zeros(16, 4)]
        >>> y, h_n, c_n = fgt.lstm(x, weights, bias=False)
        >>> y.shape, c_n.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Ba, Kiros & Hinton 2016, "Layer Normalization": layer_norm.
        Krueger et al. 2017, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations": zoneout.
        Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss": recurrent_dropout.
    """
    if layer_norm or key is not None or zoneout != NO_ZONEOUT or recurrent_dropout != 0 or eps != EPS:
        variant = checked_variant("lstm", zoneout, recurrent_dropout, None, eps)
        if check_combination("lstm", variant, layer_norm, False, projects):
            return lstm_variant(x, weights, (h_0, c_0), batch_sizes, order, key, directions, bias, layer_norm, variant)
    y, h_n, c_n = _operator(x, weights, h_0, c_0, batch_sizes, order, directions, bias, projects)
    return y, h_n, c_n


class LSTMLayer(Layer):
    """The arrays of one call of lstm."""

    op, gates = "lstm", 4
    states: ClassVar = {"h_0": "(D, N, P)", "c_0": "(D, N, H)"}

    @staticmethod
    def buffer_size(call: Call, rows: int, hidden: int, keep: bool = True) -> int:
        return lstm_buffer_size(rows, hidden, keep)

    @silent
    def group(
        self, w_ih: np.ndarray, w_hh: np.ndarray, biases: list[np.ndarray], others: list[np.ndarray]
    ) -> LSTMWeights:
        w_proj = check.contiguous(others[0].T) if others else None
        return LSTMWeights(w_ih, w_hh, biases[0] + biases[1] if biases else None, None, w_proj)

    def run(self, direction: Direction, keep: bool, end: Arrays) -> None:
        _, w, batch, start, h, buffer = direction
        saved = lstm_buffers(buffer, h, self.hidden, keep)
        kernels().lstm_forward(self.xs, w, States(*start), batch, saved, States(*end))

    def run_backward(self, direction: Direction, upstream: Any, dxs: np.ndarray | None, dstart: Arrays) -> list:
        _, w, batch, start, h, buffer = direction
        saved, dw = lstm_buffers(buffer, h, self.hidden), empty_gradients(w)
        arrays = LSTMGradients(empty(saved.gates.shape, h.dtype), dxs, dw, States(*dstart), None)
        kernels().lstm_backward(LSTMUpstream(*upstream), self.xs, w, States(*start), batch, saved, arrays, False)
        gradients = [dw.w_ih.T, dw.w_hh.T]
        gradients += [] if dw.b is None else [dw.b, dw.b.copy()]
        return gradients + ([] if dw.w_proj is None else [dw.w_proj.T])


_operator = RecurrentOperator(
    "lstm",
    LSTMLayer,
    "Tensor x, Tensor[] weights, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, Tensor? order, int directions, bool bias, bool projects",
)
