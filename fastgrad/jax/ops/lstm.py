"""The LSTM over whole sequences."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.lstm_weights import LSTMWeights, checked_weights, sizes, states
from fastgrad.functional.packing import PackedBatch, pack, packed_batch, unpack
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.xla import call, host


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
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """fastgrad.lstm: (y (N, T, P), h_n (N, P), c_n (N, H)) of sequences x (N, T, C), of lengths (N,), which may be traced."""
    op = "lstm"
    given = {"x": x, "w_ih": w_ih, "w_hh": w_hh, "b": b, "peephole": peephole, "w_proj": w_proj, "h_0": h_0, "c_0": c_0}
    seen: dict[str, Any] = {name: None if a is None else checkable(op, name, a) for name, a in given.items()}
    x_like = check.array(op, "x", seen["x"], "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x_like, LSTMWeights(*(seen[name] for name in LSTMWeights._fields)))
    states(op, len(x_like), weights, seen["h_0"], seen["c_0"])
    if lengths is not None:
        if not isinstance(lengths, jax.Array):
            lengths = jnp.asarray(check.lengths(op, "lengths", lengths, *x_like.shape[:2]), jnp.int32)
        elif lengths.shape != x_like.shape[:1] or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"{op}: lengths must be integers (N,) = ({len(x_like)},), got {lengths.dtype} {lengths.shape}"
            )
    arrays = tuple(None if a is None else jnp.asarray(a) for a in given.values())
    return _lstm(bool(reverse), *varying((arrays, lengths), axes_of((arrays, lengths))))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(reverse: bool, arrays: tuple, lengths: Any) -> tuple:
    return tuple(_forward(reverse, arrays, lengths, keep=False))


def _forward(reverse: bool, arrays: tuple, lengths: Any, keep: bool) -> list:
    """y, h_n, c_n and, with keep, gates, c, tanh_c and h by rows, as many as fill all sequences."""
    x, *weights, _, _ = arrays
    hidden, projected = sizes(LSTMWeights(*weights))
    n, steps = x.shape[:2]
    rows = n * steps
    shapes = [(n, steps, projected), (n, projected), (n, hidden)]
    if keep:
        shapes += [(rows, 4 * hidden), (rows, hidden), (rows, hidden), (rows, projected)]
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]
    return call("lstm", host_lstm_forward, results, [*arrays, lengths], reverse=reverse)


def _vjp_forward(reverse: bool, arrays: tuple, lengths: Any) -> tuple[tuple, tuple]:
    y, h_n, c_n, *saved = _forward(reverse, arrays, lengths, keep=True)
    return (y, h_n, c_n), (arrays, lengths, saved)


def _vjp_backward(reverse: bool, saved: tuple, gradients: tuple) -> tuple:
    arrays, lengths, kept = saved
    return tuple(call("lstm", host_lstm_backward, arrays, [*gradients, *arrays, lengths, *kept], reverse=reverse)), None


_lstm.defvjp(_vjp_forward, _vjp_backward)


def _batch(x: np.ndarray, lengths: np.ndarray | None) -> tuple[PackedBatch, int]:
    """The rows of the sequences, and how many there are."""
    batch = packed_batch("lstm", x.shape[:2], lengths)
    return batch, int(batch.offsets[-1])


def _states(h_0: Any, c_0: Any, n: int, weights: LSTMWeights) -> tuple[np.ndarray, np.ndarray]:
    return states("lstm", n, weights, h_0, c_0)


@host
def host_lstm_forward(results: list, arguments: list, reverse: bool) -> None:
    x, *given, h_0, c_0, lengths = arguments
    weights, (batch, rows) = LSTMWeights(*given), _batch(x, lengths)
    y, h_n, c_n, *kept = results
    hidden, projected = sizes(weights)
    shapes = (rows, 4 * hidden), (rows, hidden), (rows, hidden), (rows, projected)
    gates, c, tanh_c, h = [a[:rows] for a in kept] or [empty(shape, x.dtype) for shape in shapes]
    h_0, c_0 = _states(h_0, c_0, len(x), weights)
    kernels().lstm_forward(
        pack(x, batch), *weights, h_0, c_0, batch.order, batch.offsets, reverse, gates, c, tanh_c, h, h_n, c_n
    )
    y[...] = unpack(h, batch)


@host
def host_lstm_backward(results: list, arguments: list, reverse: bool) -> None:
    dy, dh_n, dc_n, x, *given, h_0, c_0, lengths, gates, c, tanh_c, h = arguments
    weights, (batch, rows) = LSTMWeights(*given), _batch(x, lengths)
    dx, *gradients, dh_0, dc_0 = results
    h_0, c_0 = _states(h_0, c_0, len(x), weights)
    dh_0, dc_0 = (empty(a.shape, a.dtype) if g is None else g for a, g in ((h_0, dh_0), (c_0, dc_0)))
    xs, dz = pack(x, batch), empty((rows, gates.shape[1]), x.dtype)
    dxs = empty(xs.shape, x.dtype)
    kernels().lstm_backward(
        pack(dy, batch), dh_n, dc_n, xs, weights.w_ih, weights.w_hh, weights.peephole, weights.w_proj, h_0, c_0, batch.order,
        batch.offsets, reverse, gates[:rows], c[:rows], tanh_c[:rows], h[:rows], dz, dxs, *gradients, dh_0, dc_0, None, False,
    )  # fmt: skip
    dx[...] = unpack(dxs, batch)
