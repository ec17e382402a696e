"""The PyTorch operator gru: one layer in one direction or both, and its cell. The module is in gru_module.py."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.gru_weights import empty_gradients
from fastgrad.kernels.types import GRUGradients, GRUUpstream, GRUWeights, gru_buffer_size, gru_buffers
from fastgrad.torch.ops.recurrent import RecurrentOperator
from fastgrad.torch.ops.recurrent_layer import Arrays, Call, Direction, Layer

Tensor = torch.Tensor


def gru(
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    order: Tensor | None = None,
    *,
    directions: int = 1,
    bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """One layer of a GRU in one direction or both, as torch.nn.GRU computes it.

    h_t = (1 - z) n + z h_{t-1}, with the gates r, z and n of x_t and h_{t-1}, where r multiplies the product of h in n, bias
    included; H units.

    Args:
        x: Sequences (N, T, C), or with batch_sizes the rows (R, C) of a PackedSequence; float32 or float64.
        weights: Of each direction weight_ih (3H, C), weight_hh (3H, H), and with bias bias_ih and bias_hh (3H,).
        h_0: The initial h, (D, N, H) with D directions; None is 0.
        batch_sizes: Of packed rows the number of sequences at each step, (T,), integers that do not rise.
        order: Of packed rows which sequence of the states comes first, second, ...: (N,) integers; None is 0, 1, 2, ...
        directions: 1, or 2 with the reverse direction.
        bias: Whether weights has biases.

    Returns:
        y (N, T, D H), or (R, D H) of packed rows, and h_n (D, N, H), differentiable by x, weights and h_0.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, weights = torch.zeros(2, 5, 3), [torch.zeros(12, 3), torch.zeros(12, 4)]
        >>> y, h_n = fgt.gru(x, weights, bias=False)
        >>> y.shape, h_n.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))

    References:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    """
    y, h_n = _operator(x, weights, h_0, batch_sizes, order, directions, bias)
    return y, h_n


class GRULayer(Layer):
    """The arrays of one call of gru."""

    op, gates = "gru", 3
    states: ClassVar = {"h_0": "(D, N, H)"}

    @staticmethod
    def buffer_size(call: Call, rows: int, hidden: int, keep: bool = True) -> int:
        return gru_buffer_size(rows, hidden)

    @silent
    def group(
        self, w_ih: np.ndarray, w_hh: np.ndarray, biases: list[np.ndarray], others: list[np.ndarray]
    ) -> GRUWeights:
        if not biases:
            return GRUWeights(w_ih, w_hh)
        # the gates r and z have the sum of PyTorch's two biases; of n that of h is multiplied by r
        gates = 2 * len(w_hh)
        b_ih, b_hh = biases
        b = b_ih.copy()
        b[:gates] += b_hh[:gates]
        return GRUWeights(w_ih, w_hh, b, check.contiguous(b_hh[gates:]))

    def run(self, direction: Direction, keep: bool, end: Arrays) -> None:
        _, w, batch, (h_0,), h, buffer = direction
        saved = gru_buffers(buffer, h, self.hidden)
        kernels().gru_forward(self.xs, w, h_0, batch, saved, end[0], reset_after=True)

    def run_backward(self, direction: Direction, upstream: Any, dxs: np.ndarray | None, dstart: Arrays) -> list:
        _, w, batch, (h_0,), h, buffer = direction
        saved, dw = gru_buffers(buffer, h, self.hidden), empty_gradients(w)
        arrays = GRUGradients(empty(saved.gates.shape, h.dtype), dxs, dw, dstart[0], None)
        kernels().gru_backward(GRUUpstream(*upstream), self.xs, w, h_0, batch, saved, arrays, False, reset_after=True)
        gradients = [dw.w_ih.T, dw.w_hh.T]
        if dw.b is not None:
            gradients += [dw.b, np.concatenate([dw.b[: 2 * self.hidden], dw.b_hn])]
        return gradients


_operator = RecurrentOperator(
    "gru",
    GRULayer,
    "Tensor x, Tensor[] weights, Tensor? h_0, Tensor? batch_sizes, Tensor? order, int directions, bool bias",
)
