"""Problem: the data, the chain of dense layers and the loss of a scikit-learn estimator; its epochs and its gradient."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.special import xlogy

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import backend, kernels
from fastgrad.core.pace import Pace
from fastgrad.functional.dense import dense as dense_layer
from fastgrad.functional.dense import dense_chain
from fastgrad.kernels import types
from fastgrad.nn.dense import DenseChain
from fastgrad.optim import SGD, Adam

# ours by scikit-learn's name; the exp of its Poisson regression is part of the loss
ACTIVATIONS = {
    "identity": "identity",
    "logistic": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "softmax": "softmax",
    "exp": "identity",
}


class Link(NamedTuple):
    """A loss of fastgrad, and the factors by which scikit-learn's loss and its gradient are larger."""

    loss: str
    loss_factor: float
    gradient_factor: float


def link_of(estimator: Any, n: int) -> Link:
    """The loss of an estimator with n outputs.

    Of elementwise losses fastgrad takes the mean over the outputs, scikit-learn the sum. Of squares scikit-learn's loss is the mean, but
    its gradient that of the sum; both are halved.
    """
    return {
        "softmax": Link("cross_entropy", 1, 1),
        "logistic": Link("binary_cross_entropy", n, n),
        "identity": Link("mse", 0.5, 0.5 * n),
        "exp": Link("poisson_nll", n, n),
    }[estimator.out_activation_]


# the largest share of values not 0 with which the CPU multiplies those alone: with a quarter it was at no width slower
MAX_SHARE = 0.25


def dense(X: Any, dtype: np.dtype) -> np.ndarray:
    """X (N, C), which may be sparse, as a C-contiguous array."""
    return np.ascontiguousarray(X if isinstance(X, np.ndarray) else X.toarray(), dtype)


def is_sparse_work(X: Any) -> bool:
    """Whether X (N, C) is sparse and has so few values that are not 0 that they alone are worked on."""
    return not isinstance(X, np.ndarray) and backend() == "cpu" and X.nnz <= MAX_SHARE * X.shape[0] * X.shape[1]


def training_rows(X: Any, dtype: np.dtype) -> np.ndarray | types.Nonzeros:
    """X (N, C), which may be sparse: as Nonzeros if the backend is "cpu" and few values are not 0, else as `dense`."""
    if backend() != "cpu" or not (isinstance(X, np.ndarray) or is_sparse_work(X)):
        return dense(X, dtype)
    if isinstance(X, np.ndarray):
        from fastgrad.kernels.cpu.sparse import compressed

        x = dense(X, dtype)
        nonzeros = compressed(x, MAX_SHARE)
        return x if nonzeros is None else nonzeros
    rows = X.tocsr()
    # a copy before it is looked at: another thread may write to what the caller has, and what it knows of itself may no longer be so
    rows = type(rows)((rows.data, rows.indices, rows.indptr), shape=rows.shape, copy=True)
    rows.check_format(full_check=True)
    rows.sum_duplicates()
    columns = rows.indices.astype(np.int32, copy=False)
    return types.Nonzeros(rows.indptr.astype(np.int64), columns, np.ascontiguousarray(rows.data, dtype), X.shape[1])


def chain_of(x: np.ndarray | types.Nonzeros, weights: list, biases: list, activations: list) -> np.ndarray:
    """y (N, K) of a chain of dense layers."""
    if isinstance(x, types.Nonzeros):
        from fastgrad.kernels.cpu.sparse import product

        w = check.contiguous(
            check.array("dense_chain", "weights[0]", weights[0], "(C_in, C_out)", (x.shape[1], None), x.dtype)
        )
        b = check.contiguous(check.array("dense_chain", "biases[0]", biases[0], "(C_out,)", w.shape[1:], x.dtype))
        z = empty((len(x), w.shape[1]), x.dtype)
        product(x, w, b, z)
        # the rest of the layer is one of no columns, to which z is added
        rows, columns = np.empty((len(x), 0), x.dtype), np.empty((0, w.shape[1]), x.dtype)
        x, _ = dense_layer(rows, columns, activation=activations[0], residual=z)
        weights, biases, activations = weights[1:], biases[1:], activations[1:]
    return dense_chain(x, weights, biases, activations)[0] if weights else x


