"""The GRU as functions: fg.gru over whole sequences of any lengths, fg.gru_cell for one step. The layer is nn/gru.py."""

from collections.abc import Callable, Sequence

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.gru_weights import checked_weights, empty_gradients, start_state
from fastgrad.functional.lstm import norms_of_steps
from fastgrad.functional.lstm_weights import checked_gradients
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import (
    GRUGradients,
    GRUUpstream,
    GRUWeights,
    PackedBatch,
    gru_buffer_size,
    gru_buffers,
)

Arrays = tuple[np.ndarray, ...]


def gru(
    x: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b: np.ndarray | None = None,
    b_hn: np.ndarray | None = None,
    *,
    h_0: np.ndarray | None = None,
    lengths: np.ndarray | list[int] | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Arrays, Callable[..., Arrays]]:
    """A GRU over whole sequences.

    r = sigmoid(x_t w_ir + h_{t-1} w_hr + b_r), z = sigmoid(x_t w_iz + h_{t-1} w_hz + b_z),
    n = tanh(x_t w_in + b_n + r (h_{t-1} w_hn + b_hn)), or without reset_after n = tanh(x_t w_in + b_n + (r h_{t-1}) w_hn),
    h_t = (1 - z) n + z h_{t-1}

    N is the batch, T the steps, C the inputs and H the hidden size.

    Args:
        x: The sequences (N, T, C), float32 or float64.
        w_ih: The weights of x (C, 3H), gates in the order r, z, n: reset, update, new.
        w_hh: The weights of h (H, 3H).
        b: The bias (3H,), or None.
        b_hn: The bias of the product of h in n (H,), or None; it must be None without reset_after.
        h_0: The first h (N, H); None is 0.
        lengths: Steps of each sequence (N,), integers 0 to T; None is T for all. x past a sequence's end is not read.
        reverse: Run every sequence from its last step to its first.
        reset_after: Whether r multiplies h_{t-1} w_hn + b_hn, as in PyTorch and by default in Keras; if not, it
            multiplies h_{t-1} before that product.

    Returns:
        ((y, h_n), backward). y (N, T, H) is h of every step, 0 past a sequence's end; h_n (N, H) is the state after each
        sequence's last step, the first one if it is empty. backward(dy, dh_n, step_norms=None), one gradient of which
        may be None, returns the gradients of the given inputs, in the order x, w_ih, w_hh, b, b_hn, h_0; step_norms, a
        float64 array (T,), is filled with the norm of dL/dh_t at each step. It reads the inputs and y: write to none
        before it.

    Raises:
        ValueError: A shape does not fit, a length is out of its range, or b_hn comes without reset_after.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, w_ih, w_hh, b, b_hn = np.ones((2, 5, 3)), np.zeros((3, 12)), np.zeros((4, 12)), np.zeros(12), np.zeros(4)
        >>> (y, h_n), backward = fg.gru(x, w_ih, w_hh, b, b_hn, lengths=[5, 2])
        >>> dx, dw_ih, dw_hh, db, db_hn = backward(np.ones_like(y))
        >>> y.shape, h_n.shape, dw_ih.shape
        ((2, 5, 4), (2, 4), (3, 12))

    References:
        Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    """
    op, reset_after = "gru", bool(reset_after)
    x = check.array(op, "x", x, "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x, w_ih, w_hh, b, b_hn, reset_after)
    start = start_state(op, len(x), weights, h_0)
    batch = packed_batch(op, x.shape[:2], lengths, bool(reverse))
    result, run_backward = run(op, x, weights, start, batch, reset_after)

    def backward(
        dy: np.ndarray | None = None, dh_n: np.ndarray | None = None, *, step_norms: np.ndarray | None = None
    ) -> Arrays:
        gradients = empty_gradients(weights)
        dx, dh_0 = run_backward(gradients, dy, dh_n, step_norms)
        optional = gradients.b, gradients.b_hn, None if h_0 is None else dh_0
        return dx, gradients.w_ih, gradients.w_hh, *(gradient for gradient in optional if gradient is not None)

    return result, backward


def gru_cell(
    x: np.ndarray,
    h: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b: np.ndarray | None = None,
    b_hn: np.ndarray | None = None,
    *,
    reset_after: bool = True,
) -> tuple[np.ndarray, Callable[..., Arrays]]:
    """One step of a GRU, for a loop of your own; see gru for the formulas.

    Args:
        x: The inputs (N, C), float32 or float64.
        h: The state h (N, H).
        w_ih: The weights of x (C, 3H), gates in the order r, z, n.
        w_hh: The weights of h (H, 3H).
        b: The bias (3H,), or None.
        b_hn: The bias of the product of h in n (H,), or None; it must be None without reset_after.
        reset_after: Whether r multiplies h w_hn + b_hn; if not, it multiplies h before that product.

    Returns:
        (h, backward) with the new state. backward(dh) returns the gradients of the given inputs, in the order x, h, w_ih,
        w_hh, b, b_hn. With `gradients`, a list of C-contiguous arrays like the given weights, it adds the weights'
        gradients to these in place, as a loop over steps needs it, and returns the others only.

    Raises:
        ValueError: A shape does not fit, or b_hn comes without reset_after.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> w_ih, w_hh, h = np.zeros((3, 12)), np.zeros((4, 12)), np.zeros((2, 4))
        >>> gradients, backwards = [np.zeros_like(w_ih), np.zeros_like(w_hh)], []
        >>> for x in np.ones((5, 2, 3)):
        ...     h, backward = fg.gru_cell(x, h, w_ih, w_hh)
        ...     backwards.append(backward)
        >>> dh = np.ones_like(h)
        >>> for backward in reversed(backwards):
        ...     dx, dh = backward(dh, gradients=gradients)
    """
    op, reset_after = "gru_cell", bool(reset_after)
    x = check.array(op, "x", x, "(N, C)", (None, None))
    weights = checked_weights(op, x, w_ih, w_hh, b, b_hn, reset_after)
    start = start_state(op, len(x), weights, h, "h")
    (_, h_n), run_backward = run(op, x[:, None], weights, start, packed_batch(op, (len(x), 1), None), reset_after)

    def backward(dh: np.ndarray, *, gradients: Sequence[np.ndarray] | None = None) -> Arrays:
        dweights = empty_gradients(weights) if gradients is None else checked_gradients(op, gradients, weights)
        dx, dstart = run_backward(dweights, None, dh, name="dh", accumulate=gradients is not None)
        dinputs = dx[:, 0], dstart
        return dinputs if gradients is not None else (*dinputs, *(dw for dw in dweights if dw is not None))

    return h_n, backward


def run(
    op: str, x: np.ndarray, weights: GRUWeights, start: np.ndarray, batch: PackedBatch, reset_after: bool
) -> tuple[Arrays, Callable[..., Arrays]]:
    """The GRU over checked arrays.

    backward(gradients, dy, dh_n, step_norms) overwrites the gradients, or with accumulate adds to them, and returns dx and the gradient
    of the initial state.
    """
    xs = pack(x, batch)  # (R, C)
    h, end = empty((len(xs), start.shape[1]), x), empty(start.shape, x)
    rows_backward = run_rows(xs, weights, start, batch, h, end, reset_after)
    y = unpack(h, batch)

    def backward(
        gradients: GRUWeights,
        dy: np.ndarray | None = None,
        dh_n: np.ndarray | None = None,
        step_norms: np.ndarray | None = None,
        name: str = "dh_n",
        accumulate: bool = False,
    ) -> Arrays:
        if dy is None and dh_n is None:
            raise TypeError(f"{op}: backward needs {'dy, dh_n or both' if op == 'gru' else name}")
        if dy is not None:
            dy = pack(check.array(op, "dy", dy, "(N, T, H) like y", y.shape, y), batch)
        if dh_n is not None:
            dh_n = check.contiguous(check.array(op, name, dh_n, "(N, H)", start.shape, start))
        squares = None
        if step_norms is not None:
            check.array(op, "step_norms", step_norms, "(T,)", (y.shape[1],), np.dtype(np.float64))
            squares = np.empty(len(xs))
        dxs = empty(xs.shape, xs)
        dstart = rows_backward(gradients, GRUUpstream(dy, dh_n), dxs, squares, accumulate)
        if step_norms is not None and squares is not None:
            step_norms[...] = norms_of_steps(squares, batch)
        return unpack(dxs, batch), dstart

    return (y, end), backward


def run_rows(
    xs: np.ndarray,
    weights: GRUWeights,
    start: np.ndarray,
    batch: PackedBatch,
    h: np.ndarray,
    end: np.ndarray,
    reset_after: bool,
    once: bool = False,
) -> Callable[..., np.ndarray]:
    """The GRU over packed rows xs (R, C), written to h (R, H) and end (N, H).

    backward(gradients, upstream, dxs, squares) overwrites the weights' gradients, or with accumulate adds to them, overwrites dxs and
    squares unless they are None, and returns the gradient of the initial state. With once it must run once only, since it uses the memory
    of the gates, the largest array, for dz.
    """
    ops, hidden = kernels(xs), start.shape[1]
    saved = gru_buffers(empty((gru_buffer_size(len(xs), hidden),), xs), h, hidden)
    ops.gru_forward(xs, weights, start, batch, saved, end, reset_after=reset_after)

    def backward(
        gradients: GRUWeights,
        upstream: GRUUpstream,
        dxs: np.ndarray | None,
        squares: np.ndarray | None = None,
        accumulate: bool = False,
    ) -> np.ndarray:
        dz = saved.gates if once else empty(saved.gates.shape, xs)
        dstart = empty(start.shape, xs)
        written = GRUGradients(dz, dxs, gradients, dstart, squares)
        ops.gru_backward(upstream, xs, weights, start, batch, saved, written, accumulate, reset_after=reset_after)
        return dstart

    return backward
