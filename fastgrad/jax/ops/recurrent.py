"""Recurrent layers as JAX functions over whole sequences: `run`, its derivative, and the host functions that XLA calls.

The layers, subclasses of Layer, are in lstm.py, lstm_variants.py and gru.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.functional.packing import checked_lengths, pack, packed_batch, unpack
from fastgrad.jax.arguments import axes_of, checkable, varying
from fastgrad.jax.xla import call, host_function
from fastgrad.kernels.types import PackedBatch

LAYERS: dict[str, "type[Layer]"] = {}


@dataclass(frozen=True)
class Layer(ABC):
    """A kind of recurrent layer, of so many gates and initial states, h first, and the settings of a call. op: its name in errors.

    Weights: LSTMWeights, LSTMVariantWeights or GRUWeights, whose first two are w_ih (C, G H) and w_hh (P, G H).
    """

    kind: ClassVar[str]
    op: ClassVar[str]
    gates: ClassVar[int]
    state_count: ClassVar[int]
    Weights: ClassVar[Any]

    reverse: bool

    def __init_subclass__(cls) -> None:
        LAYERS[cls.kind] = cls

    @abstractmethod
    def buffer_size(self, rows: int, hidden: int, keep: bool = True) -> int:
        """Values in the buffer of what backward needs."""

    @abstractmethod
    def check(self, x: np.ndarray, weights: Sequence[Any], states: Sequence[Any]) -> None:
        """Raise an error unless the weights and the initial states fit x."""

    @abstractmethod
    def start(self, n: int, weights: Any, states: Sequence[Any]) -> Any:
        """The initial states, 0 in place of None."""

    @abstractmethod
    def forward(self, rows: "Rows", buffer: np.ndarray, h: np.ndarray, ends: Sequence[np.ndarray], keep: bool) -> None:
        """Write h (R, P), the states after each sequence's last step, and the buffer."""

    @abstractmethod
    def backward(
        self,
        upstream: Sequence[Any],
        rows: "Rows",
        buffer: np.ndarray,
        h: np.ndarray,
        dxs: np.ndarray,
        dweights: Any,
        dstart: Sequence[np.ndarray],
    ) -> None:
        """Write the gradients, from those of h and of the end states."""


class Rows:
    """What the kernels take: rows xs (R, C) of x (N, T, C), the weights, the initial states, the order of the rows, and a key or None."""

    def __init__(self, layer: Layer, x: np.ndarray, arrays: Sequence[Any]) -> None:
        """arrays: the weights, the initial states, the lengths and the words of the key."""
        *weights_and_states, lengths, words = arrays
        self.key = None if words is None else int(words[0]) << 32 | int(words[1])
        count = len(layer.Weights._fields)
        self.weights: Any = layer.Weights(*weights_and_states[:count])
        self.start = layer.start(len(x), self.weights, weights_and_states[count:])
        self.batch: PackedBatch = packed_batch(layer.op, x.shape[:2], lengths, layer.reverse)
        self.xs = pack(x, self.batch)


def run(layer: Layer, arrays: dict[str, Any], lengths: Any, words: Any = None) -> tuple[jax.Array, ...]:
    """y (N, T, P) and the end states. arrays: x, the weights and the initial states by their names; all but x may be None.

    words: the two halves of a variant's key, (2,) uint32, or None.
    """
    op, count = layer.op, 1 + len(layer.Weights._fields)
    x, *others = (None if a is None else checkable(op, name, a) for name, a in arrays.items())
    x = check.array(op, "x", x, "(N, T, C)", (None, None, None))
    layer.check(x, others[: count - 1], others[count - 1 :])
    if lengths is not None:
        if isinstance(lengths, jax.Array) and (lengths.shape != x.shape[:1] or lengths.dtype.kind not in "iu"):
            raise ValueError(f"{op}: lengths must be integers (N,) = ({len(x)},), got {lengths.dtype} {lengths.shape}")
        if not isinstance(lengths, jax.core.Tracer):
            numbers = np.asarray(lengths) if isinstance(lengths, jax.Array) else lengths
            numbers = checked_lengths(op, "lengths", numbers, *x.shape[:2])
            lengths = lengths if isinstance(lengths, jax.Array) else jnp.asarray(numbers, jnp.int32)
    values = tuple(None if a is None else jnp.asarray(a) for a in arrays.values())
    return _run(layer, *varying((values, (lengths, words)), axes_of((values, lengths, words))))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(layer: Layer, arrays: tuple, integers: tuple) -> tuple:
    return tuple(_forward(layer, arrays, integers, keep=False))


def _forward(layer: Layer, arrays: tuple, integers: tuple, keep: bool) -> list:
    """y, the end states and, with keep, what backward needs: a buffer, and h as rows (N T, P), of which packed ones fill the first."""
    x, _, w_hh, *_ = arrays
    (n, steps, _), (width, columns) = x.shape, w_hh.shape
    hidden = columns // layer.gates
    shapes = [(n, steps, width), *[(n, size) for size in (width, hidden)[: layer.state_count]]]
    if keep:
        shapes += [(layer.buffer_size(n * steps, hidden),), (n * steps, width)]
    results = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]
    return call(layer.op, host_recurrent_forward, results, [*arrays, *integers], kind=layer.kind, **asdict(layer))


def _vjp_forward(layer: Layer, arrays: tuple, integers: tuple) -> tuple[tuple, tuple]:
    outputs = _forward(layer, arrays, integers, keep=True)
    count = 1 + layer.state_count
    return tuple(outputs[:count]), (arrays, integers, outputs[count:])


def _vjp_backward(layer: Layer, saved: tuple, gradients: tuple) -> tuple:
    arrays, integers, kept = saved
    arguments = [*gradients, *arrays, *integers, *kept]
    return tuple(call(layer.op, host_recurrent_backward, arrays, arguments, kind=layer.kind, **asdict(layer))), None


_run.defvjp(_vjp_forward, _vjp_backward)


@host_function
def host_recurrent_forward(results: list, arguments: list, kind: str, **settings: Any) -> None:
    layer, (x, *arrays) = LAYERS[kind](**settings), arguments
    rows = Rows(layer, x, arrays)
    (y, *ends), kept = results[: 1 + layer.state_count], results[1 + layer.state_count :]
    (width, columns), count = rows.weights.w_hh.shape, len(rows.xs)
    size = layer.buffer_size(count, columns // layer.gates, False)
    buffer, h = kept or (empty((size,), x), empty((count, width), x))
    layer.forward(rows, buffer, h[:count], ends, bool(kept))
    y[...] = unpack(h[:count], rows.batch)


@host_function
def host_recurrent_backward(results: list, arguments: list, kind: str, **settings: Any) -> None:
    layer = LAYERS[kind](**settings)
    (dy, *dends), (x, *arrays, buffer, h) = arguments[: 1 + layer.state_count], arguments[1 + layer.state_count :]
    rows = Rows(layer, x, arrays)
    dx, *gradients = results
    count = len(layer.Weights._fields)
    dstart = [empty(s.shape, s) if d is None else d for s, d in zip(rows.start, gradients[count:], strict=True)]
    dxs = empty(rows.xs.shape, x)
    upstream, dweights = [pack(dy, rows.batch), *dends], layer.Weights(*gradients[:count])
    layer.backward(upstream, rows, buffer, h[: len(rows.xs)], dxs, dweights, dstart)
    dx[...] = unpack(dxs, rows.batch)
