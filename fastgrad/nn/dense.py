"""DenseChain, dense layers that run as one call; and Dense, one layer."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.foreign_names import foreign_keywords
from fastgrad.core.random import generator
from fastgrad.functional.dense import run
from fastgrad.init.choice import checked_weights, init_function
from fastgrad.kernels.types import SIGMOID, SOFTMAX, Activation
from fastgrad.nn import summary
from fastgrad.nn.compaction import compact_chain
from fastgrad.nn.context import IDENTITY, ForwardContext, activation_name
from fastgrad.nn.model import Model, views
from fastgrad.nn.residual_layer import ResidualLayer, ResidualLayerBackward
from fastgrad.nn.sequence import TimeRows


@foreign_keywords
class DenseChain(ResidualLayer):
    """Dense layers in a row, which run as one call.

    y_0 = x, y_l+1 = act_l(y_l @ w_l + b_l)

    x is (N, sizes[0]) and y (N, sizes[-1]); of sequences (N, T, C) the layers are applied to every step. The parameters
    are named "0.w", "0.b", "1.w", ...; biases start at 0.

    Args:
        sizes: The number of columns of the inputs, of each hidden layer and of the outputs, each at least 1.
        activation: The activation of the hidden layers, a name or a pair of a name and its parameter; or a list of one
            for each layer, the last included.
        output: The activation of the last layer; None is "identity". Left out where activation is a list.
        init: The initial weights: a name of fg.init, a pair of a name and its option, or a function of (shape, rng).
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights; None as 0, or as the Sequential draws them that the chain becomes part
            of.
        bias: Whether the layers have biases.

    Raises:
        ValueError: A size is out of its range, there are fewer than two, or an activation, init or dtype is unknown.
        TypeError: sizes is no list or tuple, or one of it no integer.

    Example:
        >>> model = fg.nn.DenseChain([4, 8, 3], "tanh", "softmax", seed=0)
        >>> model.predict(np.zeros((2, 4), np.float32)).shape
        (2, 3)
        >>> list(model.parameters())
        ['0.w', '0.b', '1.w', '1.b']
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
        check.sequence(op, "sizes", sizes)
        if len(sizes) < 2:
            raise ValueError(f"{op}: sizes must have length at least 2, got {len(sizes)}")
        self._init = init_function(op, init)
        counts, layers = [check.count(op, f"sizes[{i}]", n) for i, n in enumerate(sizes)], len(sizes) - 1
        self._set_layers(counts, _activations(op, activation, output, layers), [bool(bias)] * layers, dtype, seed)
        self._start(generator(seed, type(self).__name__))

    def _set_layers(
        self, sizes: list[int], activations: list[Activation], has_bias: list[bool], dtype: Any, seed: int | None
    ) -> None:
        """Lay the layers out one after the other, with parameters of 0."""
        self.sizes, self._activations, self._has_bias = tuple(sizes), activations, has_bias
        self.n_in, self.n_out, self.output = sizes[0], sizes[-1], activations[-1]
        shapes: dict[str, tuple[int, ...]] = {}
        rows, offset = [], 0
        for layer, ((n_in, n_out), bias) in enumerate(zip(pairwise(sizes), has_bias, strict=True)):
            shapes[self._name.format(layer=layer, array="w")] = n_in, n_out
            b_offset = offset + n_in * n_out if bias else -1
            rows.append((n_in, n_out, offset, b_offset, activations[layer].code))
            if bias:
                shapes[self._name.format(layer=layer, array="b")] = (n_out,)
            offset += (n_in + bias) * n_out
        self.table = np.array(rows, np.int64)  # (L, 5), as in kernels/reference/training_step.py
        self._logit_table = self.table.copy()
        if self.output.code in (SOFTMAX, SIGMOID):
            self._logit_table[-1, 4] = IDENTITY.code
        self.activation_parameters = np.array([f.parameter for f in activations])  # (L,)
        Model.__init__(self, shapes, dtype, seed)

    def __str__(self) -> str:
        return summary.table(self)

    def _settings(self) -> dict[str, Any]:
        *hidden, output = map(activation_name, self._activations)
        same = len({*hidden}) < 2
        return {
            "sizes": list(self.sizes),
            "activation": (hidden or ["relu"])[0] if same else [*hidden, output],
            "output": output if same and output != "identity" else None,
            "bias": self._has_bias[0],
            "dtype": self.dtype,
        }

    def _rows(self, name: str, shape: summary.Shape) -> tuple[list[summary.Row], summary.Shape]:
        rows = []
        for i, (w, b, activation) in enumerate(zip(self._weights, self._biases, self._activations, strict=True)):
            settings = {"n_in": w.shape[0], "n_out": w.shape[1], "activation": activation_name(activation)}
            layer = summary.call(Dense, settings | {"bias": b is not None, "dtype": self.dtype})
            shape = (*shape[:-1], w.shape[1])
            rows.append(summary.Row(summary.join(name, str(i)), layer, shape, w.size + (0 if b is None else b.size)))
        return rows, shape

    @property
    def _chain(self) -> "DenseChain":
        return self

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        """The weights of each layer (C_in, C_out), views of params."""
        return self._weights

    @property
    def biases(self) -> tuple[np.ndarray | None, ...]:
        """The bias of each layer (C_out,), views of params; None for a layer without one."""
        return self._biases

    def _forward_residual(
        self, x: np.ndarray, context: ForwardContext, activation: Activation, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        op = type(self).__name__
        if getattr(x, "ndim", 2) == 3:
            steps = TimeRows(op, x, self)
            added = None if residual is None else steps.rows(residual)
            y, rows_backward = self._forward_residual(steps.rows(x), context, activation, added)
            return steps.sequences(y), steps.backward(rows_backward, y)
        x = self._array(op, "x", x, "(N, C)", (None, self.n_in))
        if residual is not None:
            residual = self._array(op, "residual", residual, "(N, C_out)", (len(x), self.n_out))
        activations = [*self._activations[:-1], activation]
        outputs, backward = run(op, x, self._weights, self._biases, activations, residual)
        for w, y, f in zip(self._weights, outputs, activations, strict=True) if context.observer else ():
            context.observe(w, y, f)
        return outputs[-1], lambda dy: backward(dy, *self._gradients)

    def predict(self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False) -> np.ndarray:
        if batch_size is not None:
            return super().predict(x, batch_size, logits=logits)
        # for a single row the full check costs more than the kernel, so the usual arrays skip it
        if not (
            type(x) is np.ndarray
            and x.dtype is self.dtype
            and x.ndim == 2
            and x.shape[1] == self.n_in
            and x.flags.carray
            and type(self._params) is np.ndarray
        ):
            if self._needs_copy_to_gpu(x):
                return device.to_host(self.predict(device.to_gpu(x), logits=logits))
            name = f"{type(self).__name__}.predict"
            if getattr(x, "ndim", 2) == 3:
                steps = TimeRows(name, x, self)
                return steps.sequences(self.predict(steps.rows(x), logits=logits))
            x = check.contiguous(self._array(name, "x", x, "(N, C)", (None, self.n_in)))
        out = empty((x.shape[0], self.n_out), x)
        table = self._logit_table if logits else self.table
        kernels(x).dense_chain_infer(x, table, self.activation_parameters, self._params, out)
        return out

    def compact(self) -> "DenseChain":
        """A new chain with the same outputs, without the hidden units that pruning has cut off.

        Those are units whose incoming weights or whose outgoing weights are all 0. A unit without incoming weights has
        the same output for all rows, which is added to the next biases. At least one unit of each layer stays. Outputs
        are equal up to rounding.

        Returns:
            A DenseChain with the masks of the weights that are left.

        Example:
            >>> model = fg.nn.DenseChain([4, 8, 3], seed=0)
            >>> masks = fg.prune(model, amount=0.5, units=True)
            >>> model.compact().sizes
            (4, 4, 3)
        """
        return compact_chain(self, DenseChain)

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        super()._bind_parameters(params, grads)
        self._weights, self._biases = self._layers_of(params)
        self._gradients = self._layers_of(grads)

    def _layers_of(self, flat: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray | None, ...]]:
        arrays = iter(views(flat, self._shapes).values())
        pairs = [(next(arrays), next(arrays) if bias else None) for bias in self._has_bias]
        return tuple(w for w, _ in pairs), tuple(b for _, b in pairs)

    def _draw(self, rng: np.random.Generator) -> None:
        for w in self._weights:
            w[...] = checked_weights(type(self).__name__, self._init(w.shape, rng), w)


