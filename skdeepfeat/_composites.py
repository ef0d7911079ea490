"""A fitted composite of scikit-learn → its feature steps, and a head of rows.

Pipelines, column transformers, searches, calibrated, stacked and other composites keep
their fitted parts in attributes and lists. These are searched for the steps that read
images; a copy in which other steps stand in for them takes rows of features instead.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from ._features import PretrainedCNNFeatures
from ._finetuning.classifier import FineTunedClassifier

READS_IMAGES = (PretrainedCNNFeatures, FineTunedClassifier)
PASSES = ("predict", "transform", "decision_function", "score_samples")


@dataclass
class Exchange:
    """What the stand-ins of one composite return, and what they were given.

    Parameters
    ----------
    rows : list of ndarray or None
        For each place, the rows that its stand-ins return; None returns zeros.
    seen : list
        For each place, what its stand-ins were given last.
    """

    rows: list[np.ndarray | None] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)


class GivenRows(TransformerMixin, BaseEstimator):
    """Stands in for a step that computes features, and returns rows that it is given.

    Parameters
    ----------
    exchange : Exchange
        Where the rows are.
    place : int
        Which of them.
    names : ndarray of str
        Names of the features.
    n_rows : callable
        Number of rows of X; refuses what the step refuses.
    as_output : callable
        Rows in the form that the step returns, such as a tensor.
    """

    def __init__(self, exchange, place, names, n_rows, as_output):
        self.exchange = exchange
        self.place = place
        self.names = names
        self.n_rows = n_rows
        self.as_output = as_output

    def fit(self, X, y=None):
        """Do nothing."""
        return self

    def transform(self, X):
        """The rows of the exchange, whatever X is; zeros if there are none."""
        self.exchange.seen[self.place] = X
        rows = self.exchange.rows[self.place]
        if rows is None:
            rows = np.zeros((self.n_rows(X), len(self.names)), np.float32)
        return self.as_output(rows)

    def get_feature_names_out(self, input_features=None):
        """The names of the step that this stands in for."""
        return self.names

    def __sklearn_is_fitted__(self):
        return True


@dataclass
class Composite:
    """A fitted composite, divided into its feature steps and a head of rows.

    Parameters
    ----------
    features : tuple of PretrainedCNNFeatures
        The steps that compute different features.
    head : estimator
        A copy of the composite in which stand-ins return the rows of `exchange`.
    exchange : Exchange
        With one place for each of `features`.
    """

    features: tuple[PretrainedCNNFeatures, ...]
    head: Any
    exchange: Exchange

    @property
    def slices(self) -> list[slice]:
        """Where the features of each step are if all are side by side."""
        widths = [len(step.get_feature_names_out()) for step in self.features]
        ends = np.cumsum(widths).tolist()
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def images_of(self, X) -> list:
        """What each of the feature steps is given for this X."""
        self.exchange.rows = [None] * len(self.features)
        last_method(self.head)(X)
        return list(self.exchange.seen)

    def give(self, rows: np.ndarray) -> None:
        """Set the features (n, width) of all steps, side by side, that the head takes
        from now on."""
        self.exchange.rows = [rows[:, place] for place in self.slices]


def divide(estimator) -> Composite:
    """Divide a fitted estimator; refuses one without a step that reads images."""
    estimator = best_of(estimator)
    steps = feature_steps(estimator)
    last_method(estimator)
    exchange = Exchange()
    features: list[PretrainedCNNFeatures] = []
    place_of: dict[tuple, int] = {}
    replaced: dict[int, Any] = {}
    for step in steps:
        transformer, after = _opened(step)
        signature = _signature(transformer)
        if signature not in place_of:
            place_of[signature] = len(features)
            features.append(transformer)
        stand_in = _stand_in(transformer, exchange, place_of[signature])
        replaced[id(step)] = after(stand_in)
    exchange.rows, exchange.seen = [None] * len(features), [None] * len(features)
    _replace_frozen(estimator, replaced)
    head = copy.deepcopy(estimator, replaced)
    _run_in_this_process(head)
    return Composite(tuple(features), head, exchange)


def best_of(estimator):
    """The estimator that a search has refitted, or that is frozen; else itself."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def last_step(estimator):
    """The last step of a pipeline, or the estimator itself."""
    while isinstance(estimator, Pipeline):
        estimator = estimator[-1]
    return estimator


