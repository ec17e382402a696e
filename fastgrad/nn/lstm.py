"""The LSTM layer: directions, layers on top of each other, dropout between them, and states."""

import math
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import draw_key, generator
from fastgrad.functional.lstm import run_rows
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.init import uniform
from fastgrad.kernels.types import ACTIVATIONS, LSTMUpstream, LSTMWeights, PackedBatch, States
from fastgrad.nn.context import Backward, ForwardContext
from fastgrad.nn.model import views
from fastgrad.nn.sequence import POOLS, SequenceModel, Unpool

State = tuple[np.ndarray, np.ndarray]
STATE_FORMS = "(layers, N, P)", "(layers, N, H)"


@foreign_keywords
class LSTM(SequenceModel):
    """LSTM layers on top of each other, in one direction or in two.

    The formulas are those of fg.lstm. N is the batch, T the steps, P the size of h: proj_size, or hidden_size without,
    and D the number of directions. x is (N, T, input_size), and y (N, T, D P), which is 0 past a sequence's end; with
    pool y is (N, D P). A state is a pair of h (num_layers D, N, P) and c (num_layers D, N, hidden_size), each layer's
    directions side by side.

    Parameters are named "0.w_ih", "0.w_hh", "0.b", "0.peephole", "0.w_proj", and those of the second direction
    "0.reverse.w_ih", ... Weights and biases start uniform on +-1 / sqrt(hidden_size).

    Args:
        input_size: The number of inputs of each step, at least 1.
        hidden_size: H, the size of c, at least 1.
        num_layers: The number of layers, at least 1.
        bidirectional: Whether a second direction runs every sequence from its last step to its first.
        dropout: The share of values between layers that training sets to 0, from 0 and below 1; the others are divided
            by what is left. It needs num_layers of at least 2.
        proj_size: The size of h after a projection; 0 for none.
        peephole: Whether c has weights in the gates i, f and o.
        forget_bias: What is added to the initial bias of the gate f, at least 0.
        pool: None for every step's output; "last", that after each sequence's last step; or "mean", the mean over each
            sequence's steps, 0 if it has none.
        reverse: Whether the only direction runs every sequence from its last step to its first. y stays in the order of
            the steps, and "last" is the output after the first step. It comes without bidirectional.
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights and of dropout; None as 0, or as the Sequential draws them that the layer
            becomes part of.

    Raises:
        ValueError: A number is out of its range, dropout comes with one layer, reverse with bidirectional, or pool or
            dtype is unknown.
        TypeError: A number is of another type.

    Example:
        >>> model = fg.nn.LSTM(3, 8, bidirectional=True, seed=0)
        >>> model.predict(np.zeros((2, 5, 3), np.float32), lengths=[5, 2]).shape
        (2, 5, 16)
        >>> stream = fg.nn.LSTM(3, 8, seed=0)
        >>> y, state = stream.run(np.zeros((2, 5, 3), np.float32))
        >>> y, state = stream.run(np.ones((2, 5, 3), np.float32), state)

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
        Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures": forget_bias.
    """

    recurrent = True
    n_in: int
    n_out: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        peephole: bool = False,
        forget_bias: float = 0.0,
        *,
        pool: str | None = None,
        reverse: bool = False,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        op = type(self).__name__
        self.n_in = self.input_size = check.count(op, "input_size", input_size)
        self.hidden_size = check.count(op, "hidden_size", hidden_size)
        self.num_layers = check.count(op, "num_layers", num_layers)
        self.bidirectional, self.reverse = bool(bidirectional), bool(reverse)
        if self.bidirectional and self.reverse:
            raise ValueError(f"{op}: reverse is for one direction, and bidirectional has both")
        self.reads_ahead = self.bidirectional or self.reverse
        self.dropout = check.number(op, "dropout", dropout, below=1)
        if self.dropout and self.num_layers == 1:
            raise ValueError(f"{op}: dropout is between layers and needs num_layers of at least 2")
        self.proj_size = check.count(op, "proj_size", proj_size, least=0)
        self.peephole = bool(peephole)
        self.forget_bias = check.number(op, "forget_bias", forget_bias)
        if pool is not None:
            check.choice(op, "pool", pool, [name for name in POOLS if name])
        self.pool, self.pools = pool, pool is not None
        self.directions = 2 if self.bidirectional else 1
        hidden, projected = self.hidden_size, self.proj_size or self.hidden_size
        self.n_out = self.directions * projected
        self._widths = projected, hidden
        # the activation of h: tanh (times a gate), unless it is projected
        self._activation = ACTIVATIONS["identity" if proj_size else "tanh"]
        # prefixes of the names, for each direction of each layer
        self._prefixes = [
            f"{layer}.{way}" for layer in range(self.num_layers) for way in ("", "reverse.")[: self.directions]
        ]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, prefix in enumerate(self._prefixes):
            width = self.n_in if i < self.directions else self.n_out
            shapes |= {prefix + "w_ih": (width, 4 * hidden), prefix + "w_hh": (projected, 4 * hidden)}
            shapes[prefix + "b"] = (4 * hidden,)
            if peephole:
                shapes[prefix + "peephole"] = 3, hidden
            if proj_size:
                shapes[prefix + "w_proj"] = hidden, projected
        super().__init__(shapes, dtype, seed)
        self._start(generator(seed))

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, State, Backward]:
        rows, batch, state = self._check_input(x, context)
        y, ends, layers, unpool = self._run(rows, batch, state, context, True)
        dx = context.want_dx
        # without packing x is (N, T, C), and so is y unless it is pooled
        whole = context.packed is None
        if whole and not self.pools:
            y = unpack(y, batch)

        @silent
        def backward(dy: np.ndarray) -> np.ndarray:
            dy = check.array(type(self).__name__, "dy", dy, "like the output", y.shape, y)
            dh, dh_n = unpool(pack(dy, batch) if whole and not self.pools else dy)
            for layer, (shape, ways_back, key) in reversed(list(enumerate(layers))):
                dxs: list[Any] = [empty(shape, dy) if layer or dx else None for _ in ways_back]
                for way, way_back in enumerate(ways_back):
                    part = self._columns(way)
                    upper = LSTMUpstream(
                        None if dh is None else dh[:, part],
                        None if dh_n is None else check.contiguous(dh_n[:, part]),
                        None,
                    )
                    way_back(self._gradients[layer * self.directions + way], upper, dxs[way])
                if len(dxs) == 2 and dxs[0] is not None:
                    dxs[0] += dxs[1]
                if key is not None:
                    kernels(dy).dropout_forward(dxs[0], self.dropout, key, dxs[0])
                dh, dh_n = dxs[0], None
            if not dx:
                return dy
            return unpack(dxs[0], batch) if whole else dxs[0]

        return y, ends, backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, State]:
        rows, batch, state = self._check_input(x, context)
        y, ends, *_ = self._run(rows, batch, state, context, False)
        return unpack(y, batch) if context.packed is None and not self.pools else y, ends

    def _run(
        self, h: np.ndarray, batch: PackedBatch, state: Any, context: ForwardContext, keep: bool
    ) -> tuple[np.ndarray, State, list, Unpool]:
        """Forward over packed rows h (R, C): (y, state, what backward needs of each layer, backward of the pool)."""
        (h_0, c_0), (h_n, c_n) = (
            [empty((len(self._weights), len(batch.order), width), h) for width in self._widths] for _ in range(2)
        )
        h_0[...], c_0[...] = state or (0, 0)
        reversed_batch = PackedBatch(batch.order, batch.offsets, True)
        layers, batches = [], (reversed_batch,) if self.reverse else (batch, reversed_batch)
        training = context.training
        for layer in range(self.num_layers):
            xs, key = h, None
            if layer and training and self.dropout:
                xs, key = empty(h.shape, h), draw_key(self._rng)
                kernels(h).dropout_forward(h, self.dropout, key, xs)
            h, ways_back = empty((len(xs), self.n_out), xs), []
            for way in range(self.directions):
                i = layer * self.directions + way
                start, end, output = States(h_0[i], c_0[i]), States(h_n[i], c_n[i]), h[:, self._columns(way)]
                _, way_back = run_rows(xs, self._weights[i], start, batches[way], output, end, keep=keep, once=training)
                ways_back.append(way_back)
                context.observe(self._weights[i].w_ih, output, self._activation)
            if keep:
                layers.append((xs.shape, ways_back, key))
        y, unpool = POOLS[self.pool](h, h_n[-self.directions :], batch)
        return y, (h_n, c_n), layers, unpool

    def _columns(self, way: int) -> slice:
        """The columns of a direction in the rows (R, D P)."""
        width = self._widths[0]
        return slice(way * width, (way + 1) * width)

    def _check_input(self, x: Any, context: ForwardContext) -> tuple[np.ndarray, PackedBatch, Any]:
        """(packed rows, their batch, state), checked."""
        op, batch, state = type(self).__name__, context.packed, context.state
        if batch is None:
            x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
            batch = packed_batch(op, x.shape[:2], None)
        if state is not None:
            check.sequence(op, "state", state, 2)
            for i, (value, width, form) in enumerate(zip(state, self._widths, STATE_FORMS, strict=True)):
                self._array(op, f"state[{i}]", value, form, (len(self._weights), len(batch.order), width))
        return x if context.packed else pack(x, batch), batch, state

    def _generators(self) -> list[np.random.Generator]:
        return [self._rng] if self.dropout else []

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._gradients = self._weights_of(params), self._weights_of(grads)

    def _weights_of(self, flat: np.ndarray) -> list[LSTMWeights]:
        arrays = views(flat, self._shapes)
        return [
            LSTMWeights._make(arrays.get(prefix + name) for name in LSTMWeights._fields) for prefix in self._prefixes
        ]

    @silent
    def _draw(self, rng: np.random.Generator) -> None:
        limit = 1 / math.sqrt(self.hidden_size)
        for w in views(self._params, self._shapes).values():
            w[...] = uniform(w.shape, rng, limit=limit)
        for prefix in self._prefixes:
            self.parameters()[prefix + "b"][self.hidden_size : 2 * self.hidden_size] += self.forget_bias
        # the generator of the dropout keys
        self._rng = generator(int(rng.integers(2**63)))
