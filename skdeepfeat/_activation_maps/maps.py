"""activation_maps: the places of photos that predictions rest on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._composites import as_array, best_of, divide
from .._exceptions import ImageWarning, MapWarning, warn_user
from .._validation import take_rows
from .features import UnpooledFeatures
from .masks import masks_over
from .scores import (
    Targets,
    changes_in_steps,
    check_predicts,
    numbers_of,
    score_each_class,
    scores_of,
)

METHODS = ("auto", "places")
AT_ONCE = 2**24  # numbers in memory


def activation_maps(estimator, X, *, target=None, method="auto"):
    """Maps of the places in photos that predictions rest on.

    The maps of features that the network computes before pooling are computed once for
    each photo. Places are left out of the pooling, one after another, and the fitted
    head predicts what is left. Its score falls most without the places that it rests
    on [1]_ [2]_. This works for every head, because nothing but its predictions is
    used.

    Parameters
    ----------
    estimator : estimator
        A fitted :class:`FineTunedClassifier`, or a fitted pipeline or another composite
        of scikit-learn that contains :class:`PretrainedCNNFeatures` and ends in a
        classifier, a regressor or an outlier detector. Columns beside the photos keep
        their values.
    X : sequence of n_images images
        In the form that `estimator` takes.
    target : label, array-like of shape (n_images,) or None, default=None
        The class to explain, for all photos or for each of them; for a regressor with
        several outputs, the index of one. None means the predicted class.
    method : {"auto", "places"}, default="auto"
        What is left out at once. "auto" leaves out squares of a seventh of the side of
        the network's input, which slide over the photo, or single places where these
        are larger. For heads whose scores change in steps, such as trees, neighbours
        and isotonic calibration, and for other poolings than "avg", which some places
        hardly change, it leaves out 200 random halves of the photo [4]_, which are
        always the same ones. "places" always leaves out single places of the finest
        layer, which gives finer maps for a linear head, and often flat ones for trees
        and neighbours.

    Returns
    -------
    maps : ndarray of shape (n_images, h, w)
        By how much the score of the target falls without each place, on average if
        random halves are left out; negative where it rises. The places are those of the
        finest layer, at most 14 along a side with ``method="auto"``. They cover the
        input of the network, which may be a crop of the photo. With
        ``on_error="nan"``, a photo that cannot be read has a map of nan.

        The score is what `decision_function` returns for the class; for support vector
        machines, one score for each class, even with
        ``decision_function_shape="ovo"``. Without a decision function, it is the
        logarithm of the odds of the class; so it is for quadratic discriminant analysis
        and nearest centroids, whose decision functions do not compare the classes. For
        trees, neighbours and heads without `predict_log_proba`, it is the probability,
        and for a regressor the predicted number.

    Raises
    ------
    ValueError
        If a layer has no places, such as the class token of a vision transformer; with
        ``pooling="flatten"``; or if `estimator` cannot predict new images or predicts
        several labels for each.

    Warns
    -----
    MapWarning
        If a map is flat, because the score never changes; or if it has nan, because
        the score is not finite.

    See Also
    --------
    ActivationMapDisplay : Draw the maps over the photos.

    Notes
    -----
    The features without a place are exact for all poolings; "max" leaves out the places
    of which a square covers at least half. With a linear head on ``pooling="avg"``, the
    maps of single places are the class activation maps of [3]_, up to a factor and a
    shift for each photo. Several layers give one map, with the places of the finest.

    A deep layer has coarse maps that reveal much about the class; an earlier one has
    finer maps. Units of a deep layer see beyond their place, so a map shows roughly
    where the evidence is, not the outline of an object.

    References
    ----------
    .. [1] Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
    .. [2] Desai, Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional
       Network via Gradient-free Localization", 2020.
    .. [3] Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
    .. [4] Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of
       Black-box Models", 2018.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skdeepfeat import PretrainedCNNFeatures, activation_maps, load_textures
    >>> textures = load_textures()
    >>> model = make_pipeline(PretrainedCNNFeatures(), LogisticRegression())
    >>> model = model.fit(textures.data[::8], textures.target[::8])
    >>> activation_maps(model, textures.data[:3]).shape
    (3, 4, 4)
    """
    return Explanation(estimator, X, target, method).explain().maps


@dataclass(frozen=True)
class Explained:
    """Maps of photos, with what they explain.

    Parameters
    ----------
    maps : ndarray of shape (n_images, h, w)
    labels : ndarray of shape (n_images,)
        The class or output that each map explains.
    values : ndarray of shape (n_images,)
        The probability of this class or the predicted number; nan for classifiers
        without probabilities.
    readable : ndarray of shape (n_images,), bool
        Which photos could be read.
    """

    maps: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    readable: np.ndarray


class Explanation:
    """What is needed to explain photos, some at a time.

    Parameters
    ----------
    estimator : estimator
    X : sequence of n_images images
    target, method : object
        As in :func:`activation_maps`.

    Attributes
    ----------
    composite : Composite
    steps : list of UnpooledFeatures
        Its feature steps.
    images : list of Images
        The photos that each of them is given.
    """

    def __init__(self, estimator, X, target, method: str):
        _check_method(method)
        self.composite = divide(estimator)
        check_predicts(best_of(estimator))
        score_each_class(self.composite.head)
        given = self.composite.images_of(X)
        self.steps = [UnpooledFeatures(step) for step in self.composite.features]
        _refuse_several_views(self.steps)
        self.images = [s.read(one) for s, one in zip(self.steps, given, strict=True)]
        self._columns = None if all(one is X for one in given) else X
        finest = max(step.finest for step in self.steps)
        smooth = not changes_in_steps(self.composite.head)
        smooth = smooth and all(step.averages for step in self.steps)
        self._masks = masks_over(finest, method, smooth)
        self._targets = Targets.of(self.composite.head, target, self.n_images)

    def photos(self) -> np.ndarray:
        """The photos (n, side, side, 3) as they enter the first network, from 0 to 1;
        white where they cannot be read."""
        step, images = self.steps[0], self.images[0]
        found = [step.pixels(images, row) for row in range(self.n_images)]
        return np.stack(found)

    @property
    def n_images(self) -> int:
        """Number of photos."""
        return len(self.images[0])

    def explain(self) -> Explained:
        """The maps of all photos."""
        parts = [self._some(rows) for rows in self._chunks()]
        found = Explained(*(np.concatenate(some) for some in zip(*parts, strict=True)))
        _warn_of_errors(self.steps[0].errors, self.n_images)
        _warn_of_flat(found.maps)
        _warn_of_no_score(found)
        return found

    def _chunks(self) -> Iterator[slice]:
        """Photos that are explained together."""
        numbers = sum(step.numbers(self._masks) for step in self.steps)
        n = max(1, AT_ONCE // numbers)
        for start in range(0, self.n_images, n):
            yield slice(start, min(start + n, self.n_images))

    def _some(self, rows: slice) -> tuple[np.ndarray, ...]:
        """Maps, labels, values and readability of some photos."""
        features = self._features(rows)
        readable = np.isfinite(features).all((1, 2))
        features[~readable] = 0
        head, (n, k, _) = self.composite.head, features.shape
        scores = scores_of(head, self._given(features, rows)).reshape(n, k, -1)
        given = self._given(features[:, :1], rows)
        predicted, numbers = as_array(head.predict(given)), numbers_of(head, given)
        chosen, labels = self._targets.chosen(scores, predicted, rows)
        falls = chosen[:, :1] - chosen[:, 1:]
        falls[~readable] = np.nan
        columns = self._targets.columns(labels)
        values = numbers[np.arange(n), columns] if numbers.size else np.full(n, np.nan)
        return self._masks.maps(falls), labels, values, readable

    def _features(self, rows: slice) -> np.ndarray:
        """Features (n, 1 + n_masks, width) of all steps, side by side."""
        found = [
            step.masked(images, rows.start, rows.stop, self._masks)
            for step, images in zip(self.steps, self.images, strict=True)
        ]
        return np.concatenate(found, 2)

    def _given(self, features: np.ndarray, rows: slice):
        """What to call the head with, so that it takes these features (n, k, width).

        Where it reads other columns too, each row of X is repeated.
        """
        n, k, width = features.shape
        flat = features.reshape(n * k, width)
        self.composite.give(flat)
        if self._columns is None:
            return flat
        return take_rows(self._columns, np.repeat(np.arange(rows.start, rows.stop), k))


def _check_method(method) -> None:
    """Refuse unknown methods."""
    if method not in METHODS:
        raise ValueError(
            "The 'method' parameter of activation_maps must be 'auto' or 'places'. Got "
            f"{method!r} instead."
        )


def _refuse_several_views(steps: list[UnpooledFeatures]) -> None:
    """Refuse feature steps that see different photos or different crops of them."""
    columns = sorted({name for step in steps for name in step.columns})
    if len(columns) > 1:
        raise ValueError(
            f"This estimator reads photos from the columns {', '.join(columns)}, and a "
            "map shows one photo. Explain a pipeline of one of these columns."
        )
    if len({step.view for step in steps}) > 1:
        raise ValueError(
            "The feature steps of this estimator see different crops of a photo, so "
            "their maps do not match. Set image_size, or use networks with the same "
            "preprocessing."
        )


def _warn_of_errors(errors: list[tuple], n_images: int) -> None:
    """Warn of photos that cannot be read, which have maps of nan."""
    if errors:
        row, source, reason = errors[0]
        warn_user(
            f"{len(errors)} of {n_images} photos could not be read; their maps are "
            f"nan. The first is row {row} ({source}): {reason}.",
            ImageWarning,
        )


def _warn_of_flat(maps: np.ndarray) -> None:
    """Warn of maps without any differences."""
    flat = np.flatnonzero(np.ptp(maps, (1, 2)) == 0)
    if len(flat):
        warn_user(
            f"The maps of {len(flat)} of {len(maps)} photos are flat ({_named(flat)}): "
            "leaving places out does not change the score of the head. Use a head with "
            "a smoother score, such as LogisticRegression, SVC or more trees, or "
            "method='auto'.",
            MapWarning,
        )


def _warn_of_no_score(found: Explained) -> None:
    """Warn of photos that the head gives no finite score."""
    undefined = ~np.isfinite(found.maps).all((1, 2))
    rows = np.flatnonzero(undefined & found.readable)
    if len(rows):
        warn_user(
            f"The maps of {len(rows)} of {len(found.maps)} photos have nan "
            f"({_named(rows)}): the head gives these photos, or some of their parts, a "
            "score that is nan or infinite. Scale the features, or use another head.",
            MapWarning,
        )


def _named(rows: np.ndarray) -> str:
    """The first of some rows."""
    return f"rows {', '.join(map(str, rows[:6]))}" + (", ..." if len(rows) > 6 else "")
