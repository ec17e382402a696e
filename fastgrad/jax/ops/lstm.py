"""The JAX function lstm over whole sequences: its derivative, and the host functions that XLA calls."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.functional.lstm_weights import checked_weights, states
from fastgrad.functional.packing import checked_lengths, pack, packed_batch, unpack
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.xla import call, host
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
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """fastgrad.lstm: (y (N, T, P), h_n (N, P), c_n (N, H)) of sequences x (N, T, C), of lengths (N,), which may be traced."""
    op = "lstm"
    given = {"x": x, "w_ih": w_ih, "w_hh": w_hh, "b": b, "peephole": peephole, "w_proj": w_proj, "h_0": h_0, "c_0": c_0}
    seen: dict[str, Any] = {name: None if a is None else checkable(op, name, a) for name, a in given.items()}
    x_like = check.array(op, "x", seen["x"], "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x_like, *(seen[name] for name in LSTMWeights._fields))
    states(op, len(x_like), weights, seen["h_0"], seen["c_0"])
    if lengths is not None:
        if not isinstance(lengths, jax.Array):
            lengths = jnp.asarray(checked_lengths(op, "lengths", lengths, *x_like.shape[:2]), jnp.int32)
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
    """y, h_n, c_n and, with keep, what backward needs: a buffer, and h as rows (N T, P), of which packed ones fill the first."""
    x, _, w_hh, *_ = arrays
    (n, steps, _), (projected, columns) = x.shape, w_hh.shape
    hidden = columns // 4
    shapes = [(n, steps, projected), (n, projected), (n, hidden)]
    if keep:
        shapes += [(lstm_buffer_size(n * steps, hidden),), (n * steps, projected)]
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]
    return call("lstm", host_lstm_forward, results, [*arrays, lengths], reverse=reverse)


def _vjp_forward(reverse: bool, arrays: tuple, lengths: Any) -> tuple[tuple, tuple]:
    y, h_n, c_n, *saved = _forward(reverse, arrays, lengths, keep=True)
    return (y, h_n, c_n), (arrays, lengths, saved)


def _vjp_backward(reverse: bool, saved: tuple, gradients: tuple) -> tuple:
    arrays, lengths, kept = saved
    return tuple(call("lstm", host_lstm_backward, arrays, [*gradients, *arrays, lengths, *kept], reverse=reverse)), None


_lstm.defvjp(_vjp_forward, _vjp_backward)


@host
def host_lstm_forward(results: list, arguments: list, reverse: bool) -> None:
    x, *w, h_0, c_0, lengths = arguments
    weights, batch = LSTMWeights(*w), packed_batch("lstm", x.shape[:2], lengths, reverse)
    y, h_n, c_n, *kept = results
    start, xs = states("lstm", len(x), weights, h_0, c_0), pack(x, batch)
    rows, hidden = len(xs), c_n.shape[1]
    buffer, h = kept or (empty((lstm_buffer_size(rows, hidden, False),), x), empty((rows, h_n.shape[1]), x))
    saved = lstm_buffers(buffer, h[:rows], hidden, bool(kept))
    kernels().lstm_forward(xs, weights, start, batch, saved, States(h_n, c_n))
    y[...] = unpack(saved.h, batch)


@host
def host_lstm_backward(results: list, arguments: list, reverse: bool) -> None:
    dy, dh_n, dc_n, x, *w, h_0, c_0, lengths, buffer, h = arguments
    weights, batch = LSTMWeights(*w), packed_batch("lstm", x.shape[:2], lengths, reverse)
    dx, *gradients, dh_0, dc_0 = results
    start, xs = states("lstm", len(x), weights, h_0, c_0), pack(x, batch)
    saved = lstm_buffers(buffer, h[: len(xs)], start.c.shape[1])
    dstart = States(*(empty(s.shape, s) if d is None else d for s, d in zip(start, (dh_0, dc_0), strict=True)))
    dxs = empty(xs.shape, x)
    written = LSTMGradients(empty(saved.gates.shape, x), dxs, LSTMWeights(*gradients), dstart, None)
    upstream = LSTMUpstream(pack(dy, batch), dh_n, dc_n)
    kernels().lstm_backward(upstream, xs, weights, start, batch, saved, written, False)
    dx[...] = unpack(dxs, batch)
