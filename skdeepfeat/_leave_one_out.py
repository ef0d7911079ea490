"""Leave-one-out predictions: of ridge regression, exactly, and of nearest neighbours.

With features X, standardised, and a penalty alpha, ridge regression predicts H y with
``H = X (X'X + alpha I)^-1 X' + 1/n``. Left out of the fit, row i has the residual
``e_i / (1 - H_ii)``, where e_i is its residual in the fit to all rows [1]_. The smaller
of the matrices X'X and XX' is decomposed once, which gives H for every alpha.
Neighbours [2]_ see only distances, as kernels do, so they show what a linear model can
ignore: many features that say nothing.

References
----------
.. [1] Allen, "The Relationship Between Variable Selection and Data Augmentation and a
   Method for Prediction", 1974.
.. [2] Cover, Hart, "Nearest Neighbor Pattern Classification", 1967.
"""

import functools
import operator
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from ._processes import one_blas_thread

PENALTIES = 10.0 ** np.arange(-4, 2.5, 0.5)  # alpha for each feature
CHUNK = 2**22  # numbers held as float64 at once, where more are read
SMALL = 2e9  # multiplications that several threads share at a loss
KEPT = 2**26  # numbers held as float64 for as long as they are needed
N_NEIGHBORS = 5
N_PREDICTED = 2000  # rows that neighbours predict, at most

Scores = tuple[slice, np.ndarray]  # some rows, and their principal components (b, r)


class LeaveOneOut(NamedTuple):
    """Predictions (n, k) of rows that were left out, their R², and the best alpha."""

    predictions: np.ndarray
    r2: float
    alpha: float


def leave_one_out(features: np.ndarray, targets: np.ndarray) -> LeaveOneOut:
    """Predict each row by a ridge regression on all other rows.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Finite features of at least 2 rows. They are scaled to a deviation of 1 over
        all rows; constant features are only centred.
    targets : ndarray of shape (n, k)
        What to predict, with an intercept.

    Returns
    -------
    found : LeaveOneOut
        The predictions by the alpha with the smallest squared error, one of
        ``PENALTIES * d``. `r2` is 1 - squared error / squared deviation of the
        targets from their mean over all rows; 0 for constant targets.
    """
    n, d = features.shape
    is_small = n * min(n, d) ** 2 < SMALL
    with one_blas_thread() if is_small else nullcontext():
        return _leave_one_out(features, targets)


def neighbors_r2(features: np.ndarray, targets: np.ndarray) -> float:
    """R² of predicting rows by the mean of their nearest neighbours among all others.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Finite features of at least 2 rows, scaled as in `leave_one_out`.
    targets : ndarray of shape (n, k)
        What to predict.

    Returns
    -------
    r2 : float
        1 - squared error / squared deviation of the targets from their mean; 0 for
        constant targets. Of more than 2,000 rows, 2,000 at even distances are
        predicted.
    """
    n = len(features)
    predicted = np.linspace(0, n - 1, min(n, N_PREDICTED)).astype(int)
    with one_blas_thread() if len(predicted) * features.size < SMALL else nullcontext():
        near = _nearest(features, predicted, min(N_NEIGHBORS, n - 1))
    residuals = targets[predicted] - targets[near].mean(axis=1)
    total = ((targets[predicted] - targets.mean(axis=0)) ** 2).sum()
    return float(1 - (residuals**2).sum() / total) if total > 0 else 0.0


