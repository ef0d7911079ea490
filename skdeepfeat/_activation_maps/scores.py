"""What a fitted head says of rows of features, as one score for each target."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.base import is_classifier, is_outlier_detector, is_regressor
from sklearn.ensemble import BaggingClassifier

from .._composites import as_array, by_class, last_step, parts_of
from .._exceptions import closest

# What trees, boosted trees of several packages, neighbours, isotonic regressions and
# bins have.
IN_STEPS = (
    *("tree_", "_predictors", "get_booster", "booster_", "n_neighbors"),
    *("X_thresholds_", "bin_edges_"),
)
# What classifiers have whose decision function is a likelihood without a scale: it
# falls wherever a photo differs from the mean of its class.
LIKELIHOODS = ("rotations_", "centroids_")
# Fitted parts of composites that pass on the scores of these parts.
PASSED_ON = ("best_estimator_", "estimator_", "final_estimator_")


def changes_in_steps(head) -> bool:
    """Whether small changes may leave the score of a head as it is, as with trees,
    neighbours, and classifiers that return nothing but labels."""
    if is_classifier(head) and not any(hasattr(head, name) for name in CLASS_SCORES):
        return True
    return any(hasattr(part, name) for part in parts_of(head) for name in IN_STEPS)


def is_likelihood(head) -> bool:
    """Whether the decision function of a head compares no classes."""
    parts = _scoring_parts(head)
    return any(hasattr(part, name) for part in parts for name in LIKELIHOODS)


def score_each_class(head) -> None:
    """Let support vector machines return a score for each class, not for each pair:
    of three classes there are as many, and their columns would be taken for classes."""
    for part in _scoring_parts(head):
        if getattr(part, "decision_function_shape", None) == "ovo":
            part.decision_function_shape = "ovr"


def _scoring_parts(head) -> Iterator[Any]:
    """A head and the parts of it whose scores it returns."""
    head = last_step(head)
    yield head
    within = [getattr(head, name) for name in PASSED_ON if hasattr(head, name)]
    if isinstance(head, BaggingClassifier):
        within += head.estimators_
    for part in within:
        yield from _scoring_parts(part)


@dataclass(frozen=True)
class Targets:
    """The score that is explained for each photo.

    Parameters
    ----------
    head : estimator
    labels : ndarray of shape (n_images,) or None
        Classes, or outputs of a regressor; None means those that are predicted.
    """

    head: Any
    labels: np.ndarray | None

    @classmethod
    def of(cls, head, target, n_images: int) -> "Targets":
        """The targets that a parameter names; refuses unknown ones."""
        if isinstance(classes := getattr(head, "classes_", None), list):
            raise _several_labels(head, len(classes))
        if target is None:
            return cls(head, None)
        labels = np.asarray(target)
        if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != n_images):
            raise ValueError(
                "The 'target' parameter must be one class, or one for each of the "
                f"{n_images} images. Got shape {labels.shape} instead."
            )
        targets = cls(head, np.broadcast_to(labels, n_images))
        targets._check_known()
        return targets

    def _check_known(self) -> None:
        """Refuse labels that are not classes."""
        if self.labels is None or self._known is None:
            return
        known = self._known.tolist()
        for label in self.labels.tolist():
            if label not in known:
                raise ValueError(
                    f"The 'target' parameter has the unknown class {label!r}."
                    f"{_meant(label, known)} The classes are "
                    f"{', '.join(map(repr, known))}."
                )

    @property
    def _known(self) -> np.ndarray | None:
        """The classes of a classifier."""
        return getattr(self.head, "classes_", None)

    def chosen(self, scores: np.ndarray, predicted: np.ndarray, rows: slice):
        """The scores (n, k) of the targets of some photos, from (n, k, n_targets), and
        the targets."""
        if self.labels is not None:
            labels = self.labels[rows]
        elif self._known is not None:
            labels = predicted
        else:
            labels = np.zeros(len(scores), int)
        if self._known is None:
            _check_outputs(labels, self.labels, scores.shape[2])
        columns = self.columns(labels)
        return scores[np.arange(len(scores)), :, columns], labels

    def columns(self, labels: np.ndarray) -> np.ndarray:
        """The columns (n,) of scores that labels name."""
        if self._known is None:
            return labels.astype(int)
        return np.array([np.flatnonzero(self._known == label)[0] for label in labels])


def _meant(label, known: list) -> str:
    """A sentence with the class that a label may stand for, or nothing."""
    same = [one for one in known if str(one) == str(label)]
    if same:
        return f" Did you mean {same[0]!r}?"
    names = [one for one in known if isinstance(one, str)]
    return closest(label, names) if isinstance(label, str) else ""


def _check_outputs(labels, given, n_outputs: int) -> None:
    """Refuse outputs that an estimator without classes does not have."""
    named = f"name one of its {n_outputs} outputs, 0 to {n_outputs - 1}"
    if n_outputs == 1:
        named = "be None, since this estimator predicts one number"
    elif given is None:
        raise ValueError(f"The 'target' parameter must {named}. Got None instead.")
    for label in labels.tolist():
        if label not in range(n_outputs) or isinstance(label, bool):
            raise ValueError(
                f"The 'target' parameter must {named}. Got {label!r} instead."
            )


def check_predicts(estimator) -> None:
    """Refuse an estimator that predicts nothing, such as one that transforms."""
    known = is_classifier, is_regressor, is_outlier_detector
    if not any(predicts(estimator) for predicts in known):
        raise ValueError(
            "activation_maps explains a classifier, a regressor or an outlier "
            f"detector. Got {type(last_step(estimator)).__name__}, which is none of "
            "them. Pass a pipeline that ends in one."
        )


def scores_of(head, X) -> np.ndarray:
    """Scores (n, n_targets) of classes or outputs; the higher, the likelier."""
    if is_outlier_detector(head):
        return as_array(head.decision_function(X))[:, None]
    predicted = as_array(head.predict(X))
    if not is_classifier(head):
        return predicted.reshape(len(predicted), -1)
    if predicted.ndim > 1:
        raise _several_labels(head, predicted.shape[1])
    for method, read in CLASS_SCORES.items():
        avoided = AVOIDED.get(method)
        if hasattr(head, method) and not (avoided and avoided(head)):
            scores = read(as_array(getattr(head, method)(X)))
            if scores.shape[1] == len(head.classes_):  # and not one of each pair
                return scores
    return (predicted[:, None] == head.classes_).astype(float)


def _several_labels(head, n: int) -> ValueError:
    """The error of a classifier of several labels."""
    return ValueError(
        "activation_maps explains one label for each image. "
        f"{type(last_step(head)).__name__} predicts {n}; fit one classifier for each."
    )


def numbers_of(head, X) -> np.ndarray:
    """Probabilities of a classifier, or what a regressor or an outlier detector
    predicts, as (n, n_targets); (n, 0) without either."""
    if not is_classifier(head):
        return as_array(head.predict(X)).reshape(len(X), -1)
    if hasattr(head, "predict_proba"):
        return as_array(head.predict_proba(X))
    return np.empty((len(X), 0))


def _log_odds(logs: np.ndarray) -> np.ndarray:
    """Logarithms of odds: they still differ where probabilities are rounded to 1."""
    if logs.shape[1] == 1:  # a single class, which has no odds
        return logs
    logs = np.where(np.isneginf(logs), LEAST_LOG, logs)
    others = [np.delete(logs, one, axis=1) for one in range(logs.shape[1])]
    return logs - np.stack([logsumexp(other, axis=1) for other in others], 1)


# What gives a score for each class, in order of preference.
CLASS_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decision_function": by_class,
    "predict_log_proba": _log_odds,
    "predict_proba": as_array,
}
# Heads for which the next of these is used. Trees and neighbours have probabilities of
# 0, without a logarithm.
AVOIDED: dict[str, Callable[[Any], bool]] = {
    "decision_function": is_likelihood,
    "predict_log_proba": changes_in_steps,
}
LEAST_LOG = -700.0  # of the smallest positive number