def checked_sizes(estimator: Any, x: np.ndarray | types.Nonzeros, y: np.ndarray, sample_weight: Any) -> list[int]:
    """The widths of the chain: columns of x, and outputs of each layer. Raises where weights, x, y or sample_weight do not fit."""
    op, coefs, intercepts = type(estimator).__name__, estimator.coefs_, estimator.intercepts_
    hidden = np.atleast_1d(estimator.hidden_layer_sizes).tolist()
    sizes = [x.shape[1], *(len(b) for b in intercepts)]
    columns = y.shape[1]
    # scikit-learn has taken over y's already
    estimator.n_outputs_ = sizes[-1]
    for l, (w, shape) in enumerate(zip(coefs, pairwise(sizes), strict=False)):
        if w.shape != shape:
            raise ValueError(f"{op}: coefs_[{l}] must be {shape}, got {w.shape}")
    # other widths scikit-learn passes over, but where lbfgs cuts its vector by them
    exact = estimator.solver == "lbfgs"
    if not len(hidden) + 1 == len(coefs) == len(intercepts) or (exact and hidden != sizes[1:-1]):
        raise ValueError(
            f"{op}: hidden_layer_sizes must be {tuple(sizes[1:-1])}, those of the weights that training goes on from, got {tuple(hidden)}"
        )
    if columns != sizes[-1] and (exact or columns != 1):
        raise ValueError(
            f"{op}: y must have {sizes[-1]} outputs as the weights that training goes on from, got {columns}"
        )
    if y.dtype.kind not in "biuf":
        raise TypeError(f"{op}: y must be numbers, got {y.dtype}")
    if len(y) != len(x) or not (sample_weight is None or sample_weight.shape == (len(x),)):
        raise ValueError(f"{op}: y and sample_weight must have {len(x)} rows as X")
    estimator.n_outputs_ = columns
    return sizes


