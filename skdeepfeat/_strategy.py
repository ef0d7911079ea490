"""Recommend a strategy of transfer learning for a set of images, by measuring."""

import inspect

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch

from ._choice import LayerScore, choose_layer
from ._exceptions import closest
from ._features import PretrainedCNNFeatures
from ._finetuning.classifier import FineTunedClassifier
from ._report import say
from ._validation import check_labels

LARGE = 200  # images per class, on average, from which tuning a network pays off

# (whether there are many images, whether they resemble those of the pretraining) →
# (strategy, reason).
STRATEGIES = {
    (False, True): (
        "head only",
        "there are few images, and the last layer suits them best: train only a new "
        "head",
    ),
    (True, True): (
        "fine-tune",
        "there are many images, similar to those of the pretraining: also tune "
        "the top blocks",
    ),
    (False, False): (
        "earlier layers",
        "there are few images, and an earlier layer suits them better than the last "
        "one: train a classifier on its features",
    ),
    (True, False): (
        "fine-tune most layers",
        "there are many images, unlike those of the pretraining: tune most of the "
        "network",
    ),
}


def recommend_strategy(
    X,
    y,
    *,
    backbone="mini",
    weights="default",
    random_state=0,
    verbose=1,
    **shared,
):
    """Measure which kind of transfer learning suits your images.

    A linear probe predicts each image from all others at every depth of the network,
    in one pass, as in :func:`rank_layers`. If the chosen layer is an earlier one that
    beats the last one by more than the standard error of their difference, the images
    are considered unlike those that the network was trained on. Together with the
    number of images per class, this distinguishes four cases [1]_.

    Parameters
    ----------
    X : sequence of n_images images
        Images, as in :class:`PretrainedCNNFeatures`.
    y : array-like of shape (n_images,)
        Labels, with at least 2 images of each of at least 2 classes.
    backbone : str or Backbone, default="mini"
        The network, as in :class:`PretrainedCNNFeatures`.
    weights : str, path or tuple, default="default"
        The weights, as in :class:`PretrainedCNNFeatures`.
    random_state : int, default=0
        Seed of the returned estimator.
    verbose : int, default=1
        Verbosity level. Above 0, print the explanation.
    **shared
        Other parameters of both :class:`PretrainedCNNFeatures` and
        :class:`FineTunedClassifier`, such as `image_shape`.

    Returns
    -------
    recommendation : Bunch
        The recommendation, with the following fields.

        strategy : str
            The strategy: "head only", "fine-tune", "earlier layers", or "fine-tune most
            layers".
        estimator : estimator
            An estimator that implements the strategy, not fitted.
        accuracy : dict of str to (float, float)
            Accuracy of the probe and its standard error, for each distinct layer.
        images_per_class : float
            Average number of images per class.
        explanation : str
            The measured accuracies and the recommendation, as text.

    Raises
    ------
    TypeError
        If one of the two estimators does not have a parameter in `shared`.
    ValueError
        If there are fewer than 2 classes, or fewer than 2 images of a class.

    See Also
    --------
    rank_layers : Compare the layers of several networks.
    FineTunedClassifier : Train a new head and the top of a network.

    References
    ----------
    .. [1] Yosinski, Clune, Bengio, Lipson, "How transferable are features in deep
       neural networks?", 2014.

    Examples
    --------
    >>> from skdeepfeat import load_textures, recommend_strategy
    >>> textures = load_textures()
    >>> X, y = textures.data[::4], textures.target[::4]
    >>> found = recommend_strategy(X, y, verbose=0)
    >>> found.strategy in ("head only", "earlier layers")
    True
    """
    _refuse_unshared(shared)
    y = np.unique(check_labels(FineTunedClassifier(), y), return_inverse=True)[1]
    counts = _images_per_class(y)
    parameters = {"backbone": backbone, "weights": weights, **shared}
    classifier = FineTunedClassifier(random_state=random_state, **parameters)
    unfreeze = _numbers_to_unfreeze(classifier)
    scores = _score_every_depth(X, y, parameters)
    best = choose_layer(scores)
    gain = scores[best].hits - scores["penultimate"].hits  # of the same images
    error = _standard_error(gain)
    similar = bool(gain.mean() <= error)
    large = bool(counts.mean() >= LARGE)
    name, why = STRATEGIES[large, similar]
    if name in unfreeze:
        estimator = classifier.set_params(unfreeze=unfreeze[name])
    else:
        estimator = _probe(PretrainedCNNFeatures(layer=best, **parameters))
    accuracy = _accuracies(scores)
    explanation = _explain(name, why, accuracy, best, gain.mean(), error, counts)
    if verbose:
        say(explanation)
    return Bunch(
        strategy=name,
        estimator=estimator,
        accuracy=accuracy,
        images_per_class=float(counts.mean()),
        explanation=explanation,
    )


