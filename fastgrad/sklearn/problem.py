"""What an estimator of scikit-learn is trained on: a chain with its weights, the data, and the loss."""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import xlogy

from fastgrad.backend import backend, kernels
from fastgrad.chains import DenseChain
from fastgrad.kernels import names
from fastgrad.memory import empty
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
    """A loss of ours, and how many times as large scikit-learn's loss and its gradient are."""

    loss: str
    loss_factor: float
    gradient_factor: float


def link_of(estimator: Any) -> Link:
    """scikit-learn takes no mean over outputs, but of squares, and there not in the gradient; and it halves them."""
    n = estimator.n_outputs_
    return {
        "softmax": Link("cross_entropy", 1, 1),
        "logistic": Link("binary_cross_entropy", n, n),
        "identity": Link("mse", 0.5, 0.5 * n),
        "exp": Link("poisson_nll", n, n),
    }[estimator.out_activation_]


def dense(X: Any, dtype: np.dtype) -> np.ndarray:
    """X (N, C), which may be sparse, as a C-contiguous array."""
    return np.ascontiguousarray(X if isinstance(X, np.ndarray) else X.toarray(), dtype)


# the share of x's values that may be not 0 for the CPU's products of those alone to be faster: with a quarter they were at no width slower
FEW = 0.25


def for_training(X: Any, dtype: np.dtype) -> np.ndarray | names.Nonzeros:
    """X (N, C), which may be sparse, by what is not 0 in it, where that is little and the CPU trains; else as `dense`."""
    if backend() != "cpu" or (not isinstance(X, np.ndarray) and X.nnz > FEW * X.shape[0] * X.shape[1]):
        return dense(X, dtype)
    if isinstance(X, np.ndarray):
        from fastgrad.kernels.cpu.sparse import compressed

        x = dense(X, dtype)
        found = compressed(x, FEW)
        return x if found is None else found
    rows = X.tocsr()
    # a copy before it is looked at: another thread may write to what the caller has, and what it knows of itself may no longer be so
    rows = type(rows)((rows.data, rows.indices, rows.indptr), shape=rows.shape, copy=True)
    rows.check_format(full_check=True)
    rows.sum_duplicates()
    columns = rows.indices.astype(np.int32, copy=False)
    return names.Nonzeros(rows.indptr.astype(np.int64), columns, np.ascontiguousarray(rows.data, dtype), X.shape[1])


class Problem:
    """x (N, C), an array or names.Nonzeros, and y (N, K) of an estimator, with sample_weight (N,) or None, and a chain with the
    estimator's weights.
    """

    def __init__(self, estimator: Any, x: np.ndarray | names.Nonzeros, y: np.ndarray, sample_weight: Any) -> None:
        self.estimator, self.link = estimator, link_of(estimator)
        self.x = x
        self.target = y.argmax(axis=1) if self.link.loss == "cross_entropy" else np.ascontiguousarray(y, x.dtype)
        self.row_weights = None if sample_weight is None else np.ascontiguousarray(sample_weight, x.dtype)
        # of each row, what scikit-learn's loss has that no weight changes: of rates it is a deviance, 0 at the best
        self.constant = (xlogy(y, y) - y).sum(axis=1) if self.link.loss == "poisson_nll" else None
        hidden, output = ACTIVATIONS[estimator.activation], ACTIVATIONS[estimator.out_activation_]
        sizes = [x.shape[1], *(len(b) for b in estimator.intercepts_)]
        self.chain = DenseChain(sizes, hidden, output, init="zeros", dtype=x.dtype)

    def read_weights(self) -> None:
        ours: Any = self.chain.weights + self.chain.biases
        for to, of in zip(ours, self.estimator.coefs_ + self.estimator.intercepts_, strict=True):
            to[...] = of

    def lend_weights(self) -> None:
        """From now on the estimator's weights are views of the chain's."""
        self.estimator.coefs_, self.estimator.intercepts_ = list(self.chain.weights), list(self.chain.biases)

    def epoch(
        self, order: np.ndarray, batch_size: int, optimizer: SGD | Adam, state: np.ndarray, updates: int
    ) -> tuple[int, int, np.ndarray]:
        """Updates on batches by `order`, after so many others: (status, batches done, scikit-learn's loss of each)."""
        starts = np.arange(0, len(order), batch_size)
        chain, hyper, record = self.chain, optimizer.hyper, np.zeros((len(starts), 3))
        gathered = 0 if isinstance(self.x, names.Nonzeros) else chain.n_in
        work = empty((names.workspace_size((gathered, *chain.sizes[1:]), batch_size),), chain.dtype)
        net = chain.table, chain.activation_parameters, names.LOSSES[self.link.loss], chain.params, chain.grads, work
        settings = optimizer.code, state, hyper, np.inf, None, None, updates
        rates, l2 = np.full(len(starts), hyper[0]), float(self.estimator.alpha) / self.link.gradient_factor
        status, done = kernels().dense_chain_epoch(
            self.x, self.target, order, batch_size, rates, *net, *settings, record, self.row_weights, l2
        )
        losses = self.link.loss_factor * record[:, 0] + self._rest(order, starts, record[:, 2])
        return status, int(done), losses

    def _rest(self, order: np.ndarray, starts: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """What scikit-learn's loss of each batch has beside ours: the penalty, from all weights' squares, and what no weight changes."""
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
        still, chain = SGD(0.0), self.chain
        *_, (loss,) = self.epoch(
            np.arange(len(self.x)), len(self.x), still, np.empty((0, chain.params.size), chain.dtype), 0
        )
        gradients = [g * self.link.gradient_factor for g in chain.gradients().values()]
        return float(loss), gradients[::2], gradients[1::2]
