"""Dense layers, and chains of them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastgrad import check, gpu
from fastgrad.backend import kernels
from fastgrad.compact import compacted
from fastgrad.dense import run
from fastgrad.fused import Fused, FusedBackward
from fastgrad.init import chosen
from fastgrad.kernels.names import SIGMOID, SOFTMAX, Activation
from fastgrad.memory import empty
from fastgrad.model import IDENTITY, generator, views
from fastgrad.sequences import Steps


class DenseChain(Fused):
    """Dense layers in a row: sizes[0] columns in, sizes[-1] out; of sequences (N, T, C) over every step.

    activation is the hidden layers', with output for the last ("identity" if None); or a list of one for each layer.
    init names one of fastgrad.init or is a function of (shape, rng); biases start at 0.
    Parameters are named "0.w", "0.b", "1.w", ...; weights and biases hold the same views, a list entry a layer.
    """

    n_in: int
    n_out: int
    _name = "{layer}.{array}"

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | tuple[str, float] | list = "relu",
        output: str | tuple[str, float] | None = None,
        *,
        init: str | Callable[..., np.ndarray] = "he_uniform",
        dtype: Any = "float32",
        seed: int | None = None,
        bias: bool = True,
    ) -> None:
        op = type(self).__name__
        check.each(op, "sizes", sizes)
        if len(sizes) < 2:
            raise ValueError(f"{op}: sizes must have length at least 2, got {len(sizes)}")
        self.sizes = tuple(check.count(op, f"sizes[{i}]", n) for i, n in enumerate(sizes))
        self.n_in, self.n_out = self.sizes[0], self.sizes[-1]
        self._activations = _activations(op, activation, output, len(sizes) - 1)
        self.output = self._activations[-1]
        self._bias = bool(bias)
        self._init = chosen(op, init)
        shapes: dict[str, tuple[int, ...]] = {}
        rows, offset = [], 0
        for layer, (n_in, n_out) in enumerate(pairwise(self.sizes)):
            w_offset, b_offset = offset, offset + n_in * n_out
            shapes[self._name.format(layer=layer, array="w")] = n_in, n_out
            if bias:
                shapes[self._name.format(layer=layer, array="b")] = (n_out,)
            rows.append((n_in, n_out, w_offset, b_offset if bias else -1, self._activations[layer].code))
            offset = b_offset + (n_out if bias else 0)
        # what the kernels of whole chains read: see kernels/reference/train.py
        self.table = np.array(rows, np.int64)  # (L, 5)
        self._logit_table = self.table.copy()
        if self.output.code in (SOFTMAX, SIGMOID):
            self._logit_table[-1, 4] = IDENTITY.code
        self.activation_parameters = np.array([f.parameter for f in self._activations])  # (L,)
        super().__init__(shapes, dtype, seed)
        self._start(generator(seed))

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        return self._weights

    @property
    def biases(self) -> tuple[np.ndarray | None, ...]:
        return self._biases

    def _fused(
        self, x: np.ndarray, training: bool, activation: Activation, residual: np.ndarray | None, dx: bool
    ) -> tuple[np.ndarray, FusedBackward]:
        op = type(self).__name__
        if getattr(x, "ndim", 2) == 3:
            steps = Steps(op, x, self)
            added = None if residual is None else steps.rows(residual)
            y, rows_backward = self._fused(steps.rows(x), training, activation, added, dx)
            return steps.sequences(y), steps.backward(rows_backward, y)
        x = self._array(op, "x", x, "(N, C)", (None, self.n_in))
        if residual is not None:
            residual = self._array(op, "residual", residual, "(N, C_out)", (len(x), self.n_out))
        activations = [*self._activations[:-1], activation]
        y, backward = run(op, x, self._weights, self._biases, activations, residual)
        return y, lambda dy: backward(dy, *self._layers_of(self._grads))

    def predict(self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False) -> np.ndarray:
        if batch_size is not None:
            return super().predict(x, batch_size, logits=logits)
        # a single row costs less than the full check: arrays that are as they should be pass by
        if not (
            type(x) is np.ndarray
            and x.dtype is self.dtype
            and x.ndim == 2
            and x.shape[1] == self.n_in
            and x.flags.carray
            and type(self._params) is np.ndarray
        ):
            if self._carries(x):
                return gpu.here(self.predict(gpu.there(x), logits=logits))
            name = f"{type(self).__name__}.predict"
            if getattr(x, "ndim", 2) == 3:
                steps = Steps(name, x, self)
                return steps.sequences(self.predict(steps.rows(x), logits=logits))
            x = check.contiguous(self._array(name, "x", x, "(N, C)", (None, self.n_in)))
        out = empty((x.shape[0], self.n_out), x)
        table = self._logit_table if logits else self.table
        kernels(x).dense_chain_infer(x, table, self.activation_parameters, self._params, out)
        return out

    def compact(self) -> "DenseChain":
        """A new chain that gives the same, without the hidden units that read nothing or that nothing reads: their weights are all 0.

        A unit that reads nothing is the same for all rows, and goes into the next biases. Of each layer at least one unit stays.
        """
        return compacted(self)

    def _home(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._home(params, grads)
        self._weights, self._biases = self._layers_of(params)

    def _layers_of(self, flat: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray | None, ...]]:
        arrays = tuple(views(flat, self._shapes).values())
        return (arrays[::2], arrays[1::2]) if self._bias else (arrays, (None,) * len(arrays))

    def _draw(self, rng: np.random.Generator) -> None:
        for w in self._weights:
            w[...] = check.drawn(f"{type(self).__name__}: init", self._init(w.shape, rng), w)


class Dense(DenseChain):
    """One dense layer, n_in columns to n_out; its parameters are named "w" and "b"."""

    _name = "{array}"

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: str | tuple[str, float] = "identity",
        *,
        init: str | Callable[..., np.ndarray] = "he_uniform",
        dtype: Any = "float32",
        seed: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__([n_in, n_out], [activation], init=init, dtype=dtype, seed=seed, bias=bias)

    @property
    def w(self) -> np.ndarray:
        return self._weights[0]

    @property
    def b(self) -> np.ndarray | None:
        return self._biases[0]


def _activations(op: str, activation: Any, output: Any, layers: int) -> list[Activation]:
    if isinstance(activation, list):
        if output is not None:
            raise ValueError(f"{op}: output must be left out where activation is a list, whose last entry it is")
        return check.activations(op, activation, layers)
    hidden = check.activation(op, activation)
    return [hidden] * (layers - 1) + [check.activation(op, "identity" if output is None else output, "output")]