class Problem:
    """The data of an estimator, x (N, C), an array or types.Nonzeros, y (N, K) and sample_weight (N,) or None, and a chain.

    The chain has the estimator's layers; read_weights copies its weights.
    """

    def __init__(self, estimator: Any, x: np.ndarray | types.Nonzeros, y: np.ndarray, sample_weight: Any) -> None:
        sizes = checked_sizes(estimator, x, y, sample_weight)
        # scikit-learn's arithmetic takes one column of y for that of every output
        y = np.broadcast_to(y, (len(x), sizes[-1]))
        self.estimator, self.link = estimator, link_of(estimator, sizes[-1])
        self.x = x
        with np.errstate(over="ignore"):
            self.target = y.argmax(axis=1) if self.link.loss == "cross_entropy" else np.ascontiguousarray(y, x.dtype)
        self.row_weights = None if sample_weight is None else np.ascontiguousarray(sample_weight, x.dtype)
        # of each row, what scikit-learn's loss has that no weight changes: of rates it is a deviance, 0 at the best
        self.constant = (xlogy(y, y) - y).sum(axis=1) if self.link.loss == "poisson_nll" else None
        hidden, output = ACTIVATIONS[estimator.activation], ACTIVATIONS[estimator.out_activation_]
        self.chain = DenseChain(sizes, hidden, output, init="zeros", dtype=x.dtype)
        self.pace: Pace | None = None

    def read_weights(self) -> None:
        """Copy the estimator's weights into the chain."""
        arrays: Any = self.chain.weights + self.chain.biases
        for array, values in zip(arrays, self.estimator.coefs_ + self.estimator.intercepts_, strict=True):
            array[...] = values

    def share_weights(self) -> None:
        """Make the estimator's weights views of the chain's."""
        e, weights, biases = self.estimator, list(self.chain.weights), list(self.chain.biases)
        if e._best_coefs is e.coefs_:
            # after early stopping scikit-learn goes on in the arrays of the best weights
            e._best_coefs, e._best_intercepts = weights, biases
        e.coefs_, e.intercepts_ = weights, biases

    def epoch(
        self, order: np.ndarray, batch_size: int, optimizer: SGD | Adam, state: np.ndarray, count: np.ndarray
    ) -> tuple[int, int, np.ndarray]:
        """An update for each batch of rows, in the order `order`: (status, batches done, scikit-learn's loss of each batch).

        Each update adds 1 to count (1,).
        """
        starts = np.arange(0, len(order), batch_size)
        chain, hyper, record = self.chain, optimizer.hyper, np.zeros((len(starts), 3))
        net, rule = self._net(batch_size), types.UpdateRule(optimizer.code, state, hyper, np.inf, None, None)
        rates = np.full(len(starts), hyper[0])
        # all batches of a fit have one size
        pace = self.pace = self.pace or Pace(6 * batch_size * chain.params.size)
        status, done = types.OK, 0
        while done < len(starts) and status == types.OK:
            # other backends look at signals in a call
            batches = pace.batches() if backend() == "cpu" else len(starts)
            rows, part = order[done * batch_size : (done + batches) * batch_size], slice(done, done + batches)
            status, updates = kernels().dense_chain_epoch(
                self.x, self.target, types.Batches(rows, batch_size, rates[part]), net, rule, int(count[0]), record[part],
                row_weights=self.row_weights, l2=self._l2, updates=count,
            )  # fmt: skip
            pace.measure(min(batches, len(starts) - done))
            done += int(updates)
        losses = self.link.loss_factor * record[:, 0] + self._rest(order, starts, record[:, 2])
        return status, done, losses

    def _rest(self, order: np.ndarray, starts: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """The terms of scikit-learn's loss of each batch that fastgrad's lacks.

        They are the L2 penalty, from the sum of squares of all weights, and a constant that no weight changes.
        """
        rest = float(self.estimator.alpha) / 2 * squares
        if self.row_weights is None and self.constant is None:
            return rest / np.minimum(starts[1] if len(starts) > 1 else len(order), len(order) - starts)
        rows = np.ones(len(order)) if self.row_weights is None else self.row_weights[order]
        weights = np.add.reduceat(rows, starts, dtype=np.float64)
        if self.constant is not None:
            rest += np.add.reduceat(rows * self.constant[order], starts, dtype=np.float64)
        return np.divide(rest, weights, out=np.zeros(len(starts)), where=weights != 0)

    def gradient(self) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """scikit-learn's loss of all data, and its gradients by coefs_ and by intercepts_, at the estimator's weights."""
        self.read_weights()
        n, record = len(self.x), np.zeros(2)
        kernels().dense_chain_gradients(
            self.x, self.target, self._net(n), record, row_weights=self.row_weights, l2=self._l2
        )
        (loss,) = self.link.loss_factor * record[:1] + self._rest(np.arange(n), np.zeros(1, np.int64), record[1:])
        gradients = [g * self.link.gradient_factor for g in self.chain.gradients().values()]
        return float(loss), gradients[::2], gradients[1::2]

    @property
    def _l2(self) -> float:
        return float(self.estimator.alpha) / self.link.gradient_factor

    def _net(self, batch_size: int) -> types.Net:
        """The chain for kernels, with scratch memory for batches of this many rows."""
        chain, gathered = self.chain, 0 if isinstance(self.x, types.Nonzeros) else self.chain.n_in
        work = empty((types.workspace_size((gathered, *chain.sizes[1:]), batch_size),), chain.dtype)
        loss = types.LOSSES[self.link.loss]
        return types.Net(chain.table, chain.activation_parameters, loss, chain.params, chain.grads, work)
