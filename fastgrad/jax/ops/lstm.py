"""The JAX function lstm over whole sequences. Its variants are in lstm_variants.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.lstm import EPS, NO_ZONEOUT
from fastgrad.functional.lstm_variants import check_combination, checked_variant
from fastgrad.functional.lstm_weights import checked_weights, states
from fastgrad.jax.ops.lstm_variants import lstm_variant
from fastgrad.jax.ops.recurrent import Layer, Rows, run
from fastgrad.kernels.types import LSTMGradients, LSTMUpstream, LSTMWeights, States, lstm_buffer_size, lstm_buffers


def lstm(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b: Any = None,
    *,
    h_0: Any = None,
    c_0: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    peephole: Any = None,
    w_proj: Any = None,
    layer_norm: Sequence[Any] | None = None,
    zoneout: tuple[float, float] = NO_ZONEOUT,
    recurrent_dropout: float = 0.0,
    key: Any = None,
    eps: float = EPS,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An LSTM over sequences, as fastgrad.lstm, of JAX arrays.

    c_t = f c_{t-1} + i g, h_t = o tanh(c_t), with the gates i, f, g, o of x_t and h_{t-1}; H units, and P = H, or with w_proj
    the width of h. The formulas of layer_norm, zoneout and recurrent_dropout are those of fastgrad.lstm.

    Args:
        x: Sequences (N, T, C), float32 or float64.
        w_ih: (C, 4H), the gates in the order i, f, g, o.
        w_hh: (P, 4H).
        b: (4H,), or None.
        h_0: The initial h, (N, P); None is 0.
        c_0: The initial c, (N, H); None is 0.
        lengths: The steps of each sequence, (N,) integers from 0 to T, which may be traced; None is T.
        reverse: Run each sequence from its last step to its first.
        peephole: The weights of c in the gates i, f and o, (3, H), or None.
        w_proj: The projection of h, (H, P), or None.
        layer_norm: (gamma_x (4H,), gamma_h (4H,), gamma_c (H,), beta_c (H,)), or None. This, zoneout and
            recurrent_dropout come without peephole and w_proj.
        zoneout: (p_h, p_c), from 0 and below 1: with a key each unit of h and of c keeps its value of the step before with
            this probability; without one it is the expectation of both values.
        recurrent_dropout: The share of values of g that are set to 0 at each step with a key, from 0 and below 1; the
            others are divided by what is left.
        key: A key of jax.random, which may be traced, for training: the same key draws the same masks. None is for
            evaluation.
        eps: What is added to the variances of layer_norm, at least 0.

    Returns:
        y (N, T, P), 0 past a sequence's end, h_n (N, P) and c_n (N, H), which jax.grad differentiates by all arrays but
        lengths and key.

    Raises:
        ValueError: A shape does not fit, a length that is not traced is out of its range, a number is out of its range,
            or a variant comes with peephole or w_proj.
        TypeError: An argument is no array of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: A gradient is to be differentiated again.

    Example:
        >>> x, w_ih, w_hh = jnp.ones((2, 5, 3)), jnp.zeros((3, 16)), jnp.zeros((4, 16))
        >>> y, h_n, c_n = fgj.lstm(x, w_ih, w_hh, lengths=[5, 2])
        >>> y.shape, h_n.shape
        ((2, 5, 4), (2, 4))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Gers & Schmidhuber 2000, "Recurrent Nets that Time and Count": peephole.
        Sak, Senior & Beaufays 2014, "Long Short-Term Memory Based Recurrent Neural Network Architectures": w_proj.
        Ba, Kiros & Hinton 2016, "Layer Normalization": layer_norm.
        Krueger et al. 2017, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations": zoneout.
        Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss": recurrent_dropout.
    """
    if layer_norm is not None or key is not None or zoneout != NO_ZONEOUT or recurrent_dropout != 0 or eps != EPS:
        variant = checked_variant("lstm", zoneout, recurrent_dropout, None, eps)
        if check_combination("lstm", variant, layer_norm is not None, peephole is not None, w_proj is not None):
            states = {"h_0": h_0, "c_0": c_0}
            return lstm_variant(x, (w_ih, w_hh, b), layer_norm, states, lengths, bool(reverse), key, variant)
    arrays = {
        "x": x,
        "w_ih": w_ih,
        "w_hh": w_hh,
        "b": b,
        "peephole": peephole,
        "w_proj": w_proj,
        "h_0": h_0,
        "c_0": c_0,
    }
    y, h_n, c_n = run(LSTMLayer(bool(reverse)), arrays, lengths)
    return y, h_n, c_n


@dataclass(frozen=True)
class LSTMLayer(Layer):
    """A call of lstm but for its arrays."""

    kind: ClassVar = "lstm"
    op: ClassVar = "lstm"
    gates: ClassVar = 4
    state_count: ClassVar = 2
    Weights: ClassVar = LSTMWeights

    def buffer_size(self, rows: int, hidden: int, keep: bool = True) -> int:
        return lstm_buffer_size(rows, hidden, keep)

    def check(self, x: np.ndarray, weights: Sequence[Any], initial: Sequence[Any]) -> None:
        states(self.op, len(x), checked_weights(self.op, x, *weights), *initial)

    def start(self, n: int, weights: LSTMWeights, initial: Sequence[Any]) -> States:
        return states(self.op, n, weights, *initial)

    def forward(self, rows: Rows, buffer: np.ndarray, h: np.ndarray, ends: Sequence[np.ndarray], keep: bool) -> None:
        saved = lstm_buffers(buffer, h, rows.start[1].shape[1], keep)
        kernels().lstm_forward(rows.xs, rows.weights, rows.start, rows.batch, saved, States(*ends))

    def backward(
        self,
        upstream: Sequence[Any],
        rows: Rows,
        buffer: np.ndarray,
        h: np.ndarray,
        dxs: np.ndarray,
        dweights: LSTMWeights,
        dstart: Sequence[np.ndarray],
    ) -> None:
        saved = lstm_buffers(buffer, h, rows.start[1].shape[1])
        gradients = LSTMGradients(empty(saved.gates.shape, h), dxs, dweights, States(*dstart), None)
        upstream = LSTMUpstream(*upstream)
        kernels().lstm_backward(upstream, rows.xs, rows.weights, rows.start, rows.batch, saved, gradients, False)
