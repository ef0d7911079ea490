"""activation_maps: the places of photos that predictions rest on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._composites import Composite, divide
from .._exceptions import MapWarning, warn_user
from .._images.recipe import InputSpec
from .._validation import take_rows
from .features import UnpooledFeatures
from .scores import Targets, scores_of
from .windows import Windows

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
        As `estimator` takes them.
    target : label, array-like of shape (n_images,) or None, default=None
        The class to explain, for all photos or for each of them; for a regressor of
        several outputs, the number of one. None means the class that is predicted.
    method : {"auto", "places"}, default="auto"
        What is left out at once. "auto" leaves out windows of a seventh of the side of
        the network's input, which slide over the photo, or single places where these
        are larger. "places" always leaves out single places of the finest layer, which
        gives finer maps of a linear head, and often flat ones of trees and neighbours.

    Returns
    -------
    maps : ndarray of shape (n_images, h, w)
        By how much the score of the target falls without each place; negative where it
        rises. The score is what `decision_function` returns for the class, or without
        one, `predict_proba`; for a regressor, the predicted number. The maps cover the
        input of the network, which may be a crop of the photo. A photo that cannot be
        read has a map of nan, with ``on_error="nan"``.

    Raises
    ------
    ValueError
        If a layer has no places, such as the class token of a vision transformer, or
        with ``pooling="flatten"``.

    Warns
    -----
    MapWarning
        If a map is flat, because no window changes the score.

    See Also
    --------
    ActivationMapDisplay : Draw the maps over the photos.

    Notes
    -----
    The features without a place are exact for all poolings, "max" leaves out places of
    which a window covers at least half. With a linear head on ``pooling="avg"``, the
    maps of single places are the class activation maps of [3]_, up to a factor and a
    shift for each photo. The maps of several layers are one map, with the places of the
    finest layer.

    A deep layer has coarse maps that hold much about the class; an earlier one has
    finer maps. Units of a deep layer see beyond their place, so a map shows roughly
    where the evidence is, and not the outline of an object.

    References
    ----------
    .. [1] Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
    .. [2] Desai, Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional
       Network via Gradient-free Localization", 2020.
    .. [3] Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.

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
    return explain(estimator, X, target, method).maps


@dataclass(frozen=True)
class Explained:
    """Maps of photos, with what they explain.

    Parameters
    ----------
    maps : ndarray of shape (n_images, h, w)
    labels : ndarray of shape (n_images,)
        The class or output that each map explains.
    scores : ndarray of shape (n_images,)
        Its score.
    composite : Composite
    step : UnpooledFeatures
        The first of its feature steps.
    images : Images
        The photos that it is given.
    """

    maps: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    composite: Composite
    step: UnpooledFeatures
    images: object


def explain(estimator, X, target, method: str) -> Explained:
    """Compute the maps of photos, some at a time."""
    if method not in METHODS:
        raise ValueError(
            f"The 'method' parameter of activation_maps must be 'auto' or 'places'. Got "
            f"{method!r} instead."
        )
    composite = divide(estimator)
    given = composite.images_of(X)
    steps = [UnpooledFeatures(features) for features in composite.features]
    _refuse_several_views(steps)
    images = [step.read(one) for step, one in zip(steps, given, strict=True)]
    windows = Windows.over(max(step.finest for step in steps), method)
    targets = Targets.of(composite.head, target, len(images[0]))
    alone = all(one is X for one in given)
    parts = [
        _explain_some(composite, X if not alone else None, rows, steps, images, windows, targets)
        for rows in _chunks(len(images[0]), steps, windows)
    ]
    maps, labels, scores = (np.concatenate(some) for some in zip(*parts, strict=True))
    _warn_of_flat(maps)
    return Explained(maps, labels, scores, composite, steps[0], images[0])
