"""Which layer suits a target: the choice of ``layer="auto"``."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from ._exceptions import LayerWarning, warn_user
from ._leave_one_out import leave_one_out

TOLERANCE = 0.01  # differences of R² that mean nothing

NO_SIGNAL = (
    "No layer predicts y, so layer='auto' reads the deepest one, {chosen!r}. For "
    "images left out one at a time, the best R² is {best:.3f}, of layer {layer!r}. "
    "Check that y belongs to X, pass more images, or name a layer. Values of y that "
    "are numbers to predict must be floats; all others are classes."
)


class LayerScore(NamedTuple):
    """How well a layer predicts rows that are left out: R², and for people to read.

    Of classes, `hits` (n,) is the fraction of columns of y that are right in each row;
    of numbers, `error` is the root of the mean squared error, in units of y.
    """

    r2: float
    hits: np.ndarray | None = None
    error: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The fraction of classes that are right."""
        return None if self.hits is None else float(self.hits.mean())


class Target(Protocol):
    """What layers are to predict."""

    coded: np.ndarray  # (n, k), for a ridge regression

    def score(self, r2: float, predictions: np.ndarray) -> LayerScore:
        """The score of a layer with these predictions (n, k) of `coded`."""


class Classes:
    """One or several columns of classes; each class is an output of -1 or 1."""

    def __init__(self, y: np.ndarray):
        self._codes = [np.unique(c, return_inverse=True)[1] for c in y.T]
        self._ends = np.cumsum([codes.max() + 1 for codes in self._codes])
        coded = [codes[:, None] == np.arange(codes.max() + 1) for codes in self._codes]
        self.coded = np.where(np.hstack(coded), 1.0, -1.0)

    def score(self, r2: float, predictions: np.ndarray) -> LayerScore:
        """R², and in how many columns the largest output is that of the class."""
        columns = np.split(predictions, self._ends[:-1], axis=1)
        pairs = zip(columns, self._codes, strict=True)
        right = [outputs.argmax(axis=1) == codes for outputs, codes in pairs]
        return LayerScore(r2, hits=np.mean(right, axis=0))


class Numbers:
    """One or several columns of numbers, which count equally whatever their units."""

    def __init__(self, y: np.ndarray):
        y = y.astype(np.float64)
        deviation = y.std(axis=0)
        self._scale = np.where(deviation > 0, deviation, 1)
        self.coded = (y - y.mean(axis=0)) / self._scale

    def score(self, r2: float, predictions: np.ndarray) -> LayerScore:
        """R², and the mean error of the columns."""
        errors = np.sqrt(((predictions - self.coded) ** 2).mean(axis=0)) * self._scale
        return LayerScore(r2, error=float(errors.mean()))


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
            "required by layer='auto', which leaves one out. Pass more images, or name "
            "a layer such as 'penultimate'."
        )
    target = read_target(y[sound])
    scores = {}
    for layer, rows in features.items():
        found = leave_one_out(rows if sound.all() else rows[sound], target.coded)
        scores[layer] = target.score(found.r2, found.predictions)
    return scores


def choose_layer(scores: Mapping[str, LayerScore]) -> str:
    """The deepest layer with about the best R², of layers in order of depth."""
    best = max(score.r2 for score in scores.values())
    if best <= TOLERANCE:  # no signal, and so no order
        return list(scores)[-1]
    good = [name for name, score in scores.items() if score.r2 >= best - TOLERANCE]
    return good[-1]


def warn_without_signal(scores: Mapping[str, LayerScore], chosen: str) -> None:
    """Warn if no layer predicts y, with the figures."""
    layer = max(scores, key=lambda name: scores[name].r2)
    best = scores[layer].r2
    if best <= TOLERANCE:
        message = NO_SIGNAL.format(chosen=chosen, layer=layer, best=best)
        warn_user(message, LayerWarning)
