"""The PyTorch operator lstm_variant: lstm with layer norm, zoneout and recurrent dropout. The function is in lstm.py."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.lstm_variants import empty_gradients, variant_weights, written_arrays
from fastgrad.kernels.types import (
    LSTMUpstream,
    LSTMVariant,
    LSTMVariantWeights,
    LSTMWeights,
    States,
    lstm_variant_buffer_size,
    lstm_variant_buffers,
)
from fastgrad.torch.ops.recurrent import RecurrentOperator
from fastgrad.torch.ops.recurrent_layer import Arrays, Call, Direction, Layer
from fastgrad.torch.tensors import integers

Tensor = torch.Tensor


def lstm_variant(
    x: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    order: Tensor | None,
    key: Tensor | None,
    directions: int,
    bias: bool,
    layer_norm: bool,
    variant: LSTMVariant,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm` as a variant, whose own key is None."""
    numbers = variant.recurrent_dropout, variant.zoneout_c, variant.zoneout_h, variant.eps
    y, h_n, c_n = _operator(x, weights, *states, batch_sizes, order, key, directions, bias, layer_norm, *numbers)
    return y, h_n, c_n


class LSTMVariantLayer(Layer):
    """The arrays of one call of lstm_variant."""

    op, gates = "lstm", 4
    states: ClassVar = {"h_0": "(D, N, H)", "c_0": "(D, N, H)"}

    @staticmethod
    def buffer_size(call: Call, rows: int, hidden: int, keep: bool = True) -> int:
        return lstm_variant_buffer_size(rows, hidden, call.layer_norm, call.x.element_size(), keep)

    @classmethod
    def call(cls, arguments: Sequence[Any]) -> Call:
        x, weights, h_0, c_0, batch_sizes, order, key, directions, bias, layer_norm, dropout, p_c, p_h, eps = arguments
        variant = LSTMVariant(dropout, p_c, p_h, key, eps)
        return Call(x, weights, (h_0, c_0), batch_sizes, order, directions, bias, False, layer_norm, variant)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        variant: Any = call.variant
        keys: list[int | None] = [None] * call.directions
        if variant.key is not None:
            values = integers(self.op, "key", variant.key)
            if values.shape != (call.directions,):
                raise ValueError(f"{self.op}: key must be (D,) = ({call.directions},), got {values.shape}")
            # a negative number has the bits of one from 2^63
            keys = [int(value) % 2**64 for value in values]
        self.variants = [variant._replace(key=key) for key in keys]

    @silent
    def group(
        self, w_ih: np.ndarray, w_hh: np.ndarray, biases: list[np.ndarray], others: list[np.ndarray]
    ) -> LSTMVariantWeights:
        weights = LSTMWeights(w_ih, w_hh, biases[0] + biases[1] if biases else None)
        return variant_weights(self.op, weights, others or None)

    def run(self, direction: Direction, keep: bool, end: Arrays) -> None:
        i, w, batch, start, h, buffer = direction
        size = self.buffer_size(self.arguments, len(h), self.hidden, keep)
        # the last value may be none of an array, and torch.library.opcheck compares all that an operator returns
        buffer[size - 1 : size] = 0
        saved = lstm_variant_buffers(buffer, h, self.arguments.layer_norm, keep)
        kernels().lstm_variant_forward(self.xs, w, States(*start), batch, self.variants[i], saved, States(*end))

    def run_backward(self, direction: Direction, upstream: Any, dxs: np.ndarray | None, dstart: Arrays) -> list:
        i, w, batch, start, h, buffer = direction
        saved, dw = lstm_variant_buffers(buffer, h, self.arguments.layer_norm), empty_gradients(w)
        arrays = written_arrays(saved, empty(saved.gates.shape, h.dtype), dxs, dw, States(*dstart))
        states, variant = States(*start), self.variants[i]
        kernels().lstm_variant_backward(LSTMUpstream(*upstream), self.xs, w, states, batch, variant, saved, arrays)
        gradients = [dw.w_ih.T, dw.w_hh.T]
        gradients += [dw.b, dw.b.copy()] if self.arguments.bias else []
        return gradients + [a for a in dw[3:] if a is not None]


_operator = RecurrentOperator(
    "lstm_variant",
    LSTMVariantLayer,
    "Tensor x, Tensor[] weights, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, Tensor? order, Tensor? key, int directions, bool bias, "
    "bool layer_norm, float recurrent_dropout, float zoneout_c, float zoneout_h, float eps",
)
