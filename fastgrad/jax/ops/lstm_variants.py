"""LSTMs with layer norm, zoneout and recurrent dropout in JAX. The function is lstm, in lstm.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, zeros
from fastgrad.core.backend import kernels
from fastgrad.functional.lstm_variants import variant_weights, written_arrays
from fastgrad.functional.lstm_weights import checked_weights, states
from fastgrad.jax.ops.recurrent import Layer, Rows, run
from fastgrad.kernels.types import (
    LSTMUpstream,
    LSTMVariant,
    LSTMVariantWeights,
    States,
    lstm_variant_buffer_size,
    lstm_variant_buffers,
)


def lstm_variant(
    x: Any,
    weights: Sequence[Any],
    layer_norm: Sequence[Any] | None,
    initial: dict[str, Any],
    lengths: Any,
    reverse: bool,
    key: Any,
    variant: LSTMVariant,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`lstm` as a variant, from w_ih, w_hh and b, and the initial states by their names; variant's own key is None."""
    if layer_norm is not None:
        check.sequence("lstm", "layer_norm", layer_norm, 4)
    arrays = dict(zip(LSTMVariantWeights._fields, (*weights, *(layer_norm or [None] * 4)), strict=True))
    # keys of every generator of jax.random have such words, under vmap and jit too
    words = None if key is None else jax.random.bits(key, (2,), jnp.uint32)
    rates = variant.recurrent_dropout, variant.zoneout_c, variant.zoneout_h
    layer = LSTMVariantLayer(reverse, layer_norm is not None, *rates, variant.eps)
    y, h_n, c_n = run(layer, {"x": x, **arrays, **initial}, lengths, words)
    return y, h_n, c_n


@dataclass(frozen=True)
class LSTMVariantLayer(Layer):
    """A call of lstm as a variant but for its arrays."""

    kind: ClassVar = "lstm_variant"
    op: ClassVar = "lstm"
    gates: ClassVar = 4
    state_count: ClassVar = 2
    Weights: ClassVar = LSTMVariantWeights

    layer_norm: bool
    recurrent_dropout: float
    zoneout_c: float
    zoneout_h: float
    eps: float

    def buffer_size(self, rows: int, hidden: int, keep: bool = True) -> int:
        # float32 statistics of float64 need the most values
        return lstm_variant_buffer_size(rows, hidden, self.layer_norm, 4, keep)

    def check(self, x: np.ndarray, weights: Sequence[Any], initial: Sequence[Any]) -> None:
        checked = checked_weights(self.op, x, *weights[:3])
        variant_weights(self.op, checked, weights[3:] if self.layer_norm else None)
        states(self.op, len(x), checked, *initial)

    def start(self, n: int, weights: LSTMVariantWeights, initial: Sequence[Any]) -> States:
        return states(self.op, n, weights, *initial)

    def forward(self, rows: Rows, buffer: np.ndarray, h: np.ndarray, ends: Sequence[np.ndarray], keep: bool) -> None:
        saved = lstm_variant_buffers(buffer, h, self.layer_norm, keep)
        weights, variant = self._weights(rows), self._variant(rows)
        kernels().lstm_variant_forward(rows.xs, weights, rows.start, rows.batch, variant, saved, States(*ends))

    def backward(
        self,
        upstream: Sequence[Any],
        rows: Rows,
        buffer: np.ndarray,
        h: np.ndarray,
        dxs: np.ndarray,
        dweights: LSTMVariantWeights,
        dstart: Sequence[np.ndarray],
    ) -> None:
        weights, variant = self._weights(rows), self._variant(rows)
        saved = lstm_variant_buffers(buffer, h, self.layer_norm)
        if weights.b is not None and dweights.b is None:
            dweights = dweights._replace(b=empty(weights.b.shape, h))
        gradients = written_arrays(saved, empty(saved.gates.shape, h), dxs, dweights, States(*dstart))
        arrays = LSTMUpstream(*upstream), rows.xs, weights, rows.start, rows.batch, variant, saved, gradients
        kernels().lstm_variant_backward(*arrays)

    def _weights(self, rows: Rows) -> LSTMVariantWeights:
        """With zeros for a bias that is None, where kernels of layer norms need one."""
        w = rows.weights
        return w._replace(b=zeros(w.w_ih.shape[1:], w.w_ih)) if self.layer_norm and w.b is None else w

    def _variant(self, rows: Rows) -> LSTMVariant:
        return LSTMVariant(self.recurrent_dropout, self.zoneout_c, self.zoneout_h, rows.key, self.eps)
