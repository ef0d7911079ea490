"""Labels as numbers, how much each image counts, and which images are held out."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import compute_class_weight

OF_FIRST_FIT = "of the first fit. Fit a new classifier, or set warm_start=False."
OF_PARTIAL_FIT = "of partial_fit. Pass all labels that can occur in any call."
NOT_LABELS = (
    "The 'classes' parameter of partial_fit must be a list of labels of one type, "
    "without missing values. Got {classes!r} instead."
)


@dataclass(frozen=True)
class Labels:
    """The class of each image of a fit, and how much it counts.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted.
    targets : ndarray of int, shape (n_images,)
        Positions in `classes`.
    sample_weight : ndarray of shape (n_images,)
    class_weight : dict, "balanced" or None
    """

    classes: np.ndarray
    targets: np.ndarray
    sample_weight: np.ndarray
    class_weight: dict | str | None

    @classmethod
    def encode(cls, y, sample_weight, class_weight, classes, earlier) -> "Labels":
        """Labels as numbers.

        Parameters
        ----------
        y : ndarray of shape (n_images,)
        sample_weight : ndarray of shape (n_images,)
        class_weight : dict, "balanced" or None
        classes : array-like or None
            All classes, as the user gives them.
        earlier : ndarray or None
            Classes of the earlier fit that this one continues.
        """
        encoder = LabelEncoder().fit(_all_classes(y, classes, earlier))
        _check_classes(encoder.classes_, y, earlier is not None)
        targets = encoder.transform(y)
        return cls(encoder.classes_, targets, _at_most_1(sample_weight), class_weight)

    @cached_property
    def weights(self) -> np.ndarray:
        """Weight of each image in the loss.

        With "balanced", the weights of each class that has any have the same sum.
        """
        if self.class_weight == "balanced":
            sums = np.bincount(self.targets, self.sample_weight)
            return self.sample_weight / np.where(sums > 0, sums, 1)[self.targets]
        classes = self.classes
        of_class = compute_class_weight(self.class_weight, classes=classes, y=classes)
        weights = _at_most_1(of_class)[self.targets] * self.sample_weight
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.any()):
            raise ValueError(
                "The 'class_weight' parameter of FineTunedClassifier must give weights "
                "of at least 0, and leave some images with a weight above 0. Got "
                f"{self.class_weight!r} instead."
            )
        return weights

    @property
    def used(self) -> np.ndarray:
        """Rows of the images whose weight is not 0."""
        return np.flatnonzero(self.weights)

    def classes_without(self, rows) -> list:
        """Classes that lose their last image without the images of these rows."""
        kept = np.setdiff1d(self.used, rows)
        lost = np.setdiff1d(self.targets[self.used], self.targets[kept])
        return self.classes[lost].tolist()

    def without(self, rows) -> "Labels":
        """The same labels, where the images of these rows weigh nothing."""
        sample_weight = self.sample_weight.copy()
        sample_weight[rows] = 0
        return replace(self, sample_weight=sample_weight)


def _at_most_1(weights: np.ndarray) -> np.ndarray:
    """Weights divided by a power of two, so that no sum or product of them overflows.

    Only ratios of weights count, and these do not change by a bit.
    """
    return np.ldexp(weights, -np.frexp(weights.max())[1])


def _all_classes(y, classes, earlier):
    """Everything that may be a label in this fit."""
    if classes is None:
        return y if earlier is None else earlier
    given = _distinct(classes)
    if earlier is None:
        return given
    if not np.array_equal(given, earlier):
        first = earlier.tolist()
        raise ValueError(
            f"classes={given.tolist()} differ from those of the first call of "
            f"partial_fit, {first}. Leave the parameter out, or fit a new classifier."
        )
    return earlier


def _distinct(classes) -> np.ndarray:
    """The classes of partial_fit, sorted; refuses anything but a list of labels."""
    try:
        found = np.unique(labels := np.asarray(classes))
    except (TypeError, ValueError) as error:  # they cannot be sorted, or are ragged
        raise ValueError(NOT_LABELS.format(classes=classes)) from error
    is_missing = found.dtype.kind == "f" and bool(np.isnan(found).any())
    if labels.ndim != 1 or is_missing:
        raise ValueError(NOT_LABELS.format(classes=classes))
    return found


def _check_classes(classes: np.ndarray, y: np.ndarray, continues: bool) -> None:
    """Refuse a single class, and labels that are not among the classes."""
    if len(classes) < 2:
        raise ValueError(
            "FineTunedClassifier needs images of at least 2 classes. Got one class "
            f"only, {classes.tolist()[0]!r}."
        )
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(
            f"y has the labels {unknown[:5].tolist()}, which are not among the classes "
            f"{classes[:5].tolist()} {OF_FIRST_FIT if continues else OF_PARTIAL_FIT}"
        )


@dataclass(frozen=True)
class HoldOut:
    """Holds a share of the images out for early stopping, stratified by class.

    Parameters
    ----------
    fraction : float
    seed : int
    """

    fraction: float
    seed: int

    def split(
        self, targets: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the images to train on, and of those held out."""
        rows = np.arange(len(targets))
        n_held_out = int(np.ceil(self.fraction * len(rows)))
        present, counts = np.unique(targets, return_counts=True)
        if n_held_out < len(present) or counts.min() < 2:
            rare = classes.tolist()[present[counts.argmin()]]
            raise ValueError(
                f"early_stopping=True holds out {n_held_out} of {len(rows)} images, "
                f"which cannot show all {len(present)} classes (the rarest, {rare!r}, "
                f"has {counts.min()} images). Raise validation_fraction="
                f"{self.fraction:g}, give more images, or set early_stopping=False."
            )
        n_left = len(rows) - n_held_out
        if n_left < len(present):
            raise ValueError(
                f"early_stopping=True leaves {n_left} of {len(rows)} images to train "
                f"on, too few for {len(present)} classes. Lower validation_fraction="
                f"{self.fraction:g}, give more images, or set early_stopping=False."
            )
        return train_test_split(
            rows, test_size=n_held_out, stratify=targets, random_state=self.seed
        )
