"""The estimators against scikit-learn's own of the same random_state, whose numbers they must find; and its conformance tests."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.7")

from scipy import sparse
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_data import (
    DATA,
    ROWS,
    SETTINGS,
    assert_alike,
    classes,
    pair,
    value,
)

import fastgrad.sklearn as fast
from fastgrad.sklearn.descent import Descent

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.pairwise
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_are_those_of_scikit_learn(data, settings, weighted):
    kind, make, options = DATA[data]
    x, y = make()
    weights = np.random.default_rng(1).random(ROWS) if weighted else None
    theirs, ours = pair(kind, **options, **SETTINGS[settings])
    theirs.fit(x, y, sample_weight=weights)
    ours.fit(x, y, sample_weight=weights)
    # lbfgs looks for its steps, which strays
    assert_alike(theirs, ours, 1e-5 if settings == "lbfgs" else 1e-8)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(theirs, method):
            expected, results = getattr(theirs, method)(x), getattr(ours, method)(x)
            assert results.dtype == expected.dtype
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(results, expected, rtol=1e-4 if settings == "lbfgs" else 1e-6, atol=1e-9)
            else:
                np.testing.assert_array_equal(results, expected)
    assert ours.score(x, y, weights) == pytest.approx(theirs.score(x, y, weights))


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_epoch_from_given_weights_is_scikit_learns(in_force, solver, dtype):
    x, y = classes()
    x = x.astype(dtype)
    theirs, ours = pair("MLPClassifier", solver=solver, shuffle=False, warm_start=True, max_iter=1, alpha=0.1)
    rng = np.random.default_rng(3)
    for estimator in (theirs, ours):
        estimator.fit(x, y)
    weights = [(rng.standard_normal(a.shape) / 5).astype(dtype) for a in theirs.coefs_ + theirs.intercepts_]
    for estimator in (theirs, ours):
        estimator.coefs_, estimator.intercepts_ = [a.copy() for a in weights[:3]], [a.copy() for a in weights[3:]]
    np.testing.assert_allclose(
        ours.predict_proba(x), theirs.predict_proba(x), rtol=1e-4 if dtype == "float32" else 1e-9
    )
    for estimator in (theirs, ours):
        estimator.fit(x, y)
    assert_alike(theirs, ours, 1e-3 if dtype == "float32" else 1e-6)
    assert ours.coefs_[0].dtype == ours.predict_proba(x).dtype == dtype


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_goes_on_as_scikit_learns_does(data, solver):
    """With moments, rates and shuffles from call to call, and across pickles."""
    kind, make, options = DATA[data]
    x, y = make()
    theirs, ours = pair(kind, solver=solver, learning_rate="invscaling", **options)
    # of labels the first batch tells
    first = {"classes": np.arange(4) if y.ndim == 2 else np.unique(y)} if kind == "MLPClassifier" else {}
    for start in range(0, ROWS, 100):
        batch = x[start : start + 100], y[start : start + 100]
        theirs.partial_fit(*batch, **first)
        ours.partial_fit(*batch, **first)
        assert_alike(theirs, ours)
        ours, first = pickle.loads(pickle.dumps(ours)), {}
    theirs.fit(x, y).partial_fit(x, y)
    ours.fit(x, y).partial_fit(x, y)
    assert_alike(theirs, ours)


def test_a_class_that_a_batch_lacks_is_a_class():
    x, y = classes()
    theirs, ours = (e.partial_fit(x[:5], y[:5], classes=np.arange(10)) for e in pair("MLPClassifier"))
    assert_alike(theirs, ours)
    np.testing.assert_array_equal(ours.classes_, np.arange(10))


@pytest.mark.parametrize("kind", ["int64", "uint8", "few rows", "two"])
def test_class_numbers_in_an_array_are_the_classes_that_scikit_learn_finds_in_a_list(kind):
    x, y = classes()
    x, y = (x[:15], y[:15]) if kind == "few rows" else (x, y)
    y = 7 - (y > 4) if kind == "two" else (2 * y + 3).astype("uint8" if kind == "uint8" else "int64")
    _, ours = pair("MLPClassifier")
    other = clone(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.fit(x, y)
        other.fit(x, y.tolist())
    assert ours.classes_.dtype == y.dtype
    np.testing.assert_array_equal(ours.classes_, other.classes_)
    np.testing.assert_array_equal(ours.predict(x), other.predict(x))
    np.testing.assert_array_equal(ours.coefs_[0], other.coefs_[0])
    results, expected = vars(ours._label_binarizer), vars(other._label_binarizer)
    assert list(results.pop("classes_")) == list(expected.pop("classes_"))
    assert results == expected
    assert clone(ours).set_params(warm_start=True).fit(x, y).partial_fit(x, y).t_ == (ours.max_iter + 1) * len(x)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_a_warm_start_begins_where_training_ended(solver):
    x, y = classes()
    theirs, ours = pair("MLPClassifier", solver=solver, warm_start=True, max_iter=3)
    for _ in range(3):
        theirs.fit(x, y)
        ours.fit(x, y)
    assert_alike(theirs, ours, 1e-6)


def behind(values, what):
    """values, and behind them in memory others."""
    memory = np.concatenate([values, np.full(4 * len(values), what)])
    return memory[: len(values)]


@pytest.mark.parametrize("kind", ["value", "counts", "labels"])
@pytest.mark.parametrize("how", ["partial_fit", "warm start", "early stopping"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_one_output_where_there_were_more_is_taken_for_each_as_scikit_learn_does(kind, how, solver):
    """And nothing is read that lies behind it."""
    options = {"loss": "poisson"} if kind == "counts" else {}
    estimator = "MLPClassifier" if kind == "labels" else "MLPRegressor"
    settings = {
        **options,
        "solver": solver,
        "warm_start": how != "partial_fit",
        "early_stopping": how == "early stopping",
    }
    x, y = DATA[{"value": "values"}.get(kind, kind)][1]()
    if kind == "labels":
        y = y[:, :2]
    results = []
    for lib, rest in ((neural_network, 0.0), (fast, 1.0), (fast, 1e6)):
        common = {"random_state": 0, "max_iter": 3, "hidden_layer_sizes": (5,), "learning_rate_init": 1e-4}
        e = getattr(lib, estimator)(**common, **settings)
        fit = e.partial_fit if how == "partial_fit" else e.fit
        fit(x, y, **({"classes": [0, 1]} if kind == "labels" and how == "partial_fit" else {}))
        try:
            fit(x, behind(y[:, 0], rest).astype(y.dtype))
        except ValueError as error:
            # the score of three outputs and one, after an epoch
            assert how == "early stopping"
            results.append((str(error), e))
        else:
            results.append((None, e))
    (first, theirs), *ours = results
    for said, other in ours:
        assert said == first
        for a, b in zip(theirs.coefs_ + theirs.intercepts_, other.coefs_ + other.intercepts_, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(other.loss_curve_, theirs.loss_curve_)
        assert other.n_outputs_ == theirs.n_outputs_ == 1


X3 = np.random.default_rng(0).normal(size=(40, 3))


CHANGES = {
    "more outputs": (X3, 2 * X3, {}, "y must have 1 outputs as the weights that training goes on from, got 3"),
    "fewer outputs": (X3, X3[:, :2], {}, "y must have 3 outputs as the weights that training goes on from, got 2"),
    "more layers": (X3, X3, {"hidden_layer_sizes": (4, 4)}, r"hidden_layer_sizes must be \(4,\), .* got \(4, 4\)"),
    "no hidden layer": (X3, X3, {"hidden_layer_sizes": ()}, r"hidden_layer_sizes must be \(4,\), .* got \(\)"),
    "columns": (X3[:, :2], X3, {}, "X has 2 features, but MLPRegressor is expecting 3 features"),
    "sparse columns": (
        sparse.csr_array(X3[:, :2]),
        X3,
        {},
        "X has 2 features, but MLPRegressor is expecting 3 features",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_what_does_not_go_with_the_weights_before_is_an_error_and_changes_nothing(change, solver):
    x, y, settings, message = CHANGES[change]
    _, ours = pair("MLPRegressor", warm_start=True, hidden_layer_sizes=(4,), solver=solver, max_iter=3)
    ours.fit(X3, X3[:, 0] if change == "more outputs" else X3)
    before = [a.copy() for a in ours.coefs_ + ours.intercepts_]
    expected = ours.predict(X3)
    for method in ("fit", "partial_fit"):
        ours.set_params(**settings)
        if hasattr(ours, method):
            with pytest.raises(ValueError, match=message):
                getattr(ours, method)(x, y)
    for a, b in zip(ours.coefs_ + ours.intercepts_, before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ours.predict(X3), expected)


def test_lbfgs_goes_on_only_with_weights_of_the_widths_that_it_is_asked_for():
    _, ours = pair("MLPRegressor", warm_start=True, hidden_layer_sizes=(9,), solver="lbfgs", max_iter=2)
    ours.fit(X3, X3)
    # of a vector that is too long scikit-learn cuts the end off
    for change, y in (({"hidden_layer_sizes": (4,)}, X3), ({"hidden_layer_sizes": (9,)}, X3[:, 0])):
        with pytest.raises(ValueError, match="weights that training goes on from"):
            ours.set_params(**change).fit(X3, y)


def test_weights_of_other_shapes_are_compared_before_anything_is_computed():
    _, ours = pair("MLPRegressor", hidden_layer_sizes=(4,))
    ours.partial_fit(X3, X3)
    ours.coefs_[0] = ours.coefs_[0][:1]
    with pytest.raises(ValueError, match=r"MLPRegressor: coefs_\[0\] must be \(3, 4\), got \(1, 4\)"):
        ours.partial_fit(X3, X3)
    ours.coefs_, ours.intercepts_ = [np.ones((3, 9)), np.ones((9, 3))], [np.ones(9), np.ones(3)]
    with pytest.raises(ValueError, match=r"coefs_ and intercepts_ must be 31 values of float64, .* got 66 of float64"):
        ours.partial_fit(X3, X3)
    with pytest.raises(TypeError, match="MLPRegressor: y must be numbers, got <U1"):
        clone(ours).fit(X3, np.array(["1", "2"] * 20))


# classes' scores after the first epochs hang on weights of 1e150, whose squares no float holds
@pytest.mark.parametrize(
    ("data", "solver", "rate"),
    [
        *((data, solver, 1e200) for data in DATA for solver in ("sgd", "adam")),
        *(("values", "sgd", r) for r in (1e3, 1e10)),
    ],
)
def test_training_that_diverges_with_early_stopping_ends_with_the_best_weights_as_scikit_learns_does(
    data, solver, rate
):
    kind, make, options = DATA[data]
    x, y = make()
    settings = {"solver": solver, "learning_rate_init": rate, "early_stopping": True, "batch_size": 50, "max_iter": 15}
    theirs, ours = pair(kind, **options, **settings)
    errors = []
    for estimator in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning if estimator is theirs else ConvergenceWarning)
            try:
                estimator.fit(x, y)
                errors.append(None)
            except ValueError as error:
                # of class numbers the score of NaN may be the best
                errors.append(str(error))
    assert errors[0] == errors[1]
    for a, b in zip(theirs.coefs_ + theirs.intercepts_, ours.coefs_ + ours.intercepts_, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)
    assert (ours.n_iter_, ours.t_) == (theirs.n_iter_, theirs.t_)
    np.testing.assert_allclose(ours.best_validation_score_, theirs.best_validation_score_)
    assert not np.isfinite(ours.loss_)


@pytest.mark.parametrize("times", [1, 2])
def test_early_stopping_and_a_warm_start_find_what_scikit_learns_find(times):
    x, y = classes()
    theirs, ours = pair("MLPClassifier", early_stopping=True, warm_start=True, learning_rate_init=0.1, max_iter=4)
    for _ in range(times + 1):
        theirs.fit(x, y)
        ours.fit(x, y)
    assert_alike(theirs, ours, 1e-6)


def test_many_rows_are_predicted_part_by_part():
    x, y = classes()
    theirs, ours = (e.fit(x, y) for e in pair("MLPClassifier"))
    many = np.tile(x, (60, 1))
    np.testing.assert_allclose(ours.predict_proba(many), theirs.predict_proba(many), rtol=1e-8)


@parametrize_with_checks([fast.MLPClassifier(max_iter=100), fast.MLPRegressor(max_iter=100)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("workers", ["loky", "threading"])
def test_a_grid_search_in_processes_and_in_threads_finds_what_one_of_scikit_learn_finds(workers):
    from joblib import parallel_config

    x, y = classes()
    grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__hidden_layer_sizes": [(8,), (20, 10)]}
    results = []
    for estimator in pair("MLPClassifier", max_iter=5):
        search = GridSearchCV(make_pipeline(StandardScaler(), estimator), grid, cv=2, n_jobs=2)
        with parallel_config(backend=workers), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(search.fit(x, y).cv_results_["mean_test_score"])
    np.testing.assert_allclose(results[1], results[0])


def test_clones_copies_and_pickles():
    x, y = classes()
    _, ours = pair("MLPClassifier", alpha=0.3)
    assert clone(ours).get_params() == ours.get_params()
    assert repr(ours).startswith("MLPClassifier(alpha=0.3")
    ours.fit(x, y)
    before = ours.predict_proba(x)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        np.testing.assert_array_equal(other.predict_proba(x), before)
        other.partial_fit(x, y)
        assert not np.array_equal(other.predict_proba(x), before)
        np.testing.assert_array_equal(ours.predict_proba(x), before)
    assert isinstance(ours, neural_network.MLPClassifier)


def test_verbose_prints_an_epoch_a_line(capsys):
    x, y = classes()
    for estimator in pair("MLPClassifier", verbose=True, early_stopping=True, n_iter_no_change=1, tol=1.0):
        estimator.fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert lines[0].startswith("Iteration 1, loss = ")
    assert "Stopping" in lines[-1]


def test_warnings_are_scikit_learns():
    x, y = classes()
    _, ours = pair("MLPClassifier", max_iter=2)
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        ours.fit(x, y)
    with pytest.warns(UserWarning, match="batch_size 1000 is larger than the number of rows: all 300 make one batch"):
        clone(ours).set_params(batch_size=1000).fit(x, y)


def test_an_interrupted_fit_leaves_a_fitted_estimator(monkeypatch):
    x, y = classes()
    _, ours = pair("MLPClassifier")
    run, epochs = Descent.epoch, []

    def interrupted(*arguments):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(Descent, "epoch", interrupted)
    with pytest.warns(UserWarning, match="interrupted"):
        ours.fit(x, y)
    assert ours.n_iter_ == 2
    assert ours.score(x, y) > 0


def test_bad_input_is_named():
    x, y = classes()
    _, ours = pair("MLPClassifier")
    for message, call in {
        "Input X contains NaN": lambda: clone(ours).fit(np.where(x > 0, x, np.nan), y),
        "validation_fraction must leave at least 2 rows": lambda: (
            clone(ours).set_params(early_stopping=True, validation_fraction=0.01).fit(x[:20], y[:20])
        ),
        "partial_fit does not support early_stopping": lambda: (
            clone(ours).set_params(early_stopping=True).partial_fit(x, y, classes=np.arange(10))
        ),
        "'solver' parameter of MLPClassifier must be": lambda: clone(ours).set_params(solver="rmsprop").fit(x, y),
        "inconsistent": lambda: clone(ours).fit(x, y[1:]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'"):
        fast.MLPClassifier(solver="lbfgs").partial_fit(x, y, classes=np.arange(10))


def test_a_gradient_that_is_not_finite_is_an_error_and_not_applied():
    x, y = value()
    _, ours = pair("MLPRegressor", warm_start=True, max_iter=2)
    ours.fit(x, y)
    before = [a.copy() for a in ours.coefs_]
    with pytest.raises(
        ValueError, match="MLPRegressor: the gradient of batch 1 in epoch 1 is not finite, and was not applied"
    ):
        ours.fit(x, 1e300 * np.sign(y))
    for a, b in zip(ours.coefs_, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_import_fastgrad_takes_no_scikit_learn_and_its_absence_is_an_error_that_helps():
    code = """
import sys
import fastgrad
assert not any(name.split(".")[0] == "sklearn" for name in sys.modules)
sys.modules["sklearn"] = None
try:
    import fastgrad.sklearn
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'fastgrad.sklearn needs scikit-learn from 1.7 on: pip install "fastgrad[sklearn]"'
