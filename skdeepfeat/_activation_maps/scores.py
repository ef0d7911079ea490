"""What a fitted head says of rows of features, as one score for each target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.base import is_classifier, is_outlier_detector, is_regressor

from .._composites import by_class, parts_of
from .._exceptions import closest

# What trees, boosted trees of several packages, and neighbours have.
IN_STEPS = ("tree_", "_predictors", "get_booster", "booster_", "n_neighbors")


def changes_in_steps(head) -> bool:
    """Whether trees or neighbours are in a head, which small changes may leave as it
    is."""
    return any(hasattr(part, name) for part in parts_of(head) for name in IN_STEPS)


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
        if not (is_classifier(head) or is_regressor(head) or is_outlier_detector(head)):
            raise ValueError(
                "activation_maps explains a classifier, a regressor or an outlier "
                f"detector. Got {type(head).__name__}, which is none of them. Pass a "
                "pipeline that ends in one."
            )
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
        """Refuse labels that are no classes."""
        known = getattr(self.head, "classes_", None)
        if known is None or self.labels is None:
            return
        for label in np.unique(self.labels).tolist():
            if label not in known:
                raise ValueError(
                    f"The 'target' parameter has the unknown class {label!r}."
                    f"{closest(label, known)} The classes are "
                    f"{', '.join(map(repr, known.tolist()))}."
                )

    def chosen(self, scores: np.ndarray, predicted: np.ndarray, rows: slice):
        """The scores (n, k) of the targets of some photos, from (n, k, n_targets)."""
        labels = predicted if self.labels is None else self.labels[rows]
        known = getattr(self.head, "classes_", None)
        if known is None:
            labels = np.zeros(len(scores), int) if self.labels is None else labels
            columns = _outputs(labels, self.labels, scores.shape[2])
        else:
            columns = np.array([np.flatnonzero(known == label)[0] for label in labels])
        return scores[np.arange(len(scores)), :, columns], labels


def _outputs(labels, given, n_outputs: int):
    """Numbers of the outputs of a regressor; refuses those it does not have."""
    named = f"one of its {n_outputs} outputs, 0 to {n_outputs - 1}"
    if given is None and n_outputs > 1:
        raise ValueError(f"The 'target' parameter must name {named}. Got None instead.")
    wrong = [
        label for label in np.unique(labels).tolist() if label not in range(n_outputs)
    ]
    if wrong:
        raise ValueError(
            f"The 'target' parameter must name {named}. Got {wrong[0]!r} instead."
        )
    return labels.astype(int)


def scores_of(head, X) -> np.ndarray:
    """Scores (n, n_targets) of classes or outputs; the higher, the likelier."""
    if is_outlier_detector(head):
        return np.asarray(head.decision_function(X))[:, None]
    predicted = np.asarray(head.predict(X))
    if not is_classifier(head):
        return predicted.reshape(len(predicted), -1)
    if predicted.ndim > 1:
        raise ValueError(
            f"activation_maps explains one label for each image. {type(head).__name__} "
            f"predicts {predicted.shape[1]}; fit one classifier for each."
        )
    for method, read in CLASS_SCORES.items():
        if hasattr(head, method) and not (method == LOGS and changes_in_steps(head)):
            scores = read(np.asarray(getattr(head, method)(X)))
            if scores.shape[1] == len(head.classes_):  # and not one of each pair
                return scores
    return (predicted[:, None] == head.classes_).astype(float)


def _log_odds(logs: np.ndarray) -> np.ndarray:
    """Logarithms of odds: they still differ where probabilities are rounded to 1."""
    logs = np.where(np.isneginf(logs), LEAST_LOG, logs)
    others = [np.delete(logs, one, axis=1) for one in range(logs.shape[1])]
    return logs - np.stack([logsumexp(other, axis=1) for other in others], 1)


# What gives a score for each class, in order of preference. Trees and neighbours have
# probabilities of 0, without a logarithm.
LOGS = "predict_log_proba"
CLASS_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decision_function": by_class,
    LOGS: _log_odds,
    "predict_proba": np.asarray,
}
LEAST_LOG = -700.0  # of the smallest positive number
