"""Model, the base of all layers: parameters in one flat array, their gradients in another, and named views into both."""

import zlib
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from fastgrad.core import check, device
from fastgrad.nn import summary
from fastgrad.nn.context import IDENTITY, Backward, ForwardContext, activation_name


class Model:
    """The base class of all layers and models: named parameters in one flat array, and their gradients in another.

    Write into the views of the parameters (`dense.w[...] = w`), not over them. Subclasses are made by their own
    arguments. print(model) is a table of the layers of a model, and one line of a single layer.

    Args:
        shapes: The shape of each parameter by name, in the order in which they lie in params.
        dtype: "float32" or "float64".
        seed: The seed of the initial weights; None as 0.

    Raises:
        ValueError: dtype is another one.

    Example:
        >>> model = fg.nn.Dense(4, 3, seed=0)
        >>> isinstance(model, fg.nn.Model), model.params.shape
        (True, (15,))
        >>> print(model)
        Dense(4, 3)
        >>> {name: array.shape for name, array in model.parameters().items()}
        {'w': (4, 3), 'b': (3,)}
    """

    # channels in and out; None for any number, or where it depends on the images
    n_in: int | None
    n_out: int | None
    # whether the number of channels stays
    keeps_width = False
    # the activation of the output
    output = IDENTITY
    # whether it takes sequences (N, T, C), with lengths and states
    recurrent = False
    # whether it takes images (N, H, W, C)
    images = False
    # whether it makes one row of each sequence or image
    pools = False
    # whether it reads sequences from their ends too, so that they cannot be run window by window
    reads_ahead = False
    # the chain of a model of dense layers alone; None for any other
    _chain: Any = None
    # the pruning mask of params, flat (P,); None if nothing is pruned
    _mask: np.ndarray | None = None

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: Any, seed: int | None) -> None:
        self.dtype = check.dtype(type(self).__name__, dtype)
        self.seed = seed
        # the kind of container that it is part of
        self.container_type = ""
        self._shapes = shapes
        size = sum(prod(shape) for shape in shapes.values())
        self._bind_parameters(np.zeros(size, self.dtype), np.zeros(size, self.dtype))

    @property
    def params(self) -> np.ndarray:
        """All parameters, flat (P,)."""
        return self._params

    @property
    def grads(self) -> np.ndarray:
        """The gradients of all parameters after the last backward, flat (P,)."""
        return self._grads

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters by name.

        Returns:
            A dictionary of views of params: writing into them changes the model.
        """
        return views(self._params, self._shapes)

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients by the parameters' names.

        Returns:
            A dictionary of views of grads, which the last backward filled.
        """
        return views(self._grads, self._shapes)

    def to(self, backend: str) -> "Model":
        """Move the model to the GPU or to the host. Earlier views of its arrays are not its parameters any more.

        A Trainer moves its model if the chosen backend is "cuda". A model on a GPU takes arrays on that GPU; predict
        also takes NumPy arrays, and then returns a NumPy array.

        Args:
            backend: "cuda" for the GPU, or "cpu" for the host.

        Returns:
            The model itself.

        Raises:
            ValueError: backend is another one, or the model is part of another.
            BackendError: The backend "cuda" cannot run here.

        Example:
            >>> model = fg.nn.Dense(4, 3).to("cpu")
            >>> model.on_gpu
            False
        """
        check.choice("Model.to", "backend", backend, ("cpu", "cuda"))
        if self.container_type:
            raise ValueError(f"Model.to: the model is part of a {self.container_type}; move that")
        if (backend == "cpu") == self.on_gpu:
            move = device.to_host if backend == "cpu" else device.to_gpu
            params, grads, mask = move(self._params), move(self._grads), self._mask
            self._move_statistics(move)
            self._bind_parameters(params, grads)
            self._set_mask(None if mask is None else move(mask))
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether the model's arrays are on a GPU, and not NumPy's."""
        return type(self._params) is not np.ndarray

    def masks(self) -> dict[str, np.ndarray]:
        """The pruning masks by the parameters' names.

        Returns:
            A dictionary of arrays of bool, False where a value is pruned; empty if nothing is pruned.
        """
        return {} if self._mask is None else views(self._mask, self._shapes)

    def statistics(self) -> dict[str, np.ndarray]:
        """The arrays other than parameters that training changes: the running means and variances of batch norms.

        Returns:
            A dictionary of arrays by name.
        """
        return {}

    def forward(self, x: np.ndarray, training: bool = False, *, logits: bool = False) -> tuple[np.ndarray, Backward]:
        """The output, and the function that computes the gradients from it.

        Args:
            x: The inputs, of the model's dtype and on its device: rows (N, C), sequences (N, T, C) or images (N, H, W,
                C).
            training: Whether batch norm takes the batch's statistics, and moves the running ones, and dropout drops.
                The backward of an LSTM or a GRU then runs once only: it reuses the memory of what it reads.
            logits: Leave out a last softmax or sigmoid.

        Returns:
            (y, backward). backward(dy) overwrites the gradients and returns dx.

        Raises:
            ValueError: A shape does not fit the model. Then its statistics are as before.
            TypeError: x is no array, or of another dtype or device than the model.

        Example:
            >>> model = fg.nn.Dense(2, 1, dtype="float64", seed=0)
            >>> y, backward = model.forward(np.ones((3, 2)), training=True)
            >>> dx = backward(np.ones((3, 1)))
            >>> model.gradients()["w"].tolist()
            [[3.0], [3.0]]
        """
        raise NotImplementedError

    def predict(self, x: np.ndarray, batch_size: int | None = None, *, logits: bool = False) -> np.ndarray:
        """The output alone. Threads may call it at the same time.

        Args:
            x: The inputs, of the model's dtype: as of forward; on a GPU or NumPy's.
            batch_size: Compute so many rows at a time; None computes all at once.
            logits: Leave out a last softmax or sigmoid.

        Returns:
            y, a new array.

        Raises:
            ValueError: A shape does not fit the model, or batch_size is below 1.
            TypeError: x is no array, or of another dtype than the model.

        Example:
            >>> fg.nn.Dense(4, 3).predict(np.zeros((2, 4), np.float32)).shape
            (2, 3)
        """
        if self._needs_copy_to_gpu(x):
            return device.to_host(self.predict(device.to_gpu(x), batch_size, logits=logits))
        if batch_size is None:
            return self.forward(x, logits=logits)[0]
        return np.concatenate([self.predict(x[rows], logits=logits) for rows in self._batches(x, batch_size)])

    def _needs_copy_to_gpu(self, x: Any) -> bool:
        """Whether x must be copied to the GPU: a NumPy array, for a model on a GPU."""
        return isinstance(x, np.ndarray) and self.on_gpu

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.predict(x)

    def _batches(self, x: np.ndarray, batch_size: int) -> list[slice]:
        op = f"{type(self).__name__}.predict"
        check.place(op, "x", x)
        batch_size = check.count(op, "batch_size", batch_size, most=None)
        return [slice(start, start + batch_size) for start in range(0, max(len(x), 1), batch_size)]

    def _array(self, op: str, name: str, value: Any, form: str, shape: Sequence[int | None]) -> np.ndarray:
        """value checked by check.array, of the model's dtype and on its device."""
        return check.array(op, name, value, form, shape, self._params, of_model=True)

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any, Backward]:
        """(y, state, backward). Without want_dx backward may return anything. For packed rows y is packed rows, unless the model pools."""
        y, backward = self.forward(x, context.training, logits=context.logits)
        return y, None, backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, Any]:
        """(y, state), with nothing kept for backward."""
        return self.predict(x, logits=context.logits), None

    def _generators(self) -> list[np.random.Generator]:
        """The random generators that training draws from."""
        return []

    def _bind_parameters(self, params: np.ndarray, grads: np.ndarray) -> None:
        self._params, self._grads = params, grads

    def _set_mask(self, mask: np.ndarray | None) -> None:
        """Set the pruning mask (P,), or None."""
        self._mask = mask

    def _move_statistics(self, move: Callable[[Any], Any]) -> None:
        """Move what `statistics` returns."""

    def _draw(self, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def _start(self, rng: np.random.Generator) -> None:
        self._draw(rng)
        self._drawn = zlib.crc32(self._params.data)

    def _restart(self, rng: np.random.Generator) -> None:
        """Draw the weights again from the owner's generator, unless a seed was given or they were changed since."""
        if self.seed is None and zlib.crc32(self._params.data) == self._drawn:
            self._start(rng)

    def __repr__(self) -> str:
        return summary.call(type(self), self._settings())

    def _settings(self) -> dict[str, Any]:
        """The arguments of the call that makes such a model, by name, and perhaps more: what repr shows."""
        activation = activation_name(self.output)
        return {"activation": activation, "bias": "b" in self._shapes, "n": vars(self).get("n_in"), **vars(self)}

    def _rows(self, name: str, shape: summary.Shape) -> tuple[list[summary.Row], summary.Shape]:
        """The rows of a table of layers, and the shape of the output. shape: that of the input."""
        shape = summary.output_shape(self, shape)
        return [summary.Row(name, repr(self), shape, self.params.size)], shape

    def __getstate__(self) -> dict[str, Any]:
        # left out of copies and pickles: views that are copied are no views of the flat arrays, and a copy is part of no container
        rebuilt = "_weights", "_biases", "_gradients", "_plan", "_chain", "container_type"
        return {name: value for name, value in vars(self).items() if name not in rebuilt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # an unpickled dtype is another object than that of arrays, and predict compares objects
        vars(self).update(state, dtype=np.dtype(state["dtype"].name), container_type="")
        self._bind_parameters(self._params, self._grads)
        self._set_mask(self._mask)


def views(flat: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Views of these shapes into flat, one after the other."""
    found, offset = {}, 0
    for name, shape in shapes.items():
        size = prod(shape)
        found[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return found