def _refuse_unshared(names) -> None:
    """Refuse parameters that only one of the two estimators has, or none."""
    known, others = (
        inspect.signature(estimator).parameters
        for estimator in (PretrainedCNNFeatures, FineTunedClassifier)
    )
    allowed = sorted(known.keys() & others.keys())
    for name in names:
        if name not in allowed:
            raise TypeError(
                f"recommend_strategy has no {name!r} parameter.{closest(name, allowed)}"
                " It takes those of both PretrainedCNNFeatures and "
                f"FineTunedClassifier: {', '.join(allowed)}. It tries all layers."
            )


def _images_per_class(y) -> np.ndarray:
    """Number of images of each class; refuses classes too small to leave one out."""
    counts = np.bincount(y)
    if len(counts) < 2 or counts.min() < 2:
        raise ValueError(
            "recommend_strategy needs at least 2 classes with at least 2 images each. "
            f"Got {len(counts)} classes, the smallest with {counts.min()}."
        )
    return counts


def _standard_error(values) -> float:
    """Standard error of the mean."""
    return values.std(ddof=1) / np.sqrt(len(values))


def _accuracies(scores) -> dict[str, tuple[float, float]]:
    """The accuracy of each layer, and its standard error."""
    return {
        layer: (score.accuracy, _standard_error(score.hits))
        for layer, score in scores.items()
    }


def _probe(features):
    """A linear classifier with fixed settings, on standardised features."""
    head = LogisticRegression(C=0.01, max_iter=1000)
    return make_pipeline(features, StandardScaler(), head)


def _score_every_depth(X, y, parameters) -> dict[str, LayerScore]:
    """The score of each distinct layer, from early to late, with one network pass."""
    return PretrainedCNNFeatures(layer="auto", **parameters).score_layers(X, y)[1]


def _numbers_to_unfreeze(classifier: FineTunedClassifier) -> dict[str, int]:
    """How many blocks each strategy tunes; refuses what the classifier cannot be."""
    classifier._validate_params()
    n_blocks = classifier.count_blocks()
    return {
        "head only": 0,
        "fine-tune": min(2, n_blocks),
        "fine-tune most layers": max(min(1, n_blocks), n_blocks - 1),
    }


def _explain(name, why, accuracy, best, gain, error, counts) -> str:
    """The measured accuracies and the recommendation, as text."""
    lines = ["Accuracy of a linear probe by depth:"]
    for layer, (mean, deviation) in accuracy.items():
        mark = "  <- chosen" if layer == best else ""
        lines.append(f"  {layer:12} {mean:.3f} +- {deviation:.3f}{mark}")
    size = "many" if counts.mean() >= LARGE else "few"
    found = (
        f"The accuracy of {best!r} minus that of 'penultimate' is {gain:.3f} +- "
        f"{error:.3f}."
    )
    if best == "penultimate":
        found = "No layer is better than 'penultimate'."
    lines += [
        f"{counts.sum()} images in {len(counts)} classes, {counts.mean():.0f} each: "
        f"{size} (the limit is {LARGE}).",
        found,
        f"Strategy: {name}, because {why}.",
    ]
    return "\n".join(lines)
