"""The head of a fine-tuned classifier alone, as a classifier of rows of features."""

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from .._backbones.records import Layer


def decision(scores: np.ndarray) -> np.ndarray:
    """Scores (n, n_classes) as `decision_function` returns them: (n,) for two classes,
    that of the second minus that of the first."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


class DetachedHead(ClassifierMixin, BaseEstimator):
    """Predicts as a fine-tuned classifier does, from what enters its head.

    Parameters
    ----------
    end : Layer
        The layer that enters the head.
    inner : torch.nn.Module or None
        The dense layers before the last one, without weights.
    weights : dict of str to ndarray
        The weights of the head.
    classes : ndarray of shape (n_classes,)
        Labels.
    """

    def __init__(self, end: Layer, inner, weights, classes):
        self.end = end
        self.inner = inner
        self.weights = weights
        self.classes = classes
        self.classes_ = classes

    def fit(self, X, y=None):
        """Do nothing: the head comes from a fitted classifier."""
        return self

    def _scores(self, X) -> np.ndarray:
        """Scores (n, n_classes)."""
        from .new_head import head_scores

        return head_scores(self.end, self.inner, self.weights, np.ascontiguousarray(X))

    def predict(self, X):
        """Labels (n,) of rows."""
        return self.classes[self._scores(X).argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities (n, n_classes) of rows."""
        return softmax(self._scores(X), axis=1)

    def decision_function(self, X):
        """Scores (n, n_classes), or (n,) for two classes."""
        return decision(self._scores(X))
