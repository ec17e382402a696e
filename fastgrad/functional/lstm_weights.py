"""The arrays of an LSTM: its weights, their gradients and its states, and what they must be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, zeros


class LSTMWeights(NamedTuple):
    """w_ih (C, 4H), w_hh (P, 4H), b (4H,) or None, peephole (3, H) or None, w_proj (H, P) or None; or their gradients."""

    w_ih: np.ndarray
    w_hh: np.ndarray
    b: np.ndarray | None = None
    peephole: np.ndarray | None = None
    w_proj: np.ndarray | None = None


def like(weights: LSTMWeights) -> LSTMWeights:
    """Uninitialised arrays of the weights' shapes: w_ih, w_hh and b one after another, so that one product can make them."""
    w_ih, w_hh, b, peephole, w_proj = weights
    C, P = len(w_ih), len(w_hh)
    w = empty((C + P + (b is not None), w_ih.shape[1]), w_ih)
    others = (None if a is None else empty(a.shape, a) for a in (peephole, w_proj))
    return LSTMWeights(w[:C], w[C : C + P], None if b is None else w[-1], *others)


def checked_gradients(op: str, gradients: Sequence[np.ndarray], weights: LSTMWeights) -> LSTMWeights:
    """The caller's arrays for the gradients of the weights that there are."""
    names = [name for name, w in zip(LSTMWeights._fields, weights, strict=True) if w is not None]
    check.each(op, "gradients", gradients, len(names))
    for name, gradient in zip(names, gradients, strict=True):
        w = getattr(weights, name)
        check.array(op, f"gradients of {name}", gradient, f"like {name}", w.shape, w)
        if not check.is_contiguous(gradient):
            raise ValueError(f"{op}: gradients of {name} must be C-contiguous and writable, to be added to in place")
    return LSTMWeights(**dict(zip(names, gradients, strict=True)))


def sizes(weights: LSTMWeights) -> tuple[int, int]:
    """H and P."""
    hidden = weights.w_ih.shape[1] // 4
    return hidden, hidden if weights.w_proj is None else weights.w_proj.shape[1]


def checked_weights(op: str, x: np.ndarray, weights: LSTMWeights) -> LSTMWeights:
    """Weights for inputs of x's last width and dtype."""
    w_ih = check.contiguous(check.array(op, "w_ih", weights.w_ih, "(C, 4H)", (x.shape[-1], None), x))
    columns = w_ih.shape[1]
    if columns % 4:
        raise ValueError(f"{op}: w_ih must be (C, 4H), got {w_ih.shape}, of which {columns} columns are not four gates")
    hidden = columns // 4
    b, peephole, w_proj = weights.b, weights.peephole, weights.w_proj
    if w_proj is not None:
        w_proj = check.contiguous(check.array(op, "w_proj", w_proj, "(H, P)", (hidden, None), x))
    projected = hidden if w_proj is None else w_proj.shape[1]
    form = "(H, 4H)" if w_proj is None else "(P, 4H)"
    w_hh = check.contiguous(check.array(op, "w_hh", weights.w_hh, form, (projected, columns), x))
    if b is not None:
        b = check.contiguous(check.array(op, "b", b, "(4H,)", (columns,), x))
    if peephole is not None:
        peephole = check.contiguous(check.array(op, "peephole", peephole, "(3, H)", (3, hidden), x))
    return LSTMWeights(w_ih, w_hh, b, peephole, w_proj)


def states(
    op: str, n: int, weights: LSTMWeights, h: Any, c: Any, names: tuple[str, str] = ("h_0", "c_0")
) -> tuple[np.ndarray, np.ndarray]:
    """The two states, zero where they are None."""
    hidden, projected = sizes(weights)
    given = [
        zeros((n, size), weights.w_ih)
        if value is None
        else check.contiguous(check.array(op, name, value, form, (n, size), weights.w_ih))
        for value, name, form, size in ((h, names[0], "(N, P)", projected), (c, names[1], "(N, H)", hidden))
    ]
    return given[0], given[1]
