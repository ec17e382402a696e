"""scikit-learn's MLPClassifier and MLPRegressor with fastgrad's arithmetic: an epoch is one compiled call, or a few.

They are subclasses of scikit-learn's classes, which do the rest: parameters, attributes, checks, initial weights, the order of rows and the
rule that ends training. With the same random_state the numbers are scikit-learn's, to rounding. fastgrad computes forward, loss, gradient
and update, in the dtype of X, float32 or float64. lbfgs is SciPy's, and gets loss and gradient from fastgrad. Where few values of X are not
0, in a sparse array or not, the first layer multiplies those alone.
"""

import warnings
from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import validate_data

from fastgrad.kernels import types
from fastgrad.sklearn.descent import Descent
from fastgrad.sklearn.problem import ACTIVATIONS, Problem, chain_of, dense, for_training, is_sparse_work

# rows that are predicted at a time, so that memory does not grow with them; bytes of a part of X that is copied to be dense
ROWS, COPIED = 8192, 1 << 24


class Fast:
    """Methods that replace scikit-learn's methods of the same names."""

    def _fit_stochastic(self: Any, X: Any, y: np.ndarray, sample_weight: Any, *rest: Any) -> None:
        *_, incremental = rest
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        data, validation = (X, y, sample_weight), (None, None, None)
        if self.early_stopping:
            data, validation = self._split(*data)
        problem = Problem(self, for_training(data[0], self.coefs_[0].dtype), *data[1:])
        problem.read_weights()
        problem.lend_weights()
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
        what = "Validation score" if self.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        if schedule.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0
        return False

    def _fit_lbfgs(self: Any, X: Any, y: np.ndarray, sample_weight: Any, *rest: Any) -> None:
        # SciPy's vectors are of float64
        self._problem = Problem(self, for_training(X, np.dtype(np.float64)), y, sample_weight)
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
        few, rows, dtype = is_sparse_work(X), ROWS, self.coefs_[0].dtype
        if not isinstance(X, np.ndarray):
            X = X.tocsr()
        if not few and not (isinstance(X, np.ndarray) and X.dtype == dtype and X.flags.c_contiguous):
            rows = min(ROWS, max(COPIED // (X.shape[1] * dtype.itemsize), 1))
        parts = [self._output(X[start : start + rows], few) for start in range(0, X.shape[0], rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _output(self: Any, X: Any, few: bool) -> np.ndarray:
        """The output of some rows, and the same bits for a sparse X as for one that is not."""
        dtype = self.coefs_[0].dtype
        x = for_training(X, dtype) if few else dense(X, dtype)
        activations = [ACTIVATIONS[self.activation]] * (len(self.coefs_) - 1) + [ACTIVATIONS[self.out_activation_]]
        y = chain_of(x, self.coefs_, self.intercepts_, activations)
        with np.errstate(over="ignore"):
            return np.exp(y) if self.out_activation_ == "exp" else y


class MLPClassifier(Fast, neural_network.MLPClassifier):
    """sklearn.neural_network.MLPClassifier with fastgrad's arithmetic, many times as fast.

    With the same random_state the numbers are scikit-learn's, to rounding. Parameters, methods and attributes are those
    of scikit-learn, whose documentation says more.

    Args:
        hidden_layer_sizes: The number of units of each hidden layer, a tuple.
        activation: Of the hidden layers: "identity", "logistic", "tanh" or "relu".
        solver: "adam", "sgd" or "lbfgs", which is SciPy's.
        alpha: The factor of the L2 term, which is divided by the number of rows of a batch.
        batch_size: Rows of a batch; "auto" is min(200, N).
        learning_rate: Of "sgd": "constant", "invscaling" or "adaptive".
        learning_rate_init: The first learning rate of "sgd" and "adam".
        power_t: The exponent of "invscaling".
        max_iter: The largest number of epochs, or of iterations of "lbfgs".
        shuffle: Shuffle the rows before each epoch.
        random_state: An integer, a RandomState, or None, which differs from run to run. It draws the first weights, the
            validation rows and the order of rows.
        tol: The least improvement of loss or score; smaller ones count as none.
        verbose: Print the loss of each epoch.
        warm_start: Go on from the weights of the fit before.
        momentum: The factor of the velocity of "sgd", from 0 to 1.
        nesterovs_momentum: Nesterov's momentum in "sgd".
        early_stopping: Hold rows back, and stop when their score no longer improves.
        validation_fraction: The share of rows that early_stopping holds back.
        beta_1: The decay of the first moment of "adam", from 0 and below 1.
        beta_2: The decay of the second moment of "adam", from 0 and below 1.
        epsilon: What "adam" adds to the root of the second moment.
        n_iter_no_change: How many epochs in a row may bring no improvement.
        max_fun: The largest number of function calls of "lbfgs".

    Raises:
        ValueError: From fit and partial_fit, where a gradient is not finite: the weights stay as they were before that
            batch. With early_stopping fit ends with the best weights before instead.

    Example:
        >>> from fastgrad.sklearn import MLPClassifier
        >>> X, y = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.array([0, 1, 1, 0])
        >>> classifier = MLPClassifier((8,), solver="lbfgs", random_state=0).fit(X, y)
        >>> classifier.predict(X).tolist()
        [0, 1, 1, 0]
    """

    def _validate_input(self: Any, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """X and one-hot labels, as bool: of class numbers in an array without scikit-learn's search for what kind of labels they are,
        which takes longer than some fits' epochs.
        """
        expected = hasattr(self, "classes_") and (self.warm_start or incremental)
        if not expected and type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "iu":
            classes, numbers = np.unique(y, return_inverse=True)
            # of others scikit-learn has something to say
            if 2 < len(classes) <= len(y) / 2:
                kinds = {"accept_sparse": ["csr", "csc"], "dtype": (np.float64, np.float32)}
                X, _ = validate_data(self, X, y, **kinds, reset=reset)
                binarizer = self._label_binarizer = LabelBinarizer()
                binarizer.classes_, binarizer.y_type_, binarizer.sparse_input_ = classes, "multiclass", False
                self.classes_ = classes
                return X, numbers[:, None] == np.arange(len(classes))
        return super()._validate_input(X, y, incremental, reset)


class MLPRegressor(Fast, neural_network.MLPRegressor):
    """sklearn.neural_network.MLPRegressor with fastgrad's arithmetic, many times as fast.

    With the same random_state the numbers are scikit-learn's, to rounding. Parameters, methods and attributes are those
    of scikit-learn, whose documentation says more.

    Args:
        loss: "squared_error", or "poisson" for y from 0 on, whose output is exp of the last layer.
        hidden_layer_sizes: The number of units of each hidden layer, a tuple.
        activation: Of the hidden layers: "identity", "logistic", "tanh" or "relu".
        solver: "adam", "sgd" or "lbfgs", which is SciPy's.
        alpha: The factor of the L2 term, which is divided by the number of rows of a batch.
        batch_size: Rows of a batch; "auto" is min(200, N).
        learning_rate: Of "sgd": "constant", "invscaling" or "adaptive".
        learning_rate_init: The first learning rate of "sgd" and "adam".
        power_t: The exponent of "invscaling".
        max_iter: The largest number of epochs, or of iterations of "lbfgs".
        shuffle: Shuffle the rows before each epoch.
        random_state: An integer, a RandomState, or None, which differs from run to run. It draws the first weights, the
            validation rows and the order of rows.
        tol: The least improvement of loss or score; smaller ones count as none.
        verbose: Print the loss of each epoch.
        warm_start: Go on from the weights of the fit before.
        momentum: The factor of the velocity of "sgd", from 0 to 1.
        nesterovs_momentum: Nesterov's momentum in "sgd".
        early_stopping: Hold rows back, and stop when their score no longer improves.
        validation_fraction: The share of rows that early_stopping holds back.
        beta_1: The decay of the first moment of "adam", from 0 and below 1.
        beta_2: The decay of the second moment of "adam", from 0 and below 1.
        epsilon: What "adam" adds to the root of the second moment.
        n_iter_no_change: How many epochs in a row may bring no improvement.
        max_fun: The largest number of function calls of "lbfgs".

    Raises:
        ValueError: From fit and partial_fit, where a gradient is not finite: the weights stay as they were before that
            batch. With early_stopping fit ends with the best weights before instead.

    Example:
        >>> from fastgrad.sklearn import MLPRegressor
        >>> X = np.linspace(0.0, 1.0, 20)[:, None]
        >>> regressor = MLPRegressor(hidden_layer_sizes=(8,), solver="lbfgs", random_state=0).fit(X, 3 * X[:, 0])
        >>> regressor.score(X, 3 * X[:, 0]) > 0.99
        True
    """