def as_array(values) -> np.ndarray:
    """What an estimator returns, as an array; also a tensor on a GPU, or a frame."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def rows_of(features: PretrainedCNNFeatures, X) -> np.ndarray:
    """The features (n, width) of a step, whatever kind of output it is set to."""
    return features._walk(X)


def last_method(estimator) -> Callable:
    """The method that passes X through all steps; refuses estimators without one."""
    for name in PASSES:
        if hasattr(estimator, name):
            return getattr(estimator, name)
    raise ValueError(
        f"{type(last_step(estimator)).__name__} cannot predict new images: it has none "
        f"of the methods {', '.join(PASSES)}. Fit a search with refit=True and "
        "LocalOutlierFactor with novelty=True; instead of a clusterer that labels its "
        "training images only, use one with predict, such as KMeans."
    )


def _replace_frozen(estimator, replaced: dict[int, Any]) -> None:
    """Replace frozen estimators by what they freeze, which predicts the same."""
    for part in reversed(list(parts_of(estimator))):  # the inner ones first
        if isinstance(part, FrozenEstimator):
            replaced[id(part)] = copy.deepcopy(part.estimator, replaced)


def by_class(scores: np.ndarray) -> np.ndarray:
    """What `decision_function` returns as (n, n_classes), also for two classes."""
    return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def _opened(step):
    """The transformer of a step, and what makes a step of a stand-in for it."""
    if isinstance(step, PretrainedCNNFeatures):
        return step, lambda stand_in: stand_in
    features, head = step.divide()
    return features, lambda stand_in: Pipeline([("features", stand_in), ("head", head)])


def _signature(features: PretrainedCNNFeatures) -> tuple:
    """Equal for steps that compute the same features of the same column."""
    columns = features._plan().columns.requested
    names = getattr(features, "feature_names_in_", ())
    return *(column.fingerprint for column in columns), *names, features.image_shape


def _stand_in(features: PretrainedCNNFeatures, exchange: Exchange, place: int):
    """A stand-in with the names and the kind of output of a feature step."""
    names = features.get_feature_names_out()
    stand_in = GivenRows(
        exchange,
        place,
        names,
        lambda X: len(features._read(X, reset=False)),
        features._as_output,
    )
    return with_output_of(features, stand_in)


def with_output_of(estimator, other):
    """Another estimator, set to the containers that `set_output` chose for one."""
    config = "_sklearn_output_config"
    if config in vars(estimator):
        setattr(other, config, dict(vars(estimator)[config]))
    return other


def feature_steps(estimator) -> list:
    """The fitted steps within an estimator that read images."""
    found = [part for part in parts_of(estimator) if isinstance(part, READS_IMAGES)]
    if not found:
        raise ValueError(
            f"This {type(estimator).__name__} has no step that reads images. Pass a "
            "fitted estimator that contains PretrainedCNNFeatures or "
            "FineTunedClassifier, such as make_pipeline(PretrainedCNNFeatures(), "
            "LogisticRegression()).fit(X, y)."
        )
    fitted = [step for step in found if _is_fitted(step)]
    if not fitted:
        check_is_fitted(estimator)  # features alone need no fit
    return fitted or found


def _is_fitted(step) -> bool:
    return hasattr(step, "weights_digest_") or hasattr(step, "weights_")


def parts_of(value, seen: dict[int, Any] | None = None) -> Iterator[Any]:
    """An object and all that it holds, each once; feature steps are not opened."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return
    seen[id(value)] = value
    yield value
    for held in _held_by(value):
        yield from parts_of(held, seen)


def _held_by(value) -> Iterable[Any]:
    """What a container or a part of a composite holds."""
    if isinstance(value, READS_IMAGES):
        return ()
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, np.ndarray):
        return value.flat if value.dtype == object else ()
    is_part = isinstance(value, BaseEstimator)
    is_part |= type(value).__module__.startswith("sklearn.")
    return vars(value).values() if is_part and hasattr(value, "__dict__") else ()


def _run_in_this_process(head) -> None:
    """Keep the parts of a head from starting processes, which the exchange would not
    reach."""
    for part in parts_of(head):
        if isinstance(part, BaseEstimator) and hasattr(part, "n_jobs"):
            part.n_jobs = None
