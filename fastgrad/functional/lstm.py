"""The LSTM: whole sequences of any lengths, and one step of it."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.lstm_weights import LSTMWeights, checked_gradients, checked_weights, like, sizes, states
from fastgrad.functional.packing import PackedBatch, pack, packed_batch, unpack

Arrays = tuple[np.ndarray, ...]


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
) -> tuple[Arrays, Callable[..., Arrays]]:
    """An LSTM over sequences x (N, T, C): h_t = o tanh(c_t), c_t = f c_{t-1} + i g (Hochreiter & Schmidhuber 1997).

    w_ih (C, 4H) and w_hh (P, 4H) hold the gates in the order i, f, g, o; b (4H,); states h_0 (N, P) and c_0 (N, H), zero if
    not given. P = H, or what w_proj (H, P) makes of h. peephole (3, H) weighs c in the gates i, f and o. lengths (N,), each
    0..T: outputs past a sequence's end are 0, and its final states are those of its last step (those it began with if it is
    empty). reverse runs every sequence from its last step to its first.

    Returns ((y, h_n, c_n), backward), with y (N, T, P), h_n (N, P) and c_n (N, H); with cells also c of every step (N, T, H).
    backward(dy, dh_n, dc_n), any of which may be left out, returns the gradients of the given inputs, in the order x, w_ih, w_hh,
    b, h_0, c_0, peephole, w_proj. Its step_norms, float64 (T,), is filled with the norms of the whole dL/dh_t.
    Backward reads the inputs and y, so none of them may be written before it.
    Raises TypeError and ValueError, naming the argument.
    """
    op = "lstm"
    x = check.array(op, "x", x, "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x, LSTMWeights(w_ih, w_hh, b, peephole, w_proj))
    given_h, given_c = h_0 is not None, c_0 is not None
    h_0, c_0 = states(op, len(x), weights, h_0, c_0)
    batch = packed_batch(op, x.shape[:2], lengths)
    result, run_backward = run(op, x, weights, h_0, c_0, batch, reverse, cells=cells)

    def backward(
        dy: np.ndarray | None = None,
        dh_n: np.ndarray | None = None,
        dc_n: np.ndarray | None = None,
        *,
        step_norms: np.ndarray | None = None,
    ) -> Arrays:
        gradients = like(weights)
        dx, dh_0, dc_0 = run_backward(gradients, dy, dh_n, dc_n, step_norms)
        dw_ih, dw_hh, db, dpeephole, dw_proj = gradients
        optional = db, dh_0 if given_h else None, dc_0 if given_c else None, dpeephole, dw_proj
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
    """One step of an LSTM: x (N, C) and the states h (N, P) and c (N, H); the weights are those of lstm.

    Returns ((h, c), backward) with the new states; backward(dh, dc), either of which may be left out, returns the gradients of the
    given inputs, in the order x, h, c, w_ih, w_hh, b, peephole, w_proj. Given `gradients`, C-contiguous arrays like the weights, it
    adds those of the weights to them, in place, as a loop over steps needs it, and returns the others only.
    Raises TypeError and ValueError, naming the argument.
    """
    op = "lstm_cell"
    x = check.array(op, "x", x, "(N, C)", (None, None))
    weights = checked_weights(op, x, LSTMWeights(w_ih, w_hh, b, peephole, w_proj))
    h, c = states(op, len(x), weights, h, c, ("h", "c"))
    (_, h_n, c_n), run_backward = run(op, x[:, None], weights, h, c, packed_batch(op, (len(x), 1), None))

    def backward(
        dh: np.ndarray | None = None, dc: np.ndarray | None = None, *, gradients: Sequence[np.ndarray] | None = None
    ) -> Arrays:
        made = like(weights) if gradients is None else checked_gradients(op, gradients, weights)
        names = "dh", "dc"
        dx, dh_before, dc_before = run_backward(made, None, dh, dc, names=names, accumulate=gradients is not None)
        states = dx[:, 0], dh_before, dc_before
        return states if gradients is not None else (*states, *(a for a in made if a is not None))

    return (h_n, c_n), backward


def run(
    op: str,
    x: np.ndarray,
    weights: LSTMWeights,
    h_0: np.ndarray,
    c_0: np.ndarray,
    batch: PackedBatch,
    reverse: bool = False,
    *,
    cells: bool = False,
    keep: bool = True,
) -> tuple[Arrays, Callable[..., Arrays]]:
    """The LSTM over checked arrays; without keep there is no way back.

    backward(gradients, dy, dh_n, dc_n, step_norms) overwrites the gradients given to it, or adds to them if they accumulate, and
    returns (dx, dh_0, dc_0).
    """
    xs = pack(x, batch)  # (R, C)
    h = empty((len(xs), sizes(weights)[1]), x)
    h_n, c_n = empty(h_0.shape, x), empty(c_0.shape, x)
    c, rows_backward = run_rows(xs, weights, h_0, c_0, batch, reverse, h, h_n, c_n, cells=cells, keep=keep)
    y = unpack(h, batch)
    result = (y, h_n, c_n, unpack(c, batch)) if cells else (y, h_n, c_n)

    @silent
    def backward(
        gradients: LSTMWeights,
        dy: np.ndarray | None = None,
        dh_n: np.ndarray | None = None,
        dc_n: np.ndarray | None = None,
        step_norms: np.ndarray | None = None,
        names: tuple[str, str] = ("dh_n", "dc_n"),
        accumulate: bool = False,
    ) -> Arrays:
        if dy is None and dh_n is None and dc_n is None:
            raise TypeError(
                f"{op}: backward needs at least one of {'dy, ' if op == 'lstm' else ''}{names[0]}, {names[1]}"
            )
        if dy is not None:
            dy = pack(check.array(op, "dy", dy, "(N, T, P) like y", y.shape, y), batch)
        if dh_n is not None:
            dh_n = check.array(op, names[0], dh_n, "(N, P)", h_0.shape, h_0)
        if dc_n is not None:
            dc_n = check.array(op, names[1], dc_n, "(N, H)", c_0.shape, c_0)
        if step_norms is not None:
            check.array(op, "step_norms", step_norms, "(T,)", (batch.shape[1],), np.dtype(np.float64))
        dxs = empty(xs.shape, xs)
        squares = None if step_norms is None else np.empty(len(xs))
        dh_0, dc_0 = rows_backward(gradients, dy, dh_n, dc_n, dxs, squares, accumulate)
        if step_norms is not None and squares is not None:
            step_norms[...] = [np.sqrt(squares[a:b].sum()) for a, b in pairwise(batch.offsets)]
        return unpack(dxs, batch), dh_0, dc_0

    return result, backward


def run_rows(
    xs: np.ndarray,
    weights: LSTMWeights,
    h_0: np.ndarray,
    c_0: np.ndarray,
    batch: PackedBatch,
    reverse: bool,
    h: np.ndarray,
    h_n: np.ndarray,
    c_n: np.ndarray,
    *,
    cells: bool = False,
    keep: bool = True,
    once: bool = False,
) -> tuple[Any, Callable[..., Arrays]]:
    """The LSTM over rows xs (R, C) into h (R, P), h_n and c_n: (c (R, H) or None, backward).

    backward(gradients, dh, dh_n, dc_n, dxs, squares) overwrites gradients, or adds to them if they accumulate, overwrites dxs and
    squares if given, and returns (dh_0, dc_0).
    Where it is called once only it takes the gates' memory for its own, the largest of all.
    """
    ops, hidden = kernels(xs), sizes(weights)[0]
    order, offsets = batch.order, batch.offsets
    gates: Any = empty((len(xs), 4 * hidden), xs)
    c, tanh_c = (empty((len(xs), hidden), xs) if keep or cells else None for _ in range(2))
    ops.lstm_forward(xs, *weights, h_0, c_0, order, offsets, bool(reverse), gates, c, tanh_c, h, h_n, c_n)

    def backward(
        gradients: LSTMWeights,
        dh: np.ndarray | None,
        dh_n: np.ndarray | None,
        dc_n: np.ndarray | None,
        dxs: np.ndarray | None,
        squares: np.ndarray | None = None,
        accumulate: bool = False,
    ) -> Arrays:
        nonlocal gates
        if gates is None:
            raise RuntimeError("LSTM: backward has run; it runs once for each forward in training")
        saved, gates = gates, None if once else gates
        dz = saved if once else empty(saved.shape, saved)
        dh_0, dc_0 = empty(h_0.shape, h_0), empty(c_0.shape, c_0)
        dh_n, dc_n = (None if a is None else check.contiguous(a) for a in (dh_n, dc_n))
        ops.lstm_backward(
            dh, dh_n, dc_n, xs, weights.w_ih, weights.w_hh, weights.peephole, weights.w_proj, h_0, c_0, order, offsets,
            bool(reverse), saved, c, tanh_c, h, dz, dxs, *gradients, dh_0, dc_0, squares, accumulate,
        )  # fmt: skip
        return dh_0, dc_0

    return c, backward
