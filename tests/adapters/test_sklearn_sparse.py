"""The scikit-learn estimators with a sparse X, and with arrays in which few values are not 0."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.7")

from scipy import sparse
from sklearn.base import clone
from sklearn_data import DATA, ROWS, SETTINGS, assert_alike, classes, pair

import fastgrad.sklearn as fast
from fastgrad.kernels.types import Nonzeros
from fastgrad.sklearn.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_a_sparse_x_is_a_dense_one(dtype):
    x, y = classes()
    x = x.astype(dtype)
    _, dense = pair("MLPClassifier")
    dense.fit(x, y)
    for form in (sparse.csr_array, sparse.csc_array):
        other = clone(dense).fit(form(x), y)
        np.testing.assert_array_equal(other.coefs_[0], dense.coefs_[0])
        np.testing.assert_array_equal(other.predict_proba(form(x)), dense.predict_proba(x))


def few(kind="classes"):
    """Data of which one value in six is not 0."""
    x, y = DATA[kind][1]()
    return np.where(np.random.default_rng(2).random(x.shape) < 1 / 6, x, 0), y


@pytest.mark.pairwise
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("settings", ["adam", "sgd", "lbfgs", "early stopping"])
@pytest.mark.parametrize("form", ["array", "csr", "csc"])
def test_of_an_x_with_few_values_that_are_not_0_only_those_are_worked_on(data, settings, form, monkeypatch):
    (kind, _, options), (x, y) = DATA[data], few(data)
    weights = np.random.default_rng(1).random(ROWS)
    theirs, ours = pair(kind, **options, **SETTINGS[settings])
    theirs.fit(x, y, sample_weight=weights)
    name = "gradient" if settings == "lbfgs" else "epoch"
    kinds, run = set(), getattr(Problem, name)

    def recorded(problem, *arguments):
        kinds.add(type(problem.x))
        return run(problem, *arguments)

    monkeypatch.setattr(Problem, name, recorded)
    matrix = {"array": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_array}[form](x)
    ours.fit(matrix, y, sample_weight=weights)
    assert kinds == {Nonzeros}
    assert_alike(theirs, ours, 1e-5 if settings == "lbfgs" else 1e-8)
    np.testing.assert_array_equal(ours.predict(matrix), ours.predict(x))


def test_a_sparse_x_may_have_columns_in_any_order_more_than_once(dtype):
    x, y = few()
    x = sparse.csr_array(x.astype(dtype))
    # each value as its halves, backwards
    indices, values = np.repeat(x.indices, 2), np.repeat(x.data / 2, 2)
    for start, stop in pairwise(2 * x.indptr):
        indices[start:stop], values[start:stop] = indices[start:stop][::-1], values[start:stop][::-1]
    other = sparse.csr_array((values, indices, 2 * x.indptr), x.shape)
    _, ours = pair("MLPClassifier")
    np.testing.assert_array_equal(clone(ours).fit(other, y).coefs_[0], clone(ours).fit(x, y).coefs_[0])
    assert other.nnz == 2 * x.nnz
    np.testing.assert_array_equal(other.indices, indices)


def test_lbfgs_takes_a_sparse_x_of_float32_in_float64():
    x, y = few()
    x = x.astype(np.float32)
    _, ours = pair("MLPClassifier", solver="lbfgs", max_iter=2)
    # an array is, too
    np.testing.assert_array_equal(clone(ours).fit(sparse.csr_array(x), y).coefs_[0], clone(ours).fit(x, y).coefs_[0])


def test_a_sparse_x_may_be_read_only():
    x, y = few()
    matrix = sparse.csr_array(x)
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    _, ours = pair("MLPClassifier")
    np.testing.assert_array_equal(clone(ours).fit(matrix, y).coefs_[0], clone(ours).fit(x, y).coefs_[0])


@pytest.mark.parametrize("seen", [True, False])
def test_weights_that_are_not_finite_are_an_error_where_few_values_are_not_0(seen):
    """A row that does not see such a weight is trained on, but the fit ends in scikit-learn's error."""
    x, y = few()
    x[:, 5] = seen
    _, ours = pair("MLPClassifier", warm_start=True, max_iter=2, alpha=0.0)
    ours.fit(x, y)
    ours.coefs_[0][5] = np.inf
    with pytest.raises(ValueError, match="is not finite" if seen else "Solver produced non-finite parameter weights"):
        ours.fit(x, y)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_of_a_sparse_x_is_predicted_what_scikit_learn_predicts(data, form, hidden, monkeypatch):
    """From few values that are not 0, and from many, of which parts are copied."""
    kind, make, options = DATA[data]
    x, y = make()
    theirs, ours = (e.fit(x, y) for e in pair(kind, **options, hidden_layer_sizes=hidden, max_iter=3))
    monkeypatch.setattr(fast.mlp, "MAX_COPY", 10 * 8 * x.shape[1])
    for rows in (few(data)[0], x):
        matrix = sparse.csr_array(rows).asformat(form)
        for method in ("predict", "predict_proba"):
            if hasattr(theirs, method):
                expected, results = getattr(theirs, method)(matrix), getattr(ours, method)(matrix)
                if expected.dtype.kind == "f":
                    np.testing.assert_allclose(results, expected, rtol=1e-7, atol=1e-9)
                else:
                    np.testing.assert_array_equal(results, expected)
        assert ours.score(matrix, y) == pytest.approx(theirs.score(matrix, y))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
def test_the_memory_of_a_prediction_does_not_go_with_the_columns_of_a_sparse_x(share):
    rows, columns = 3000, 20_000
    x = sparse.random_array(
        (rows, columns), density=share, format="csr", rng=np.random.default_rng(0), dtype=np.float32
    )
    _, ours = pair("MLPClassifier", hidden_layer_sizes=(4,), max_iter=1)
    ours.fit(x[:50], np.arange(50) % 3)
    tracemalloc.start()
    ours.predict_proba(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # all of it would be 240 MB
    assert peak < 60e6


@pytest.mark.parametrize("broken", ["column", "negative column", "start"])
def test_a_sparse_matrix_with_numbers_of_no_column_is_refused(broken):
    """Kernels would read, and write, where there is nothing."""
    rng = np.random.default_rng(0)
    x = sparse.random_array((60, 50), density=0.05, format="csr", rng=rng, dtype=np.float64)
    if broken == "start":
        x.indptr[3] = 10**6
    else:
        x.indices[7] = -1 if broken == "negative column" else 10**6
    with pytest.raises(ValueError, match=r"indices|index|indptr"):
        fast.MLPClassifier(max_iter=1).fit(x, rng.integers(0, 2, 60))


def test_columns_out_of_order_that_a_matrix_calls_sorted_are_sorted():
    rng = np.random.default_rng(0)
    x = sparse.random_array((60, 50), density=0.1, format="csr", rng=rng, dtype=np.float64)
    y, sorted_x = rng.integers(0, 2, 60), x.copy()
    for row in range(60):
        part = slice(x.indptr[row], x.indptr[row + 1])
        x.indices[part], x.data[part] = x.indices[part][::-1].copy(), x.data[part][::-1].copy()
    x.has_canonical_format = True
    results, expected = (fast.MLPClassifier(max_iter=2, random_state=0).fit(a, y) for a in (x, sorted_x))
    np.testing.assert_array_equal(results.coefs_[0], expected.coefs_[0])
