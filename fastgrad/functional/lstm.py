"""The LSTM as functions: fg.lstm over whole sequences of any lengths, fg.lstm_cell for one step. The layer is nn/lstm.py."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional import lstm_variants
from fastgrad.functional.lstm_weights import checked_gradients, checked_weights, empty_gradients, states
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.kernels.types import (
    LSTMGradients,
    LSTMSaved,
    LSTMUpstream,
    LSTMVariantWeights,
    LSTMWeights,
    PackedBatch,
    States,
    lstm_buffer_size,
    lstm_buffers,
)

Arrays = tuple[np.ndarray, ...]
# options of fg.lstm that are not given
NO_ZONEOUT, EPS = (0.0, 0.0), 1e-5


def lstm(
    x: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b: np.ndarray | None = None,
    *,
    h_0: np.ndarray | None = None,
    c_0: np.ndarray | None = None,
    lengths: np.ndarray | list[int] | None = None,
    reverse: bool = False,
    peephole: np.ndarray | None = None,
    w_proj: np.ndarray | None = None,
    cells: bool = False,
    layer_norm: Sequence[np.ndarray] | None = None,
    zoneout: tuple[float, float] = NO_ZONEOUT,
    recurrent_dropout: float = 0.0,
    key: int | None = None,
    eps: float = EPS,
) -> tuple[Arrays, Callable[..., Arrays]]:
    """An LSTM over whole sequences.

    i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of x_t w_ih + h_{t-1} w_hh + b;
    c_t = f c_{t-1} + i g, h_t = o tanh(c_t), with a projection h_t = (o tanh(c_t)) w_proj

    N is the batch, T the steps, C the inputs, H the hidden size, and P the size of h: H, or the columns of w_proj.

    With layer_norm the gates are those of LN(x_t w_ih) gamma_x + LN(h_{t-1} w_hh) gamma_h + b, and
    h_t = o tanh(LN(c_t) gamma_c + beta_c), where LN subtracts the mean of a row and divides by sqrt(var + eps). c_t
    itself stays as it is, as in the paper. With zoneout the new cell is f c_{t-1} + i g, h_t is computed from that one,
    and a unit of c_t or h_t then is the new value or the one of the step before.

    Args:
        x: The sequences (N, T, C), float32 or float64.
        w_ih: The weights of x (C, 4H), gates in the order i, f, g, o.
        w_hh: The weights of h (P, 4H).
        b: The bias (4H,), or None.
        h_0: The first h (N, P); None is 0.
        c_0: The first c (N, H); None is 0.
        lengths: Steps of each sequence (N,), integers 0 to T; None is T for all. x past a sequence's end is not read.
        reverse: Run every sequence from its last step to its first.
        peephole: Weights of c in the gates i, f and o (3, H), or None.
        w_proj: The projection (H, P), or None.
        cells: Return c of every step too.
        layer_norm: (gamma_x (4H,), gamma_h (4H,), gamma_c (H,), beta_c (H,)), or None. This, zoneout and
            recurrent_dropout come without peephole and w_proj.
        zoneout: (p_h, p_c), from 0 and below 1: with a key each unit of h and of c keeps its value of the step before with
            this probability; without one it is the expectation of both values.
        recurrent_dropout: The share of values of g that are set to 0 at each step with a key, from 0 and below 1; the
            others are divided by what is left. c itself is never dropped.
        key: An integer from 0 and below 2^64, for training: the same key draws the same masks. None is for evaluation.
        eps: What is added to the variances of layer_norm, at least 0.

    Returns:
        ((y, h_n, c_n), backward). y (N, T, P) is h of every step, 0 past a sequence's end; h_n (N, P) and c_n (N, H)
        are the states after each sequence's last step, the first ones if it is empty. With cells the results end with c
        (N, T, H). backward(dy, dh_n, dc_n, step_norms=None), of which some but not all gradients may be None, returns
        the gradients of the given inputs, in the order x, w_ih, w_hh, b, h_0, c_0, peephole, w_proj, and those of
        layer_norm; step_norms, a float64 array (T,), is filled with the norm of dL/dh_t at each step. It reads the
        inputs and y: write to none before it.

    Raises:
        ValueError: A shape does not fit, a number is out of its range, or a variant comes with peephole or w_proj.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> x, w_ih, w_hh, b = np.ones((2, 5, 3)), np.zeros((3, 16)), np.zeros((4, 16)), np.zeros(16)
        >>> (y, h_n, c_n), backward = fg.lstm(x, w_ih, w_hh, b, lengths=[5, 2])
        >>> dx, dw_ih, dw_hh, db = backward(np.ones_like(y))
        >>> y.shape, h_n.shape, dw_ih.shape
        ((2, 5, 4), (2, 4), (3, 16))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Gers & Schmidhuber 2000, "Recurrent Nets that Time and Count": peephole.
        Sak et al. 2014, "Long Short-Term Memory Recurrent Neural Network Architectures": w_proj.
        Ba, Kiros & Hinton 2016, "Layer Normalization": layer_norm.
        Krueger et al. 2017, "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations": zoneout.
        Semeniuta et al. 2016, "Recurrent Dropout without Memory Loss": recurrent_dropout.
    """
    op = "lstm"
    x = check.array(op, "x", x, "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x, w_ih, w_hh, b, peephole, w_proj)
    start = states(op, len(x), weights, h_0, c_0)
    batch = packed_batch(op, x.shape[:2], lengths, bool(reverse))
    is_variant = False
    # small calls have no time for checks of what was not given
    if not (layer_norm is key is None and zoneout is NO_ZONEOUT and recurrent_dropout == 0 and eps == EPS):
        variant, has_peephole = (
            lstm_variants.checked_variant(op, zoneout, recurrent_dropout, key, eps),
            peephole is not None,
        )
        is_variant = lstm_variants.check_combination(
            op, variant, layer_norm is not None, has_peephole, w_proj is not None
        )
    if is_variant:
        variant_weights = lstm_variants.variant_weights(op, weights, layer_norm)
        rows = partial(lstm_variants.run_rows, variant=variant)
        result, run_backward = run(op, x, variant_weights, start, batch, cells, rows)
        new_gradients: Callable[[], Arrays] = partial(lstm_variants.empty_gradients, variant_weights)
    else:
        result, run_backward = run(op, x, weights, start, batch, cells)
        new_gradients = partial(empty_gradients, weights)

    def backward(
        dy: np.ndarray | None = None,
        dh_n: np.ndarray | None = None,
        dc_n: np.ndarray | None = None,
        *,
        step_norms: np.ndarray | None = None,
    ) -> Arrays:
        gradients = new_gradients()
        dx, (dh_0, dc_0) = run_backward(gradients, dy, dh_n, dc_n, step_norms)
        dw_ih, dw_hh, db, *others = gradients
        optional = None if b is None else db, None if h_0 is None else dh_0, None if c_0 is None else dc_0, *others
        return dx, dw_ih, dw_hh, *(gradient for gradient in optional if gradient is not None)

    return result, backward


def lstm_cell(
    x: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    b: np.ndarray | None = None,
    *,
    peephole: np.ndarray | None = None,
    w_proj: np.ndarray | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], Callable[..., Arrays]]:
    """One step of an LSTM, for a loop of your own; see lstm for the formulas.

    Args:
        x: The inputs (N, C), float32 or float64.
        h: The state h (N, P).
        c: The state c (N, H).
        w_ih: The weights of x (C, 4H), gates in the order i, f, g, o.
        w_hh: The weights of h (P, 4H).
        b: The bias (4H,), or None.
        peephole: Weights of c in the gates i, f and o (3, H), or None.
        w_proj: The projection (H, P), or None.

    Returns:
        ((h, c), backward) with the new states. backward(dh, dc), one of which may be None, returns the gradients of
        the given inputs, in the order x, h, c, w_ih, w_hh, b, peephole, w_proj. With `gradients`, a list of
        C-contiguous arrays like the given weights, it adds the weights' gradients to these in place, as a loop over
        steps needs it, and returns the others only.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An argument is no array of float32 or float64, or of another dtype or device than x.

    Example:
        >>> w_ih, w_hh, h, c = np.zeros((3, 16)), np.zeros((4, 16)), np.zeros((2, 4)), np.zeros((2, 4))
        >>> gradients, backwards = [np.zeros_like(w_ih), np.zeros_like(w_hh)], []
        >>> for x in np.ones((5, 2, 3)):
        ...     (h, c), backward = fg.lstm_cell(x, h, c, w_ih, w_hh)
        ...     backwards.append(backward)
        >>> dh, dc = np.ones_like(h), None
        >>> for backward in reversed(backwards):
        ...     dx, dh, dc = backward(dh, dc, gradients=gradients)
    """
    op = "lstm_cell"
    x = check.array(op, "x", x, "(N, C)", (None, None))
    weights = checked_weights(op, x, w_ih, w_hh, b, peephole, w_proj)
    start = states(op, len(x), weights, h, c, ("h", "c"))
    (_, h_n, c_n), run_backward = run(op, x[:, None], weights, start, packed_batch(op, (len(x), 1), None))

    def backward(
        dh: np.ndarray | None = None, dc: np.ndarray | None = None, *, gradients: Sequence[np.ndarray] | None = None
    ) -> Arrays:
        dweights = empty_gradients(weights) if gradients is None else checked_gradients(op, gradients, weights)
        dx, dstart = run_backward(dweights, None, dh, dc, names=("dh", "dc"), accumulate=gradients is not None)
        dinputs = dx[:, 0], *dstart
        return dinputs if gradients is not None else (*dinputs, *(dw for dw in dweights if dw is not None))

    return (h_n, c_n), backward


def run(
    op: str,
    x: np.ndarray,
    weights: LSTMWeights | LSTMVariantWeights,
    start: States,
    batch: PackedBatch,
    cells: bool = False,
    rows: Callable[..., tuple[Any, Callable[..., States]]] | None = None,
) -> tuple[Arrays, Callable[..., tuple[np.ndarray, States]]]:
    """The LSTM over checked arrays; rows: run_rows, or that of a variant.

    backward(gradients, dy, dh_n, dc_n, step_norms) overwrites the gradients, or with accumulate adds to them, and returns dx and the
    gradients of the initial states.
    """
    xs = pack(x, batch)  # (R, C)
    h = empty((len(xs), len(weights.w_hh)), x)  # (R, P)
    end = States(empty(start.h.shape, x), empty(start.c.shape, x))
    run_these: Callable[..., tuple[Any, Callable[..., States]]] = rows or run_rows
    saved, rows_backward = run_these(xs, weights, start, batch, h, end)
    y = unpack(h, batch)
    result = (y, *end, unpack(saved.c, batch)) if cells else (y, *end)

    def backward(
        gradients: LSTMWeights | LSTMVariantWeights,
        dy: np.ndarray | None = None,
        dh_n: np.ndarray | None = None,
        dc_n: np.ndarray | None = None,
        step_norms: np.ndarray | None = None,
        names: tuple[str, str] = ("dh_n", "dc_n"),
        **options: bool,
    ) -> tuple[np.ndarray, States]:
        if dy is None and dh_n is None and dc_n is None:
            raise TypeError(
                f"{op}: backward needs at least one of {'dy, ' if op == 'lstm' else ''}{names[0]}, {names[1]}"
            )
        if dy is not None:
            dy = pack(check.array(op, "dy", dy, "(N, T, P) like y", y.shape, y), batch)
        if dh_n is not None:
            dh_n = check.contiguous(check.array(op, names[0], dh_n, "(N, P)", start.h.shape, start.h))
        if dc_n is not None:
            dc_n = check.contiguous(check.array(op, names[1], dc_n, "(N, H)", start.c.shape, start.c))
        squares = None
        if step_norms is not None:
            check.array(op, "step_norms", step_norms, "(T,)", (y.shape[1],), np.dtype(np.float64))
            squares = np.empty(len(xs))
        dxs = empty(xs.shape, xs)
        dstart = rows_backward(gradients, LSTMUpstream(dy, dh_n, dc_n), dxs, squares, **options)
        if step_norms is not None and squares is not None:
            step_norms[...] = norms_of_steps(squares, batch)
        return unpack(dxs, batch), dstart

    return result, backward


@silent
def norms_of_steps(squares: np.ndarray, batch: PackedBatch) -> list[float]:
    """The norm of each step, from the squared norms of its rows (R,)."""
    return [np.sqrt(squares[first:last].sum()) for first, last in pairwise(batch.offsets)]


def run_rows(
    xs: np.ndarray,
    weights: LSTMWeights,
    start: States,
    batch: PackedBatch,
    h: np.ndarray,
    end: States,
    *,
    keep: bool = True,
    once: bool = False,
) -> tuple[LSTMSaved, Callable[..., States]]:
    """The LSTM over packed rows xs (R, C), written to h (R, P) and end. Without keep nothing is saved, and backward cannot run.

    backward(gradients, upstream, dxs, squares) overwrites the weights' gradients, or with accumulate adds to them, overwrites dxs and
    squares unless they are None, and returns the gradients of the initial states. With once it must run once only, since it uses the memory
    of the gates, the largest array, for dz.
    """
    ops, hidden = kernels(xs), start.c.shape[1]
    saved = lstm_buffers(empty((lstm_buffer_size(len(xs), hidden, keep),), xs), h, hidden, keep)
    ops.lstm_forward(xs, weights, start, batch, saved, end)

    def backward(
        gradients: LSTMWeights,
        upstream: LSTMUpstream,
        dxs: np.ndarray | None,
        squares: np.ndarray | None = None,
        accumulate: bool = False,
    ) -> States:
        dz = saved.gates if once else empty(saved.gates.shape, xs)
        dstart = States(empty(start.h.shape, xs), empty(start.c.shape, xs))
        written = LSTMGradients(dz, dxs, gradients, dstart, squares)
        ops.lstm_backward(upstream, xs, weights, start, batch, saved, written, accumulate)
        return dstart

    return saved, backward