def _nearest(features, predicted: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other rows of these rows, (n_predicted, k), in no order."""
    standardised = _Standardised(features)
    points = np.concatenate([x for _, x in standardised.rows(some=predicted)])
    points, place = points.astype(np.float32), np.arange(len(points))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, x in standardised.rows(width=len(points)):
        x = x.astype(np.float32)  # only the order of distances matters
        distances = (x**2).sum(axis=1) - 2 * (points @ x.T)  # squared, less points²
        own = predicted - rows.start
        inside = (own >= 0) & (own < len(x))
        distances[place[inside], own[inside]] = np.inf
        best = _smallest(distances, k)
        found.append((np.take_along_axis(distances, best, axis=1), best + rows.start))
    distances, nearest = (np.hstack(parts) for parts in zip(*found, strict=True))
    return np.take_along_axis(nearest, _smallest(distances, k), axis=1)


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k smallest values in each row, in no order; all if there are k."""
    k = min(k, values.shape[1])
    return np.argpartition(values, k - 1, axis=1)[:, :k]


def _leave_one_out(features, targets) -> LeaveOneOut:
    """As above, with as many threads as BLAS has."""
    centre = targets.mean(axis=0)
    centred = targets - centre
    variances, blocks = _principal_components(features)
    alphas = PENALTIES * features.shape[1]
    filters = 1 / (variances + alphas[:, None])  # (a, r)
    moments = _total(scores.T @ centred[rows] for rows, scores in blocks)  # (r, k)

    def left_out(filters) -> Iterator[Iterator[np.ndarray]]:
        """Of some rows after others, the residuals by each filter."""
        for rows, scores in blocks:
            yield _left_out(scores, centred[rows], filters, moments, len(centred))

    squared = _total(
        np.array([(residuals**2).sum() for residuals in some])
        for some in left_out(filters)
    )
    best = int(np.argmin(squared))
    chosen = left_out(filters[best : best + 1])
    residuals = np.concatenate([part for some in chosen for part in some])
    total = (centred**2).sum()
    r2 = 1 - squared[best] / total if total > 0 else 0.0
    return LeaveOneOut(targets - residuals, float(r2), float(alphas[best]))


def _left_out(scores, centred, filters, moments, n) -> Iterator[np.ndarray]:
    """By each filter, the residuals (b, k) of rows from fits to all other rows."""
    squares = scores**2
    for shrunk in filters:
        leverages = 1 / n + squares @ shrunk
        fitted = scores @ (shrunk[:, None] * moments)
        yield (centred - fitted) / (1 - leverages)[:, None]


def _total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of arrays, which are added in place."""
    return functools.reduce(operator.iadd, parts)


def _principal_components(features) -> tuple[np.ndarray, Iterable[Scores]]:
    """The eigenvalues (r,) of X'X, and the scores of the rows on its eigenvectors."""
    n, d = features.shape
    standardised = _Standardised(features)
    if n <= d:
        values, vectors = _eigh(_total(x @ x.T for x in standardised.columns()))
        return values, [(slice(None), vectors * np.sqrt(values))]
    values, vectors = _eigh(_total(x.T @ x for _, x in standardised.rows()))
    blocks = _Projected(standardised, vectors)
    return values, list(blocks) if n * d <= KEPT else blocks


def _eigh(gram) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of at least 0, and eigenvectors."""
    values, vectors = np.linalg.eigh(gram)
    return values.clip(min=0), vectors


class _Standardised:
    """Features with mean 0 and deviation 1, converted to float64 part by part."""

    def __init__(self, features):
        self._features = features
        n, d = features.shape
        self._centre, self._scale = np.zeros(d), np.ones(d)
        for some in _chunks(d, n):
            part = features[:, some].astype(np.float64)
            self._centre[some], deviation = part.mean(axis=0), part.std(axis=0)
            # Rounding leaves a tiny deviation in a constant feature.
            varies = deviation > 1e-12 * np.abs(self._centre[some])
            self._scale[some] = np.where(varies, deviation, 1)

    def rows(self, some=slice(None), width=0) -> Iterator[Scores]:
        """Some rows after others, (b, d); b is smaller if a row costs `width` more."""
        features = self._features[some]
        for chunk in _chunks(len(features), max(width, features.shape[1])):
            yield chunk, (features[chunk] - self._centre) / self._scale

    def columns(self) -> Iterator[np.ndarray]:
        """Some columns after others, (n, b)."""
        n, d = self._features.shape
        for some in _chunks(d, n):
            centred = self._features[:, some] - self._centre[some]
            yield centred / self._scale[some]


class _Projected:
    """Standardised rows on eigenvectors, computed again in each iteration."""

    def __init__(self, standardised, vectors):
        self._standardised, self._vectors = standardised, vectors

    def __iter__(self) -> Iterator[Scores]:
        return ((rows, x @ self._vectors) for rows, x in self._standardised.rows())


def _chunks(n: int, width: int) -> Iterator[slice]:
    """Slices of n lines of a width, none of more than CHUNK numbers if possible."""
    step = max(1, CHUNK // width)
    return (slice(start, start + step) for start in range(0, n, step))
