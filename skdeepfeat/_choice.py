"""Which layer suits a target: the choice of ``layer="auto"``."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._exceptions import LayerWarning, warn_user
from ._leave_one_out import leave_one_out, neighbors_r2

TOLERANCE = 0.01  # differences of R² that mean nothing

NO_SIGNAL = (
    "No layer predicts y, so layer='auto' reads the deepest one, {chosen!r}. For "
    "rows left out one at a time, the best R² is {best:.3f}, of layer {layer!r}. "
    "Check that y belongs to X, pass more rows, or name a layer. Values of y that "
    "are numbers to predict must be floats; all others are classes."
)


class LayerScore(NamedTuple):
    """How well a layer predicts rows that are left out.

    `r2` is that of a ridge regression, `neighbors_r2` that of nearest neighbours. The
    others are for people to read, and those of the regression: of classes, `hits` (n,)
    is the fraction of columns of y that are right in each row; of numbers, `error` is
    the root of the mean squared error, in units of y.
    """

    r2: float
    neighbors_r2: float
    hits: np.ndarray | None = None
    error: float | None = None

    @property
    def mean_r2(self) -> float:
        """What layers are compared by: some classifiers weigh features, some do not."""
        return (self.r2 + self.neighbors_r2) / 2

    @property
    def accuracy(self) -> float | None:
        """The fraction of classes that are right."""
        return None if self.hits is None else float(self.hits.mean())


class Target(Protocol):
    """What layers are to predict."""

    coded: np.ndarray  # (n, k), for a ridge regression

    def read(self, predictions: np.ndarray) -> dict[str, Any]:
        """What people read of predictions (n, k) of `coded`: `hits` or `error`."""


class Classes:
    """One or several columns of classes; each class is an output of -1 or 1."""

    def __init__(self, y: np.ndarray):
        self._codes = [np.unique(c, return_inverse=True)[1] for c in y.T]
        self._ends = np.cumsum([codes.max() + 1 for codes in self._codes])
        coded = [codes[:, None] == np.arange(codes.max() + 1) for codes in self._codes]
        self.coded = np.where(np.hstack(coded), 1.0, -1.0)

    def read(self, predictions: np.ndarray) -> dict[str, Any]:
        """In how many columns the largest output is that of the class."""
        columns = np.split(predictions, self._ends[:-1], axis=1)
        pairs = zip(columns, self._codes, strict=True)
        right = [outputs.argmax(axis=1) == codes for outputs, codes in pairs]
        return {"hits": np.mean(right, axis=0)}


class Numbers:
    """One or several columns of numbers, which count equally whatever their units."""

    def __init__(self, y: np.ndarray):
        y = y.astype(np.float64)
        peak = np.abs(y).max(axis=0)
        unit = np.where(peak > 0, peak, 1)  # the squares of large numbers overflow
        y = y / unit
        deviation = y.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1)
        self._scale = scale * unit
        self.coded = (y - y.mean(axis=0)) / scale

    def read(self, predictions: np.ndarray) -> dict[str, Any]:
        """The mean error of the columns."""
        errors = np.sqrt(((predictions - self.coded) ** 2).mean(axis=0)) * self._scale
        return {"error": float(errors.mean())}


def read_target(y: np.ndarray) -> Target:
    """Floats (n,) or (n, outputs) as numbers, and all other values as classes."""
    columns = y.reshape(len(y), -1)
    return Numbers(columns) if y.dtype.kind == "f" else Classes(columns)


def score_layers(
    features: Mapping[str, np.ndarray], y: np.ndarray
) -> dict[str, LayerScore]:
    """The score of each layer, by the rows without NaN in any of them."""
    sound = np.logical_and.reduce([np.isfinite(f).all(1) for f in features.values()])
    if sound.sum() < 2:
        raise ValueError(
            f"Found array with {sound.sum()} sample(s) while a minimum of 2 is "
            "required by layer='auto', which leaves one out. Pass more rows, or name "
            "a layer such as 'penultimate'."
        )
    target = read_target(y[sound])
    scores = {}
    for layer, rows in features.items():
        rows = rows if sound.all() else rows[sound]
        found = leave_one_out(rows, target.coded)
        near = neighbors_r2(rows, target.coded)
        scores[layer] = LayerScore(found.r2, near, **target.read(found.predictions))
    return scores


def choose_layer(scores: Mapping[str, LayerScore]) -> str:
    """The deepest layer with about the best mean R², of layers in order of depth."""
    if not _has_signal(scores):  # and so no order
        return list(scores)[-1]
    best = max(score.mean_r2 for score in scores.values())
    good = [n for n, score in scores.items() if score.mean_r2 >= best - TOLERANCE]
    return good[-1]


def _has_signal(scores: Mapping[str, LayerScore]) -> bool:
    """Whether any layer predicts y by either way."""
    found = (r2 for s in scores.values() for r2 in (s.r2, s.neighbors_r2))
    return max(found) > TOLERANCE


def warn_without_signal(scores: Mapping[str, LayerScore], chosen: str) -> None:
    """Warn if no layer predicts y, with the figures."""
    if not _has_signal(scores):
        layer = max(scores, key=lambda name: scores[name].r2)
        best = scores[layer].r2
        message = NO_SIGNAL.format(chosen=chosen, layer=layer, best=best)
        warn_user(message, LayerWarning)
