"""Data and settings for the scikit-learn estimators; scikit-learn's estimator beside fastgrad's, and their comparison."""

import numpy as np
from sklearn import neural_network
from sklearn.datasets import load_digits, make_multilabel_classification, make_regression

import fastgrad.sklearn as fast

ROWS = 300


def classes():
    x, y = load_digits(return_X_y=True)
    return x[:ROWS] / 16, y[:ROWS]


def two_classes():
    x, y = classes()
    return x, np.where(y > 4, "large", "small")


def labels():
    return make_multilabel_classification(ROWS, 6, n_classes=4, random_state=0)


def values():
    x, y = make_regression(ROWS, 8, n_targets=3, random_state=0)
    return x, y / 50


def value():
    x, y = values()
    return x, y[:, 0]


def counts():
    x, _ = values()
    return x, np.random.default_rng(0).poisson(np.exp(x[:, :2] / 3)).astype(float)


DATA = {
    "classes": ("MLPClassifier", classes, {}),
    "two classes": ("MLPClassifier", two_classes, {}),
    "labels": ("MLPClassifier", labels, {}),
    "value": ("MLPRegressor", value, {}),
    "values": ("MLPRegressor", values, {}),
    "counts": ("MLPRegressor", counts, {"loss": "poisson"}),
}
SGD = {"solver": "sgd", "learning_rate_init": 0.05}
SETTINGS = {
    "adam": {},
    "adam, all settings": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "alpha": 0.5, "batch_size": 32},
    "sgd": SGD,
    "sgd without momentum": {**SGD, "momentum": 0.0, "alpha": 0.5},
    "momentum": {**SGD, "nesterovs_momentum": False},
    "invscaling": {**SGD, "learning_rate": "invscaling", "power_t": 0.2},
    "adaptive": {**SGD, "learning_rate": "adaptive", "tol": 0.02, "n_iter_no_change": 2, "max_iter": 40},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 40},
    "early stopping, adaptive": {
        **SGD,
        "early_stopping": True,
        "learning_rate": "adaptive",
        "n_iter_no_change": 1,
        "max_iter": 40,
    },
    # from some iteration on its searches along a line go ways of their own, of the last bit
    "lbfgs": {"solver": "lbfgs", "alpha": 0.5, "max_iter": 4},
    "tanh": {"activation": "tanh"},
    "logistic": {"activation": "logistic"},
    "identity": {"activation": "identity", **SGD, "learning_rate_init": 0.001},
    "one wide layer": {"hidden_layer_sizes": 40, "shuffle": False},
}


def pair(kind, **settings):
    """scikit-learn's and ours."""
    settings = {"random_state": 0, "max_iter": 8, "hidden_layer_sizes": (20, 10), **settings}
    return getattr(neural_network, kind)(**settings), getattr(fast, kind)(**settings)


def assert_alike(theirs, ours, rtol=1e-8):
    for a, b in zip(theirs.coefs_ + theirs.intercepts_, ours.coefs_ + ours.intercepts_, strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
        assert a.dtype == b.dtype
    public = [name for name in vars(theirs) if name.endswith("_")]
    assert public == [name for name in vars(ours) if name.endswith("_")]
    for name in ("loss_", "loss_curve_", "best_loss_", "best_validation_score_", "validation_scores_"):
        a, b = getattr(theirs, name, None), getattr(ours, name, None)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(b, a, rtol=rtol)
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
