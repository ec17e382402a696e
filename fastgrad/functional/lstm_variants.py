"""LSTM variants: layer norm, zoneout and recurrent dropout. The options of fg.lstm, checked, and the run over packed rows.

The formulas are in kernels/reference/lstm_variants.py. An LSTM without any of the three has kernels of its own: see lstm.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, zeros
from fastgrad.core.backend import kernels
from fastgrad.kernels.types import (
    LSTMUpstream,
    LSTMVariant,
    LSTMVariantGradients,
    LSTMVariantSaved,
    LSTMVariantWeights,
    LSTMWeights,
    PackedBatch,
    States,
    lstm_variant_buffer_size,
    lstm_variant_buffers,
)


def checked_variant(op: str, zoneout: Any, recurrent_dropout: Any, key: Any = None, eps: float = 1e-5) -> LSTMVariant:
    """The options as LSTMVariant."""
    check.sequence(op, "zoneout", zoneout, 2)
    zoneout_h, zoneout_c = (check.number(op, f"zoneout[{i}]", rate, below=1) for i, rate in enumerate(zoneout))
    dropout = check.number(op, "recurrent_dropout", recurrent_dropout, below=1)
    if key is not None:
        key = check.count(op, "key", key, 0, 2**64 - 1)
    return LSTMVariant(dropout, zoneout_c, zoneout_h, key, check.number(op, "eps", eps))


def check_combination(op: str, variant: LSTMVariant, layer_norm: bool, peephole: bool, projected: bool) -> bool:
    """Whether it is a variant, which has neither peepholes nor a projection."""
    is_variant = layer_norm or any(variant[:3])
    if is_variant and (peephole or projected):
        raise ValueError(
            f"{op}: layer_norm, zoneout and recurrent_dropout come without {'a projection' if projected else 'peepholes'}"
        )
    return is_variant


def variant_weights(op: str, weights: LSTMWeights, layer_norm: Any) -> LSTMVariantWeights:
    """The checked weights of an LSTM with those of its layer norm (gamma_x, gamma_h, gamma_c, beta_c), checked, or None."""
    w_ih, w_hh, b, _, _ = weights
    if layer_norm is None:
        return LSTMVariantWeights(w_ih, w_hh, b)
    check.sequence(op, "layer_norm", layer_norm, 4)
    columns = w_ih.shape[1]
    if not columns:
        raise ValueError(f"{op}: layer_norm needs H of at least 1, got w_ih {w_ih.shape}")
    norms, forms = [], ("(4H,)", "(4H,)", "(H,)", "(H,)")
    for name, value, form in zip(LSTMVariantWeights._fields[3:], layer_norm, forms, strict=True):
        shape = (columns if form == "(4H,)" else columns // 4,)
        norms.append(check.contiguous(check.array(op, f"{name} of layer_norm", value, form, shape, w_ih)))
    return LSTMVariantWeights(w_ih, w_hh, zeros((columns,), w_ih) if b is None else b, *norms)


def empty_gradients(weights: LSTMVariantWeights) -> LSTMVariantWeights:
    """Uninitialised gradients of the weights."""
    return LSTMVariantWeights(*(None if w is None else empty(w.shape, w) for w in weights))


def written_arrays(
    saved: LSTMVariantSaved, dz: Any, dxs: Any, gradients: LSTMVariantWeights, dstart: States, squares: Any = None
) -> LSTMVariantGradients:
    """What backward writes, with new arrays for the gradients of what is normalised."""
    du, dv, dn = (None if a is None else empty(a.shape, dz) for a in (saved.u, saved.v, saved.cell))
    return LSTMVariantGradients(
        dz, dz if du is None else du, dz if dv is None else dv, dn, dxs, gradients, dstart, squares
    )


def run_rows(
    xs: np.ndarray,
    weights: LSTMVariantWeights,
    start: States,
    batch: PackedBatch,
    h: np.ndarray,
    end: States,
    *,
    variant: LSTMVariant,
    keep: bool = True,
    once: bool = False,
) -> tuple[LSTMVariantSaved, Callable[..., States]]:
    """The variant over packed rows xs (R, C), written to h (R, H) and end. Without keep nothing is saved, and backward cannot run.

    backward(gradients, upstream, dxs, squares) overwrites the weights' gradients, dxs and squares unless these two are None, and returns
    the gradients of the initial states. With once it must run once only, since it uses the memory of the gates for dz.
    """
    ops, has_norm = kernels(xs), weights.gamma_x is not None
    size = lstm_variant_buffer_size(len(xs), h.shape[1], has_norm, xs.itemsize, keep)
    saved = lstm_variant_buffers(empty((size,), xs), h, has_norm, keep)
    ops.lstm_variant_forward(xs, weights, start, batch, variant, saved, end)

    def backward(
        gradients: LSTMVariantWeights,
        upstream: LSTMUpstream,
        dxs: np.ndarray | None,
        squares: np.ndarray | None = None,
    ) -> States:
        dz = saved.gates if once else empty(saved.gates.shape, xs)
        dstart = States(empty(start.h.shape, xs), empty(start.c.shape, xs))
        written = written_arrays(saved, dz, dxs, gradients, dstart, squares)
        ops.lstm_variant_backward(upstream, xs, weights, start, batch, variant, saved, written)
        return dstart

    return saved, backward
