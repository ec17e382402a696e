"""CompiledMLP, what both estimators share: scikit-learn's private methods of training and prediction, by fastgrad's kernels.

scikit-learn's classes do the rest: parameters, attributes, checks, initial weights, the order of rows and the rule that ends training. With
the same random_state the numbers are scikit-learn's, to rounding. An epoch is one compiled call, or a few: forward, loss, gradient and
update, in the dtype of X, float32 or float64. lbfgs is SciPy's, and gets loss and gradient from fastgrad. Where few values of X are not 0,
in a sparse array or not, the first layer multiplies those alone.
"""

import warnings
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import validate_data

from fastgrad.kernels import types
from fastgrad.sklearn.descent import Descent
from fastgrad.sklearn.problem import ACTIVATIONS, Problem, chain_of, dense, is_sparse_work, training_rows

# rows that are predicted at a time, so that memory does not grow with them; bytes of a part of X that is copied to be dense
MAX_ROWS, MAX_COPY = 8192, 1 << 24


class CompiledMLP:
    """Mixin of both estimators: methods that replace scikit-learn's methods of the same names."""

    def _fit_stochastic(self: Any, X: Any, y: np.ndarray, sample_weight: Any, *rest: Any) -> None:
        *_, incremental = rest
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        data, validation = (X, y, sample_weight), (None, None, None)
        if self.early_stopping:
            data, validation = self._split(*data)
        problem = Problem(self, training_rows(data[0], self.coefs_[0].dtype), *data[1:])
        problem.read_weights()
        problem.share_weights()
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = Descent(self, problem)
        try:
            self._run_epochs(problem, validation, incremental)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts

    def _split(self: Any, X: Any, y: np.ndarray, sample_weight: Any) -> tuple[tuple, tuple]:
        """The three for training, and the three for validation, these with labels for y."""
        weights = [] if sample_weight is None else [sample_weight]
        parts = train_test_split(
            X,
            y,
            *weights,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        data, validation = ((*parts[side::2], None)[:3] for side in (0, 1))
        if validation[0].shape[0] < 2:
            raise ValueError(
                f"{type(self).__name__}: validation_fraction must leave at least 2 rows for the validation set, which is too small: "
                f"got {self.validation_fraction} of {len(y)}"
            )
        if is_classifier(self):
            validation = validation[0], self._label_binarizer.inverse_transform(validation[1]), validation[2]
        return data, validation

    def _run_epochs(self: Any, problem: Problem, validation: tuple, incremental: bool) -> None:
        n = len(problem.x)
        if self.batch_size != "auto" and self.batch_size > n:
            warnings.warn(
                f"batch_size {self.batch_size} is larger than the number of rows: all {n} make one batch", stacklevel=2
            )
        batch_size = min(200 if self.batch_size == "auto" else self.batch_size, n)
        order, sizes = np.arange(n), np.full(-(-n // batch_size), batch_size)
        sizes[-1] = n - batch_size * (len(sizes) - 1)
        self.n_iter_ = 0
        for _ in range(1 if incremental else self.max_iter):
            if self.shuffle:
                # what sklearn.utils.shuffle does, without its looking at the array
                shuffled = np.arange(n)
                self._random_state.shuffle(shuffled)
                order = order[shuffled]
            status, done, losses = self._optimizer.epoch(problem, order, batch_size)
            if status != types.OK and self.early_stopping:
                # scikit-learn makes the update and all those after it, and ends with the best weights before
                problem.chain.params[...] = np.nan
                losses[done + 1 :] = np.nan
            elif status != types.OK:
                raise ValueError(
                    f"{type(self).__name__}: the gradient of batch {done + 1} in epoch {self.n_iter_ + 1} is not finite, and was not "
                    "applied: X may have to be scaled, or learning_rate_init to be lower"
                )
            self.n_iter_ += 1
            self.t_ += n
            with np.errstate(invalid="ignore", over="ignore"):
                self.loss_ = float(losses @ sizes / n)
            self.loss_curve_.append(self.loss_)
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
            if self._ends(validation):
                return
        if not incremental:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _ends(self: Any, validation: tuple) -> bool:
        """Whether scikit-learn would stop after this epoch. If not, its schedule has set the rate for the next one."""
        self._update_no_improvement_count(self.early_stopping, *validation)
        schedule = self._optimizer.schedule
        schedule.iteration_ends(self.t_)
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        quantity = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{quantity} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        )
        if schedule.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0
        return False

    def _fit_lbfgs(self: Any, X: Any, y: np.ndarray, sample_weight: Any, *rest: Any) -> None:
        # SciPy's vectors are of float64
        self._problem = Problem(self, training_rows(X, np.dtype(np.float64)), y, sample_weight)
        try:
            super()._fit_lbfgs(X, y, sample_weight, *rest)  # type: ignore[misc]
        finally:
            del self._problem

    def _backprop(self: Any, *arguments: Any) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """Loss and gradients for SciPy."""
        return self._problem.gradient()

    def _forward_pass_fast(self: Any, X: Any, check_input: bool = True) -> np.ndarray:
        """The output (N, K), in the dtype of the weights."""
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        sparse, rows, dtype = is_sparse_work(X), MAX_ROWS, self.coefs_[0].dtype
        if not isinstance(X, np.ndarray):
            X = X.tocsr()
        if not sparse and not (isinstance(X, np.ndarray) and X.dtype == dtype and X.flags.c_contiguous):
            rows = min(MAX_ROWS, max(MAX_COPY // (X.shape[1] * dtype.itemsize), 1))
        parts = [self._output(X[start : start + rows], sparse) for start in range(0, X.shape[0], rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _output(self: Any, X: Any, sparse: bool) -> np.ndarray:
        """The output of some rows, and the same bits for a sparse X as for one that is not."""
        dtype = self.coefs_[0].dtype
        x = training_rows(X, dtype) if sparse else dense(X, dtype)
        activations = [ACTIVATIONS[self.activation]] * (len(self.coefs_) - 1) + [ACTIVATIONS[self.out_activation_]]
        y = chain_of(x, self.coefs_, self.intercepts_, activations)
        with np.errstate(over="ignore"):
            return np.exp(y) if self.out_activation_ == "exp" else y
