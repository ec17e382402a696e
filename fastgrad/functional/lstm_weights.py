"""The weights of an LSTM: LSTMWeights, the group in which kernels take them, made from a caller's arrays; and its states and gradients.

    w_ih      (C, 4H)  from x_t to the gates: columns 0 .. H are those of i, then f, g and o, H columns each
    w_hh      (P, 4H)  from h_{t-1} to the gates, in the same order; P = H without a projection
    b         (4H,)    one bias for both products, or None
    peephole  (3, H)   from the cell to the gates: p_i and p_f from c_{t-1}, p_o from c_t; or None
    w_proj    (H, P)   from o tanh c_t to h_t, or None

convert/recurrent_arrays.py has the layouts of PyTorch, Keras and ONNX; the formulas are in kernels/reference/lstm.py.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty, zeros
from fastgrad.kernels.types import GRUWeights, LSTMVariantWeights, States
from fastgrad.kernels.types import LSTMWeights as LSTMWeights

Weights = TypeVar("Weights", LSTMWeights, GRUWeights)


def checked_weights(
    op: str, x: np.ndarray, w_ih: Any, w_hh: Any, b: Any = None, peephole: Any = None, w_proj: Any = None
) -> LSTMWeights:
    """The weights, checked and C-contiguous, as LSTMWeights, for inputs of the width and dtype of x."""
    w_ih = check.contiguous(check.array(op, "w_ih", w_ih, "(C, 4H)", (x.shape[-1], None), x))
    columns = w_ih.shape[1]
    if columns % 4:
        raise ValueError(f"{op}: w_ih must be (C, 4H), got {w_ih.shape}, of which {columns} columns are not four gates")
    hidden = outputs = columns // 4
    if w_proj is not None:
        w_proj = check.contiguous(check.array(op, "w_proj", w_proj, "(H, P)", (hidden, None), x))
        outputs = w_proj.shape[1]
    form = "(H, 4H)" if w_proj is None else "(P, 4H)"
    w_hh = contiguous(op, "w_hh", w_hh, form, (outputs, columns), x)
    if b is not None:
        b = contiguous(op, "b", b, "(4H,)", (columns,), x)
    if peephole is not None:
        peephole = contiguous(op, "peephole", peephole, "(3, H)", (3, hidden), x)
    return LSTMWeights(w_ih, w_hh, b, peephole, w_proj)


def contiguous(op: str, name: str, value: Any, form: str, shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """check.contiguous of check.array, after a short test that most arrays pass, which saves three calls."""
    if (
        type(value) is np.ndarray
        and type(like) is np.ndarray
        and value.dtype == like.dtype
        and value.shape == shape
        and value.flags.carray
    ):
        return value
    return check.contiguous(check.array(op, name, value, form, shape, like))


def states(
    op: str,
    n: int,
    weights: LSTMWeights | LSTMVariantWeights,
    h: Any,
    c: Any,
    names: tuple[str, str] = ("h_0", "c_0"),
) -> States:
    """The states h and c, checked and C-contiguous; zeros in place of None."""
    w_hh = weights.w_hh
    h_shape, c_shape = (n, len(w_hh)), (n, w_hh.shape[1] // 4)
    return States(
        zeros(h_shape, w_hh) if h is None else contiguous(op, names[0], h, "(N, P)", h_shape, w_hh),
        zeros(c_shape, w_hh) if c is None else contiguous(op, names[1], c, "(N, H)", c_shape, w_hh),
    )


def empty_gradients(weights: LSTMWeights) -> LSTMWeights:
    """Uninitialised gradients of the weights; those of w_ih, w_hh and b are adjacent in memory, so that one product computes all three."""
    w_ih, w_hh, b, peephole, w_proj = weights
    C, P = len(w_ih), len(w_hh)
    w = empty((C + P + (b is not None), w_ih.shape[1]), w_ih)
    others = (None if a is None else empty(a.shape, a) for a in (peephole, w_proj))
    return LSTMWeights(w[:C], w[C : C + P], None if b is None else w[-1], *others)


def checked_gradients(op: str, gradients: Sequence[np.ndarray], weights: Weights) -> Weights:
    """A caller's arrays for gradients, one for each weight that is not None, checked, in the group of the weights."""
    names = [name for name, w in zip(weights._fields, weights, strict=True) if w is not None]
    check.sequence(op, "gradients", gradients, len(names))
    for name, gradient in zip(names, gradients, strict=True):
        w = getattr(weights, name)
        check.array(op, f"gradients of {name}", gradient, f"like {name}", w.shape, w)
        if not check.is_contiguous(gradient):
            raise ValueError(f"{op}: gradients of {name} must be C-contiguous and writable, to be added to in place")
    return type(weights)(**dict(zip(names, gradients, strict=True)))
