"""MLPClassifier and MLPRegressor: scikit-learn's estimators with fastgrad's arithmetic, which is in mlp.py."""

from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import validate_data

from fastgrad.sklearn.mlp import CompiledMLP


class MLPClassifier(CompiledMLP, neural_network.MLPClassifier):
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
        """X and one-hot labels, as bool.

        Of class numbers in an array scikit-learn's search for the kind of labels is left out, which takes longer than some fits' epochs.
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


class MLPRegressor(CompiledMLP, neural_network.MLPRegressor):
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
