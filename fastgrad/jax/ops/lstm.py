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
from fastgrad.jax.xla import call, host_function
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
    """An LSTM over sequences, as fastgrad.lstm, of JAX arrays.

    c_t = f c_{t-1} + i g, h_t = o tanh(c_t), with the gates i, f, g, o of x_t and h_{t-1}; H units, and P = H, or with w_proj
    the width of h.

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

    Returns:
        y (N, T, P), 0 past a sequence's end, h_n (N, P) and c_n (N, H), which jax.grad differentiates by all arrays but
        lengths.

    Raises:
        ValueError: A shape does not fit, or a length that is not traced is out of its range.
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
    """
    op = "lstm"
    named = {"x": x, "w_ih": w_ih, "w_hh": w_hh, "b": b, "peephole": peephole, "w_proj": w_proj, "h_0": h_0, "c_0": c_0}
    checked: dict[str, Any] = {name: None if a is None else checkable(op, name, a) for name, a in named.items()}
    x_like = check.array(op, "x", checked["x"], "(N, T, C)", (None, None, None))
    weights = checked_weights(op, x_like, *(checked[name] for name in LSTMWeights._fields))
    states(op, len(x_like), weights, checked["h_0"], checked["c_0"])
    if lengths is not None:
        if not isinstance(lengths, jax.Array):
            lengths = jnp.asarray(checked_lengths(op, "lengths", lengths, *x_like.shape[:2]), jnp.int32)
        elif lengths.shape != x_like.shape[:1] or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"{op}: lengths must be integers (N,) = ({len(x_like)},), got {lengths.dtype} {lengths.shape}"
            )
    arrays = tuple(None if a is None else jnp.asarray(a) for a in named.values())
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


@host_function
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


@host_function
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
