"""RecurrentModel, the base of LSTM and GRU: directions, layers on top of each other, dropout between them, and states."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.core.random import draw_key, generator
from fastgrad.functional.packing import pack, packed_batch, unpack
from fastgrad.init import uniform
from fastgrad.kernels.types import ACTIVATIONS, Activation, PackedBatch
from fastgrad.nn.context import Backward, ForwardContext
from fastgrad.nn.model import views
from fastgrad.nn.sequence import POOLS, SequenceModel, Unpool

# the states of a direction, one or two arrays (N, width)
States = tuple[np.ndarray, ...]
# backward(gradients, dh, dh_n, dxs) of the rows of a direction
DirectionBackward = Callable[..., Any]


class RecurrentModel(SequenceModel):
    """Recurrent layers on top of each other, in one direction or in two; a subclass has the cell.

    Of the widths of the states the first is that of h. group is the NamedTuple of a cell's weights.
    """

    recurrent = True
    n_in: int
    n_out: int
    group: Any
    # the activation of h
    _activation: Activation = ACTIVATIONS["tanh"]
    # the shapes of a cell's states, as errors write them
    _forms: ClassVar[tuple[str, ...]]

    def _set_options(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        pool: Any,
        reverse: bool,
    ) -> None:
        """Check and keep what all recurrent layers take."""
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
        if pool is not None:
            check.choice(op, "pool", pool, [name for name in POOLS if name])
        self.pool, self.pools = pool, pool is not None
        self.directions = 2 if self.bidirectional else 1

    def _set_shapes(
        self, widths: tuple[int, ...], shapes_of: Callable[[int], dict[str, tuple[int, ...]]]
    ) -> dict[str, tuple[int, ...]]:
        """Keep the widths of the states; the shapes of the weights by name, from those of a direction by the width of its input."""
        self._widths = widths
        self.n_out = self.directions * widths[0]
        # prefixes of the names, for each direction of each layer
        self._prefixes = [
            f"{layer}.{direction}"
            for layer in range(self.num_layers)
            for direction in ("", "reverse.")[: self.directions]
        ]
        shapes: dict[str, tuple[int, ...]] = {}
        for i, prefix in enumerate(self._prefixes):
            width = self.n_in if i < self.directions else self.n_out
            shapes |= {prefix + name: shape for name, shape in shapes_of(width).items()}
        return shapes

    def _run_rows(
        self,
        xs: np.ndarray,
        weights: Any,
        start: States,
        batch: PackedBatch,
        h: np.ndarray,
        end: States,
        keep: bool,
        training: bool,
    ) -> DirectionBackward:
        """A direction over packed rows, as run_rows of the functions; backward(gradients, dh, dh_n, dxs), in training once only."""
        raise NotImplementedError

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        rows, batch, state = self._check_input(x, context)
        y, ends, layers, unpool = self._run(rows, batch, state, context, True)
        want_dx = context.want_dx
        # without packing x is (N, T, C), and so is y unless it is pooled
        whole = context.packed is None
        if whole and not self.pools:
            y = unpack(y, batch)
        ran = False

        @silent
        def backward(dy: np.ndarray) -> np.ndarray:
            nonlocal ran
            name = type(self).__name__
            dy = check.array(name, "dy", dy, "like the output", y.shape, y)
            if ran:
                raise RuntimeError(f"{name}: backward has run; it runs once for each forward in training")
            ran = context.training
            dh, dh_n = unpool(pack(dy, batch) if whole and not self.pools else dy)
            for layer, (shape, backwards, key) in reversed(list(enumerate(layers))):
                dxs: list[Any] = [empty(shape, dy) if layer or want_dx else None for _ in backwards]
                for direction, direction_backward in enumerate(backwards):
                    part = self._columns(direction)
                    upper = (
                        None if dh is None else dh[:, part],
                        None if dh_n is None else check.contiguous(dh_n[:, part]),
                    )
                    direction_backward(self._gradients[layer * self.directions + direction], *upper, dxs[direction])
                if len(dxs) == 2 and dxs[0] is not None:
                    dxs[0] += dxs[1]
                if key is not None:
                    kernels(dy).dropout_forward(dxs[0], self.dropout, key, dxs[0])
                dh, dh_n = dxs[0], None
            if not want_dx:
                return dy
            return unpack(dxs[0], batch) if whole else dxs[0]

        return y, ends, backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any]:
        rows, batch, state = self._check_input(x, context)
        y, ends, *_ = self._run(rows, batch, state, context, False)
        return unpack(y, batch) if context.packed is None and not self.pools else y, ends

    def _run(
        self, h: np.ndarray, batch: PackedBatch, state: Any, context: ForwardContext, keep: bool
    ) -> tuple[np.ndarray, Any, list, Unpool]:
        """Forward over packed rows h (R, C): (y, state, what backward needs of each layer, backward of the pool)."""
        starts, ends = (
            [empty((len(self._weights), len(batch.order), width), h) for width in self._widths] for _ in range(2)
        )
        for target, value in zip(starts, state or [0] * len(starts), strict=True):
            target[...] = value
        reversed_batch = PackedBatch(batch.order, batch.offsets, True)
        layers, batches = [], (reversed_batch,) if self.reverse else (batch, reversed_batch)
        training = context.training
        for layer in range(self.num_layers):
            xs, key = h, None
            if layer and training and self.dropout:
                xs, key = empty(h.shape, h), draw_key(self._rng)
                kernels(h).dropout_forward(h, self.dropout, key, xs)
            h, backwards = empty((len(xs), self.n_out), xs), []
            for direction in range(self.directions):
                i = layer * self.directions + direction
                start, end = (tuple(values[i] for values in states) for states in (starts, ends))
                output = h[:, self._columns(direction)]
                arrays = xs, self._weights[i], start, batches[direction], output, end
                backwards.append(self._run_rows(*arrays, keep, training))
                context.observe(self._weights[i].w_ih, output, self._activation)
            if keep:
                layers.append((xs.shape, backwards, key))
        y, unpool = POOLS[self.pool](h, ends[0][-self.directions :], batch)
        return y, self._state_of(tuple(ends)), layers, unpool

    def _columns(self, direction: int) -> slice:
        """The columns of a direction in the rows (R, D P)."""
        width = self._widths[0]
        return slice(direction * width, (direction + 1) * width)

    def _check_input(self, x: Any, context: ForwardContext) -> tuple[np.ndarray, PackedBatch, Any]:
        """(packed rows, their batch, state), checked."""
        op, batch, state = type(self).__name__, context.packed, context.state
        if batch is None:
            x = self._array(op, "x", x, "(N, T, C)", (None, None, self.n_in))
            batch = packed_batch(op, x.shape[:2], None)
        if state is not None:
            state = self._check_state(op, state, len(batch.order))
        return x if context.packed else pack(x, batch), batch, state

    def _state_of(self, states: States) -> Any:
        """What a caller gets of the states of all layers."""
        return states

    def _check_state(self, op: str, state: Any, n: int) -> States:
        """The states of all layers from what a caller gives, checked."""
        check.sequence(op, "state", state, len(self._widths))
        for i, (value, width, form) in enumerate(zip(state, self._widths, self._forms, strict=True)):
            self._array(op, f"state[{i}]", value, form, (len(self._weights), n, width))
        return state

    def _generators(self) -> list[np.random.Generator]:
        return [self._rng] if self.dropout else []

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._gradients = self._weights_of(params), self._weights_of(grads)

    def _weights_of(self, flat: np.ndarray) -> list[Any]:
        arrays = views(flat, self._shapes)
        return [self.group._make(arrays.get(prefix + name) for name in self.group._fields) for prefix in self._prefixes]

    @silent
    def _draw(self, rng: np.random.Generator) -> None:
        limit = 1 / math.sqrt(self.hidden_size)
        for w in views(self._params, self._shapes).values():
            w[...] = uniform(w.shape, rng, limit=limit)
        # the generator of the dropout keys
        self._rng = generator(int(rng.integers(2**63)))
