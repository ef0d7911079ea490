"""TrainingHistoryDisplay: loss or accuracy of a fine-tuned classifier, by epoch."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._finetuning.classifier import FineTunedClassifier
from .base import Display


class TrainingHistoryDisplay(Display):
    """Loss or accuracy of a fine-tuned classifier, epoch by epoch.

    Use :meth:`from_estimator` to create one.

    Parameters
    ----------
    history : list of dict
        The `history_` attribute of a :class:`FineTunedClassifier`.
    metric : {"accuracy", "loss"}, default="accuracy"
        Metric to draw.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure that contains the axes.
    lines_ : list of matplotlib Line2D
        Curve of the training images, then of the held-out images, if any.

    Examples
    --------
    >>> from skdeepfeat import FineTunedClassifier, TrainingHistoryDisplay
    >>> from skdeepfeat import load_textures
    >>> textures = load_textures()
    >>> X, y = textures.data[::8], textures.target[::8]
    >>> clf = FineTunedClassifier(epochs=1, random_state=0).fit(X, y)
    >>> display = TrainingHistoryDisplay.from_estimator(clf)
    """

    def __init__(self, history, *, metric="accuracy"):
        self.history = history
        self.metric = metric

    @classmethod
    def from_estimator(cls, estimator, *, metric="accuracy", ax=None):
        """Draw the history of a fitted classifier.

        Parameters
        ----------
        estimator : FineTunedClassifier
            A fitted classifier.
        metric : {"accuracy", "loss"}, default="accuracy"
            Metric to draw.
        ax : matplotlib Axes, default=None
            Axes to draw on; None creates a new figure.

        Returns
        -------
        display : TrainingHistoryDisplay
            The display, already drawn.

        Raises
        ------
        TypeError
            If `estimator` is not a :class:`FineTunedClassifier`.
        NotFittedError
            If it is not fitted.
        ValueError
            If `metric` is not one of these.
        """
        if not isinstance(estimator, FineTunedClassifier):
            raise TypeError(
                "The 'estimator' parameter must be a fitted FineTunedClassifier. Got "
                f"{type(estimator).__name__} instead; for a pipeline, pass its step."
            )
        check_is_fitted(estimator)
        return cls(estimator.history_, metric=metric).plot(ax=ax)

    def _draw(self):
        metrics = ("accuracy", "loss")
        if self.metric not in metrics:
            raise ValueError(
                f"The 'metric' parameter must be one of {', '.join(metrics)}. Got "
                f"{self.metric!r} instead."
            )
        epochs = np.arange(1, len(self.history) + 1)
        for name, label in (
            (self.metric, "training"),
            (f"validation_{self.metric}", "held out"),
        ):
            if any(name in entry for entry in self.history):
                values = [entry.get(name, np.nan) for entry in self.history]
                self.lines_ += self.ax_.plot(epochs, values, marker="o", label=label)
        n_head = sum(entry["phase"] == "head" for entry in self.history)
        if 0 < n_head < len(self.history):
            self._divide(n_head + 0.5)
        self.ax_.set(xlabel="epoch", ylabel=self.metric)
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.ax_.legend()

    def _divide(self, place):
        """Mark the epoch from which the blocks learn together with the head."""
        self.ax_.axvline(place, color="grey", linestyle=":")
        for text, shift, side in (
            ("head alone", -6, "right"),
            ("head and blocks", 6, "left"),
        ):
            self.ax_.annotate(
                text,
                (place, 1.01),
                (shift, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                color="grey",
            )