@foreign_keywords
class Dense(DenseChain):
    """A dense layer.

    y = act(x @ w + b)

    x is (N, n_in) and y (N, n_out); of sequences (N, T, C) the layer is applied to every step. Neighbouring dense
    layers of a Sequential run as one call. The parameters are named "w" and "b"; b starts at 0.

    Args:
        n_in: The number of columns of the inputs, at least 1.
        n_out: The number of columns of the outputs, at least 1.
        activation: The name of an activation, or a pair of a name and its parameter.
        init: The initial weights: a name of fg.init, a pair of a name and its option, or a function of (shape, rng).
        dtype: "float32" or "float64", of parameters and inputs.
        seed: The seed of the initial weights; None as 0, or as the Sequential draws them that the layer becomes part
            of.
        bias: Whether there is a b.

    Raises:
        ValueError: A number is out of its range, or activation, init or dtype is unknown.
        TypeError: A number is no integer.

    Example:
        >>> layer = fg.nn.Dense(4, 3, "relu", dtype="float64", seed=0)
        >>> y, backward = layer.forward(np.ones((2, 4)), training=True)
        >>> dx = backward(np.ones((2, 3)))
        >>> y.shape, dx.shape, layer.gradients()["w"].shape
        ((2, 3), (2, 4), (4, 3))
    """

    _name = "{array}"
    # a layer prints itself as one line
    __str__, _settings, _rows = Model.__repr__, Model._settings, Model._rows

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
        """The weights (n_in, n_out), a view of params."""
        return self._weights[0]

    @property
    def b(self) -> np.ndarray | None:
        """The bias (n_out,), a view of params, or None."""
        return self._biases[0]


def _activations(op: str, activation: Any, output: Any, layers: int) -> list[Activation]:
    if isinstance(activation, list):
        if output is not None:
            raise ValueError(f"{op}: output must be left out where activation is a list, whose last entry it is")
        return check.activations(op, activation, layers)
    hidden = check.activation(op, activation)
    return [hidden] * (layers - 1) + [check.activation(op, "identity" if output is None else output, "output")]
