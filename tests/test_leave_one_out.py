"""The closed form equals fits that leave out one row after another."""

from contextlib import nullcontext

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from skdeepfeat import _leave_one_out
from skdeepfeat._leave_one_out import PENALTIES, leave_one_out, neighbors_r2

rng = np.random.default_rng(0)


def numbers(n, k):
    return rng.normal(size=(n, k))


def classes(n, k):
    return np.where(np.arange(n)[:, None] % k == np.arange(k), 1.0, -1.0)


def features_for(targets, d):
    """float32 features that say something of the targets, of several scales."""
    mixed = targets @ rng.normal(size=(targets.shape[1], d))
    scales = 10.0 ** rng.integers(-3, 4, d)
    return ((mixed + rng.normal(size=mixed.shape)) * scales + 5).astype(np.float32)


def brute_force(features, targets):
    """(predictions, R², alpha) by one fit for each row that is left out."""
    x = features.astype(np.float64)
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1)
    kept = ~np.eye(len(x), dtype=bool)
    found = []
    for alpha in PENALTIES * x.shape[1]:
        ridge = Ridge(alpha, solver="svd")
        rows = [ridge.fit(x[k], targets[k]).predict(x[~k]) for k in kept]
        predictions = np.concatenate(rows).reshape(targets.shape)
        found.append((((targets - predictions) ** 2).sum(), predictions, alpha))
    squared, predictions, alpha = min(found, key=lambda item: item[0])
    return predictions, 1 - squared / ((targets - targets.mean(0)) ** 2).sum(), alpha


TARGETS = {
    "regression": (numbers, 1),
    "several outputs": (numbers, 3),
    "2 classes": (classes, 2),
    "7 classes": (classes, 7),
}


@pytest.mark.parametrize("n_features", [8, 30, 90])
@pytest.mark.parametrize("kind", TARGETS)
def test_equals_fits_to_all_other_rows(kind, n_features):
    make, k = TARGETS[kind]
    targets = make(30, k)
    features = features_for(targets, n_features)
    found = leave_one_out(features, targets)
    predictions, r2, alpha = brute_force(features, targets)
    assert found.alpha == alpha
    assert_allclose(found.predictions, predictions, rtol=0, atol=1e-8)
    assert_allclose(found.r2, r2, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_features", [8, 90])
def test_constant_features_and_repeated_rows_and_columns(n_features):
    targets = classes(30, 3)
    features = features_for(targets, n_features)
    features[:, 0], features[:, 1] = 0.1, features[:, 2]
    features[10:14] = features[3]
    found = leave_one_out(features, targets)
    predictions, r2, _ = brute_force(features, targets)
    assert_allclose(found.predictions, predictions, rtol=0, atol=1e-8)
    assert_allclose(found.r2, r2, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n_features", [8, 90])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_parts_give_the_same_as_the_whole(monkeypatch, n_features, kept):
    targets = classes(30, 3)
    features = features_for(targets, n_features)
    whole = leave_one_out(features, targets)
    monkeypatch.setattr(_leave_one_out, "CHUNK", 100)
    monkeypatch.setattr(_leave_one_out, "KEPT", kept)
    parts = leave_one_out(features, targets)
    assert_allclose(parts.predictions, whole.predictions, rtol=1e-9)
    assert parts.alpha == whole.alpha


def test_r2_is_that_of_the_predictions():
    targets = numbers(40, 1)
    found = leave_one_out(features_for(targets, 5), targets)
    assert_allclose(found.r2, r2_score(targets, found.predictions))


def test_rows_of_noise_predict_nothing():
    found = leave_one_out(numbers(300, 50), classes(300, 5))
    assert -0.05 < found.r2 < 0.01


def test_features_or_targets_without_variance():
    targets = numbers(10, 1)
    others = (targets.sum() - targets) / 9  # the mean of the other rows
    found = leave_one_out(np.ones((10, 4), np.float32), targets)
    assert_allclose(found.predictions, others)
    assert found.r2 < 0
    found = leave_one_out(numbers(10, 4), np.ones((10, 2)))
    assert found.r2 == 0
    assert_allclose(found.predictions, 1)


def test_two_rows():
    found = leave_one_out(np.array([[0.0], [1.0]]), np.array([[-1.0], [1.0]]))
    assert_allclose(found.predictions, [[1.0], [-1.0]])


def test_inputs_stay_as_they_are():
    targets = classes(20, 2)
    for d in (5, 50):
        features = features_for(targets, d)
        before = features.copy(), targets.copy()
        features.flags.writeable = targets.flags.writeable = False
        leave_one_out(features, targets)
        np.testing.assert_array_equal(features, before[0])
        np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize(("small", "n_limited"), [(np.inf, 1), (0, 0)])
def test_only_small_matrices_are_computed_by_one_thread(small, n_limited, monkeypatch):
    entered = []
    monkeypatch.setattr(_leave_one_out, "SMALL", small)
    monkeypatch.setattr(
        _leave_one_out, "one_blas_thread", lambda: nullcontext(entered.append(1))
    )
    leave_one_out(numbers(20, 5), numbers(20, 1))
    assert len(entered) == n_limited


# Neighbours -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(3, 2), (60, 7), (60, 100), (2500, 5)])
@pytest.mark.parametrize("chunk", [1, 300, 2**22])
def test_neighbours_are_those_of_scikit_learn(n, d, chunk, monkeypatch):
    monkeypatch.setattr(_leave_one_out, "CHUNK", chunk * d)
    features = numbers(n, d) * rng.exponential(size=d)
    targets = numbers(n, 3)
    k, some = min(5, n - 1), np.linspace(0, n - 1, min(n, 2000)).astype(int)
    X = StandardScaler().fit_transform(features)
    near = NearestNeighbors(n_neighbors=k + 1).fit(X).kneighbors(X[some])[1][:, 1:]
    residuals = targets[some] - targets[near].mean(axis=1)
    variance = ((targets[some] - targets.mean(axis=0)) ** 2).sum()
    expected = 1 - (residuals**2).sum() / variance
    assert_allclose(neighbors_r2(features, targets), expected, rtol=0, atol=1e-12)


def test_constant_targets_have_no_neighbours():
    assert neighbors_r2(numbers(9, 2), np.ones((9, 1))) == 0
