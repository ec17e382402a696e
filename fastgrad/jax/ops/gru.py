"""The JAX function gru over whole sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.gru_weights import checked_weights, start_state
from fastgrad.jax.ops.recurrent import Layer, Rows, run
from fastgrad.kernels.types import GRUGradients, GRUUpstream, GRUWeights, gru_buffer_size, gru_buffers


def gru(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b: Any = None,
    b_hn: Any = None,
    *,
    h_0: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """A GRU over sequences, as fastgrad.gru, of JAX arrays.

    h_t = (1 - z) n + z h_{t-1}, with the gates r, z and n of x_t and h_{t-1}; H units.

    Args:
        x: Sequences (N, T, C), float32 or float64.
        w_ih: (C, 3H), the gates in the order r, z, n.
        w_hh: (H, 3H).
        b: (3H,), or None.
        b_hn: The bias of the product of h in n, (H,), or None, which it is without reset_after.
        h_0: The initial h, (N, H); None is 0.
        lengths: The steps of each sequence, (N,) integers from 0 to T, which may be traced; None is T.
        reverse: Run each sequence from its last step to its first.
        reset_after: Whether r multiplies the product of h in n, as flax.linen.GRUCell has it; else h before it.

    Returns:
        y (N, T, H), 0 past a sequence's end, and h_n (N, H), which jax.grad differentiates by all arrays but lengths.

    Raises:
        ValueError: A shape does not fit, a length that is not traced is out of its range, or b_hn comes without
            reset_after.
        TypeError: An argument is no array of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: A gradient is to be differentiated again.

    Example:
        >>> x, w_ih, w_hh = jnp.ones((2, 5, 3)), jnp.zeros((3, 12)), jnp.zeros((4, 12))
        >>> y, h_n = fgj.gru(x, w_ih, w_hh, lengths=[5, 2])
        >>> y.shape, h_n.shape
        ((2, 5, 4), (2, 4))

    References:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    """
    arrays = {"x": x, "w_ih": w_ih, "w_hh": w_hh, "b": b, "b_hn": b_hn, "h_0": h_0}
    y, h_n = run(GRULayer(bool(reverse), bool(reset_after)), arrays, lengths)
    return y, h_n


@dataclass(frozen=True)
class GRULayer(Layer):
    """A call of gru but for its arrays."""

    kind: ClassVar = "gru"
    op: ClassVar = "gru"
    gates: ClassVar = 3
    state_count: ClassVar = 1
    Weights: ClassVar = GRUWeights

    reset_after: bool

    def buffer_size(self, rows: int, hidden: int, keep: bool = True) -> int:
        return gru_buffer_size(rows, hidden)

    def check(self, x: np.ndarray, weights: Sequence[Any], initial: Sequence[Any]) -> None:
        w_ih, w_hh, b, b_hn = weights
        checked = checked_weights(self.op, x, w_ih, w_hh, b, b_hn, self.reset_after)
        start_state(self.op, len(x), checked, *initial)

    def start(self, n: int, weights: GRUWeights, initial: Sequence[Any]) -> Sequence[np.ndarray]:
        return [start_state(self.op, n, weights, *initial)]

    def forward(self, rows: Rows, buffer: np.ndarray, h: np.ndarray, ends: Sequence[np.ndarray], keep: bool) -> None:
        (h_0,), (h_n,) = rows.start, ends
        saved = gru_buffers(buffer, h, h_0.shape[1])
        kernels().gru_forward(rows.xs, rows.weights, h_0, rows.batch, saved, h_n, reset_after=self.reset_after)

    def backward(
        self,
        upstream: Sequence[Any],
        rows: Rows,
        buffer: np.ndarray,
        h: np.ndarray,
        dxs: np.ndarray,
        dweights: GRUWeights,
        dstart: Sequence[np.ndarray],
    ) -> None:
        (h_0,), (dh_0,), batch, form = rows.start, dstart, rows.batch, self.reset_after
        saved = gru_buffers(buffer, h, h_0.shape[1])
        gradients = GRUGradients(empty(saved.gates.shape, h), dxs, dweights, dh_0, None)
        upstream = GRUUpstream(*upstream)
        kernels().gru_backward(upstream, rows.xs, rows.weights, h_0, batch, saved, gradients, False, reset_after=form)
